"""In which order the stages of a pipeline take the micro-batches of a step, as pure data.

    gpipe        stage s of S:  F_0 ... F_{M-1}  B_0 ... B_{M-1}  U
    1f1b_flush                  F_0 ... F_{w-1}  F_w B_0  F_{w+1} B_1 ...  B_{M-w} ... B_{M-1}  U       w = S - 1 - s
    1f1b                        the same order, U after every `group` backward passes: no flush, stale weights

Forward m of stage s waits for forward m of s - 1, backward m for backward m of s + 1. With equal times a pipeline is
idle for a share (S - 1) / (M + S - 1) of a step; 1f1b holds activations of S - s micro-batches at most, GPipe of M.
Under 1f1b forward m of stage s sees the weights of floor(max(0, m - w) / group) updates, update t makes

    w_{t+1} = w_t - lr grad f(w^(0)_{t-S+1}, ..., w^(S-2)_{t-1}, w^(S-1)_t)                              (group = 1)

with weight stashing; with vertical sync all stages see what the first one does: floor(max(0, m - S + 1) / group).

References: Y. Huang et al., "GPipe: efficient training of giant neural networks using pipeline parallelism", NeurIPS
2019, figure 2; D. Narayanan et al., "PipeDream: generalized pipeline parallelism for DNN training", SOSP 2019, section
3.2 (1F1B), 3.3 (weight stashing, vertical sync); D. Narayanan et al., "Memory-efficient pipeline-parallel DNN
training", ICML 2021 (PipeDream-Flush). Backward passes of gpipe go in the order of micro-batches instead of the
reverse: gradients are then added up as under 1f1b_flush, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from headrace.options import known

FLUSHES = "flushes"  # one update a step, when all micro-batches are through: gradients are those of plain training
BOUNDED = "bounded"  # activations of at most S - s micro-batches are held in stage s, however many there are
TRAITS = (FLUSHES, BOUNDED)


class Kind(StrEnum):
    """What a stage does."""

    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"


class Action(NamedTuple):
    """One thing a stage does.

    Args:
        kind: what.
        micro_batch: with which; of an update, the last one whose gradient is in it.
    """

    kind: Kind
    micro_batch: int


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """One entry of SCHEDULES.

    Args:
        ahead: `ahead(stages, stage, micro_batches)`: micro-batches that a stage takes forward before its first backward
            pass, besides the one that goes backward.
        paper: the reference.
        use: when to choose it.
        traits: of TRAITS; tests and checks go by them, never by names.
    """

    ahead: Callable[[int, int, int], int]
    paper: str
    use: str
    traits: frozenset[str]


def _all(stages: int, stage: int, micro_batches: int) -> int:
    return micro_batches


def _until_the_last(stages: int, stage: int, micro_batches: int) -> int:
    return stages - 1 - stage


SCHEDULES: dict[str, ScheduleSpec] = {
    "gpipe": ScheduleSpec(
        ahead=_all,
        paper="Huang et al. 2019",
        use="few micro-batches; the simplest order",
        traits=frozenset({FLUSHES}),
    ),
    "1f1b_flush": ScheduleSpec(
        ahead=_until_the_last,
        paper="Narayanan et al. 2021",
        use="the default: gradients of plain training, memory that does not grow with micro-batches",
        traits=frozenset({FLUSHES, BOUNDED}),
    ),
    "1f1b": ScheduleSpec(
        ahead=_until_the_last,
        paper="Narayanan et al. 2019",
        use="no idle time between updates, at the price of stale weights and of stashing them",
        traits=frozenset({BOUNDED}),
    ),
}  # fmt: skip


def schedule(name: str, stages: int, micro_batches: int, group: int = 1) -> list[list[Action]]:
    """What every stage does in a step that begins and ends with an empty pipeline.

    Args:
        name: a key of SCHEDULES.
        stages: S.
        micro_batches: M; without trait flushes a multiple of `group`.
        group: micro-batches an update, without trait flushes.

    Raises:
        UserError: there is no schedule of that name.
    """
    return [list(actions(name, stages, stage, micro_batches, group)) for stage in range(stages)]


def actions(
    name: str, stages: int, stage: int, micro_batches: int, group: int = 1, *, first: int = 0, drain: bool = True
) -> Iterator[Action]:
    """What one stage does with `micro_batches` more, of which `first` is the number of the first.

    Args:
        drain: go on until the pipeline is empty; False: leave micro-batches under way, for the next call.
        name, stages, micro_batches, group: see `schedule`; stage: which, from 0.
    """
    known("schedule", name, SCHEDULES)
    spec = SCHEDULES[name]
    flushes = FLUSHES in spec.traits
    assert stages > stage >= 0 and micro_batches > 0 and not (flushes and (first or not drain))
    ahead, end = spec.ahead(stages, stage, micro_batches), first + micro_batches
    every = micro_batches if flushes else group
    for number in range(first, end):
        yield Action(Kind.FORWARD, number)
        if number >= ahead:
            yield from _backward(number - ahead, every)
    if drain:
        for number in range(max(0, end - ahead), end):
            yield from _backward(number, every)


def _backward(number: int, every: int) -> Iterator[Action]:
    yield Action(Kind.BACKWARD, number)
    if (number + 1) % every == 0:
        yield Action(Kind.UPDATE, number)


def version(stages: int, stage: int, micro_batch: int, group: int = 1, vertical_sync: bool = False) -> int:
    """Updates that the weights have seen which forward `micro_batch` of a stage uses, without trait flushes."""
    return max(0, micro_batch - (stages - 1 - (0 if vertical_sync else stage))) // group


def held(done: Sequence[Action]) -> int:
    """Most micro-batches whose activations a stage holds at a time."""
    most = now = 0
    for action in done:
        now += {Kind.FORWARD: 1, Kind.BACKWARD: -1}.get(action.kind, 0)
        most = max(most, now)
    return most


def idle_share(plan: Sequence[Sequence[Action]], forward: float = 1.0, backward: float = 2.0) -> float:
    """Share of the stages' time that they wait (the bubble), when passes take equal times in all and updates none."""
    times = finish_times(plan, forward, backward)
    busy = forward * sum(kind is Kind.FORWARD for _, (kind, _) in times)
    busy += backward * sum(kind is Kind.BACKWARD for _, (kind, _) in times)
    return 1.0 - busy / (len(plan) * max(times.values()))


def finish_times(
    plan: Sequence[Sequence[Action]], forward: float = 1.0, backward: float = 2.0
) -> dict[tuple[int, Action], float]:
    """When every stage is through with every action, messages taking no time.

    Raises:
        ValueError: stages wait for each other for ever.
    """
    cost = {Kind.FORWARD: forward, Kind.BACKWARD: backward, Kind.UPDATE: 0.0}
    ends: dict[tuple[int, Action], float] = {}
    at, clock = [0] * len(plan), [0.0] * len(plan)
    while any(place < len(done) for place, done in zip(at, plan, strict=True)):
        before = list(at)
        for stage, done in enumerate(plan):
            while at[stage] < len(done) and (needs := _needs(stage, done[at[stage]], len(plan))) <= ends.keys():
                action = done[at[stage]]
                clock[stage] = max([clock[stage], *(ends[need] for need in needs)]) + cost[action.kind]
                ends[stage, action] = clock[stage]
                at[stage] += 1
        if at == before:
            raise ValueError(f"stages wait for each other for ever after {at} actions")
    return ends


def _needs(stage: int, action: Action, stages: int) -> set[tuple[int, Action]]:
    """What neighbours must have done before."""
    neighbour = {Kind.FORWARD: stage - 1, Kind.BACKWARD: stage + 1}.get(action.kind, -1)
    return {(neighbour, action)} if 0 <= neighbour < stages else set()
