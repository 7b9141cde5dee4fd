"""What the study of exchange compares: cells, each a codec with or without feedback, or a strategy, at some ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from headrace.strategies import STRATEGIES

BASE = 2  # ranks of the learning rate's choice and of most codecs
BOTH = ("criteo", "cifar10")
CRITEO_1M = "criteo_1m"
NONE, EF, EF21, OWN = "none", "ef", "ef21", "own"
# Parts of the study in the order in which they run; each with all its seeds before the next begins.
FIRST, STEPS, CODECS, RANKS, LONGER, RATES, LARGE = range(7)
JITTER = 0.3  # of steps' times where ranks do not wait for each other: see bench.studies.ranks
_FOUR_BITS = {"name": "qsgd", "options": {"levels": 7, "norm": "max"}, "feedback": NONE}


class Asked(NamedTuple):
    """A cell of a strategy that STRATEGIES may have.

    Args:
        label: in tables.
        name: of the strategy.
        options: of the strategy.
        waits: ranks wait for each other. Else every gradient of a part of a batch is a step of its own: N times as many
            as all-reduce makes, so the rate is an N-th.
        compression: of gradients, or of what gossip sends.
    """

    label: str
    name: str
    options: Mapping[str, Any]
    waits: bool
    compression: Mapping[str, Any] = {"name": "none", "feedback": NONE}


ASKED = (
    Asked("gossip, ring", "gossip", {"graph": "ring"}, True),
    Asked("gossip, one peer", "gossip", {"graph": "one_peer"}, True),
    Asked("gossip, ring, QSGD 4 bits (CHOCO)", "gossip", {"graph": "ring"}, True, _FOUR_BITS),
    Asked("parameter server", "parameter_server", {}, False),
    Asked("parameter server, compensated", "parameter_server", {"compensation": "adaptive"}, False),
    Asked("SSP, bound 4", "ssp", {"bound": 4}, False),
    Asked("SSP, bound 4, QSGD 4 bits", "ssp", {"bound": 4}, False, {**_FOUR_BITS, "feedback": EF}),
    Asked("Hogwild", "hogwild", {}, False),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing that is compared.

    Args:
        label: in tables; with the kind of feedback it is unique.
        part: of the study.
        compression: fields of CompressionConfig.
        strategy: fields of StrategyConfig.
        rule: of the dense parameters.
        ranks: numbers of ranks that it is run with.
        tasks: that it is run on.
        factors: of the dense run's learning rate, tried with the tuning seed; one factor is not tried but taken.
        longer: so many times the task's epochs.
        per_step: factors are the length of a step of every number instead, whatever batch and ranks are.
    """

    label: str
    part: int
    compression: Mapping[str, Any] = field(default_factory=lambda: {"name": "none", "feedback": NONE})
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"name": "allreduce"})
    rule: str = "momentum"
    ranks: tuple[int, ...] = (BASE,)
    tasks: tuple[str, ...] = BOTH
    factors: tuple[float, ...] = (1.0,)
    per_step: bool = False
    longer: int = 1

    @property
    def feedback(self) -> str:
        """In tables: powersgd and dgc have one of their own."""
        if self.compression["name"] == "dgc":
            return OWN
        if self.compression["name"] == "powersgd":
            return EF if self.compression["decay"] else NONE
        return str(self.compression["feedback"]) if self.compression["name"] != "none" else ""

    @property
    def key(self) -> str:
        """Equal for the settings of one cell, whatever seed, rate and ranks they have."""
        return key_of({"rule": self.rule, "compression": self.compression, "strategy": self.strategy})


def key_of(run: Mapping[str, Any]) -> str:
    """The key of the cell that a run is of."""
    return json.dumps([run["rule"], run["compression"], run["strategy"]], sort_keys=True)


DENSE_RUN = Cell(label="dense", part=FIRST, ranks=(2, 4))


def _codec(
    label: str, part: int, name: str, feedbacks: Sequence[str], more: Mapping[str, Any], **cell: Any
) -> list[Cell]:
    """A codec with each kind of feedback; `more`: its options, and fields of CompressionConfig by their names."""
    fields = {key: more[key] for key in more if key in ("exchange", "sparse")}
    options = {key: more[key] for key in more if key not in fields}
    made = []
    for feedback in feedbacks:
        known: dict[str, Any] = {"feedback": feedback}
        if name == "powersgd":  # its memory is kept by its decay
            known = {"feedback": NONE, "decay": float(feedback == EF)}
        compression = {"name": name, "options": options, **fields, **known}
        made.append(Cell(label=label, part=part, compression=compression, **cell))
    return made


def first() -> Iterator[Cell]:
    """The question that comes first: 4 bits and the top 1 %, with feedback and without, beside dense; also 4 ranks."""
    both = (NONE, EF)
    yield DENSE_RUN
    yield from _codec("QSGD 4 bits, by largest", FIRST, "qsgd", both, {"levels": 7, "norm": "max"}, ranks=(2, 4))
    yield from _codec("QSGD 4 bits, by norm", FIRST, "qsgd", both, {"levels": 7})
    yield from _codec("top 1 %", FIRST, "topk", both, {"ratio": 0.01}, ranks=(2, 4))
    yield from _codec("1 bit", FIRST, "onebit", both, {}, ranks=(2, 4))
    yield from _codec("PowerSGD 2", FIRST, "powersgd", (EF, NONE), {"rank": 2}, ranks=(2, 4))


def steps(total: int) -> Iterator[Cell]:
    """When ranks meet: strategies, at 4 ranks."""
    rounds: list[tuple[str, Mapping[str, Any]]] = [
        ("local SGD, H 1", {"steps": 1}),
        ("local SGD, H 4", {"steps": 4}),
        ("local SGD, H 16", {"steps": 16}),
        ("post-local SGD, H 16", {"steps": 16, "sync_steps": total // 2}),
        ("growing H, 1 to 64", {"steps": 1, "growth": 1.2}),
        ("SlowMo, H 16", {"steps": 16, "outer_momentum": 0.5}),
        ("DiLoCo, H 16", {"steps": 16, "outer_momentum": 0.9, "outer_lr": 0.7, "nesterov": True}),
    ]
    for label, options in rounds:
        yield Cell(label=label, part=STEPS, strategy={"name": "local_sgd", "options": options}, ranks=(4,))
    meeting = {"name": "local_sgd", "options": {"steps": 4}}
    for label, name, options in (
        ("local SGD, H 4, QSGD 4 bits", "qsgd", {"levels": 7, "norm": "max"}),
        ("local SGD, H 4, top 1 %", "topk", {"ratio": 0.01}),
    ):
        yield from _codec(label, STEPS, name, (EF,), options, strategy=meeting, ranks=(4,))
    for asked in (asked for asked in ASKED if asked.name in STRATEGIES):
        strategy = {"name": asked.name, "options": dict(asked.options)} | ({} if asked.waits else {"jitter": JITTER})
        yield Cell(
            label=asked.label, part=STEPS, strategy=strategy, compression=asked.compression, ranks=(4,),
            factors=(1.0,) if asked.waits else (0.25,),
        )  # fmt: skip


def codecs(total: int) -> Iterator[Cell]:
    """All other codecs, at 2 ranks; on CIFAR-10 not those that hardly change a number, nor one whose numbers are those
    of another with fewer bytes."""
    both, clicks = (NONE, EF), ("criteo",)
    yield from _codec("sign, scaled", CODECS, "signsgd", both, {})
    yield from _codec("top 0.1 %", CODECS, "topk", (EF,), {"ratio": 0.001})
    yield from _codec("top 1 %", CODECS, "topk", (EF21,), {"ratio": 0.01})
    yield from _codec("DGC 1 %", CODECS, "dgc", (NONE,), {"ratio": 0.01, "warmup_turns": total // 4}, rule="sgd")
    yield from _codec("threshold 2", CODECS, "threshold", both, {})
    yield from _codec("random 1 %", CODECS, "randomk", both, {"ratio": 0.01})
    yield from _codec("random 10 %, unbiased", CODECS, "randomk_unbiased", (NONE,), {"ratio": 0.1})
    yield from _codec("PowerSGD 1", CODECS, "powersgd", (EF,), {"rank": 1})
    yield from _codec("PowerSGD 4", CODECS, "powersgd", (EF,), {"rank": 4})
    yield from _codec("TernGrad", CODECS, "terngrad", both, {})
    yield from _codec("TernGrad, clipped", CODECS, "terngrad_clipped", both, {})
    yield from _codec("QSGD 2 bits, by largest", CODECS, "qsgd", both, {"levels": 1, "norm": "max"})
    yield from _codec("int8", CODECS, "int8", both, {})
    yield from _codec("natural", CODECS, "natural", both, {})
    yield from _codec("fp16", CODECS, "fp16", both, {}, tasks=clicks)
    yield from _codec("bf16", CODECS, "bf16", both, {}, tasks=clicks)
    yield from _codec("int8, nearest", CODECS, "int8_nearest", both, {}, tasks=clicks)
    yield from _codec("int8, dynamic", CODECS, "int8_dynamic", both, {}, tasks=clicks)
    yield from _codec("QSGD 4 bits, Elias", CODECS, "qsgd_elias", (NONE,), {"levels": 7}, tasks=clicks)
    yield from _codec(
        "QSGD 4 bits, rows int8", CODECS, "qsgd", (EF,), {"levels": 7, "norm": "max", "sparse": "int8"}, tasks=clicks
    )  # fmt: skip


def votes() -> Iterator[Cell]:
    """What wants more voters than two."""
    yield from _codec("sign, scaled, by vote", RANKS, "signsgd", (NONE, EF), {"exchange": "vote"}, ranks=(4,))
    yield from _codec("sign, scaled", RANKS, "signsgd", (EF,), {}, ranks=(4,))


def longer() -> Iterator[Cell]:
    """Whether what feedback sends late is made up for by more steps."""
    more: dict[str, Any] = {"tasks": ("cifar10",), "longer": 3}
    yield replace(DENSE_RUN, part=LONGER, ranks=(BASE,), **more)
    yield from _codec("top 1 %", LONGER, "topk", (EF,), {"ratio": 0.01}, **more)
    yield from _codec("1 bit", LONGER, "onebit", (EF,), {}, **more)


def rates() -> Iterator[Cell]:
    """Where theory asks for a rate of its own: steps of one length (signs), noise that a lower rate averages, and what
    feedback sends late, of which a rate below what the dense run bears forgives more."""
    lower, sign = (10**-0.5, 0.1), (3e-5, 1e-4, 3e-4)
    yield from _codec(
        "sign by vote, own rate", RATES, "signsgd_unscaled", (NONE,), {"exchange": "vote"}, ranks=(4,), factors=sign,
        per_step=True,
    )  # fmt: skip
    for label, name, feedback, options, tasks in (
        ("QSGD 4 bits, by norm, own rate", "qsgd", EF, {"levels": 7}, BOTH),
        ("TernGrad, own rate", "terngrad", NONE, {}, BOTH),
        ("random 1 %, own rate", "randomk", EF, {"ratio": 0.01}, BOTH),
        ("top 1 %, own rate", "topk", EF, {"ratio": 0.01}, ("cifar10",)),
        ("1 bit, own rate", "onebit", EF, {}, ("cifar10",)),
    ):
        yield from _codec(label, RATES, name, (feedback,), options, factors=lower, tasks=tasks)


def large() -> Iterator[Cell]:
    """Whether it is the same with five times the rows."""
    more: dict[str, Any] = {"tasks": (CRITEO_1M,)}
    yield replace(DENSE_RUN, part=LARGE, ranks=(BASE,), **more)
    yield from _codec("QSGD 4 bits, by largest", LARGE, "qsgd", (NONE, EF), {"levels": 7, "norm": "max"}, **more)
    yield from _codec("top 1 %", LARGE, "topk", (NONE, EF), {"ratio": 0.01}, **more)
    yield from _codec("1 bit", LARGE, "onebit", (NONE, EF), {}, **more)


def narrowed() -> Iterator[Cell]:
    """Cells that `cells` has, at the ranks and on the task where three seeds left the first question open."""
    for cell in first():
        if cell.key == DENSE_RUN.key or (cell.label == "QSGD 4 bits, by largest" and cell.feedback == EF):
            yield replace(cell, ranks=(BASE,), tasks=("cifar10",))


def cells(task: str, total: int) -> list[Cell]:
    """All that are run on a task whose runs have `total` steps, in order."""
    made = [*first(), *steps(total), *codecs(total), *votes(), *longer(), *rates(), *large()]
    return [cell for cell in made if task in cell.tasks]


def missing() -> list[str]:
    """Strategies that the study asks for and STRATEGIES has not."""
    return sorted({asked.name for asked in ASKED} - set(STRATEGIES))
