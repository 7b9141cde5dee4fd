"""K-FAC's curvature over layers and ranks: factors as running means, their decompositions, directions made with them.

Every rank holds all factors (so one rank's checkpoint is whole, and runs may be resized), as triangles; a decomposition
is held by the ranks that use it (kfac_dealing). Where factors change between decompositions, the factors that were
decomposed last are kept beside them: a resumed run makes its decompositions again, with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.optim.base import tensor_bytes
from headrace.optim.context import StepContext, summed
from headrace.optim.kfac_dealing import Deal, Parcel, deal, deliver
from headrace.optim.kfac_factors import (
    mean_eigenvalue,
    pack,
    packed_shape,
    precondition,
    solve,
    solved_shape,
    split_ratio,
)
from headrace.optim.kfac_layers import Layer

Options = Mapping[str, Any]


@dataclass
class Work:
    """What this rank did itself: decompositions, their cost (sum of n^3), gradients preconditioned."""

    decompositions: int = 0
    cost: int = 0
    gradients: int = 0


@dataclass
class Factors:
    """Of one layer; triangles, the same on every rank but for `solved`.

    Args:
        a: A.
        g: G.
        updates: made to them.
        used: the (A, G) that were decomposed last: `a` and `g` themselves where they change at refreshes only.
        damping: of that decomposition; NaN before the first.
        ratio: pi of that decomposition, where damping is split.
        current: whether the layer's workers hold it.
        solved: of A and of G, on the layer's workers.
    """

    a: Tensor
    g: Tensor
    updates: int = 1
    used: tuple[Tensor, Tensor] | None = None
    damping: float = math.nan
    ratio: float = math.nan
    current: bool = False
    solved: list[Tensor] = field(default_factory=list)


class Curvature:
    """See the module's docstring.

    Args:
        layers: whose blocks these are.

    Attributes:
        factors: by the layers' names; a layer gets its with its first gradient.
        work: what this rank did.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.factors: dict[str, Factors] = {}
        self.work = Work()
        self._deal: Deal | None = None

    def update(self, ctx: StepContext, decay: float, scale: float) -> list[Layer]:
        """Take the layers' sums into the means; a layer whose are not finite, or without a gradient, keeps its.

        Args:
            ctx: the batch.
            decay: of the means.
            scale: of the losses whose gradients were summed.

        Returns:
            Layers that no rank has ever called.
        """
        uncalled: list[Layer] = []
        for dtype in sorted({layer.dtype for layer in self.layers}, key=str):
            layers = [layer for layer in self.layers if layer.dtype == dtype]
            sums = [layer.take() for layer in layers]
            parts = [t for s in sums for t in (pack(s.a), pack(s.g), s.positions, s.called)]
            totals = summed(parts, ctx.collective)
            made = [
                (a / p, g / max(1, ctx.rows) / scale / scale)  # its square may be out of range
                for a, g, p in zip(*(totals[k::4] for k in range(3)), strict=True)
            ]
            good = [torch.isfinite(a).all() & torch.isfinite(g).all() for a, g in made]  # without gradient: 0 / 0
            flags = torch.stack([*good, *(t > 0 for t in totals[3::4])]).tolist()
            for layer, (a, g), finite, called in zip(
                layers, made, flags[: len(layers)], flags[len(layers) :], strict=True
            ):
                if finite:
                    self._average(layer.name, a, g, decay)
                if not called:
                    uncalled.append(layer)
        return uncalled

    def leave(self, layers: Sequence[Layer]) -> None:
        """Watch these no more; the others are dealt out anew."""
        gone = {layer.name for layer in layers}
        self.layers = [layer for layer in self.layers if layer.name not in gone]
        self.factors = {name: kept for name, kept in self.factors.items() if name not in gone}
        self._deal = None
        for kept in self.factors.values():
            kept.current, kept.solved = False, []

    def _average(self, name: str, a: Tensor, g: Tensor, decay: float) -> None:
        kept = self.factors.get(name)
        if kept is None:
            self.factors[name] = Factors(a, g)
            return
        kept.updates += 1
        weight = (1.0 - decay) / (1.0 - decay**kept.updates)
        kept.a.lerp_(a, weight)
        kept.g.lerp_(g, weight)

    def refresh(self, collective: Collective | None, options: Options, dampings: Sequence[float], *, due: bool) -> None:
        """Decompose factors on the ranks they were dealt to: all where due, else what was lost with a checkpoint.

        Args:
            collective: over all ranks.
            options: of the rule.
            dampings: by layer.
            due: whether the present factors are to be used.
        """
        dealt, rank, parcels = self._dealt(collective, options), _rank(collective), []
        for i, layer in enumerate(self.layers):
            kept = self.factors.get(layer.name)
            if kept is None or (kept.current and not due):
                continue
            if due or kept.used is None:
                apart = options["inverse_interval"] > options["factor_interval"]
                kept.used = (kept.a.clone(), kept.g.clone()) if apart else (kept.a, kept.g)
                kept.damping = dampings[i]
            self._decompose(layer, kept, rank in dealt.workers[i], [s == rank for s in dealt.solvers[i]], options)
            nothing = kept.a.new_empty(0)
            parcels += [
                Parcel(solver, tuple(w for w in dealt.workers[i] if w != solver), solved)
                for solver, solved in zip(dealt.solvers[i], kept.solved or (nothing, nothing), strict=True)
            ]
        deliver(parcels, collective)

    def _decompose(self, layer: Layer, kept: Factors, works: bool, mine: Sequence[bool], options: Options) -> None:
        """This rank's part (`mine`: A, G) of a layer's decompositions; room for the others' where it `works`."""
        assert kept.used is not None
        if options["damping_split"]:
            kept.ratio = split_ratio(*(mean_eigenvalue(factor) for factor in kept.used))
        root = math.sqrt(kept.damping)
        sides = layer.shape[::-1]
        if works and not kept.solved:
            kept.solved = [kept.a.new_empty(solved_shape(n, options["method"])) for n in sides]
        dampings = (root * kept.ratio, root / kept.ratio)
        for side, (factor, damping) in enumerate(zip(kept.used, dampings, strict=True)):
            if mine[side]:
                kept.solved[side].copy_(solve(factor, options["method"], damping))
                self.work.decompositions += 1
                self.work.cost += sides[side] ** 3
        kept.current = True

    def directions(
        self, grads: Mapping[int, Tensor], collective: Collective | None, options: Options, dampings: Sequence[float]
    ) -> dict[int, Tensor]:
        """Preconditioned gradients [m, n] by layer, on every rank; a layer without factors keeps its gradient.

        Args:
            grads: by layer, the same on every rank.
            collective: over all ranks.
            options: of the rule.
            dampings: by layer.
        """
        dealt, rank = self._dealt(collective, options), _rank(collective)
        made, parcels = dict(grads), []
        for i, grad in grads.items():
            kept = self.factors.get(self.layers[i].name)
            if kept is None:
                continue
            if rank in dealt.workers[i]:
                ratio = kept.ratio if options["damping_split"] else None
                a, g = kept.solved
                made[i] = precondition(grad, a, g, options["method"], damping=dampings[i], ratio=ratio)
                self.work.gradients += 1
            else:
                made[i] = torch.empty_like(grad)
            parcels += [Parcel(worker, dealt.served(i, worker), made[i]) for worker in dealt.workers[i]]
        deliver(parcels, collective)
        return made

    def _dealt(self, collective: Collective | None, options: Options) -> Deal:
        size = 1 if collective is None else collective.size
        if self._deal is None or self._deal.size != size:
            self._deal = deal([layer.shape for layer in self.layers], size, options["grad_worker_frac"])
        return self._deal

    def state_dict(self) -> dict[str, Any]:
        """Factors by layer, without decompositions."""
        return {
            name: {
                "A": kept.a, "G": kept.g, "updates": kept.updates, "damping": kept.damping,
                "used": None if kept.used is None or kept.used[0] is kept.a else list(kept.used),
            }
            for name, kept in self.factors.items()
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: factors of other layers.
        """
        layers = {layer.name: layer for layer in self.layers}
        for name, saved in state.items():
            shapes = [packed_shape(n) for n in layers[name].shape[::-1]] if name in layers else []
            if shapes != [tuple(saved["A"].shape), tuple(saved["G"].shape)]:
                raise ValueError(f"the state's factors of layer {name!r} do not fit the model's")
        self.factors = {name: _loaded(saved, layers[name]) for name, saved in state.items()}

    def solved_bytes(self) -> int:
        """Bytes of the decompositions that this rank holds."""
        return tensor_bytes([kept.solved for kept in self.factors.values()])


def _loaded(saved: Mapping[str, Any], layer: Layer) -> Factors:
    a, g, *used = (
        factor.to(layer.weight.device, layer.dtype, copy=True)
        for factor in (saved["A"], saved["G"], *(saved["used"] or ()))
    )
    return Factors(a, g, saved["updates"], used=(used[0], used[1]) if used else (a, g), damping=saved["damping"])


def _rank(collective: Collective | None) -> int:
    return 0 if collective is None else collective.rank
