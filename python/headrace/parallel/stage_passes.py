"""Forward and backward passes of one stage, and what is held between them.

    forward m:   x_m from the stage before -> y_m = f(x_m; W_v) to the next
    backward m:  dL/dy_m from the next -> dL/dW added up, dL/dx_m to the stage before

With recomputation only x_m is held: y_m is made again in the backward pass, from the same weights, buffers and random
draws, so its bits are the same, and statistics that layers keep of their inputs are updated once.

Reference: T. Chen et al., "Training deep nets with sublinear memory cost", 2016 (recomputation); Y. Huang et al.,
"GPipe", NeurIPS 2019, section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.parallel.boundary import Arrived, Boundary
from headrace.parallel.stages import Stage, Values, map_values, tensors_of
from headrace.parallel.weight_versions import WeightVersions

Losses = Callable[[Values, Values], Tensor]


@dataclass
class _Held:
    """A micro-batch between its passes; `outputs` is None where they are made again."""

    arrived: Arrived
    part: int
    version: int
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    outputs: Values | None = None


class StagePasses:
    """One stage at work.

    Args:
        stage: its layers.
        boundary: to its neighbours.
        losses: `losses(outputs, targets)`: of every row, [B] or [B, ...]; used by the last stage.
        recompute: hold inputs only.
        versions: of weights, where updates come between the passes of a micro-batch; None: where they do not.

    Attributes:
        most: most micro-batches held at a time.
    """

    def __init__(
        self, stage: Stage, boundary: Boundary, losses: Losses, recompute: bool, versions: WeightVersions | None
    ) -> None:
        self.stage, self.boundary, self.losses = stage, boundary, losses
        self.recompute, self.versions = recompute, versions
        self.first, self.last = boundary.stage == 0, boundary.stage == len(boundary.ranks) - 1
        self._held: dict[int, _Held] = {}
        self.most = 0

    @property
    def under_way(self) -> int:
        """Micro-batches between their passes."""
        return len(self._held)

    def forward(self, number: int, part: int, version: int, given: Arrived | None) -> None:
        """Take a micro-batch forward; `given`: in the first stage. `part`: see `Stage.part`."""
        weights = self.versions.take(version) if self.versions is not None else {}
        held = _Held(self._arrive(number, given), part, version, weights)
        if self.recompute:
            held.buffers = {name: buffer.clone() for name, buffer in self.stage.named_buffers()}
        with torch.set_grad_enabled(not self.recompute):
            outputs = self._call(held, weights)
        self._held[number] = held
        self.most = max(self.most, len(self._held))
        if not self.recompute:
            held.outputs = outputs
        if not self.last:
            grad = [t.is_floating_point() if self.recompute else t.requires_grad for t in tensors_of(outputs)]
            self.boundary.send_activations(number, held.arrived.rows, outputs, grad)

    @torch.no_grad()
    def outputs_of(self, number: int, given: Arrived | None) -> Values | None:
        """A forward pass of which nothing is held; the last stage's outputs, None in others."""
        arrived = self._arrive(number, given)
        outputs = self._call(_Held(arrived, 0, 0, {}), {})
        if self.last:
            return outputs
        self.boundary.send_activations(number, arrived.rows, outputs, [False] * len(tensors_of(outputs)))
        return None

    def backward(self, number: int, targets: Values | None) -> tuple[float, int]:
        """Take a micro-batch backward; the sum of its losses (0 but in the last stage) and its rows.

        Raises:
            UserError: `losses` gave something else than a loss a row.
        """
        held = self._held.pop(number)
        outputs = self._call(held, held.weights | held.buffers) if held.outputs is None else held.outputs
        loss, roots, grads = self._roots(number, outputs, targets, held.arrived.rows)
        if roots:
            torch.autograd.backward(roots, grads)
        if not self.first:
            self.boundary.send_gradients(number, [leaf.grad for leaf in tensors_of(held.arrived.values)])
        if self.versions is not None:
            self.versions.give_back(held.version)
        return loss, held.arrived.rows

    def _arrive(self, number: int, given: Arrived | None) -> Arrived:
        if not self.first:
            return self.boundary.receive_activations(number, self.stage.device)
        assert given is not None
        return given._replace(values=map_values(lambda t: t.detach().to(self.stage.device), given.values))

    def _call(self, held: _Held, swapped: dict[str, Tensor]) -> Values:
        """Outputs with some parameters and buffers swapped; inputs are copied, for a layer may work in place."""
        self.stage.part = held.part
        values = map_values(torch.clone, held.arrived.values)
        if swapped:
            return torch.func.functional_call(self.stage, swapped, (values,))
        return self.stage(values)

    def _roots(
        self, number: int, outputs: Values, targets: Values | None, rows: int
    ) -> tuple[float, list[Tensor], list[Tensor | None]]:
        """The loss, where backward begins, and the gradients there."""
        if not self.last:
            outs = tensors_of(outputs)
            pairs = zip(outs, self.boundary.receive_gradients(number, outs), strict=True)
            there = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
            return 0.0, [out for out, _ in there], [grad for _, grad in there]
        assert targets is not None
        losses = self.losses(outputs, map_values(lambda t: t.to(self.stage.device), targets))
        if losses.dim() == 0 or losses.shape[0] != rows:
            raise UserError(
                f"losses must give one number a row, [{rows}] or [{rows}, ...], not {list(losses.shape)}",
                'reduction="none": sums and means over rows are taken by the pipeline',
            )
        total = losses.sum()
        return float(total.detach()), [total] if total.requires_grad else [], [None]
