"""Ranks that step on their own: what they agree on, what a stop, a bad number and a checkpoint do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from convergence.local_rows import ROWS, run
from convergence.test_train_local import Job
from safetensors.torch import load_file
from torch import Tensor

from headrace.launch import RankFailed
from headrace.strategies import STRATEGIES
from headrace.strategies.compression import CompressionConfig
from headrace.strategies.local_sgd import LocalSGD, Rounds
from headrace.train.fit_config import FitConfig

LOCAL = {"name": "local_sgd", "steps": 4}


def job(**settings: Any) -> Job:
    settings = {"cfg": FitConfig(epochs=3, checkpoint_every=5, eval_every=7), "strategy": LOCAL} | settings
    return Job(**settings)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_learns_and_ends_with_one_model(name: str) -> None:
    """With its defaults; `run` compares the ranks' answers, the bits of their parameters among them."""
    found = run(job(strategy={"name": name}), ranks=2)
    assert found["metrics"]["auc"] > 0.75 and found["metrics"]["normalized_entropy"] < 0.9


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_stops_and_goes_on(name: str, tmp_path: Path) -> None:
    """To the end, every row once."""
    cfg = FitConfig(epochs=2, checkpoint_every=4)
    settings: dict[str, Any] = {"strategy": {"name": name}, "cfg": cfg}
    stopped = run(job(directory=tmp_path, stop_at=2, **settings), ranks=2)
    assert stopped["stopped"] == "asked" and 0 < stopped["step"] < 20
    found = run(job(directory=tmp_path, **settings), ranks=2)
    assert found["step"] == 20 and [audit["rows"] + audit["dropped"] for audit in found["audits"]] == [ROWS] * 2


def trained(folder: Path, ranks: int, **settings: Any) -> dict[str, Tensor]:
    """The parameters and buffers that a run ended with."""
    run(job(directory=folder, **settings), ranks=ranks)
    return load_file(max(folder.glob("step-*")) / "model.safetensors")


def test_rounds_of_one_step_are_all_reduce(tmp_path: Path) -> None:
    """With a rule without memory: the mean of the updates is the update of the mean."""
    settings: dict[str, Any] = {"dense": "sgd", "sparse": "sgd", "lrs": (0.1, 0.5), "cfg": FitConfig(epochs=2)}
    single = trained(tmp_path / "single", 8, strategy=LOCAL | {"steps": 1}, **settings)
    every = trained(tmp_path / "every", 8, strategy={"name": "allreduce"}, **settings)
    assert single.keys() == every.keys()
    for name, value in every.items():
        torch.testing.assert_close(single[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"growth": 1.5, "max_steps": 16},
        {"sync_steps": 10, "steps": 8},
        {"outer_lr": 0.7, "outer_momentum": 0.5, "nesterov": True},
    ],
    ids=["fixed", "growing", "post-local", "outer momentum"],
)
def test_learns(options: dict[str, Any]) -> None:
    metrics = run(job(strategy=LOCAL | options), ranks=2)["metrics"]
    assert metrics["auc"] > 0.75 and metrics["normalized_entropy"] < 0.9


def test_rounds_grow_to_their_longest_and_no_further() -> None:
    """Also where the power is no float any more."""
    rounds = Rounds(steps=3, growth=1.5, max_steps=16)
    assert [rounds.length(number) for number in (0, 1, 2, 3, 4, 5, 2000, 10**6)] == [3, 4, 6, 10, 15, 16, 16, 16]
    assert Rounds(steps=4).length(10**6) == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 4}, [3, 7, 9, 13, 17, 19, 23, 27, 29]),
        ({"steps": 3, "sync_steps": 12}, [*range(12), 14, 17, 19, 22, 25, 28, 29]),
        ({"steps": 2, "growth": 1.5, "max_steps": 8}, [1, 4, 8, 9, 17, 19, 27, 29]),  # 2, 3, 4, 6 cut, 8, 8 cut, 8
    ],
    ids=["fixed", "post-local", "growing"],
)
def test_ranks_hold_the_same_after_these_steps_and_no_other(
    options: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three epochs of ten steps, whose ends cut rounds short."""
    held: dict[int, list[bytes]] = {step: [] for step in range(30)}
    after = LocalSGD.on_parameters

    def noted(self: LocalSGD, params: dict[str, Tensor], step: int, meets: bool) -> None:
        after(self, params, step, meets)
        held[step].append(b"".join(param.numpy().tobytes() for param in params.values()))

    monkeypatch.setattr(LocalSGD, "on_parameters", noted)
    run(job(strategy={"name": "local_sgd"} | options), ranks=2)
    assert all(len(ranks) == 2 for ranks in held.values())
    assert [step for step, ranks in held.items() if ranks[0] == ranks[1]] == expected


OWN = sorted(name for name, spec in STRATEGIES.items() if not spec.synchronous and not spec.remote)


def own(name: str, **options: Any) -> dict[str, Any]:
    """A strategy whose ranks hear of each other in every fourth step."""
    told = "told_steps" if "told_steps" in STRATEGIES[name].defaults else "steps"
    return {"name": name, told: 4} | options


@pytest.mark.parametrize("name", OWN)
def test_one_rank_is_plain_training(name: str) -> None:
    plain, alone = (run(job(strategy=s)) for s in ({"name": "allreduce"}, own(name)))
    assert alone["metrics"]["logloss"] == pytest.approx(plain["metrics"]["logloss"], rel=1e-4)
    if not STRATEGIES[name].stateful or name == "gossip":  # the others go by changes, which are rounded
        assert alone["sha"] == plain["sha"]


def test_compressed_gossip_learns_with_four_ranks() -> None:
    settings: dict[str, Any] = {"strategy": own("gossip"), "compression": CompressionConfig(name="topk", min_numel=64)}
    found = run(job(**settings), ranks=4)
    assert found["metrics"]["auc"] > 0.75 and found["metrics"]["normalized_entropy"] < 0.9 and found["halved"]


def test_gossip_of_all_with_all_is_all_reduce() -> None:
    """With a rule without memory; rows that only some ranks touch keep their mean, so evaluation is the same too."""
    settings: dict[str, Any] = {"dense": "sgd", "sparse": "sgd", "lrs": (0.1, 0.0), "cfg": FitConfig(epochs=2)}
    everyone = own("gossip", graph="complete")
    single, every = (run(job(strategy=s, **settings), ranks=4) for s in (everyone, {"name": "allreduce"}))
    assert single["metrics"]["logloss"] == pytest.approx(every["metrics"]["logloss"], rel=1e-6)


RESUMED = [
    *((name, "none", {}) for name in OWN if STRATEGIES[name].repeatable),
    ("local_sgd", "bf16", {"outer_momentum": 0.3}),
    ("gossip", "topk", {"steps": 2}),
    ("gossip", "none", {"graph": "random", "seed": 3}),
]


@pytest.mark.parametrize(("name", "codec", "options"), RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, codec: str, options: dict[str, Any], tmp_path: Path) -> None:
    """From the checkpoint of a stop, and from one between the steps that all ranks meet in."""
    settings: dict[str, Any] = {
        "strategy": own(name, **options), "compression": CompressionConfig(name=codec, min_numel=64),
        "cfg": FitConfig(epochs=2, checkpoint_every=5, eval_every=7),
    }  # fmt: skip
    whole = run(job(**settings), ranks=3)
    stopped = run(job(directory=tmp_path, stop_at=6, **settings), ranks=3)
    assert stopped["stopped"] == "asked" and 5 < stopped["step"] < whole["step"] and stopped["sha"] != whole["sha"]
    assert run(job(directory=tmp_path, **settings), ranks=3)["sha"] == whole["sha"]
    for path in tmp_path.glob("step-*"):
        if path.name > "step-000000005":
            path.rename(tmp_path / f"away-{path.name}")
    assert run(job(directory=tmp_path, **settings), ranks=3)["sha"] == whole["sha"]


def test_hogwild_keeps_one_copy_and_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"strategy": own("hogwild"), "directory": tmp_path}
    assert run(job(stop_at=6, **settings), ranks=2)["stopped"] == "asked"
    newest = max(tmp_path.glob("step-*"))
    saved, model = (load_file(newest / f"{name}.safetensors") for name in ("rank-1", "model"))
    tables = [value.shape for value in model.values()]
    assert not [key for key in saved if key.startswith("t/model")] and tables
    found = run(job(**settings), ranks=2)
    assert found["step"] == 30 and found["metrics"]["auc"] > 0.75


@pytest.mark.parametrize("name", OWN)
def test_a_rank_with_a_bad_number_leaves_its_own_step_out(name: str) -> None:
    events: list[dict[str, Any]] = []
    cfg = FitConfig(epochs=1, on_nonfinite="skip", log_every=1)
    found = run(job(cfg=cfg, strategy=own(name), source={"spoil": (2, 0)}), ranks=2, events=events)
    told = [event for event in events if event["type"] == "nonfinite"]
    assert found["skipped"] == 1 and [event["ranks"] for event in told] == [[0]]
    losses = {event["step"]: event.get("loss") for event in events if event["type"] == "step"}
    assert losses[3] is None and losses[2] > 0, "no figure of a step that rank 0 left out"
    assert told[0]["step"] == 3, "they hear of it at the end of the round"


@pytest.mark.parametrize("name", OWN)
def test_a_bad_number_stops_all_ranks_in_the_round(name: str) -> None:
    with pytest.raises(RankFailed, match="not a finite number in step 3 on rank 1"):
        run(job(strategy=own(name), source={"spoil": (2, 1)}), ranks=2)


def test_who_resumes_between_meetings_still_hears_of_a_bad_number(tmp_path: Path) -> None:
    cfg = FitConfig(epochs=1, on_nonfinite="skip", checkpoint_every=3)
    settings: dict[str, Any] = {"cfg": cfg, "strategy": own("gossip"), "source": {"spoil": (1, 1)}}
    assert run(job(directory=tmp_path, **settings), ranks=2)["skipped"] == 1
    for path in tmp_path.glob("step-*"):
        if path.name > "step-000000003":
            path.rename(tmp_path / f"away-{path.name}")
    events: list[dict[str, Any]] = []
    assert run(job(directory=tmp_path, **settings), ranks=2, events=events)["skipped"] == 1
    assert [event["ranks"] for event in events if event["type"] == "nonfinite"] == [[1]]
