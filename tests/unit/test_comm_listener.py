"""What the machine does to a listener, and which reason stays when a connection ends."""

from __future__ import annotations

import errno
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.mailbox_exam import ends
from unit.test_comm_tcp_mailbox import Peer, text

from headrace.comm.listener import Listener
from headrace.comm.tcp_mailbox import MailboxLimits


def test_who_cannot_be_let_in_now_is_not_the_end_of_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a file left, or a caller that has gone before it was answered."""
    made = socket.create_server

    class Faulty:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.inner, self.errors = made(*args, **kwargs), [errno.EMFILE, errno.ECONNABORTED]
            self.getsockname, self.shutdown, self.close = self.inner.getsockname, self.inner.shutdown, self.inner.close

        def accept(self) -> Any:
            if self.errors:
                raise OSError(self.errors.pop(), "no")
            return self.inner.accept()

    monkeypatch.setattr(socket, "create_server", Faulty)
    came: queue.Queue[bool] = queue.Queue()

    def welcome(sock: socket.socket) -> Callable[[], None]:
        sock.close()
        return lambda: came.put(True)

    listener = Listener("127.0.0.1", 1, welcome)
    with socket.create_connection(("127.0.0.1", listener.port), timeout=20):
        assert came.get(timeout=20)
    accepting = [t for t in threading.enumerate() if t.name == "headrace-accept"]
    listener.close()
    for thread in accepting:
        thread.join(20)
        assert not thread.is_alive()


def test_a_peers_last_word_stays_the_reason_where_a_writer_was_waiting_for_it() -> None:
    """The writer's error, that the connection is closed, is only what came of it."""
    box, frames = Peer(MailboxLimits(queue_bytes=1 << 20, max_body=64 << 20, linger_s=0.2)).join()
    box.send(1, "a", "large", None, torch.zeros(32 << 20, dtype=torch.uint8))  # more than the network takes
    close, calls = box._peers[1]._frames.close, []

    def slowly() -> None:
        calls.append(close())
        time.sleep(0.5 if len(calls) == 1 else 0.0)  # the other thread is faster

    box._peers[1]._frames.close = slowly  # type: ignore[method-assign]
    frames.send_bytes(text("", "", ["rank 1 failed: boom", 1], -1))
    assert ends(lambda: box.receive("a", 20)) == "rank 1 failed: boom"
    box.close()
