"""Who takes part in row f: every codec through our reducers over two transports, and peers on their own fast path.

    headrace   codecs of COMPRESSORS and powersgd at their defaults; transport torch (gloo) or horovod
    ddp        DistributedDataParallel on gloo: as it is, with the fp16 and the PowerSGD hook
    horovod    DistributedOptimizer: as it is, with fp16 compression

A contestant makes of each rank's gradients their mean over ranks, and says what a formula lets it send: ours what
`Metered` counts, peers a ring's bytes of the numbers that they send.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headrace.comm import Metered
from headrace.comm.base import Collective
from headrace.compress import COMPRESSORS
from headrace.compress.spec import OWN_MOMENTUM
from headrace.strategies import REDUCERS, Overlap, create
from headrace.strategies.compression import POWERSGD, CompressionConfig, compressed

LR, MOMENTUM = 0.05, 0.9
POWERSGD_RANK = 2  # of ours, and of the hook


@dataclass(frozen=True)
class Entry:
    """One contestant.

    Args:
        system: headrace, ddp, horovod.
        transport: torch or horovod.
        codec: of the system.
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
OURS = tuple(
    Entry("headrace", transport, codec) for transport in ("torch", "horovod") for codec in (*COMPRESSORS, POWERSGD)
)
ENTRIES = {entry.name: entry for entry in (*PEERS, *OURS)}


class Ours:
    """A reducer of ours, exchanging while backward runs where it can."""

    def __init__(self, entry: Entry, model: nn.Module, collective: Collective) -> None:
        self.module, self.metered = model, Metered(collective)
        cfg = CompressionConfig(name=entry.codec)
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
        grads = {name: p.grad for name, p in self._params.items() if p.grad is not None}
        for name, total in self._strategy.on_gradients(grads, self._step).items():
            self._params[name].grad = total / self.metered.size
        self._strategy.settle(True)
        self._step += 1

    def sent(self) -> float:
        """Bytes so far by the formula."""
        return float(self.metered.sent_bytes)

    def figures(self) -> dict[str, float]:
        """Seconds by what was done, where gradients are compressed."""
        return self._strategy.figures()


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

    def figures(self) -> dict[str, float]:
        """Nothing is known."""
        return {}


def contestant(entry: Entry, model: nn.Module, collective: Collective) -> Ours | Peer:
    """Of a model whose weights are equal on all ranks."""
    if not entry.peer:
        return Ours(entry, model, collective)
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
