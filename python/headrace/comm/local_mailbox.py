"""Mailboxes between threads of one process: bodies are handed over as they are, heads pass through JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor

from headrace.comm.base import CollectiveError, check_root
from headrace.comm.boxes import Boxes, serve_in_thread
from headrace.comm.mailbox import Message, check_message


class LocalPost:
    """The boxes of all ranks of a group.

    Args:
        size: number of ranks.
        abort: what the failure of a rank's service does to its group; called with the reason.
    """

    def __init__(self, size: int, abort: Callable[[str], None]) -> None:
        self.boxes = [Boxes() for _ in range(size)]
        self.abort = abort

    def fail(self, reason: str) -> None:
        """Release everybody."""
        for boxes in self.boxes:
            boxes.fail(reason)


class LocalMailbox:
    """One rank's end of a `LocalPost`."""

    def __init__(self, post: LocalPost, rank: int) -> None:
        check_root(rank, len(post.boxes))
        self._post = post
        self.rank = rank
        self.size = len(post.boxes)

    def send(self, to: int, box: str, kind: str, head: Any = None, body: Tensor | None = None) -> None:
        """See `Mailbox.send`."""
        message = Message(self.rank, kind, json.loads(json.dumps(head)), check_message(self, to, body))
        if (reason := self._post.boxes[self.rank].reason) is not None:
            raise CollectiveError(reason)
        self._post.boxes[to].put(box, message)

    def receive(self, box: str, timeout_s: float | None = None) -> Message | None:
        """See `Mailbox.receive`."""
        return self._post.boxes[self.rank].take(box, timeout_s)

    def serve(self, box: str, handler: Callable[[Message], None]) -> None:
        """See `Mailbox.serve`."""
        serve_in_thread(self, box, handler, self._fail)

    def close(self) -> None:
        """See `Mailbox.close`."""
        self._post.boxes[self.rank].fail("this mailbox was closed")
        self._post.fail(f"rank {self.rank} closed its mailbox")

    def _fail(self, reason: str) -> None:
        if self._post.boxes[self.rank].reason is None:
            self._post.abort(reason)
