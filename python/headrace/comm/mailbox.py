"""Messages from one rank to another without the other waiting for them: what no collective offers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Message(NamedTuple):
    """What came.

    Args:
        source: the rank that sent it.
        kind: what it is; a short word.
        head: JSON-able.
        body: bytes, uint8 [n] on the CPU.
    """

    source: int
    kind: str
    head: Any
    body: Tensor


class Mailbox(Protocol):
    """One rank's end. Every rank has as many boxes as it likes, by name; one thread reads a box.

    Messages from one rank to one box arrive in the order they were sent, each once; nothing is said of the order of
    messages from different ranks, but on a simulated cluster, where it is the same in every run.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def send(self, to: int, box: str, kind: str, head: Any = None, body: Tensor | None = None) -> None:
        """Send to a box of a rank (oneself too); does not wait until it is read. A body must not be changed after.

        Raises:
            CollectiveError: the rank is gone.
        """

    def receive(self, box: str, timeout_s: float | None = None) -> Message | None:
        """The next message of a box of this rank; None where none came in time.

        Raises:
            CollectiveError: a rank is gone, or this mailbox was closed.
        """

    def close(self) -> None:
        """Send and receive no more; whoever waits in `receive` is released with an error."""
