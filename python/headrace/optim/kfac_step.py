"""K-FAC's step on the layers it is given: curvature, direction, clipping, momentum. The rule is in kfac.py."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Optimizer, Params
from headrace.optim.context import StepContext
from headrace.optim.kfac_curvature import Curvature
from headrace.optim.kfac_damping import adapted, reduction_ratio
from headrace.optim.kfac_fisher import EMPIRICAL, add_pass
from headrace.optim.kfac_layers import Layer

Parts = dict[int, tuple[Tensor, Tensor]]  # by a parameter's id: direction and gradient, in its shape


class LayersOptimizer(Optimizer):
    """K-FAC for all parameters given, each of which belongs to one of `layers`.

    Learning rate, momentum and weight decay are those of a parameter's group, all else is the first group's.

    Args:
        params: as of `Optimizer`.
        layers: to be watched from now on.
        options: of the rule.

    Attributes:
        curvature: factors, and the work that this rank did.
        left: names of layers that have a gradient but are never called - their weights are used by other means - and
            are no longer moved by this optimizer.

    Raises:
        UserError: damping is to adapt, and the parameters have no names.
    """

    def __init__(self, params: Params, layers: Sequence[Layer], **options: Any) -> None:
        super().__init__(params, **options)
        if options["damping_interval"]:
            self.named()
        self.layers, self.steps = list(layers), 0
        self.left: list[str] = []
        self.curvature = Curvature(self.layers)
        handles = [handle for layer in self.layers for handle in layer.handles()]
        weakref.finalize(self, _remove, handles)
        self._arm()

    def _arm(self) -> None:
        """Let the layers record the coming backward passes where their factors are due."""
        options = self.param_groups[0]
        due = options["fisher"] == EMPIRICAL and self.steps % options["factor_interval"] == 0
        for layer in self.layers:
            layer.recording = due

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`.

        Raises:
            UserError: no context.
        """
        if not self.layers:
            return
        if ctx is None:
            raise UserError("K-FAC has to know the batch's rows", "optimizer.step(ctx) with a StepContext")
        options = self.param_groups[0]
        if self.steps % options["factor_interval"] == 0:
            watched = options["fisher"] == EMPIRICAL  # the loop's backward pass; passes of our own are not scaled
            if not watched:
                add_pass(self.layers, ctx, options["fisher"], self._seed())
            uncalled = self.curvature.update(ctx, options["factor_decay"], ctx.scale if watched else 1.0)
            self.leave([layer.name for layer in uncalled if layer.weight.grad is not None])
        decays = self._decays()
        dampings = [options["damping"] + decays[id(layer.weight)] for layer in self.layers]  # L2 is curvature too
        due = self.steps % options["inverse_interval"] == 0
        self.curvature.refresh(ctx.collective, options, dampings, due=due)
        parts = self._directions(ctx, options, decays, dampings)
        self.steps += 1
        if options["damping_interval"] and self.steps % options["damping_interval"] == 0:
            self._move_and_adapt(ctx, parts, decays, options)
        else:
            self._move(parts, options["kl_clip"])
        self._arm()

    def leave(self, names: Sequence[str]) -> list[Layer]:
        """Move these layers no more; those of them that were moved until now."""
        gone = [layer for layer in self.layers if layer.name in names]
        if gone:
            self.left += [layer.name for layer in gone]
            self.layers = [layer for layer in self.layers if layer not in gone]
            self.curvature.leave(gone)
            for layer in gone:
                layer.recording = False
        return gone

    def _seed(self) -> int:
        return int(self.param_groups[0]["seed"] * 1_000_003 + self.steps) & 0xFF_FFFF_FFFF

    def _decays(self) -> dict[int, float]:
        """L2 coefficients by the parameters' ids."""
        return {
            id(p): 0.0 if group["decoupled"] else group["weight_decay"]
            for group in self.param_groups
            for p in group["params"]
        }

    def _directions(
        self, ctx: StepContext, options: Mapping[str, Any], decays: Mapping[int, float], dampings: Sequence[float]
    ) -> Parts:
        """Preconditioned gradients and gradients, of all layers that have one."""
        grads = {
            i: layer.gradient([decays[id(p)] for p in layer.params()])
            for i, layer in enumerate(self.layers)
            if all(p.grad is not None for p in layer.params())
        }
        made = self.curvature.directions(grads, ctx.collective, options, dampings)
        parts: Parts = {}
        for i, grad in grads.items():
            layer = self.layers[i]
            for param, *both in zip(layer.params(), layer.parts(made[i]), layer.parts(grad), strict=True):
                parts[id(param)] = (both[0], both[1])
        return parts

    def _move(self, parts: Parts, kl_clip: float) -> None:
        """Clip, then decoupled decay, momentum and the step, a group at a time."""
        scale = self._clip(parts, kl_clip)
        for group in self.param_groups:
            params = [p for p in group["params"] if id(p) in parts]
            if not params:
                continue
            steps = [parts[id(p)][0] for p in params]
            if scale != 1.0:
                steps = list(torch._foreach_mul(steps, scale))
            if group["decoupled"] and group["weight_decay"]:
                torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
            if group["momentum"]:
                kept = [self._momentum(p) for p in params]
                torch._foreach_mul_(kept, group["momentum"])
                torch._foreach_add_(kept, steps)
                steps = kept
            torch._foreach_add_(params, steps, alpha=-group["lr"])

    def _momentum(self, param: Tensor) -> Tensor:
        if "momentum" not in self.state[param]:
            self.state[param]["momentum"] = torch.zeros_like(param)
        kept: Tensor = self.state[param]["momentum"]
        return kept

    def _clip(self, parts: Parts, kl_clip: float) -> float:
        """nu. A direction that is not finite (by overflow: factors are) is left out of the step."""
        if not parts:
            return 1.0
        rates = {id(p): group["lr"] for group in self.param_groups for p in group["params"]}
        dots = torch.stack([(d.double() * g).sum() for d, g in parts.values()]).tolist()
        size = 0.0
        for key, dot in zip(list(parts), dots, strict=True):
            if math.isfinite(dot):
                size += rates[key] ** 2 * dot
            else:
                parts[key] = (torch.zeros_like(parts[key][0]), parts[key][1])
        return min(1.0, math.sqrt(kl_clip / size)) if kl_clip and size > 0.0 else 1.0

    def _move_and_adapt(
        self, ctx: StepContext, parts: Parts, decays: Mapping[int, float], options: dict[str, Any]
    ) -> None:
        """Move, and let damping follow what came of it."""
        named = {name: p for name, p in self.named().items() if id(p) in parts}
        before = {name: p.detach().clone() for name, p in named.items()}
        self._move(parts, options["kl_clip"])
        ratio = reduction_ratio(
            ctx,
            before,
            {name: p.detach() for name, p in named.items()},
            {name: decays[id(p)] for name, p in named.items()},
            options["damping"],
        )
        options["damping"] = adapted(options["damping"], ratio, options["damping_interval"])

    def state_dict(self) -> dict[str, Any]:
        """torch's, with the number of steps and the layers' factors."""
        return {**super().state_dict(), "steps": self.steps, "layers": self.curvature.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: factors of other layers.
        """
        self.curvature.load_state_dict(state_dict["layers"])
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.steps = state_dict["steps"]
        self._arm()

    def state_bytes(self) -> int:
        """See `Optimizer.state_bytes`: with the decompositions that this rank holds."""
        return super().state_bytes() + self.curvature.solved_bytes()


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
