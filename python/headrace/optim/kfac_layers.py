"""What K-FAC sees of a layer: its inputs and the gradients of its outputs, and the sums it makes of them.

    A = (1 / P) sum over positions p of a_p a_p^T,    G = (1 / N) sum over positions p of g_p g_p^T

a_p: input of a position with 1 appended where there is a bias; g_p: gradient of its output under the SUM of losses; N:
rows of the batch. A position is a row of a Linear layer's input [B, ..., n - 1] or a place of a Conv2d's output in one
example. For convolutions this is KFC (R. Grosse and J. Martens, "A Kronecker-factored approximate Fisher matrix for
convolution layers", ICML 2016, eq. 25 and theorem 1) with the number of places moved from one factor to the other,
which changes neither their product nor the damped ones; for Linear layers with more dimensions, and layers called
several times in a forward pass, it takes positions as independent, in the same way.

P counts, and A sums, only what has a gradient: positions of a Linear layer, examples of a Conv2d. Padding rows (loss 0)
are left out by this, exactly; so are rows behind dead units, where the papers count them in A: they add nothing to the
exact block E[a a^T (x) g g^T], so that taking them in would only blur its factors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

_UNFOLDED = 1 << 24  # numbers of unfolded inputs held at once


@dataclass
class Sums:
    """Of one rank since its gradients were cleared: A [n, n] and G [m, m] before division, P, and whether the layer was
    ever called; these two are single numbers."""

    a: Tensor
    g: Tensor
    positions: Tensor
    called: Tensor


class Layer:
    """One Linear or Conv2d layer.

    Args:
        name: in the model.
        module: type nn.Linear or nn.Conv2d with groups=1, whose weight is a parameter of its own.
        biased: whether its bias is to be in the block.

    Attributes:
        shape: (m, n) of the block's G [m, m] and A [n, n].
        recording: whether backward passes into `weight.grad` add to the sums.
        seen: calls (input, output's place in the graph) of a forward pass of our own, while there is one.
    """

    def __init__(self, name: str, module: nn.Module, biased: bool) -> None:
        assert isinstance(module, nn.Linear | nn.Conv2d)
        self.name, self.module = name, module
        self.weight, self.bias = module.weight, module.bias if biased else None
        self.dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        self.shape = (self.weight.shape[0], self.weight[0].numel() + biased)
        self.recording = self._called = False
        self.seen: list[tuple[Tensor, GradientEdge]] | None = None
        self._sums: Sums | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._pass = -1

    def handles(self) -> list[Any]:
        """Begin to watch; what ends it."""
        return [
            self.module.register_forward_hook(_Watch(self), with_kwargs=True),
            self.weight.register_post_accumulate_grad_hook(self._accept),
        ]

    def forward(self, inputs: Tensor, output: Tensor) -> None:
        """After a call of the layer; those with other weights (functional_call) or without gradients do not count."""
        self._called = True
        if self.module._parameters["weight"] is not self.weight or not output.requires_grad:
            return
        if self.seen is not None:
            self.seen.append((inputs.detach(), get_gradient_edge(output)))
        elif self.recording:
            inputs = inputs.detach()
            output.register_hook(lambda grad: self._backward(inputs, grad))

    def _backward(self, inputs: Tensor, grad: Tensor) -> None:
        if self.weight.grad is None:  # cleared since: what was summed is of a step that was taken or left out
            self._sums = None
        current = torch._C._current_graph_task_id()
        if current != self._pass:
            self._pass, self._pending = current, []
        self._pending.append((inputs, grad.detach()))

    def _accept(self, weight: Tensor) -> None:
        """This pass added to weight.grad: what it showed counts. One of autograd.grad (a closure's) does not."""
        pending, self._pending = self._pending, []
        if self._pass != torch._C._current_graph_task_id():
            return
        for inputs, grad in pending:
            self.add(inputs, grad)

    @torch.no_grad()
    def add(self, inputs: Tensor, grad: Tensor) -> None:
        """Add one call: inputs and gradient of outputs."""
        self.add_inputs(inputs, self.add_gradient(grad))

    @torch.no_grad()
    def add_gradient(self, grad: Tensor) -> Tensor:
        """Add to G alone, and say which positions or examples have a gradient."""
        sums = self._sums = self._sums or self.zero()
        rows, kept = self._outputs(grad.to(self.dtype))
        sums.g.addmm_(rows.T, rows)  # in place: autocast leaves it alone
        return kept

    @torch.no_grad()
    def add_inputs(self, inputs: Tensor, kept: Tensor) -> None:
        """Add to A alone, of those kept."""
        sums = self._sums = self._sums or self.zero()
        self._add_inputs(sums, inputs.to(self.dtype), kept.to(self.dtype))

    def take(self) -> Sums:
        """The sums, which begin anew."""
        sums, self._sums = self._sums or self.zero(), None
        sums.called.fill_(self._called)
        return sums

    def zero(self) -> Sums:
        """Nothing summed."""
        m, n = self.shape
        new = self.weight.detach().new_zeros
        return Sums(*(new(size, dtype=self.dtype) for size in ((n, n), (m, m), (), ())))

    def _outputs(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients as [positions, m], and which rows of the input have one."""
        if isinstance(self.module, nn.Conv2d):
            grad = grad if grad.dim() == 4 else grad[None]
            return grad.permute(0, 2, 3, 1).reshape(-1, self.shape[0]), (grad != 0).flatten(1).any(1)
        rows = grad.reshape(-1, self.shape[0])
        return rows, (rows != 0).any(1)

    def _add_inputs(self, sums: Sums, inputs: Tensor, kept: Tensor) -> None:
        if not isinstance(self.module, nn.Conv2d):
            rows = inputs.reshape(-1, inputs.shape[-1]) * kept[:, None]
            self._add_rows(sums, rows, kept)
            return
        inputs = inputs if inputs.dim() == 4 else inputs[None]
        some = max(1, _UNFOLDED // (self.weight[0].numel() * inputs.shape[2] * inputs.shape[3]))
        for images, mask in zip(inputs.split(some), kept.split(some), strict=True):
            patches = unfolded(self.module, images * mask[:, None, None, None])
            self._add_rows(sums, patches.flatten(0, 1), mask.repeat_interleave(patches.shape[1]))

    def _add_rows(self, sums: Sums, rows: Tensor, kept: Tensor) -> None:
        if self.bias is not None:
            rows = torch.cat([rows, kept[:, None]], 1)
        sums.a.addmm_(rows.T, rows)
        sums.positions += kept.sum()

    def gradient(self, decays: Iterable[float]) -> Tensor:
        """V [m, n]: the gradients of weight and bias, each with its L2 term."""
        parts = []
        for param, decay in zip(self.params(), decays, strict=True):
            assert param.grad is not None
            grad = param.grad.add(param, alpha=decay) if decay else param.grad
            parts.append(grad.reshape(self.shape[0], -1).to(self.dtype))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def parts(self, matrix: Tensor) -> list[Tensor]:
        """[m, n] as tensors of the shapes of `params`."""
        split = torch.split(matrix, [p[0].numel() for p in self.params()], 1)
        return [part.reshape(p.shape).to(p.dtype) for part, p in zip(split, self.params(), strict=True)]

    def params(self) -> list[Tensor]:
        """Weight, and bias where it is in the block."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class _Watch:
    """A forward hook that copies and pickles of the model lose."""

    def __init__(self, layer: Layer | None = None) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if self.layer is not None:
            self.layer.forward(args[0] if args else kwargs["input"], output)

    def __reduce__(self) -> tuple[type[_Watch], tuple[()]]:
        return _Watch, ()


def unfolded(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """What each place of the output sees: images [N, C, H, W] to [N, places, C kh kw]."""
    sides: list[int] = []
    for d in (1, 0):
        reach = conv.dilation[d] * (conv.kernel_size[d] - 1)
        padding = conv.padding
        before = padding[d] if isinstance(padding, tuple) else reach // 2 if padding == "same" else 0
        sides += [int(before), reach - int(before) if padding == "same" else int(before)]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = nn.functional.pad(images, sides, mode=mode)
    made = nn.functional.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
    return made.transpose(1, 2)


def find_layers(model: nn.Module, given: set[int]) -> list[Layer]:
    """Layers whose weights are among the parameters of these `id`s and belong to one module alone."""
    uses: dict[int, int] = {}
    for _, param in model.named_parameters(remove_duplicate=False):
        uses[id(param)] = uses.get(id(param), 0) + 1
    found = []
    for name, module in model.named_modules():
        if type(module) is not nn.Linear and not (type(module) is nn.Conv2d and module.groups == 1):
            continue  # a subclass may compute something else
        weight, bias = (module._parameters.get(key) for key in ("weight", "bias"))
        own = [p is not None and p.requires_grad and id(p) in given and uses[id(p)] == 1 for p in (weight, bias)]
        if own[0]:
            found.append(Layer(name, module, own[1]))
    return found
