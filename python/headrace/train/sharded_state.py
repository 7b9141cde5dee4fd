"""The rows that one rank alone has, and what its optimizer keeps of them, in checkpoints.

A rank's part has them under "shards", as {"model": {parameter: rows}, "optimizer": {part: its state}}; what all ranks
have alike does not. For another number of ranks they are dealt anew from all ranks' parts, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from headrace.optim import Combined, Optimizer
from headrace.parallel.base import Parallelism
from headrace.parallel.dealing import Dealing, dealt_anew
from headrace.train.checkpoint import StoredTensor, parts_of_ranks

SHARDS = "shards"


def parts_with(names: Mapping[str, Tensor], optimizer: Optimizer) -> list[str]:
    """Parts of an optimizer that hold some parameters, and hold no others.

    Raises:
        AssertionError: the optimizer is not one of parts, or a part holds others too.
    """
    wanted, found = {id(param) for param in names.values()}, []
    assert isinstance(optimizer, Combined), "rows that a rank has for itself need an optimizer of their own"
    for part, rule in optimizer.parts.items():
        held = {id(param) for group in rule.param_groups for param in group["params"]}
        assert not held & wanted or held <= wanted, f"optimizer part {part} holds more than rows of this rank"
        if held & wanted:
            found.append(part)
    return found


def cut(model: dict[str, Any], optimizer: dict[str, Any], names: Sequence[str], parts: Sequence[str]) -> dict[str, Any]:
    """Take out of the states of model and optimizer what this rank alone has."""
    state = optimizer["parts"]
    return {"model": {name: model.pop(name) for name in names}, "optimizer": {part: state.pop(part) for part in parts}}


def put_back(model: dict[str, Any], optimizer: dict[str, Any], shards: Mapping[str, Any]) -> None:
    """Undo `cut`.

    Raises:
        ValueError: there is nothing to put back.
    """
    if set(shards) != {"model", "optimizer"}:
        raise ValueError("it has no rows of single ranks: tables were not sharded then")
    model |= shards["model"]
    optimizer["parts"] = optimizer["parts"] | shards["optimizer"]


def dealt(path: Path, parallel: Parallelism, rank: int, size: int) -> dict[str, Any]:
    """The shards of a rank of `size`, out of a checkpoint of any number of ranks.

    Raises:
        CheckpointError: its parts do not fit together, or are of other tables.
    """
    (rows,) = {parallel.rows(name) for name in parallel.names}
    to = Dealing(rows, rank, size)
    with parts_of_ranks(path) as parts:
        was = len(parts)
        trees = [part[SHARDS] for part in parts]
        made: dict[str, Any] = _anew(trees[: min(was, rows)], was, to)
    return made


def _anew(trees: Sequence[Any], was: int, to: Dealing) -> Any:
    """Rows dealt anew; what is no row is the same on all ranks."""
    first = trees[0]
    if isinstance(first, StoredTensor):
        return dealt_anew(trees, was, to) if first.shape else first.whole()
    if isinstance(first, Mapping):
        _check_alike([set(tree) for tree in trees])
        return {key: _anew([tree[key] for tree in trees], was, to) for key in first}
    if isinstance(first, list):
        _check_alike([len(tree) for tree in trees])
        return [_anew([tree[i] for tree in trees], was, to) for i in range(len(first))]
    _check_alike(trees)
    return first


def _check_alike(kept: Sequence[Any]) -> None:
    if any(each != kept[0] for each in kept):
        raise ValueError(f"ranks kept {kept[0]!r} and others of what all have alike")
