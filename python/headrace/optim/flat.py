"""What rules for a whole model share: its dense parameters as one vector, and the objective as a function of it.

    F(w) = (1 / rows) sum over rows of all ranks loss_i(w) + (weight_decay / 2) |w|^2,     w [n]

Vectors have the parameters' dtype; inner products are taken in float64. Every number that decides about a step comes
from sums over ranks in rank order, so all ranks decide alike; the arithmetic on vectors is repeated by each, so the
same bits take equal processors and numbers of threads. Dropout masks do not change inside a step: F is one function
there.
"""

from __future__ import annotations

import math
import zlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Optimizer, Params, State
from headrace.optim.context import Named, NonFiniteStepError, StepContext, check_finite, value_and_gradient, value_at
from headrace.optim.spec import dense_only

_BLOCK = 1 << 15  # numbers made float64 at a time: they stay in the cache, which is ten times as fast


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of vectors [n], in float64."""
    if a.dtype == torch.float64 or a.device.type != "cpu":
        return float(torch.dot(a.double(), b.double()))
    pairs = zip(a.split(_BLOCK), b.split(_BLOCK), strict=True)
    return float(torch.stack([torch.dot(x.double(), y.double()) for x, y in pairs]).sum())


def factor(x: float, like: Tensor) -> float:
    """x as a factor (`alpha`) of vectors: inf where their dtype does not hold it, for which torch would raise."""
    return x if abs(x) <= torch.finfo(like.dtype).max else math.copysign(math.inf, x)


class Layout:
    """Tensors of one dtype on one device as one vector [n].

    Raises:
        UserError: dtypes or devices differ.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.shapes = {name: value.shape for name, value in like.items()}
        self.sizes = [value.numel() for value in like.values()]
        if len({(value.dtype, value.device) for value in like.values()}) > 1:
            raise UserError(
                "parameters of several dtypes or devices are not one vector", "give the others another optimizer"
            )

    def vector(self, named: Mapping[str, Tensor]) -> Tensor:
        """One after the other, a copy [n]."""
        return torch.cat([named[name].reshape(-1) for name in self.shapes])

    def named(self, vector: Tensor) -> Named:
        """Parts of a vector [n] in their shapes: views."""
        parts = torch.split(vector, self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


class Objective:
    """F of a step's batch; see the module's docstring.

    Args:
        ctx: the batch.
        layout: of w.
        decay: weight_decay.
    """

    def __init__(self, ctx: StepContext, layout: Layout, decay: float = 0.0) -> None:
        self.ctx, self.layout, self.decay = ctx, layout, decay

    def value(self, w: Tensor) -> float:
        """F(w); inf where it is not a number."""
        return self.with_decay(value_at(self.ctx, self.layout.named(w)), w)

    def value_and_gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """F(w), and its gradient [n]; (inf, ...) where a number is not finite."""
        mean, named = value_and_gradient(self.ctx, self.layout.named(w))
        gradient = self.layout.vector(named).add_(w, alpha=self.decay)
        value = self.with_decay(mean, w)
        return (value if bool(gradient.isfinite().all()) else math.inf), gradient

    def with_decay(self, mean: float, w: Tensor) -> float:
        """F(w) of the mean loss."""
        value = mean + 0.5 * self.decay * dot(w, w) if self.decay else mean
        return value if math.isfinite(value) else math.inf


class WholeModelOptimizer(Optimizer):
    """A rule for all parameters together: `move(objective, w, gradient, options, state)` gives the next w.

    A parameter without a gradient is left alone, also by weight decay. A step that would end in NaN or Inf is not made.
    `last` holds figures of the last step, for logs.

    Raises:
        UserError: several parameter groups, dtypes or devices, or an option out of range.
    """

    name: str  # key in OPTIMIZERS, for errors

    def __init__(self, params: Params, **options: Any) -> None:
        super().__init__(params, **options)
        self.last: dict[str, float] = {}
        if len(self.param_groups) != 1:
            raise UserError(f"{self.name} has one set of options for all parameters, not {len(self.param_groups)}")
        Layout({str(number): param for number, param in enumerate(self.param_groups[0]["params"])})

    @abstractmethod
    def move(
        self, objective: Objective, w: Tensor, gradient: Tensor, options: Mapping[str, Any], state: State
    ) -> Tensor | None:
        """The next w [n], or None: stay.

        Args:
            objective: F of the batch.
            w: [n].
            gradient: of F at w as it was given to the step, [n].
            options: of the rule.
            state: changed in place; lists of vectors [n], numbers.

        Raises:
            NonFiniteStepError: see `check_start`.
        """

    def check_start(self, value: float, gradient: Tensor) -> None:
        """Refuse a batch whose F(w), or gradient there [n], is no number: all ranks alike, before anything has changed.

        Raises:
            NonFiniteStepError: one is NaN or Inf.
        """
        if not math.isfinite(value):
            raise NonFiniteStepError(f"{self.name}: the loss or its gradient is not finite")
        check_finite([gradient], f"{self.name}: the gradient")

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        options = self.param_groups[0]
        if any(p.grad is not None and p.grad.is_sparse for p in options["params"]):
            raise dense_only(self.name)
        used = {name: p for name, p in self.named().items() if p.grad is not None}
        if not used:
            return
        if ctx is None:
            raise UserError(f"{self.name} evaluates the loss at other parameters", "give step its StepContext")
        layout = Layout(used)
        w = layout.vector(used)
        gradient = layout.vector({name: p.grad for name, p in used.items() if p.grad is not None})
        gradient.add_(w, alpha=options["weight_decay"])
        objective = Objective(ctx, layout, options["weight_decay"])
        moved = self.move(objective, w, gradient, options, self._state_of(used))
        if moved is not None and bool(moved.isfinite().all()):
            for param, value in zip(used.values(), layout.named(moved).values(), strict=True):
                param.copy_(value)

    def _state_of(self, used: Mapping[str, Tensor]) -> State:
        """Kept with the first parameter, as torch's LBFGS does; forgotten where other parameters take part."""
        state: State = self.state[self.param_groups[0]["params"][0]]
        names = zlib.crc32("\n".join(used).encode())  # torch takes text in a state apart when it is loaded
        if state.get("names") != names:
            state.clear()
            state["names"] = names
        return state


def check_above_zero(options: Mapping[str, Any], *names: str) -> None:
    """Refuse options that are not above 0.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if not 0.0 < options[name] < math.inf:
            raise UserError(f"optimizer option {name} must be a number above 0, not {options[name]}")


def check_counts(options: Mapping[str, Any], *names: str) -> None:
    """Refuse options that are not whole numbers of at least 1 (as int or float).

    Raises:
        UserError: one is not.
    """
    for name in names:
        if not (options[name] >= 1 and float(options[name]).is_integer()):
            raise UserError(f"optimizer option {name} must be a whole number of at least 1, not {options[name]}")
