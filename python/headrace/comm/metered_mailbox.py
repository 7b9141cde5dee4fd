"""A Mailbox that counts what this rank puts on the wire.

A message from rank r to another counts for

    bytes of the body + bytes of the head's JSON (0 for None)

by its kind; what a rank sends to itself counts for nothing. Left out are the names of box and kind and the frames
around: over TCP 36 bytes a frame (one, and one for each MiB begun of the body) and packet headers, as in `Metered`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

from headrace.comm.mailbox import NO_BYTES, Mailbox, Message, message_bytes


class MeteredMailbox:
    """Wraps any Mailbox; messages are those of the wrapped one.

    Attributes:
        sent: bytes by kind, on this rank, those of its services included.
        messages: how many by kind.
    """

    def __init__(self, inner: Mailbox) -> None:
        self.inner = inner
        self.sent: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def sent_bytes(self) -> int:
        """Bytes of all kinds together."""
        with self._lock:
            return self.sent.total()

    def send(self, to: int, box: str, kind: str, head: Any = None, body: Tensor | None = None) -> None:
        """See `Mailbox.send`."""
        self.inner.send(to, box, kind, head, body)
        if to != self.rank:
            with self._lock:
                self.sent[kind] += message_bytes(head, NO_BYTES if body is None else body)
                self.messages[kind] += 1

    def receive(self, box: str, timeout_s: float | None = None) -> Message | None:
        """See `Mailbox.receive`."""
        return self.inner.receive(box, timeout_s)

    def serve(self, box: str, handler: Callable[[Message], None]) -> None:
        """See `Mailbox.serve`; what the handler sends is counted if it sends by this object."""
        self.inner.serve(box, handler)

    def close(self) -> None:
        """See `Mailbox.close`."""
        self.inner.close()
