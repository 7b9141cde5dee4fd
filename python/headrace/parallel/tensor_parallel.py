"""Linear layers whose weights are spread over ranks, by columns (features out) or by rows (features in).

    y = x W^T + b:
    column   W = [W_0; W_1; ...] by features out:   y_r = f(x) W_r^T + b_r
    row      W = [W_0, W_1, ...] by features in:    y = g(sum over r of x_r W_r^T) + b
    f: identity forward, sum over ranks backward;   g: sum over ranks forward, identity backward

A column layer, a function of each number, and a row layer need one sum over ranks forward (g) and one backward (f).
Features are dealt as evenly as can be. Sums go in rank order: the same bits on all ranks and transports. What is not
split is on every rank, with gradients of the same bits there: only optimizers that look at one number at a time (sgd,
momentum, adam, adamw, ...) make exactly the steps of the plain layer; others see parts of tensors.

Reference: M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
2019, section 3. Unlike there, the bias of a row layer is on every rank instead of one, and splits may be uneven.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from headrace.comm import Collective
from headrace.comm.sums import sum_in_rank_order
from headrace.errors import UserError

_HALF = (torch.float16, torch.bfloat16)


def _sum(x: Tensor, collective: Collective) -> Tensor:
    wide = torch.float32 if x.dtype in _HALF else None
    return sum_in_rank_order(x.reshape(-1), collective, wide).view(x.shape)


def gathered(x: Tensor, collective: Collective, features: int, dim: int = -1) -> Tensor:
    """Every rank's features (one dimension, `features` on all ranks together) after each other."""
    first = x.movedim(dim, 0)
    each = first.shape[1:].numel()
    rows = [(part.stop - part.start) * each for part in dealt(features, collective.size)]
    parts = collective.allgather(first.reshape(-1), rows=rows)
    return torch.cat([part.view(-1, *first.shape[1:]) for part in parts]).movedim(0, dim)


def _own(x: Tensor, collective: Collective) -> Tensor:
    part = dealt(x.shape[-1], collective.size)[collective.rank]
    return x[..., part]


class _Copied(Function):
    """f of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, collective: Collective) -> Tensor:
        ctx.collective = collective
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.collective), None


class _Summed(Function):
    """g of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, collective: Collective) -> Tensor:
        return _sum(x, collective)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gathered(Function):
    """All features of what ranks hold parts of; backward this rank's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, collective: Collective, features: int) -> Tensor:
        ctx.collective = collective
        return gathered(x, collective, features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _own(grad, ctx.collective), None, None


class _Parted(Function):
    """This rank's part of features that all ranks hold; backward all parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, collective: Collective) -> Tensor:
        ctx.collective, ctx.features = collective, x.shape[-1]
        return _own(x, collective).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered(grad, ctx.collective, ctx.features), None


def dealt(features: int, ranks: int) -> list[slice]:
    """Which features every rank has: consecutive ones, the first ranks one more where they do not divide.

    Raises:
        UserError: fewer features than ranks.
    """
    if features < ranks:
        raise UserError(f"{features} features cannot be spread over {ranks} ranks", "fewer ranks, or a plain layer")
    small, more = divmod(features, ranks)
    starts = [rank * small + min(rank, more) for rank in range(ranks + 1)]
    return [slice(start, end) for start, end in pairwise(starts)]


class _SplitLinear(nn.Module):
    """What both layers share; `dim` is the dimension of the weight [out, in] that is split.

    Args:
        in_features, out_features: of the whole layer.
        collective: the ranks that the layer is spread over.
        bias: whether there is one.
        generator: draws the whole weight and bias, on every rank alike: the bits of `nn.Linear` after
            `torch.manual_seed` of the same seed. None: they are left empty, to be loaded.
    """

    dim: int
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, collective: Collective, *, bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features, self.collective = in_features, out_features, collective
        whole = torch.empty(out_features, in_features)
        whole_bias = torch.empty(out_features) if bias else None
        if generator is not None:
            nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
            if whole_bias is not None:
                bound = 1 / math.sqrt(in_features)
                whole_bias.uniform_(-bound, bound, generator=generator)
        self._take(whole, whole_bias)

    def _take(self, weight: Tensor, bias: Tensor | None) -> None:
        part = dealt(weight.shape[self.dim], self.collective.size)[self.collective.rank]
        own = weight.detach()[part] if self.dim == 0 else weight.detach()[:, part]
        self.weight = nn.Parameter(own.clone(memory_format=torch.contiguous_format))
        if bias is not None:
            bias = bias.detach()[part] if self.dim == 0 else bias.detach()
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    @classmethod
    def of(cls, layer: nn.Linear, collective: Collective, **options: Any) -> _SplitLinear:
        """This rank's part of a layer that all ranks hold with the same bits."""
        made = cls(layer.in_features, layer.out_features, collective, bias=layer.bias is not None, **options)
        made._take(layer.weight, layer.bias)
        made.weight.requires_grad_(layer.weight.requires_grad)
        if made.bias is not None:
            made.bias.requires_grad_(layer.bias.requires_grad)
        return made.train(layer.training)

    def dims(self) -> dict[str, int | None]:
        """Along which dimension the parameters are split; None: not."""
        return {"weight": self.dim} | ({} if self.bias is None else {"bias": None if self.dim else 0})

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.in_features} -> {self.out_features}, rank {self.collective.rank} of {self.collective.size}"


class ColumnParallelLinear(_SplitLinear):
    """A linear layer of which every rank computes some features out; `weight` is [out / ranks, in].

    Args:
        gather_output: give all features [..., out] on every rank; False: the rank's own [..., out / ranks].
        in_features, out_features, collective, bias, generator: see `_SplitLinear`.
    """

    dim = 0

    def __init__(
        self, in_features: int, out_features: int, collective: Collective, *, bias: bool = True,
        gather_output: bool = True, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, collective, bias=bias, generator=generator)
        self.gather_output = gather_output

    def forward(self, x: Tensor) -> Tensor:
        """[..., in], the same on all ranks."""
        y = nn.functional.linear(_Copied.apply(x, self.collective), self.weight, self.bias)
        return _Gathered.apply(y, self.collective, self.out_features) if self.gather_output else y


class RowParallelLinear(_SplitLinear):
    """A linear layer of which every rank sums over some features in; `weight` is [out, in / ranks].

    Args:
        input_is_parallel: the input holds the rank's own features [..., in / ranks]; False: all [..., in].
        in_features, out_features, collective, bias, generator: see `_SplitLinear`.
    """

    dim = 1

    def __init__(
        self, in_features: int, out_features: int, collective: Collective, *, bias: bool = True,
        input_is_parallel: bool = False, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, collective, bias=bias, generator=generator)
        self.input_is_parallel = input_is_parallel

    def forward(self, x: Tensor) -> Tensor:
        """To [..., out], the same on all ranks."""
        own = x if self.input_is_parallel else _Parted.apply(x, self.collective)
        y = _Summed.apply(nn.functional.linear(own, self.weight), self.collective)
        return y if self.bias is None else y + self.bias
