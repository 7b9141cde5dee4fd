"""Hogwild: updates of all ranks arrive in one copy, by threads and by processes; memory that leaves no file behind."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.collective_exam import on_ranks
from contract.hogwild_rank import ROWS, UPDATES, write_rows
from torch import nn

from headrace.comm import LocalCollective, LocalGroup
from headrace.errors import UserError
from headrace.strategies import REDUCERS, create, shared_memory

TESTS = Path(__file__).parent.parent


def whole(size: int) -> list[list[float]]:
    """The table when nothing was lost."""
    return [[UPDATES * (1.0 + row % size)] * 2 for row in range(ROWS)]


def made(c: Any, directory: Path) -> Any:
    return create("hogwild", REDUCERS["ordered"].factory(), c, directory=str(directory))


def refused(size: int, directory: Callable[[int], Path]) -> list[UserError]:
    """What every rank is told when they begin."""

    def fn(c: LocalCollective) -> UserError:
        with pytest.raises(UserError) as caught:
            made(c, directory(c.rank)).begin({"w": nn.Parameter(torch.zeros(9))})
        return caught.value

    return on_ranks(size, fn)


@pytest.mark.parametrize("size", [1, 4])
def test_disjoint_rows_lose_nothing(size: int, tmp_path: Path) -> None:
    assert on_ranks(size, lambda c: write_rows(c, directory=str(tmp_path), told_steps=7)) == [whole(size)] * size
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(960)  # two starts of torch: a busy machine takes minutes
def test_two_processes_share_one_copy(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    ranks = [
        subprocess.Popen(
            [sys.executable, TESTS / "contract" / "hogwild_rank.py", str(rank), "2", tmp_path / "meeting"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "python"), str(TESTS)])},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=900) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    answers = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert [answer["rows"] for answer in answers] == [whole(2)] * 2
    first, second = (answer["trained"] for answer in answers)
    assert first == second and first["metrics"]["normalized_entropy"] < 0.95 and first["step"] == 20
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("headrace-")]


def test_parameters_are_rank_0s_and_keep_their_values_afterwards(tmp_path: Path) -> None:
    def fn(c: LocalCollective) -> tuple[bool, list[float], bool]:
        params = {"a": nn.Parameter(torch.full((3,), float(c.rank))), "none": nn.Parameter(torch.zeros(0, 4)),
                  "b": nn.Parameter(torch.full((2, 2), 5.0, dtype=torch.float64))}  # fmt: skip
        strategy = made(c, tmp_path)
        strategy.begin(params)
        with torch.no_grad():
            params["a"][c.rank] += 1
        strategy.finish({})
        aligned = all(p.data_ptr() % 64 == 0 for p in params.values() if p.numel())
        shared = params["a"].data_ptr()
        c.barrier()
        strategy.close()
        return aligned, params["a"].tolist(), params["a"].data_ptr() != shared

    assert on_ranks(3, fn) == [(True, [1.0, 1.0, 1.0], True)] * 3


def test_the_file_is_the_users_own_and_gone_at_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    class Looking:
        """Looks at the directory while ranks tell each other that they have opened the file."""

        rank, size = 0, 1

        def allgather_object(self, value: Any) -> list[Any]:
            for path in tmp_path.iterdir():
                seen.append((path.name, stat.S_IMODE(path.stat().st_mode), path.stat().st_size))
            return [value]

    memory = shared_memory.shared(Looking(), 4096, str(tmp_path))  # type: ignore[arg-type]
    assert len(memory) == 4096 and not list(tmp_path.iterdir())
    assert len({name for name, *_ in seen}) == 1 and {mode for _, mode, _ in seen} == {0o600}
    assert shared_memory._NAME.fullmatch(seen[0][0])


def test_ranks_that_do_not_see_it_are_on_another_host(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    for error in refused(3, lambda rank: tmp_path / "other" if rank == 1 else tmp_path):
        assert "another host" in error.problem and "rank 1" in error.problem
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_directory_that_hosts_share_is_no_memory_that_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = itertools.count()
    monkeypatch.setattr(shared_memory, "_kernel", lambda: str(next(hosts)))
    for error in refused(2, lambda rank: tmp_path):
        assert "on another host than rank 0" in error.problem and "gossip" in error.remedy
    assert not list(tmp_path.iterdir())


def test_no_room_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for error in refused(2, lambda rank: tmp_path):
        assert "No space" in error.problem and "--strategy.directory" in error.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["link", "size", "name"])
def test_only_the_file_that_was_made_is_opened(kind: str, tmp_path: Path) -> None:
    name = "headrace-" + "0" * 32
    (tmp_path / "target").write_bytes(bytes(64))
    if kind == "link":
        (tmp_path / name).symlink_to(tmp_path / "target")
    else:
        (tmp_path / name).write_bytes(bytes(64 if kind == "name" else 32))
    with pytest.raises(OSError, match=r"link|symbolic|not the file|no name"):
        shared_memory._opened(tmp_path, "../target" if kind == "name" else name, 64)


def test_a_gpu_has_no_memory_to_share() -> None:
    strategy = made(LocalGroup(1).collective(0), Path())
    with pytest.raises(UserError, match="is on meta"):
        strategy.begin({"w": nn.Parameter(torch.zeros(2, device="meta"))})
