"""Rules over blocks of tensors: blocks of equal shape, of many tensors, are one batch of matrices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.errors import UserError
from headrace.optim.base import ListRule, Params, State
from headrace.optim.blocks import Region
from headrace.optim.context import StepContext
from headrace.optim.dealing import longest_first, owned, share

COUNTS = ("decompositions", "failures", "overflows")


@dataclass(frozen=True)
class Member:
    """Blocks of one tensor in a batch.

    Args:
        tensor: its place among the tensors of a step.
        region: which blocks.
        rows: their rows in the batch.
        held: what the optimizer's state holds for them: views of the batch's state.
    """

    tensor: int
    region: Region
    rows: slice
    held: dict[str, Tensor]


class Batch:
    """Blocks of equal shape and age. Its `state`, [N, ...] by name, is where the state of their tensors lies.

    Args:
        step: how many steps they have seen.
        parts: (place of the tensor, region, its state) of the blocks.
    """

    def __init__(self, step: int, parts: Sequence[tuple[int, Region, dict[str, Tensor]]]) -> None:
        self.step = step
        self.sizes, self.kinds = parts[0][1].sizes, parts[0][1].kinds
        self.full = [dim for dim, kind in enumerate(self.kinds) if kind == "full"]
        self.number = 0
        self.members: list[Member] = []
        for tensor, region, held in parts:
            self.members.append(Member(tensor, region, slice(self.number, self.number + region.number), held))
            self.number += region.number
        self.state: dict[str, Tensor] = {}
        for name, first in list(parts[0][2].items()):
            whole = first if len(parts) == 1 else torch.cat([held[name] for *_, held in parts])
            self.state[name] = whole
            for member in self.members:
                member.held[name] = whole[member.rows]

    def gathered(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The blocks of `tensors`, [N, *sizes]: a copy."""
        blocks = torch.empty(self.number, *self.sizes, dtype=dtype, device=tensors[self.members[0].tensor].device)
        sources = [m.region.view(tensors[m.tensor].contiguous()) for m in self.members]
        torch._foreach_copy_(self._like(blocks, sources), sources)
        return blocks

    def subtract(self, params: Sequence[Tensor], blocks: Tensor, scale: float) -> None:
        """params - scale blocks, in place."""
        solid = [params[m.tensor].contiguous() for m in self.members]
        targets = [m.region.view(param) for m, param in zip(self.members, solid, strict=True)]
        torch._foreach_add_(targets, self._like(blocks, targets), alpha=-scale)
        for member, param in zip(self.members, solid, strict=True):
            if not params[member.tensor].is_contiguous():
                params[member.tensor].copy_(param)

    def _like(self, blocks: Tensor, views: Sequence[Tensor]) -> list[Tensor]:
        """Every member's part of `blocks`, of the shape of its view."""
        parts = blocks.split([m.region.number for m in self.members])
        return [part.view(view.shape) for part, view in zip(parts, views, strict=True)]

    def norms(self, blocks: Tensor) -> Tensor:
        """Euclidean norm of every block, [N]."""
        return torch.linalg.vector_norm(blocks.reshape(self.number, -1), dim=1)

    def each(self, values: Tensor) -> Tensor:
        """A number a block, [N], so that it multiplies blocks."""
        return values.view(-1, *[1] * len(self.sizes))


Solve = Callable[[Batch, Tensor, Tensor], tuple[Tensor, Tensor]]


class BlockOptimizer(ListRule):
    """A rule over batches of blocks.

    State of a tensor: `step`, and for each of its regions `blocks`: tensors [number, ...] of the parameter's type, of
    float32 for shorter ones. A block whose squared gradient is not finite has a gradient of zero in that step: in its
    sums it would stay for good.

    `counts` are this rank's: decompositions that it did, those that failed, blocks whose squared gradient
    overflowed; since the optimizer was made or loaded.

    Args:
        params: see `Optimizer`.
        options: see `Optimizer`.
    """

    def __init__(self, params: Params, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            self.check(group)
        self._begin()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, and of loaded state: batches hold the state that was there before."""
        super().__setstate__(state)
        self._begin()

    def _begin(self) -> None:
        self._batches: dict[int, list[Batch]] = {}
        self._counts: dict[str, int | Tensor] = dict.fromkeys(COUNTS, 0)
        self._collective: Collective | None = None

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise `UserError` for an option out of range."""
        for name, least in (("block_size", 1), ("max_dim", 0), ("merge_dims", 0), ("interval", 1)):
            if not isinstance(options[name], int) or options[name] < least:
                raise UserError(f"optimizer option {name} must be a whole number of at least {least}")

    @abstractmethod
    def regions(self, shape: Sequence[int], options: Mapping[str, Any]) -> tuple[Region, ...]:
        """How a tensor is cut."""

    @abstractmethod
    def blank(self, region: Region, like: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
        """State of a region's blocks before the first step, [number, ...] by name, of type and device of `like`."""

    @abstractmethod
    def update_batches(
        self, batches: list[Batch], grads: list[Tensor], params: Sequence[Tensor], options: Mapping[str, Any]
    ) -> None:
        """The rule: `params` change in place, by the blocks [N, *sizes] of their gradients."""

    @property
    def counts(self) -> dict[str, int]:
        """See the class."""
        return {name: int(number) for name, number in self._counts.items()}

    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        self._collective = None if ctx is None else ctx.collective
        super().step(ctx)

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """See the class."""
        like = torch.empty(0, dtype=torch.promote_types(param.dtype, torch.float32), device=param.device)
        return {"step": 0, "blocks": [self.blank(r, like, options) for r in self.regions(param.shape, options)]}

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """The rule for all tensors of a group, in place."""
        batches = self._batched(params, states, options)
        for state in states:
            state["step"] += 1
        blocks = []
        for batch in batches:
            batch.step += 1
            some = grads[batch.members[0].tensor]
            blocks.append(batch.gathered(grads, torch.promote_types(some.dtype, torch.float32)))
            finite = batch.norms(blocks[-1]).square().isfinite()
            blocks[-1].masked_fill_(~batch.each(finite), 0.0)
            self._counts["overflows"] = self._counts["overflows"] + (~finite).sum()
        self.update_batches(batches, blocks, params, options)

    def _batched(self, params: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]) -> list[Batch]:
        """Batches of these tensors; made again where the tensors or their state are others than in the step before."""
        old = self._batches.get(id(options), [])
        held = {id(member.held): member.tensor for batch in old for member in batch.members}
        if held == {id(blocks): i for i, state in enumerate(states) for blocks in state["blocks"]}:
            return old
        alike: dict[Any, list[tuple[int, Region, dict[str, Tensor]]]] = {}
        for i, (param, state) in enumerate(zip(params, states, strict=True)):
            for region, blocks in zip(self.regions(param.shape, options), state["blocks"], strict=True):
                key = (state["step"], region.sizes, region.kinds, param.dtype, param.device)
                alike.setdefault(key, []).append((i, region, blocks))
        self._batches[id(options)] = [Batch(key[0], parts) for key, parts in alike.items()]
        return self._batches[id(options)]

    def dealt(self, batches: Sequence[Batch], source: str, result: str, solve: Solve) -> None:
        """Replace a matrix of every full dimension of `batches`, each by the rank that it is dealt to.

        Args:
            batches: whose `state` has `source` and `result` with the dimension's number, [N, n, n] each.
            source: what is decomposed.
            result: what is made of it; where that fails the old one stays.
            solve: (batch, source [K, n, n], old result [K, n, n]) -> (new result, which are good [K]).
        """
        work = [(batch, dim) for batch in batches for dim in batch.full]
        costs = [float(batch.sizes[dim]) ** 3 for batch, dim in work for _ in range(batch.number)]
        size, rank = (1, 0) if self._collective is None else (self._collective.size, self._collective.rank)
        left = iter(longest_first(costs, [1] * size))
        owners = [[next(left) for _ in range(batch.number)] for batch, _ in work]
        for (batch, dim), owner in zip(work, owners, strict=True):
            rows = owned(owner, rank)
            old = batch.state[f"{result}{dim}"]
            if rows:
                made, good = solve(batch, batch.state[f"{source}{dim}"][rows], old[rows])
                old[rows] = torch.where(good[:, None, None], made, old[rows])
                self._counts["decompositions"] = self._counts["decompositions"] + len(rows)
                self._counts["failures"] = self._counts["failures"] + (~good).sum()
        share([batch.state[f"{result}{dim}"] for batch, dim in work], owners, self._collective)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept what `state_dict` gave; state keeps its own type (torch would give it the parameter's)."""
        super().load_state_dict(state_dict)
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, param in zip(keys, params, strict=True):
            saved = state_dict["state"].get(key)
            if saved:
                blocks = [{name: t.to(param.device, copy=True) for name, t in held.items()} for held in saved["blocks"]]
                self.state[param] = {"step": saved["step"], "blocks": blocks}
