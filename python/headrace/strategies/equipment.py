"""What strategies that let ranks step without each other work with: messages, time, optimizers of servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from headrace.comm.clock import Clock, WallClock
from headrace.comm.mailbox import Mailbox
from headrace.optim import Optimizer
from headrace.strategies.pushes import PushCodecs


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """Of one rank.

    Args:
        mailbox: this rank's; who opened it closes it: a rank that failed must not be taken for one that has ended.
        optimizer: makes the run's optimizer for some of its parameters (headrace.strategies.shard_layout.Part).
        tables: names of parameters with row-sparse gradients.
        codecs: of gradients on their way.
        clock: this rank's.
        should_stop: whether a stop was asked for on this rank.
        on_event: where decisions are told; JSON.
    """

    mailbox: Mailbox
    optimizer: Callable[[nn.Module], Optimizer]
    tables: frozenset[str] = frozenset()
    codecs: PushCodecs = field(default_factory=PushCodecs)
    clock: Clock = field(default_factory=WallClock)
    should_stop: Callable[[], bool] = lambda: False
    on_event: Callable[[dict[str, Any]], None] = lambda event: None
