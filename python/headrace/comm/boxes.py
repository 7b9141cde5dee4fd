"""Messages that have come to one rank and wait in its boxes, and the thread that serves one."""

from __future__ import annotations

import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable

from headrace.comm.base import CollectiveError
from headrace.comm.mailbox import Mailbox, Message


class Boxes:
    """The boxes of one rank; any thread puts, one thread takes from a box.

    Args:
        bound: bytes of one source that may wait; None: any.
    """

    def __init__(self, bound: int | None = None) -> None:
        self._bound = bound
        self._held: defaultdict[int, int] = defaultdict(int)
        self._boxes: defaultdict[str, deque[tuple[Message, int]]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._reason: str | None = None

    @property
    def reason(self) -> str | None:
        """Why nothing comes any more; None while something may."""
        return self._reason

    def put(self, box: str, message: Message, nbytes: int = 0) -> None:
        """Lay a message into a box, dropped after `fail`; waits while the bound is reached, if it counts for bytes."""
        with self._changed:
            self._changed.wait_for(lambda: self._reason or not nbytes or self._has_room(message.source))
            if self._reason is None:
                self._boxes[box].append((message, nbytes))
                self._held[message.source] += nbytes
                self._changed.notify_all()

    def take(self, box: str, timeout_s: float | None) -> Message | None:
        """See `Mailbox.receive`: what has come is handed out before the error is."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._boxes[box]:
                if self._reason is not None:
                    raise CollectiveError(self._reason)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            message, nbytes = self._boxes[box].popleft()
            self._held[message.source] -= nbytes
            self._changed.notify_all()
            return message

    def fail(self, reason: str) -> None:
        """Nothing comes any more; the first reason stays."""
        with self._changed:
            self._reason = self._reason or reason
            self._changed.notify_all()

    def _has_room(self, source: int) -> bool:
        return self._bound is None or self._held[source] < self._bound


def serve_in_thread(
    mailbox: Mailbox, box: str, handler: Callable[[Message], None], fail: Callable[[str], None]
) -> threading.Thread:
    """See `Mailbox.serve`; `fail(reason)` is told what the handler raised."""

    def run() -> None:
        try:
            while (message := mailbox.receive(box)) is not None:
                handler(message)
        except CollectiveError as error:
            fail(str(error))  # closed, or a rank is gone: the reason is there already
        except BaseException as error:
            fail(f"rank {mailbox.rank} failed in serving box {box!r}: {error!r}\n{traceback.format_exc()}")

    thread = threading.Thread(target=run, name=f"headrace-box-{mailbox.rank}-{box}", daemon=True)
    thread.start()
    return thread
