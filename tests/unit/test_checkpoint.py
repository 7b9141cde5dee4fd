"""Checkpoints: whole or not there, damage found before loading, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace.comm.local import LocalGroup
from headrace.train import checkpoint
from headrace.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore, load, verify

ALONE = LocalGroup(1).collective(0)


def sample(step: int = 1, rows: int = 10) -> Checkpoint:
    return Checkpoint(
        model={"w": torch.arange(rows, dtype=torch.float32) + step, "b": torch.tensor(0.5)},
        optimizer=[
            {
                "state": {0: {"step": step, "m": torch.ones(3) * step}},
                "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
            }
        ],
        rank={"strategy": {}, "random": torch.zeros(4, dtype=torch.uint8)},
        state={"cursor": {"step": step, "keys": 2**64 - 1}},
    )


def saved(tmp_path: Path, steps: tuple[int, ...] = (1, 2)) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in steps:
        store.save(sample(step), step, ALONE)
    return store


def test_round_trip_and_keep(tmp_path: Path) -> None:
    store = saved(tmp_path, (1, 2, 3))
    assert store.names() == ["step-000000003", "step-000000002"]
    assert sorted(os.listdir(store.directory)) == sorted(store.names())
    path = store.latest(lambda *_: pytest.fail("none is damaged"))
    assert path is not None
    back, wanted = load(path, 0), sample(3)
    assert back.state == wanted.state
    assert torch.equal(back.model["w"], wanted.model["w"])
    assert back.model["b"].shape == ()
    state = back.optimizer[0]["state"]
    assert (state[0]["step"], state[0]["m"].tolist()) == (3, [3.0] * 3)
    assert back.optimizer[0]["param_groups"] == [{"lr": 0.1, "betas": [0.9, 0.99]}]
    assert load(path, 7).rank == {}


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    store = saved(tmp_path, (1,))
    store.save(sample(5), 1, ALONE)
    assert load(store.directory / "step-000000001", 0).state["cursor"]["step"] == 5


def test_a_newer_damaged_one_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    store.save(sample(9), 9, ALONE)
    cut(store.directory / "step-000000009")
    for step in (3, 4):  # gone on from before step 3
        store.save(sample(step), step, ALONE)
    good = store.latest(lambda *_: None)
    assert good is not None
    assert load(good, 0).state["cursor"]["step"] == 4
    assert store.names() == ["step-000000009", "step-000000004"]


def cut(path: Path) -> None:
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(50)


def flip(name: str, place: int) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[place] ^= 4
        (path / name).write_bytes(bytes(data))

    return act


def lose(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


def plant_pickle(path: Path) -> None:
    (path / "model.pt").write_bytes(pickle.dumps(print))


def link(path: Path) -> None:
    (path / "state.json").rename(path.parent / "elsewhere.json")
    (path / "state.json").symlink_to(path.parent / "elsewhere.json")


def hostile_name(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../../etc/passwd"] = {"bytes": 1, "sha256": "0"}
    (path / "manifest.json").write_text(json.dumps(manifest))


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def deep_json(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 100_000)


DAMAGE = {
    "cut": cut,
    "bit of the model": flip("model.safetensors", -3),
    "bit of the state": flip("state.json", 10),
    "bit of the manifest": flip("manifest.json", 60),
    "lost file": lose,
    "pickle planted": plant_pickle,
    "link": link,
    "hostile name": hostile_name,
    "killed while saving": no_manifest,
    "deep JSON": deep_json,
}


@pytest.mark.parametrize("damage", list(DAMAGE.values()), ids=list(DAMAGE))
def test_damage_is_found_named_and_the_one_before_used(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = saved(tmp_path)
    damage(store.directory / "step-000000002")
    told: list[tuple[str, str]] = []
    assert store.latest(lambda path, why: told.append((path, why))) == store.directory / "step-000000001"
    assert [Path(path).name for path, _ in told] == ["step-000000002"]
    with pytest.raises(CheckpointError, match="step-000000002"):
        load(store.directory / "step-000000002", 0)


def test_every_flipped_bit_of_the_manifest_is_found_or_harmless(tmp_path: Path) -> None:
    store = saved(tmp_path, (1,))
    path = store.directory / "step-000000001"
    whole = (path / "manifest.json").read_bytes()
    for place in range(0, len(whole), 3):
        flip("manifest.json", place)(path)
        try:
            verify(path)
        except CheckpointError:
            pass
        else:  # whitespace or a key that nobody reads: the files themselves are proved by their sums
            assert load(path, 0).state == sample(1).state
        (path / "manifest.json").write_bytes(whole)


def test_wrong_types_with_right_checksums_are_refused(tmp_path: Path) -> None:
    store = saved(tmp_path, (1,))
    path = store.directory / "step-000000001"
    (path / "state.json").write_text('{"run": 3}')
    entry = {"bytes": (path / "state.json").stat().st_size, "sha256": checkpoint._sha256(path / "state.json")}
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = entry
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not one of this format"):
        load(path, 0)


DISK_FULL = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_checkpoint import ALONE, sample
from headrace.train.checkpoint import CheckpointError, CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    store.save(sample(2, rows=50_000), 2, ALONE)
except CheckpointError as error:
    print(error)
    sys.exit(7)
"""


def test_disk_full_leaves_the_last_checkpoint_and_says_so(tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk: writes fail half way in the same way."""
    store = saved(tmp_path, (1,))
    here = str(Path(__file__).parent)
    ended = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(store.directory), here],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 7, ended.stderr
    assert "could not write a checkpoint" in ended.stdout
    assert "the last good checkpoint is step-000000001" in ended.stdout
    assert store.latest(lambda *_: pytest.fail("damaged")) == store.directory / "step-000000001"
    store.save(sample(3), 3, ALONE)
    assert store.names() == ["step-000000003", "step-000000001"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000
