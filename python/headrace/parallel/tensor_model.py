"""A model some of whose linear layers are spread over ranks, under the names of the plain one.

    plan: {"blocks.*.mlp": "block", "head": "column", "0": "row"}       rank = group x T + place

All ranks of a group give the layers the same rows; groups (where there are more ranks than T) are replicas that have
rows of their own: gradients are summed over `replicas`. Reference: see tensor_parallel.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headrace import optim
from headrace.comm import Collective
from headrace.comm.subgroup import Subgroup
from headrace.errors import UserError
from headrace.optim.clipping import Clipped, ClippingConfig, Shards, clip_gradients
from headrace.optim.name_patterns import check_patterns, named_by
from headrace.options import known
from headrace.parallel.draws import draws
from headrace.parallel.gathering import summed_gradients
from headrace.parallel.part_optimizer import check_elementwise, check_part
from headrace.parallel.stages import hooked, in_a_row
from headrace.parallel.tensor_parallel import ColumnParallelLinear, RowParallelLinear, dealt, gathered

_EACH_NUMBER = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Identity,
)  # fmt: skip


def column(layer: nn.Module, collective: Collective) -> nn.Module:
    """Split by features out, all of them given on every rank."""
    return ColumnParallelLinear.of(linear(layer), collective)


def row(layer: nn.Module, collective: Collective) -> nn.Module:
    """Split by features in, all of them taken on every rank."""
    return RowParallelLinear.of(linear(layer), collective)


def block(layer: nn.Module, collective: Collective) -> nn.Module:
    """Linear, functions of each number, Linear -> column, the functions, row: one sum over ranks forward, one backward.

    Raises:
        UserError: the block is made of other layers.
    """
    layers = list(layer) if isinstance(layer, nn.Sequential) and in_a_row(layer) else []
    between = all(isinstance(each, _EACH_NUMBER) for each in layers[1:-1])
    if len(layers) < 2 or not between or {type(layers[0]), type(layers[-1])} != {nn.Linear}:
        what = ", ".join(type(each).__name__ for each in layers) or type(layer).__name__
        raise UserError(
            "a block must be a plain nn.Sequential (no hooks, no forward of its own) of Linear, activations of each "
            f"number, Linear; got {what}",
            "plan column or row for its layers; dropout behind the block",
        )
    made = copy.copy(layer)
    made._modules = dict(layer._modules)
    names = list(made._modules)
    made._modules[names[0]] = ColumnParallelLinear.of(linear(layers[0]), collective, gather_output=False)
    made._modules[names[-1]] = RowParallelLinear.of(linear(layers[-1]), collective, input_is_parallel=True)
    return made


def linear(layer: nn.Module) -> nn.Linear:
    """The layer, which must be a plain linear one."""
    if type(layer) is not nn.Linear or hooked(layer):
        what = f"{type(layer).__name__}{' with hooks' if hooked(layer) else ''}"
        raise UserError(f"column and row split a plain nn.Linear, not a {what}", "block, or no plan for it")
    return layer


SPLITS: dict[str, Callable[[nn.Module, Collective], nn.Module]] = {"column": column, "row": row, "block": block}


class TensorParallel:
    """One rank's part of a model.

    Args:
        model: plain, the same bits on every rank; it is copied.
        plan: a key of SPLITS by pattern of the names of modules.
        collective: of all ranks.
        ranks: T, that a layer is spread over; the number of all ranks is a multiple of it. 0: all.

    Attributes:
        model: with split layers; call it, differentiate it, step it.
        group: the collective over which layers are spread.
        replicas: the collective of those ranks that hold the same parts.

    Raises:
        UserError: a pattern that is no module's name, a layer that cannot be split so, or over so many ranks.
    """

    def __init__(self, model: nn.Module, plan: Mapping[str, str], collective: Collective, ranks: int = 0) -> None:
        size = ranks or collective.size
        if collective.size % size:
            raise UserError(f"{collective.size} ranks are no multiple of {size}", "ranks")
        if draws(model):
            raise UserError(
                "the model draws from torch's generator (dropout), and ranks would draw apart",
                "headrace.models.layers.SeededDropout, seeded alike on all ranks of a group",
            )
        start = collective.rank // size * size
        members = list(range(start, start + size))
        self.group: Collective = collective if size == collective.size else Subgroup(collective, members)
        self.replicas = Subgroup(collective, list(range(collective.rank % size, collective.size, size)))
        self.model = self._split(copy.deepcopy(model), plan)
        self._dims: dict[str, int | None] = {
            f"{name}.{own}".lstrip("."): dim
            for name, layer in self.model.named_modules()
            if isinstance(layer, ColumnParallelLinear | RowParallelLinear)
            for own, dim in layer.dims().items()
        }
        self._wholes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}

    def _split(self, model: nn.Module, plan: Mapping[str, str]) -> nn.Module:
        names = [name for name, _ in model.named_modules() if name]
        check_patterns("plan", list(plan), names)
        tied = {id(p): 0 for p in model.parameters()}
        for _, p in model.named_parameters(remove_duplicate=False):
            tied[id(p)] += 1
        for pattern, how in plan.items():
            known("plan", how, SPLITS)
            for name in [each for each in names if named_by([pattern], each)]:
                above, _, last = name.rpartition(".")
                layer = model.get_submodule(name)
                if any(tied.get(id(p), 1) > 1 for p in layer.parameters()):
                    raise UserError(
                        f"{name} shares a parameter with another layer: it cannot be split", "no plan for it"
                    )
                setattr(model.get_submodule(above), last, SPLITS[how](layer, self.group))
        return model

    def optimizer(self, name: str, **options: Any) -> optim.Optimizer:
        """An optimizer of this rank's parameters whose steps are those of the plain model; see `headrace.optim.create`.

        Raises:
            UserError: a rule that looks at whole tensors or at the whole model.
        """
        check_part(name, options)
        made = optim.create(name, self.model, **options)
        check_elementwise(name, made)
        return made

    def sum_gradients(self) -> None:
        """Replace gradients by their sums over replicas; a parameter has one where it has one on any of them."""
        params = dict(self.model.named_parameters())
        dtypes = sorted({param.dtype for param in params.values()}, key=str)
        for name, total in summed_gradients(params, dtypes, self.replicas)[0].items():
            params[name].grad = total

    def clip(self, config: ClippingConfig) -> Clipped:
        """Clip gradients as those of the plain model.

        Raises:
            UserError: adaptive clipping, whose units rows of split weights are not.
        """
        if config.rule == "adaptive":
            raise UserError("adaptive clipping looks at rows of weights, which are split", "clipping norm or value")
        params = dict(self.model.named_parameters())
        grads = {name: p.grad for name, p in params.items() if p.grad is not None}
        split = frozenset(name for name, dim in self._dims.items() if dim is not None)
        return clip_gradients(params, grads, config, Shards(split, self.group))

    @torch.no_grad()
    def whole_state_dict(self) -> dict[str, Tensor]:
        """The plain model's `state_dict`, to the bit, on every rank; all ranks call it."""
        return {name: self._whole(name, part) for name, part in self.model.state_dict().items()}

    def whole_gradients(self) -> dict[str, Tensor]:
        """Gradients as the plain model has them, on every rank; all ranks call it."""
        grads = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        return {name: self._whole(name, grad) for name, grad in grads.items()}

    def _whole(self, name: str, part: Tensor) -> Tensor:
        dim = self._dims.get(name)
        if dim is None:
            return part.clone()
        return gathered(part, self.group, self._wholes[name][dim], dim).contiguous()

    def load_whole_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this rank's part of the plain model's `state_dict`.

        Raises:
            UserError: it is of another model.
        """
        own = {}
        for name, whole in state.items():
            dim = self._dims.get(name)
            if name in self._wholes and whole.shape != self._wholes[name]:
                raise UserError(
                    f"the state has {name} {list(whole.shape)}, not {list(self._wholes[name])}", "its model"
                )
            part = None if dim is None else dealt(whole.shape[dim], self.group.size)[self.group.rank]
            own[name] = whole if part is None else whole[part] if dim == 0 else whole[:, part]
        try:
            self.model.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(f"the state does not fit the model: {error}", "the state of the plain model") from None
