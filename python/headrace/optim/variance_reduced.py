"""What the variance-reduced rules share: gradients of the batch at other parameters, and the step.

    w <- w - lr (estimate + weight_decay w)

Estimates are made of gradients of the same rows at two times, so a row's loss must be a function of the parameters and
of nothing else: models with dropout or batch normalization are refused. L2 decay is exact and is never stored: what it
adds at old parameters cancels in all of these rules but SAG, whose paper takes the decay's exact gradient as well.

Other optimizers may train the rest of the model (embedding tables). "Old parameters" are then those of the whole model,
so that estimates stay unbiased; the copies take as much memory as the tables. Gradients at old parameters are made in
the parameters' precision: under bfloat16 autocast, estimates keep the rounding noise of the present gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import nn

from headrace.errors import UserError
from headrace.optim.base import Optimizer, Params, State
from headrace.optim.context import Named, StepContext, check_finite, full_gradient, summed, value_and_gradient
from headrace.optim.spec import dense_only

_KEPT = "kept"


class VarianceReduced(Optimizer):
    """See the module's docstring.

    Args:
        params: see `Optimizer`; all of them parameters of the model.
        model: the whole model that the loss is of.
        options: `lr`, `weight_decay` and the rule's own.

    Raises:
        UserError: an option out of range, or a layer whose output is not a function of its row and the parameters.
    """

    name: ClassVar[str]
    measured = False  # whether `move` takes the direction's norm

    def __init__(self, params: Params, model: nn.Module, **options: Any) -> None:
        super().__init__(params, **options)
        check_layers(self.name, model)
        mine = {id(p) for group in self.param_groups for p in group["params"]}
        named = dict(model.named_parameters())
        self.own = {name: p for name, p in named.items() if id(p) in mine}
        self.others = {name: p for name, p in named.items() if id(p) not in mine and p.requires_grad}
        self._names = {id(p): name for name, p in self.own.items()}
        if len(self.own) != len(mine):
            raise ValueError(f"optimizer {self.name} was given parameters that are not the model's")

    @property
    def kept(self) -> State:
        """What the rule keeps between steps: nested dicts of tensors and numbers, a part of `state_dict`."""
        return cast(State, cast(dict[Any, Any], self.state).setdefault(_KEPT, {}))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept what `state_dict` gave."""
        super().load_state_dict(state_dict)
        device = next(iter(self.own.values())).device
        cast(dict[Any, Any], self.state)[_KEPT] = _copied(self.kept, device)

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        grads = [p.grad for p in self.own.values() if p.grad is not None]
        if any(grad.is_sparse for grad in grads):
            raise dense_only(self.name)
        if not grads:
            return
        if ctx is None:
            raise UserError(
                f"optimizer {self.name} evaluates the batch at other parameters: step() was given no context",
                "train with headrace.train.loop.fit, or call step(ctx)",
            )
        self.advance(ctx)

    def with_own_gradient(self) -> list[str]:
        """See `Optimizer.with_own_gradient`."""
        return [self.name]

    @abstractmethod
    def advance(self, ctx: StepContext) -> None:
        """One step of the rule: `move` along an estimate, and what it keeps brought up to date.

        Raises:
            NonFiniteStepError: a gradient that it took itself is not finite; nothing has changed.
        """

    def move(self, estimate: Named) -> float:
        """w <- w - lr (estimate + weight_decay w) for parameters that have a gradient.

        Returns:
            The squared norm of what lr was multiplied with, where `measured`.
        """
        square = 0.0
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            direction = [estimate[self._names[id(p)]] for p in params]
            if group["weight_decay"]:
                direction = list(torch._foreach_add(direction, params, alpha=group["weight_decay"]))
            if self.measured:
                square += sum(float(d.double().square().sum()) for d in direction)
            torch._foreach_add_(params, direction, alpha=-group["lr"])
        return square

    def everything(self) -> Named:
        """Copies of all parameters of the model that are trained, by name."""
        return {name: p.detach().clone() for name, p in (self.own | self.others).items()}

    def gradient_at(self, ctx: StepContext, old: Named) -> Named:
        """Gradient of the global batch's mean loss where the whole model's parameters are `old`, by own names.

        Raises:
            NonFiniteStepError: it is not finite.
        """
        others = {name: old[name] for name in self.others}
        at_old = StepContext(
            outputs_at=lambda params: ctx.outputs_at(others | dict(params or {})),
            losses=ctx.losses, rows=ctx.rows, collective=ctx.collective,
        )  # fmt: skip
        made = value_and_gradient(at_old, {name: old[name] for name in self.own})[1]
        check_finite(made.values(), f"{self.name}: the batch's gradient at old parameters")
        return made

    def corrected(self, ctx: StepContext, old: Named, known: Named) -> Named:
        """The batch's gradient - its gradient at `old` + `known`, for parameters that have a gradient.

        Raises:
            NonFiniteStepError: it is not finite.
        """
        at_old = self.gradient_at(ctx, old)
        used = {name: p.grad for name, p in self.own.items() if p.grad is not None}
        made = torch._foreach_sub(list(used.values()), [at_old[name] for name in used])
        torch._foreach_add_(made, [known[name] for name in used])
        check_finite(made, f"{self.name}: the corrected gradient")
        return dict(zip(used, made, strict=True))

    def full_gradient(self, ctx: StepContext) -> tuple[int, Named]:
        """Training rows of all ranks, and the gradient of their mean loss at the present parameters: one pass.

        Raises:
            NonFiniteStepError: it is not finite.
        """
        rows, parts = 0, way_through(ctx, self.name)

        def counted() -> Any:
            nonlocal rows
            for part in parts():
                rows += part.rows
                yield part

        whole = StepContext(
            outputs_at=ctx.outputs_at, losses=ctx.losses, rows=0, full_pass=counted, collective=ctx.collective
        )
        gradient = full_gradient(whole, dict(self.own))
        (total,) = summed([torch.tensor([float(rows)], dtype=torch.float64)], ctx.collective)
        return int(total), gradient


def way_through(ctx: StepContext, name: str) -> Any:
    """The context's pass through all training rows.

    Raises:
        UserError: it has none.
    """
    if ctx.full_pass is None:
        raise UserError(
            f"optimizer {name} goes through all training rows, and this run has no way to",
            "give fit Hooks(training=...), or choose scsg: it needs the stream of batches alone",
        )
    return ctx.full_pass


def check_layers(name: str, model: nn.Module) -> None:
    """Refuse layers whose output is not a function of its row and the parameters.

    Raises:
        UserError: dropout that drops, or batch normalization.
    """
    for at, module in model.named_modules():
        kind = type(module).__name__
        rates = [getattr(module, key, 0.0) for key in (("p", "rate") if "Dropout" in kind else ("dropout",))]
        drops = any(isinstance(rate, float | int) and rate > 0.0 for rate in rates)
        if drops or isinstance(module, nn.modules.batchnorm._BatchNorm):
            why = "draws another function of the parameters every step" if drops else "mixes the rows of a batch"
            raise UserError(
                f"optimizer {name} takes differences of a row's gradients at two times, and layer {at or kind} {why}",
                "--model.dropout 0, or another optimizer" if drops else "another normalization, or another optimizer",
            )


def _copied(value: Any, device: torch.device) -> Any:
    if torch.is_tensor(value):
        return value.to(device, copy=True)
    return {key: _copied(inner, device) for key, inner in value.items()} if isinstance(value, dict) else value


def number_drawn(seed: int, draw: int) -> float:
    """A number in [0, 1) that depends on the seed and the draw's number alone: the same on all ranks."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + draw) & 0x7FFF_FFFF_FFFF_FFFF)
    return float(torch.rand((), generator=generator, dtype=torch.float64))
