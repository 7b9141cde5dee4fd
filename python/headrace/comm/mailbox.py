"""Messages from one rank to another without the other waiting for them: what no collective offers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Message(NamedTuple):
    """What came.

    Args:
        source: the rank that sent it.
        kind: what it is; a short word.
        head: JSON-able.
        body: bytes, uint8 [n] on the CPU; not to be changed: in one process the sender and others hold the same.
    """

    source: int
    kind: str
    head: Any
    body: Tensor


class Mailbox(Protocol):
    """One rank's end. Every rank has as many boxes as it likes, by name; one thread reads a box.

    Messages from one rank to one box arrive in the order they were sent, each once; nothing is said of the order of
    messages from different ranks, but on a simulated cluster, where it is the same in every run.

    A rank that died, ended or closed its mailbox is gone, and that is the end for all: whoever waits is released with
    `CollectiveError`, now and later, after the messages that have come. So ranks meet (a barrier) before they close.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def send(self, to: int, box: str, kind: str, head: Any = None, body: Tensor | None = None) -> None:
        """Send to a box of a rank (oneself too); does not wait until it is read. A body must not be changed after.

        Raises:
            CollectiveError: the rank is gone.
            ValueError: there is no such rank, or what is sent is no message (TypeError: its head is no JSON).
        """

    def receive(self, box: str, timeout_s: float | None = None) -> Message | None:
        """The next message of a box of this rank; None where none came in time (0 does not wait).

        Raises:
            CollectiveError: a rank is gone, or this mailbox was closed.
        """

    def serve(self, box: str, handler: Callable[[Message], None]) -> None:
        """Have a thread of its own call `handler(message)` for every message of a box until the mailbox is closed.

        The handler may send and spend time, on a simulated cluster the thread's own; it calls no collectives. Locks it
        shares with other threads are not held over `send`, `receive` or `Clock.spend`. What it raises is this rank's
        end: all mailboxes get `CollectiveError` that says so.
        """

    def close(self) -> None:
        """Send and receive no more; whoever waits in `receive` is released with an error. Twice does no harm."""


def message_bytes(head: Any, body: Tensor) -> int:
    """Bytes a message counts for: its body and its head as JSON, nothing for None; names and frames are left out."""
    return body.numel() + (0 if head is None else len(json.dumps(head)))


NO_BYTES = torch.empty(0, dtype=torch.uint8)


def check_message(mailbox: Mailbox, to: int, body: Tensor | None) -> Tensor:
    """The body that is sent.

    Raises:
        ValueError: see `Mailbox.send`.
    """
    if not 0 <= to < mailbox.size:
        raise ValueError(f"there are ranks 0 to {mailbox.size - 1}; got {to}")
    if body is None:
        return NO_BYTES
    if body.dtype != torch.uint8 or body.dim() != 1 or body.device.type != "cpu" or not body.is_contiguous():
        raise ValueError(
            f"a body is contiguous uint8 [n] on the CPU; got {body.dtype} {list(body.shape)} {body.device}"
        )
    return body.detach()
