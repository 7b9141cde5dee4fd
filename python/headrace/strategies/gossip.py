"""Decentralized training: no sum over all ranks, each takes the weighted mean with its neighbours.

    x_r <- rule(x_r, gradient of rank r's own rows);   in every `steps`-th step   x_r <- sum over j of W_rj x_j

W is of headrace.strategies.mixing. Reference: X. Lian, C. Zhang, H. Zhang, C.-J. Hsieh, W. Zhang, J. Liu, "Can
decentralized algorithms outperform centralized algorithms?", NeurIPS 2017 (D-PSGD). There the mean is of parameters
from before the step, x_r <- sum over j of W_rj x_j - lr g_r; here it is taken after the step, as in CHOCO-SGD and in
A. H. Sayed's "adapt then combine" (2014): with all ranks as neighbours that is all-reduce, and any rule and any number
of steps between fit. The mean over ranks moves by the mean of the ranks' updates; between updates the distance to it
shrinks by 1 - gap a turn. The optimizer's own state stays with its rank.

Embedding tables: headrace.strategies.gossip_rows. Compressed dense parameters: headrace.strategies.choco; those too
small for the codec are mixed as they are. Bytes go to neighbours only. All ranks meet in every `told_steps`-th step and
in the last of an epoch, and hear there of loss, bad numbers and a wish to stop; and for evaluation, checkpoints and at
the end, where the exact mean over all ranks is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.metered import TABLES, part
from headrace.errors import UserError
from headrace.options import known
from headrace.strategies.choco import Choco, why_not
from headrace.strategies.compressed import CompressedReducer
from headrace.strategies.gossip_rows import TouchedRows
from headrace.strategies.mixing import GRAPHS, Mixing
from headrace.strategies.neighbours import exchange, mix
from headrace.strategies.own_steps import OwnSteps, Places, put, replaced
from headrace.strategies.reducers import BUCKET_BYTES, Reducer, buckets, ordered, packed, unpacked
from headrace.strategies.sparse import tables_of

if TYPE_CHECKING:
    from headrace.strategies.compression import CompressionConfig
    from headrace.strategies.surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class GossipConfig:
    """Who hears whom, and when.

    Args:
        graph: a key of GRAPHS.
        steps: between turns of mixing.
        told_steps: all ranks are told of each other every so many steps.
        gamma: of compressed gossip; 0: measured.
        seed: of random graphs.
    """

    graph: str = "ring"
    steps: int = 1
    told_steps: int = 16
    gamma: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: which setting.
        """
        known("strategy.graph", self.graph, GRAPHS)
        for name, ok, remedy in (
            ("steps", self.steps >= 1, "1 or more"),
            ("told_steps", self.told_steps >= 1, "1 or more"),
            ("gamma", 0 <= self.gamma <= 1, "above 0, up to 1; or 0: measured"),
            ("seed", self.seed >= 0, "0 or more"),
            (
                "seed",
                GRAPHS[self.graph].drawn or not self.seed,
                "with --strategy.graph random: others are not drawn",
            ),
        ):
            if not ok:
                raise UserError(f"--strategy.{name} {getattr(self, name)}", remedy)


class Gossip(OwnSteps):
    """See the module's docstring.

    Args:
        reducer: says how dense parameters are compressed, if they are; nothing is summed by it.
        collective: all ranks.
        cfg: see GossipConfig.
    """

    def __init__(self, reducer: Reducer, collective: Collective, cfg: GossipConfig) -> None:
        self.reducer, self.collective, self.cfg = reducer, collective, cfg
        self.mixing = Mixing(cfg.graph, collective.size, cfg.seed)
        self.rows = TouchedRows()
        self.choco = Choco(reducer, cfg.gamma) if isinstance(reducer, CompressedReducer) else None
        self._steps, self._turn = 0, 0  # since the last turn; turns so far
        self._tables: set[str] | None = None  # parameters with row-sparse gradients

    def meets(self, step: int, last: bool) -> bool:
        """Whether all ranks do; neighbours do in other steps as well."""
        return last or (step + 1) % self.cfg.told_steps == 0

    def before_update(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
        """Remember which rows the step is about to change."""
        if self._tables is None:
            self._tables = tables_of(grads, self.collective)
        if self.choco and self.collective.size > 1:
            self.choco.begin({n: p for n, p in params.items() if self._compressed(n, p)}, self.collective.rank)
        for name in self._tables & grads.keys():
            self.rows.touch(name, grads[name])

    def on_parameters(self, params: dict[str, Tensor], step: int, meets: bool) -> None:
        """After the update: a turn of mixing, where it is due."""
        self._steps += 1
        if self._steps < self.cfg.steps:
            return
        if self.collective.size > 1:
            self._mix(params)
        self._steps, self._turn = 0, self._turn + 1

    def _mix(self, params: dict[str, Tensor]) -> None:
        rank, turn = self.collective.rank, self._turn
        heard, told = self.mixing.heard(rank, turn), self.mixing.told(rank, turn)
        large = {name: param for name, param in params.items() if self._compressed(name, param)}
        if self.choco and large:
            self.choco.mix(large, heard, self.collective)
        for bucket in buckets({n: p for n, p in self._dense(params).items() if n not in large}, BUCKET_BYTES):
            flat = packed(bucket)
            arrived = exchange(self.collective, dict.fromkeys(told, flat), dict.fromkeys(heard, flat.numel()), flat)
            for name, value in unpacked(mix(flat, heard, arrived), bucket).items():
                params[name].copy_(value)
        with part(self.collective, TABLES):
            self.rows.mix(self._of_tables(params), self.mixing.mutual(rank, turn), self.collective)

    @contextlib.contextmanager
    def consensus(self, params: dict[str, Tensor]) -> Iterator[None]:
        """Inside, parameters are the mean over all ranks; all enter together."""
        if self._tables is None or self.collective.size == 1:
            yield
            return
        with replaced(params, self._means(params)):
            yield

    def finish(self, params: dict[str, Tensor]) -> None:
        """Parameters become the mean over all ranks."""
        if self._tables is not None and self.collective.size > 1:
            put(params, self._means(params))
            self.rows.agreed()

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`; and how many turns of mixing there were."""
        return (self.choco.figures() if self.choco else {}) | {"turns": float(self._turn)}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside this rank's own parameters and optimizer."""
        return {
            "steps": self._steps, "turn": self._turn, "rows": self.rows.state_dict(),
            "tables": None if self._tables is None else sorted(self._tables),
            "compressed": self.choco.state_dict() if self.choco else None,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: for the state of another strategy, or of gossip that was not compressed.
        """
        if "turn" not in state or (state["compressed"] is None) != (self.choco is None):
            raise ValueError("the checkpoint is of another strategy, or compressed otherwise")
        self._steps, self._turn = state["steps"], state["turn"]
        self._tables = None if state["tables"] is None else set(state["tables"])
        self.rows.load_state_dict(state["rows"])
        if self.choco:
            self.choco.load_state_dict(state["compressed"])

    def _dense(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: param for name, param in params.items() if name not in (self._tables or ())}

    def _of_tables(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: param for name, param in params.items() if name in (self._tables or ())}

    def _compressed(self, name: str, param: Tensor) -> bool:
        return bool(self.choco and name not in (self._tables or ()) and self.choco.fits(param))

    def _means(self, params: Mapping[str, Tensor]) -> Places:
        """Where ranks may differ, and the means over ranks there."""
        sums = ordered().reduce(self._dense(params), self.collective)
        dense = {name: (..., total / self.collective.size) for name, total in sums.items()}
        with part(self.collective, TABLES):
            return dense | self.rows.mean(self._of_tables(params), self.collective)


def fits(options: Mapping[str, Any], around: Surroundings) -> None:
    """Refuse compression that gossip has no use for.

    Raises:
        UserError: which, and what to do.
    """
    graph, compression = GRAPHS[options["graph"]], around.compression
    if compression.name == "none":
        if options["gamma"] not in (0, 1):
            raise UserError("--strategy.gamma is of compressed gossip", "--compression.name topk, or leave it out")
    elif not (graph.static and graph.symmetric):
        able = ", ".join(name for name, each in GRAPHS.items() if each.static and each.symmetric)
        raise UserError(
            f"--strategy.graph {options['graph']} with compression: neighbours must stay, and hear each other",
            f"one of {able}",
        )
    _check_compression(compression)


def _check_compression(given: CompressionConfig) -> None:
    from headrace.compress import COMPRESSORS

    if given.name not in COMPRESSORS:
        raise UserError(f"--compression.name {given.name} sums gradients, gossip has none", "topk, qsgd, int8, ...")
    if why := why_not(given.spec):
        able = ", ".join(name for name, spec in COMPRESSORS.items() if not why_not(spec))
        raise UserError(f"--compression.name {given.name} with gossip: {why}", f"one of {able}")
    for name, usual in (("feedback", ("auto", "none")), ("decay", (1,)), ("exchange", ("auto",)),
                        ("hierarchical", (False,)), ("sparse", ("none",))):  # fmt: skip
        value = getattr(given, name)
        if value not in usual:
            raise UserError(
                f"--compression.{name} {value} is of sums of gradients; gossip sends differences to neighbours",
                f"--compression.{name} {str(usual[0]).lower()}",
            )


def lead(options: Mapping[str, Any]) -> int:
    """Steps between turns of mixing: in these a rank waits for its neighbours, and so for all."""
    return min(int(options["steps"]), int(options["told_steps"])) - 1
