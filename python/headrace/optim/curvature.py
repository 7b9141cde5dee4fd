"""Products with curvature matrices of a batch's loss, without the matrices.

    J_i = d outputs_i / d w [outputs, n],  l_i = d loss_i / d outputs_i,  H_i = d^2 loss_i / d outputs_i^2
    Gauss-Newton       G v = (1 / rows) sum_i J_i^T H_i J_i v
    empirical Fisher   F v = (1 / rows) sum_i g_i (g_i . v),     g_i = J_i^T l_i
    its diagonal           = E (sum_i u_i g_i)^2 / rows,         u_i = +-1 independent

Where the loss is a negative log-likelihood whose natural parameters are the outputs (binary and softmax cross-entropy
of logits, half squared errors), G is also the Fisher matrix.

References: N. N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002;
J. Martens, "New insights and perspectives on the natural gradient method", arXiv:1412.1193 (sections 8, 9);
J. Martens, I. Sutskever, K. Swersky, "Estimating the Hessian by back-propagating curvature", ICML 2012 (diagonals by
random signs). J v is the derivative of J^T u with respect to u, two backward passes over one kept graph, instead of
forward-mode differentiation: the forward pass runs once for all products of a step (measured on a perceptron of 139k
weights and 2048 rows: 0.094 s a product, a gradient 0.102 s, torch.func.jvp and vjp 0.133 s), any layer that
differentiates twice will do, also one that torch.func does not take (embedding tables with a gradient of their own),
and ranks may be threads (torch's dual level is one for a process). The graph of the batch's forward and backward pass
stays in memory meanwhile.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError
from headrace.optim.context import summed
from headrace.optim.flat import Objective

MAX_PROBES = 64


class Linearized:
    """outputs(w + v) = outputs(w) + J v + ..., from the outputs' graph."""

    def __init__(self, outputs: Tensor, leaves: list[Tensor]) -> None:
        self.outputs, self.leaves = outputs, leaves
        with torch.enable_grad():
            self.probe = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(outputs, leaves, self.probe, create_graph=True, allow_unused=True)
        self.pulled = [(number, part) for number, part in enumerate(pulled) if part is not None and part.requires_grad]

    def push(self, v: list[Tensor]) -> Tensor:
        """J v, in the outputs' shape.

        Raises:
            UserError: a layer cannot be differentiated twice.
        """
        if not self.pulled:
            return torch.zeros_like(self.outputs)
        numbers, parts = zip(*self.pulled, strict=True)
        try:
            made = torch.autograd.grad(parts, self.probe, [v[number] for number in numbers], retain_graph=True)
        except RuntimeError as error:
            if not any(words in str(error) for words in ("differentiate twice", "derivative for", "used in the graph")):
                raise
            raise UserError(
                f"curvature products differentiate the model twice, and a layer cannot be: {str(error)[:200]}",
                "an optimizer of gradients, or for attention torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
            ) from error
        return made[0]

    def pull(self, u: Tensor) -> list[Tensor]:
        """J^T u, in the parameters' shapes."""
        made = torch.autograd.grad(self.outputs, self.leaves, u, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.leaves, made, strict=True)]


class Curvature:
    """Value, gradient and curvature products of an objective at w [n]; the same on every rank.

    Products are of the mean loss alone: the weight decay's own curvature is the caller's to add.
    """

    def __init__(self, objective: Objective, w: Tensor) -> None:
        self.objective, self.w, self.ctx = objective, w, objective.ctx
        with torch.enable_grad():
            leaves = {name: part.detach().requires_grad_() for name, part in objective.layout.named(w).items()}
            outputs = self.ctx.outputs_at(leaves)
            self.linear = Linearized(outputs, list(leaves.values()))
            self.outputs = outputs.detach().requires_grad_()
            self.loss = self.ctx.losses(self.outputs).sum(dtype=torch.float64)
            (self.slopes,) = torch.autograd.grad(self.loss, self.outputs, create_graph=True)

    def value(self) -> float:
        """F(w)."""
        (total,) = summed([self.loss.detach().reshape(1)], self.ctx.collective)
        return self.objective.with_decay(float(total) / max(1, self.ctx.rows), self.w)

    def gradient(self) -> Tensor:
        """Of F at w [n]."""
        return self._mean(self.linear.pull(self.slopes.detach())).add_(self.w, alpha=self.objective.decay)

    def gauss_newton(self, v: Tensor) -> Tensor:
        """G v [n]."""
        pushed = self._push(v)
        if not self.slopes.requires_grad:  # losses linear in the outputs
            return torch.zeros_like(v)
        (bent,) = torch.autograd.grad(self.slopes, self.outputs, pushed, retain_graph=True)
        return self._mean(self.linear.pull(bent))

    def empirical_fisher(self, v: Tensor) -> Tensor:
        """F v [n]."""
        slopes = self.slopes.detach()
        products = slopes * self._push(v)
        rows = products.sum(tuple(range(1, products.dim())), keepdim=True) if products.dim() > 1 else products
        return self._mean(self.linear.pull(slopes * rows))

    def squared_gradients(self, probes: int) -> Tensor:
        """(1 / rows) sum_i g_i^2 [n], estimated without bias from `probes` backward passes.

        The signs are bits of the rows' hashed keys: they do not depend on which rank has a row. The relative standard
        deviation is about sqrt(2 / probes).

        Raises:
            UserError: the rows have no keys.
        """
        if self.ctx.keys is None:
            raise UserError(
                "the preconditioner draws signs by the rows' keys, and there are none",
                "--optimizer.dense.preconditioner_power 0",
            )
        bits = splitmix64(self.ctx.keys.cpu().numpy())
        shape = (-1, *[1] * (self.slopes.dim() - 1))
        total = torch.zeros_like(self.w)
        for probe in range(probes):
            odd = ((bits >> np.uint64(probe)) & np.uint64(1)).astype(np.float64)
            signs = torch.from_numpy(1.0 - 2.0 * odd).to(self.slopes).view(shape)
            total += self._mean(self.linear.pull(signs * self.slopes.detach())).square()
        return total * (self.ctx.rows / probes)

    def _push(self, v: Tensor) -> Tensor:
        return self.linear.push(list(self.objective.layout.named(v).values()))

    def _mean(self, parts: list[Tensor]) -> Tensor:
        """This rank's sums over its rows to the global mean."""
        (total,) = summed([torch.cat([part.reshape(-1) for part in parts])], self.ctx.collective)
        return total.div_(max(1, self.ctx.rows))
