"""A port at which those who know the key are let in, and strangers get nothing and hold up nobody."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from headrace.comm.frames import ChannelError, prepare

_PAUSE_S = 0.1


class Listener:
    """Listens from the beginning.

    Args:
        bind: address to listen on.
        expected: connections that may come at once; strangers can hold at most 64 more that have not yet proved
            themselves.
        welcome: called with every connection in a thread of its own: proves it (or raises ChannelError, OSError,
            ValueError, KeyError or TypeError: then it is dropped without a word) and returns what the thread does next.
        silent_s: see `frames.prepare`.
    """

    def __init__(
        self,
        bind: str,
        expected: int,
        welcome: Callable[[socket.socket], Callable[[], None]],
        silent_s: float | None = None,
    ) -> None:
        self._welcome, self._silent_s = welcome, silent_s
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self._listener = socket.create_server((bind, 0), family=family, backlog=expected + 16)
        self.port: int = self._listener.getsockname()[1]
        self._unproved = threading.BoundedSemaphore(expected + 64)
        self._closed = threading.Event()
        threading.Thread(target=self._accept, name="headrace-accept", daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread; closing alone does not
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if self._closed.wait(_PAUSE_S):
                    return
                continue  # who called has gone again, or this process has no files left for now
            if self._unproved.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()
            else:
                sock.close()

    def _serve(self, sock: socket.socket) -> None:
        try:
            prepare(sock, self._silent_s)
            then = self._welcome(sock)
        except (ChannelError, OSError, ValueError, KeyError, TypeError):
            sock.close()  # a stranger: no word to it, no trouble from it
            return
        finally:
            self._unproved.release()
        then()
