"""What is begun anew where a run goes on with another number of ranks: all that its checkpoint keeps for every rank by
itself, but for rows of sharded tables, which are dealt anew.

States of strategies and reducers are known by their keys, as where they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from headrace.train.checkpoint import StoredTensor, parts_of_ranks

_OF_REDUCERS = frozenset({"units", "hosts", "dense"})  # a state with one of them is a reducer's: no strategy's own
_WITHIN = ("reducer", "compressed", "pushes", "between", "dense")  # where the states of others lie in a state


def begun_anew(path: Path) -> str:
    """In words for people, what of a checkpoint does not go on; nothing that is not in it.

    Raises:
        CheckpointError: it is not a checkpoint of this format.
    """
    with parts_of_ranks(path) as parts:
        states = [part.get("strategy", {}) for part in parts]
        reducers = [each for state in states for each in _reducers(state)]
        found = {
            "memory of compression": any(_tensors(each.get("units")) for each in reducers),
            "the codecs chosen by layer": any(each.get("chosen") for each in reducers),
            "the strategy's state": any(state and not _OF_REDUCERS & set(state) for state in states),
            "random state": any("random" in part for part in parts),
            "all ranks' optimizers but the first's": any("optimizer" in part for part in parts[1:]),
            "the servers' optimizers": any(state.get("shard") for state in states),
        }
    return ", ".join(what for what, there in found.items() if there)


def _reducers(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A state, and those within it."""
    yield state
    for key in _WITHIN:
        if isinstance(within := state.get(key), Mapping):
            yield from _reducers(within)


def _tensors(units: Any) -> bool:
    """Whether there is a tensor in what is remembered of units: draws of codecs are numbers."""
    if isinstance(units, Mapping):
        return any(_tensors(each) for each in units.values())
    return isinstance(units, Tensor | StoredTensor)
