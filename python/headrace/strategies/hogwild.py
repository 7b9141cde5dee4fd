"""Hogwild: ranks of one host change one copy of the parameters, each at its own pace and without locks.

    on every rank, for ever:   g <- gradient of the rank's own rows at x as it is;   x <- rule(x, g) in place

Reference: F. Niu, B. Recht, C. Re, S. J. Wright, "Hogwild!: a lock-free approach to parallelizing stochastic gradient
descent", NeurIPS 2011: right where updates touch few numbers each, as rows of embedding tables do; where two ranks
write the same number at the same time one of the updates may be lost, and a gradient may be of parameters that are half
old and half new. Theirs are single rows and SGD; here a rank's part of a batch and any rule that moves parameters by
what it adds to them, with state of its own on each rank. Each rank makes a whole step at the full rate, so N ranks move
N times as often as all-reduce does in its steps, by gradients of an N-th of the rows.

Runs of several ranks are not repeatable; one rank is plain training, bit for bit. Nothing goes over a wire but what all
tell each other in every `told_steps`-th step and the last of an epoch, the only ones where ranks wait; evaluation and
checkpoints are of the one copy while nobody steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headrace.comm.base import Collective
from headrace.errors import UserError
from headrace.strategies.own_steps import OwnSteps
from headrace.strategies.reducers import Reducer
from headrace.strategies.shared_memory import shared

if TYPE_CHECKING:
    from headrace.strategies.surroundings import Surroundings

_LINE = 64  # bytes that a processor moves at once: parameters do not share any
_BACK = "--strategy.name gossip"


@dataclass(frozen=True, kw_only=True)
class HogwildConfig:
    """Where the copy is, and when ranks hear of each other.

    Args:
        told_steps: all ranks are told of each other every so many steps.
        directory: of the file that memory is shared by; empty: /dev/shm, or the temporary directory.
    """

    told_steps: int = 16
    directory: str = ""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: which setting.
        """
        if self.told_steps < 1:
            raise UserError(f"--strategy.told_steps {self.told_steps}", "1 or more")


class Hogwild(OwnSteps):
    """See the module's docstring.

    Args:
        reducer: not used: nothing is summed.
        collective: all ranks.
        cfg: see HogwildConfig.
    """

    one_copy = True

    def __init__(self, reducer: Reducer, collective: Collective, cfg: HogwildConfig) -> None:
        self.reducer, self.collective, self.cfg = reducer, collective, cfg
        self._params: dict[str, nn.Parameter] = {}

    def begin(self, params: Mapping[str, nn.Parameter]) -> None:
        """Parameters become views of the one copy, with rank 0's values.

        Raises:
            UserError: they are on a GPU, there is no room, or ranks are on several hosts.
        """
        if away := [name for name, param in params.items() if param.device.type != "cpu"]:
            raise UserError(f"hogwild: {away[0]} is on {params[away[0]].device}, not in memory", "--device cpu")
        held = {name: param for name, param in params.items() if param.numel()}
        ends = _ends(held)
        memory = shared(self.collective, max(ends.values(), default=1), self.cfg.directory)
        for name, param in held.items():
            start = ends[name] - param.nbytes
            view = torch.frombuffer(memory, dtype=param.dtype, count=param.numel(), offset=start).view(param.shape)
            if self.collective.rank == 0:
                view.copy_(param.data)
            param.data = view
        self._params = held
        self.collective.barrier()

    def meets(self, step: int, last: bool) -> bool:
        """Whether all ranks wait for each other."""
        return last or (step + 1) % self.cfg.told_steps == 0

    def on_parameters(self, params: dict[str, Tensor], step: int, meets: bool) -> None:
        """Nothing to do: others see them."""

    @contextlib.contextmanager
    def consensus(self, params: dict[str, Tensor]) -> Iterator[None]:
        """Inside, nobody changes parameters; all ranks enter and leave together."""
        self.collective.barrier()
        yield
        self.collective.barrier()

    def finish(self, params: dict[str, Tensor]) -> None:
        """Wait for everybody's last step."""
        self.collective.barrier()

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`: nothing is compressed."""
        return {}

    def close(self) -> None:
        """Parameters have memory of their own again."""
        for param in self._params.values():
            param.data = param.data.clone()
        self._params = {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside parameters and optimizer."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: for the state of another strategy.
        """
        if state:
            raise ValueError(f"hogwild keeps no state, the checkpoint has {sorted(state)}: of another strategy")


def _ends(params: Mapping[str, Tensor]) -> dict[str, int]:
    """Where each parameter ends in the memory."""
    ends, at = {}, 0
    for name, param in params.items():
        ends[name] = at = -(-at // _LINE) * _LINE + param.nbytes
    return ends


def fits(options: Mapping[str, Any], around: Surroundings) -> None:
    """Refuse what does not go with one copy of the parameters.

    Raises:
        UserError: which, and what to do.
    """
    from headrace.optim import WRAPPERS
    from headrace.optim.spec import NEEDS_CLOSURE

    if around.compression.compresses or around.compression.hierarchical:
        raise UserError("--compression with hogwild: nothing is sent", "leave --compression.* out")
    if around.device == "cuda":
        raise UserError("--device cuda with hogwild: ranks share memory of the host", "--device cpu")
    if own := [name for name in around.rules if name in WRAPPERS]:
        raise UserError(f"{own[0]} keeps weights of its own, hogwild has one copy for all ranks", _BACK)
    if own := [name for name, traits in around.rules.items() if NEEDS_CLOSURE in traits]:
        raise UserError(f"{own[0]} evaluates the loss at other parameters while other ranks change them", _BACK)


def lead(options: Mapping[str, Any]) -> int:
    """Steps between those in which all are told of each other, where they wait."""
    return int(options["told_steps"]) - 1
