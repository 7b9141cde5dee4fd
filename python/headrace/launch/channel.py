"""The line between the driver and its ranks: who is alive, what they report, what they are told.

A rank says hello (rank, host, pid), beats, sends events, and ends with a result or an error; the driver sends `stop`
(end in good order), `abort` (end now) and `bye` (all have ended). A rank whose driver vanishes ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from headrace.comm.frames import HANDSHAKE_S, ChannelError, prepare
from headrace.comm.listener import Listener
from headrace.launch.frames import JsonSocket

_MAX_TEXT = 64_000


@dataclass(frozen=True)
class Address:
    """Where a rank finds its driver, and the secret that proves it belongs to the launch; travels with the function."""

    host: str
    port: int
    key: bytes = field(repr=False)
    beat_s: float


@dataclass
class Peer:
    """What the driver knows of one rank."""

    rank: int
    host: str
    pid: int
    started: float
    frames: JsonSocket
    last_seen: float = field(default_factory=time.monotonic)
    lost: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


class Driver:
    """The driver's end: accepts ranks and puts what they send into `inbox` as (rank, message).

    A lost connection arrives as a message of type `lost`.

    Args:
        size: number of ranks.
        bind: address to listen on.
        host: address under which ranks reach it.
        stall_timeout_s: ranks beat several times in this.
    """

    def __init__(self, size: int, *, bind: str, host: str, stall_timeout_s: float) -> None:
        self.size = size
        self.inbox: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self.peers: dict[int, Peer] = {}
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._listener = Listener(bind, size, self._welcome)
        self.address = Address(host, self._listener.port, self._key, beat_s=min(5.0, stall_timeout_s / 6))

    def tell(self, kind: str) -> None:
        """Send `stop`, `abort` or `bye` to every rank that can still be reached."""
        with self._lock:
            peers = list(self.peers.values())
        for peer in peers:
            if not peer.lost:
                # A rank that is gone or stopped is found by its silence, not by this.
                with contextlib.suppress(ChannelError, OSError):
                    peer.frames.send({"type": kind})

    def close(self) -> None:
        """Stop listening and drop every connection: ranks that still run end themselves."""
        self._listener.close()
        with self._lock:
            peers = list(self.peers.values())
        for peer in peers:
            peer.frames.close()

    def _welcome(self, sock: socket.socket) -> Callable[[], None]:
        frames = JsonSocket(sock, self._key, driver=True)
        hello = frames.receive()
        peer = Peer(int(hello["rank"]), str(hello["host"]), int(hello["pid"]), float(hello["started"]), frames)
        with self._lock:
            # A second hello is Spark trying a failed task again: a training job cannot be joined in the middle.
            if not 0 <= peer.rank < self.size or peer.rank in self.peers:
                frames.send({"type": "abort"})
                raise ChannelError(f"rank {peer.rank} is not expected")
            self.peers[peer.rank] = peer
        frames.proved()
        self.inbox.put((peer.rank, {"type": "hello"}))
        return lambda: self._follow(peer)

    def _follow(self, peer: Peer) -> None:
        try:
            while True:
                message = peer.frames.receive()
                peer.last_seen = time.monotonic()
                if message.get("type") != "beat":
                    self.inbox.put((peer.rank, message))
        except (ChannelError, ValueError) as error:
            peer.lost = True
            self.inbox.put((peer.rank, {"type": "lost", "reason": str(error)}))


class RankLink:
    """A rank's end: beats in the background, remembers a stop request, ends the process when the driver is gone.

    Args:
        address: the driver's.
        rank: this rank.
        grace_s: how long it may go on without a driver once it was asked to stop.
        silent_s: a driver whose machine takes nothing for so long is gone.
    """

    def __init__(self, address: Address, rank: int, *, grace_s: float, silent_s: float) -> None:
        sock = socket.create_connection((address.host, address.port), timeout=HANDSHAKE_S)
        prepare(sock, silent_s)
        # How other ranks reach this one: by the address under which it reaches the driver.
        self.host: str = sock.getsockname()[0]
        self._frames = JsonSocket(sock, address.key, driver=False)
        started = psutil.Process().create_time()
        self._frames.send({"type": "hello", "rank": rank, "host": hostname(), "pid": os.getpid(), "started": started})
        self._frames.proved()
        self._stop, self._bye = threading.Event(), threading.Event()
        self._closing = False
        self._grace_s = grace_s
        threading.Thread(target=self._listen, name="headrace-listen", daemon=True).start()
        threading.Thread(target=self._beat, args=(address.beat_s,), name="headrace-beat", daemon=True).start()

    def emit(self, event: dict[str, Any]) -> None:
        """Send an event; the driver queues it, so its work does not hold up this rank."""
        self._frames.send({"type": "event", "event": event})

    def should_stop(self) -> bool:
        """Whether the driver asked for an end in good order."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        """What a stop request from the driver does; for signals."""
        self._stop.set()

    def result(self, value: Any) -> None:
        """Send this rank's value."""
        self._frames.send({"type": "result", "value": value})

    def error(self, text: str, *, collective: bool) -> None:
        """Send this rank's traceback, cut in the middle if it is long; `collective`: only a collective failed."""
        if len(text) > _MAX_TEXT:
            text = text[: _MAX_TEXT // 2] + "\n...\n" + text[-_MAX_TEXT // 2 :]
        self._frames.send({"type": "error", "error": text, "collective": collective})

    def wait_for_others(self, timeout_s: float) -> None:
        """Wait until the driver says that all ranks have ended, so that none is cut off in its last operation."""
        self._bye.wait(timeout_s)

    def close(self) -> None:
        """Say no more; the driver's going is no longer a reason to die."""
        self._closing = True
        self._frames.close()

    def _beat(self, every_s: float) -> None:
        with contextlib.suppress(ChannelError):  # the listening thread acts on a lost driver
            while not self._closing:
                self._frames.send({"type": "beat"})
                time.sleep(every_s)

    def _listen(self) -> None:
        reason = "its driver asked it to"
        try:
            while (kind := self._frames.receive().get("type")) != "abort":
                {"stop": self._stop, "bye": self._bye}.get(str(kind), threading.Event()).set()
        except (ChannelError, ValueError) as error:
            reason = f"its driver is gone ({error})"
            if self._stop.is_set():
                time.sleep(self._grace_s)
        if not self._closing:
            print(f"headrace: a rank ends because {reason}", file=sys.stderr, flush=True)
            # Not sys.exit: the main thread may sit in a collective that never returns.
            os._exit(70)


def hostname() -> str:
    """This machine's name, as ranks report it and the driver compares it."""
    return socket.gethostname()


@contextlib.contextmanager
def driver(size: int, *, local: bool, host: str, stall_timeout_s: float) -> Iterator[Driver]:
    """A driver's end for one launch; on loopback where all ranks run on this machine."""
    end = (
        Driver(size, bind="127.0.0.1", host="127.0.0.1", stall_timeout_s=stall_timeout_s)
        if local
        else Driver(size, bind="", host=host, stall_timeout_s=stall_timeout_s)
    )
    try:
        yield end
    finally:
        end.close()
