"""A model cut into stages of consecutive layers, and what stages keep put together again.

    min over cuts of  max over stages of  sum of the costs of its layers

by dynamic programming over (layers, stages); among cuts of equal maximum that of the least sum of squares, of those the
one whose first stages end first. Costs are given, measured, or numbers of parameters.

Reference: Y. Huang et al., "GPipe", NeurIPS 2019, section 2.2 (partitions of minimal variance of estimated cost; here
the slowest stage, which sets the pace, is made as fast as it can be).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from headrace.comm import Collective
from headrace.comm.alone import ALONE
from headrace.errors import UserError
from headrace.parallel.draws import seeded

Values = Tensor | tuple[Tensor, ...]


class Stage(nn.Module):
    """Some consecutive layers of a model, called one after the other as `nn.Sequential` does.

    Args:
        layers: by the names that they have in the whole: so have their parameters.
        first: place of the first one in the whole.
        seed: of what layers draw.

    Attributes:
        part: of the data that goes through next; see draws.py.
    """

    def __init__(self, layers: Mapping[str, nn.Module], first: int, seed: int) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._first, self._seed, self.part = first, seed, 0

    def forward(self, x: Values) -> Values:
        """A tensor or a tuple of tensors to another."""
        for place, layer in enumerate(self._modules.values(), self._first):
            assert layer is not None
            with seeded(layer, self._seed, self.part, place):
                x = layer(x)
        return x

    @property
    def device(self) -> torch.device:
        """Where its parameters are; the CPU where it has none."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by their names in the whole."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def layers_of(model: nn.Sequential | Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Layers by name: those of the `nn.Sequential`, or numbers.

    Raises:
        UserError: `model` is neither a sequence nor a plain `nn.Sequential`, or a layer has a name of `Stage`'s own.
    """
    if isinstance(model, nn.Module) and not in_a_row(model):
        raise UserError(
            f"this {type(model).__name__} cannot be cut: nothing says in which order its layers run, and what beside",
            "give an nn.Sequential, or a list of modules that run one after the other",
        )
    if not isinstance(model, nn.Module):
        return {str(number): layer for number, layer in enumerate(model)}
    layers = {name: layer for name, layer in model._modules.items() if layer is not None}
    if taken := [name for name in layers if name == "part" or hasattr(Stage, name)]:
        raise UserError(f"a layer of a pipeline cannot be called {taken[0]}", "another name for it")
    return layers


def in_a_row(model: nn.Module) -> bool:
    """Whether calling it is calling its layers one after the other, and nothing else: an `nn.Sequential` whose forward
    pass nobody has written anew."""
    return isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward and not hooked(model)


def hooked(module: nn.Module) -> bool:
    """Whether something else runs when it is called: hooks, those of weight norm and pruning among them."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def cut(costs: Sequence[float], stages: int) -> list[range]:
    """Layers of every stage, at least one each, so that the most costly stage costs as little as can be.

    Raises:
        UserError: fewer layers than stages, or a cost that is no number of at least 0.
    """
    if not 1 <= stages <= len(costs):
        raise UserError(f"{len(costs)} layers cannot be cut into {stages} stages", f"stages=1 to {len(costs)}")
    if not all(math.isfinite(cost) and cost >= 0.0 for cost in costs):
        raise UserError(f"costs of layers must be numbers of at least 0, not {list(costs)}")
    least = _least(costs, stages, max)[-1][0][0]
    table = _least(costs, stages, lambda own, rest: own * own + rest if own <= least else math.inf)
    ranges, start = [], 0
    for best in reversed(table):
        ranges.append(range(start, best[start][1]))
        start = best[start][1]
    return ranges


def _least(costs: Sequence[float], stages: int, join: Callable[[float, float], float]) -> list[list[tuple[float, int]]]:
    """`[k][i]`: the least that layers i ... come to in k + 1 stages, and where the first of these ends.

    Args:
        join: what a stage's cost and that of the stages after it come to.
        costs, stages: see `cut`.
    """
    count = len(costs)
    table = [[(join(sum(costs[i:]), 0.0), count) for i in range(count)]]
    for rest in range(1, stages):
        table.append([_first_end(costs, i, count - rest, table[-1], join) for i in range(count)])
    return table


def _first_end(
    costs: Sequence[float], first: int, last_end: int, after: Sequence[tuple[float, int]],
    join: Callable[[float, float], float],
) -> tuple[float, int]:  # fmt: skip
    found, own = (math.inf, last_end), 0.0
    for end in range(first + 1, last_end + 1):
        own += costs[end - 1]
        found = min(found, (join(own, after[end][0]), end))
    return found


def stage_of(
    model: nn.Sequential | Sequence[nn.Module], stages: int, stage: int, costs: Sequence[float] = (), seed: int = 0
) -> Stage:
    """A copy of one stage of a model.

    Args:
        costs: of every layer; none: its number of parameters, and one.
        model, stages, stage: what is cut, into how many, and which of them; seed: see `Stage`.

    Raises:
        UserError: see `cut`; costs of other layers; or a parameter that two stages would share.
    """
    layers = layers_of(model)
    costs = list(costs) or [1 + sum(p.numel() for p in layer.parameters()) for layer in layers.values()]
    if len(costs) != len(layers):
        raise UserError(f"{len(costs)} costs were given for {len(layers)} layers", "one cost a layer")
    ranges = cut(costs, stages)
    _check_apart(list(layers.items()), ranges)
    own = {name: layer for place, (name, layer) in enumerate(layers.items()) if place in ranges[stage]}
    return copy.deepcopy(Stage(own, ranges[stage].start, seed))


def _check_apart(layers: Sequence[tuple[str, nn.Module]], ranges: Sequence[range]) -> None:
    """Refuse a parameter in two stages: each would train a copy of its own."""
    home: dict[int, tuple[int, str]] = {}
    for stage, places in enumerate(ranges):
        for layer, module in (layers[place] for place in places):
            for name, param in module.named_parameters():
                held, known = home.setdefault(id(param), (stage, f"{layer}.{name}"))
                if held != stage:
                    raise UserError(
                        f"layers of stages {held} and {stage} share a parameter: {known} is {layer}.{name}",
                        "costs that keep both layers in one stage, or a model that does not tie them",
                    )


def measured_costs(
    model: nn.Sequential | Sequence[nn.Module], inputs: Values, collective: Collective | None = None, turns: int = 3
) -> list[float]:
    """Seconds of forward and backward of every layer on `inputs`, the best of some turns; with a collective those of
    rank 0 on all ranks, for all must cut alike. Parameters, gradients, buffers and torch's generator stay as they were.
    """
    costs: list[float] = []
    if collective is None or collective.rank == 0:
        with ALONE, torch.random.fork_rng():
            costs = [min(times) for times in _timed(model, inputs, turns)]
    return costs if collective is None else list(collective.allgather_object(costs)[0])


def _timed(model: nn.Sequential | Sequence[nn.Module], x: Values, turns: int) -> Iterator[list[float]]:
    for layer in layers_of(model).values():
        trial, times = copy.deepcopy(layer), []
        for _ in range(turns):
            given = map_values(lambda t: t.detach().requires_grad_(t.is_floating_point()), x)
            began = time.perf_counter()
            # Cloned, for a layer may work in place.
            found = trial(map_values(torch.clone, given))
            outputs = [t for t in tensors_of(found) if t.requires_grad]
            torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
            times.append(time.perf_counter() - began)
        yield times
        x = map_values(Tensor.detach, found)


def assemble(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The whole model's `state_dict` from those of its stages, in order.

    Raises:
        UserError: two stages hold one name.
    """
    whole: dict[str, Tensor] = {}
    for stage, state in enumerate(states):
        if twice := sorted(whole.keys() & state.keys()):
            raise UserError(f"stage {stage} holds {twice[0]}, as one before it does", "states of one run, each once")
        whole |= state
    return whole


def tensors_of(x: Values) -> tuple[Tensor, ...]:
    """A tensor, or tensors, as a tuple."""
    return (x,) if torch.is_tensor(x) else tuple(x)


def map_values(fn: Callable[[Tensor], Tensor], x: Values) -> Values:
    """`fn` of every tensor."""
    return fn(x) if torch.is_tensor(x) else tuple(fn(t) for t in x)


def pieces(x: Values, count: int) -> list[Values]:
    """Rows in `count` micro-batches of nearly equal size, in order.

    Raises:
        UserError: fewer rows than micro-batches, or tensors that differ in rows.
    """
    rows = {t.shape[0] if t.dim() else 0 for t in tensors_of(x)}
    if len(rows) != 1 or min(rows) < count:
        raise UserError(f"a batch of {sorted(rows)} rows cannot be cut into {count} micro-batches", "fewer of them")
    if torch.is_tensor(x):
        return list(x.tensor_split(count))
    return list(zip(*(t.tensor_split(count) for t in x), strict=True))
