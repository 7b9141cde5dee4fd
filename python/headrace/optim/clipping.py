"""Gradient clipping: of the global mean gradient, after the exchange, so that every rank clips alike.

    value      g <- max(-c, min(c, g)), number by number
    norm       g <- g min(1, c / |g|), |g| over all parameters together, rows of embedding tables included
    adaptive   g_i <- g_i min(1, c max(|w_i|, eps) / |g_i|) for every unit i: a row of a matrix or table, a vector as
               a whole, a number

References: norm: R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML
2013, algorithm 1. adaptive (AGC): A. Brock et al., "High-performance large-scale image recognition without
normalization", ICML 2021, eq. 3, units as in its section 4.1 (rows of fan-in); the paper leaves out the last layer:
name it in `exclude`. A row-sparse gradient is clipped as the dense one that it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.name_patterns import named_by
from headrace.options import known

if TYPE_CHECKING:
    from headrace.comm.base import Collective
    from headrace.optim.base import Optimizer


@dataclass(frozen=True, kw_only=True)
class ClippingConfig:
    """How gradients are clipped.

    Args:
        rule: none; value (number by number); norm (global); adaptive (a unit's gradient against its weights: AGC).
        limit: largest number, largest norm, or largest ratio of the norms of a unit's gradient and weights.
        eps: of adaptive: the norm of a unit's weights counts as at least so much.
        exclude: parameters that are left alone, by name (patterns of the shell: top.4.*).

    Raises:
        UserError: an unknown rule, or a limit that is not above 0.
    """

    rule: str = "none"
    limit: float = 1.0
    eps: float = 1e-3
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude", tuple(self.exclude))  # a list, from a file
        known("train.clipping.rule", self.rule, ("none", *CLIPPINGS))
        if not self.limit > 0.0 or not self.eps > 0.0:
            raise UserError(f"clipping to {self.limit} (eps {self.eps})", "--train.clipping.limit above 0")


def check_clipping(config: ClippingConfig, optimizer: Optimizer) -> None:
    """Refuse to clip what a rule does not step along, or corrects by gradients that are not clipped.

    Raises:
        UserError: a rule with trait own_gradient, and gradients are to be clipped.
    """
    if config.rule != "none" and (own := optimizer.with_own_gradient()):
        raise UserError(
            f"optimizer {own[0]} evaluates or corrects gradients itself: clipping would not reach them, or bias its "
            "steps",
            "--train.clipping.rule none, or another optimizer",
        )


class Clipped(NamedTuple):
    """What clipping did.

    Args:
        norm: of the whole gradient before it (0 where nothing is clipped by configuration).
        clipped: whether any number was changed.
    """

    norm: float = 0.0
    clipped: bool = False


class Shards(NamedTuple):
    """Parameters of which every rank has rows of its own.

    Args:
        names: of them.
        collective: the way to the other ranks, which all clip together.
    """

    names: frozenset[str]
    collective: Collective

    def everyone(self, number: float) -> list[float]:
        """Of each rank."""
        own, size = torch.tensor([number], dtype=torch.float64), self.collective.size
        numbers: list[float] = torch.cat(self.collective.allgather(own, rows=[1] * size)).tolist()
        return numbers


class _Part(NamedTuple):
    """A gradient's numbers (a view), and the parameter with the rows that they belong to (None: all)."""

    param: Tensor
    rows: Tensor | None
    grad: Tensor

    def weights(self) -> Tensor:
        return self.param if self.rows is None else self.param.index_select(0, self.rows)


def clip(params: Mapping[str, Tensor], config: ClippingConfig, shards: Shards | None = None) -> Clipped:
    """Clip `param.grad` of parameters by name, in place; row-sparse gradients must be coalesced."""
    return clip_gradients(params, {n: p.grad for n, p in params.items() if p.grad is not None}, config, shards)


@torch.no_grad()
def clip_gradients(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], config: ClippingConfig, shards: Shards | None = None
) -> Clipped:
    """The same for gradients that are not in `param.grad`; `shards`: those of which this rank has its rows alone."""
    if config.rule == "none":
        return Clipped()
    named = {
        name: _Part(params[name], g._indices()[0], g._values()) if g.is_sparse else _Part(params[name], None, g)
        for name, g in grads.items()
        if not named_by(config.exclude, name) and (g._nnz() if g.is_sparse else g.numel())
    }
    parts = list(named.values())
    if shards is None:
        norm = global_norm([part.grad for part in parts])
        return Clipped(norm, CLIPPINGS[config.rule](parts, norm, config))
    apart = global_norm([part.grad for name, part in named.items() if name in shards.names])
    alike = global_norm([part.grad for name, part in named.items() if name not in shards.names])
    norm = math.hypot(alike, *shards.everyone(apart))
    changed = CLIPPINGS[config.rule](parts, norm, config)
    return Clipped(norm, any(shards.everyone(float(changed))))


def global_norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all numbers together; does not overflow where numbers are finite."""
    if not tensors:
        return 0.0
    # In float64: millions of float32 squares summed in float32 are a percent off.
    norms = torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors])
    norm = float(torch.linalg.vector_norm(norms))
    if math.isfinite(norm):
        return norm
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t.double()) for t in tensors])))


def _value(parts: list[_Part], norm: float, config: ClippingConfig) -> bool:
    grads = [part.grad for part in parts]
    largest = torch.stack([n.double() for n in torch._foreach_norm(grads, math.inf)]).max() if grads else 0.0
    if not float(largest) > config.limit:
        return False
    torch._foreach_clamp_min_(grads, -config.limit)
    torch._foreach_clamp_max_(grads, config.limit)
    return True


def _norm(parts: list[_Part], norm: float, config: ClippingConfig) -> bool:
    if not norm > config.limit:
        return False
    if parts:  # none: all of the norm is of other ranks' parts
        torch._foreach_mul_([part.grad for part in parts], config.limit / norm)
    return True


def _adaptive(parts: list[_Part], norm: float, config: ClippingConfig) -> bool:
    changed = []  # looked at once, at the end: a GPU need not wait after every tensor
    for part in parts:
        allowed = config.limit * _unit_norms(part.weights()).clamp(min=config.eps)
        found = _unit_norms(part.grad)
        over = found > allowed
        part.grad.mul_(torch.where(over, allowed / found, torch.ones_like(found)))
        changed.append(over.any())
    return bool(changed) and bool(torch.stack(changed).any())


def _unit_norms(x: Tensor) -> Tensor:
    """Norm of every row, kept for broadcasting; a vector is one unit."""
    if x.dim() <= 1:
        return torch.linalg.vector_norm(x)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


CLIPPINGS: dict[str, Callable[[list[_Part], float, ClippingConfig], bool]] = {
    "value": _value, "norm": _norm, "adaptive": _adaptive,
}  # fmt: skip
