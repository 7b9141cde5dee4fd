"""Who takes part in row f: every codec through our reducers over two transports, and peers on their own fast path.

    headrace   codecs of COMPRESSORS, powersgd, and auto, at their defaults; strategies whose ranks step on their own,
               without a codec; transport torch (gloo) or horovod. Three codecs without their feedback and
               the servers, whose messages are of no transport, are there once, beside torch
    ddp        DistributedDataParallel on gloo: as it is, with the fp16 and the PowerSGD hook
    horovod    DistributedOptimizer: as it is, with fp16 compression

A contestant makes of each rank's gradients their mean over ranks, or of ranks that step on their own what the strategy
makes of their parameters, and says what a formula lets it send: ours what `Metered` counts, peers a ring's bytes of the
numbers that they send.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headrace import optim
from headrace.comm import Metered, open_mailbox
from headrace.comm.base import Collective
from headrace.compress import COMPRESSORS
from headrace.compress.spec import OWN_MOMENTUM
from headrace.optim.schedules import Rates
from headrace.strategies import REDUCERS, STRATEGIES, Equipment, Overlap, Remote, create
from headrace.strategies.compression import AUTO, POWERSGD, CompressionConfig, compressed

LR, MOMENTUM = 0.05, 0.9
POWERSGD_RANK = 2  # of ours, and of the hook
OWN_STEPS = tuple(name for name, spec in STRATEGIES.items() if spec.repeatable and not spec.synchronous)
SERVED = tuple(name for name, spec in STRATEGIES.items() if spec.remote)
WITHOUT = ("topk.none", "onebit.none", "int8.none")  # feedback, which `auto` gives them


@dataclass(frozen=True)
class Entry:
    """One contestant.

    Args:
        system: headrace, ddp, horovod.
        transport: torch or horovod.
        codec: of the system, or one of WITHOUT, OWN_STEPS, SERVED.
    """

    system: str
    transport: str
    codec: str

    @property
    def name(self) -> str:
        """As in `headrace/torch/int8`."""
        return f"{self.system}/{self.transport}/{self.codec}"

    @property
    def peer(self) -> bool:
        """Whether it is not ours."""
        return self.system != "headrace"


PEERS = (
    Entry("ddp", "torch", "none"),
    Entry("ddp", "torch", "fp16"),
    Entry("ddp", "torch", "powersgd"),
    Entry("horovod", "horovod", "none"),
    Entry("horovod", "horovod", "fp16"),
)
_EVERYWHERE = (*COMPRESSORS, POWERSGD, AUTO, *OWN_STEPS)
OURS = (
    *(Entry("headrace", transport, codec) for transport in ("torch", "horovod") for codec in _EVERYWHERE),
    *(Entry("headrace", "torch", codec) for codec in (*WITHOUT, *SERVED)),
)
ENTRIES = {entry.name: entry for entry in (*PEERS, *OURS)}


class Ours:
    """A reducer of ours, exchanging while backward runs where it can."""

    def __init__(self, entry: Entry, model: nn.Module, collective: Collective) -> None:
        self.module, self.metered = model, Metered(collective)
        name, _, feedback = entry.codec.partition(".")
        cfg = CompressionConfig(name=name, feedback=feedback or "auto")
        reducer = compressed(cfg, REDUCERS["ordered"].factory(), seed=0)
        self._params = dict(model.named_parameters())
        self._strategy = create("allreduce", Overlap(reducer, self.metered, self._params), self.metered)
        momentum = 0.0 if OWN_MOMENTUM in cfg.traits else MOMENTUM
        self.optimizer: Any = torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum)
        self._step = 0

    def backward(self, loss: Tensor) -> None:
        """Leaves means over ranks in `param.grad`."""
        with self._strategy.backward():
            loss.backward()
        for name, total in self._strategy.on_gradients(self._gradients, self._step).items():
            self._params[name].grad = total / self.metered.size
        self._strategy.settle(True)
        self._step += 1

    def sent(self) -> float:
        """Bytes so far by the formula."""
        return float(self.metered.sent_bytes)

    def finish(self) -> None:
        """Steps are over."""
        self._strategy.close()

    def figures(self) -> dict[str, float]:
        """Seconds by what was done, where gradients are compressed."""
        return self._strategy.figures()

    @property
    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self._params.items() if p.grad is not None}


class OwnSteps(Ours):
    """A strategy of ours whose ranks step on their own; it is its own optimizer."""

    def __init__(self, entry: Entry, model: nn.Module, collective: Collective) -> None:
        self.module, self.metered, self.optimizer = model, Metered(collective), self
        self._params = dict(model.named_parameters())
        self._strategy = create(entry.codec, REDUCERS["ordered"].factory(), self.metered)
        self._rule = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        self._step = 0

    def backward(self, loss: Tensor) -> None:
        """Nothing is exchanged in it."""
        loss.backward()

    def zero_grad(self) -> None:
        """As torch's optimizers."""
        self.module.zero_grad()

    def step(self) -> None:
        """The rank's own step, and what the strategy makes of it."""
        self._strategy.before_update(self._values, self._gradients)
        self._rule.step()
        self._strategy.on_parameters(self._values, self._step, self._strategy.meets(self._step, False))
        self._step += 1

    def finish(self) -> None:
        """All ranks get the same parameters."""
        self._strategy.finish(self._values)
        super().finish()

    @property
    def _values(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self._params.items()}


class Served(OwnSteps):
    """A strategy of ours whose ranks send gradients to servers, each of which is a thread of a rank; a rank's share of
    the rate, for every gradient is a step of its own."""

    def __init__(self, entry: Entry, model: nn.Module, collective: Collective, host: str) -> None:
        self.module, self.optimizer = model, self
        self._params, self._collective = dict(model.named_parameters()), collective
        self._mailbox = open_mailbox(collective, bytes(32), host=host)
        rule = {"lr": LR / collective.size, "momentum": MOMENTUM}
        equipment = Equipment(mailbox=self._mailbox, optimizer=lambda part: optim.create("momentum", part, **rule))
        made = create(entry.codec, REDUCERS["ordered"].factory(), collective, equipment)
        assert isinstance(made, Remote)
        self._strategy, self._loss, self._step = made, 0.0, 0
        self._strategy.begin(self._params)

    def backward(self, loss: Tensor) -> None:
        """Nothing is exchanged in it."""
        super().backward(loss)
        self._loss = float(loss.detach())

    def step(self) -> None:
        """Gradients to the servers, parameters back."""
        self._strategy.push(self._gradients, Rates(1.0), self._loss)
        self._strategy.on_parameters(self._values, self._step, False)
        self._step += 1

    def sent(self) -> float:
        """Bytes so far by what the mailbox counts."""
        return self.figures()["mailed_bytes"]

    def finish(self) -> None:
        """All ranks get what the servers hold."""
        super().finish()
        self._collective.barrier()  # a mailbox that closes is the end for those that still wait
        self._mailbox.close()


class Peer:
    """DDP or Horovod's optimizer; what each step sends is known beforehand."""

    def __init__(self, module: nn.Module, optimizer: Any, bytes_a_step: float) -> None:
        self.module, self.optimizer, self._bytes = module, optimizer, bytes_a_step
        self._steps = 0

    def backward(self, loss: Tensor) -> None:
        """The exchange is theirs."""
        loss.backward()
        self._steps += 1

    def sent(self) -> float:
        """See `Ours.sent`."""
        return self._steps * self._bytes

    def finish(self) -> None:
        """Ranks hold the same already."""

    def figures(self) -> dict[str, float]:
        """Nothing is known."""
        return {}


def contestant(entry: Entry, model: nn.Module, collective: Collective, host: str = "127.0.0.1") -> Ours | Peer:
    """Of a model whose weights are equal on all ranks; `host`: where other ranks reach this one."""
    if entry.codec in SERVED:
        return Served(entry, model, collective, host)
    if not entry.peer:
        return (OwnSteps if entry.codec in OWN_STEPS else Ours)(entry, model, collective)
    return (_ddp if entry.system == "ddp" else _horovod)(entry.codec, model, collective.size)


def _ddp(codec: str, model: nn.Module, size: int) -> Peer:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    numbers = sum(p.numel() for p in model.parameters())
    # The PowerSGD hook exchanges in callbacks, whose order differs between ranks where there are several buckets: gloo
    # then ends with "collective mismatch". A capacity that is given makes one bucket of this model.
    ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=25 if codec == "powersgd" else None)
    width, count = 4, numbers
    if codec == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        width = 2
    elif codec == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=2)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        count = sum(_low_rank(model.parameters(), state.min_compression_rate))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=LR, momentum=MOMENTUM)
    return Peer(ddp, optimizer, 2 * (size - 1) / size * width * count)


def _low_rank(params: Iterator[nn.Parameter], rate: float) -> Iterator[int]:
    """Numbers that the hook sends of each."""
    for p in params:
        rows, columns = p.shape[0], p.numel() // p.shape[0]
        thin = (rows + columns) * min(rows, columns, POWERSGD_RANK)
        yield thin if p.dim() > 1 and thin * rate < p.numel() else p.numel()


def _horovod(codec: str, model: nn.Module, size: int) -> Peer:
    import horovod.torch as hvd

    numbers = sum(p.numel() for p in model.parameters())
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM),
        named_parameters=model.named_parameters(),
        compression=getattr(hvd.Compression, codec),
    )
    return Peer(model, optimizer, 2 * (size - 1) / size * {"none": 4, "fp16": 2}[codec] * numbers)
