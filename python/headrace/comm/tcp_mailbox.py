"""Mailboxes between processes over TCP.

Every pair of ranks has one connection of authenticated frames (`frames`); the higher rank of the two connects. Each
says who it is and whom it means in its first frame, so what belongs to another launch, mailbox or rank is dropped. A
message is a frame of JSON, [box, kind, head, bytes of the body], and frames of 1 MiB of the body; 36 bytes a frame are
the price. Memory is taken only for what a rank of this launch has announced and signed, `max_body` at most.

A thread writes to each peer what waits for it, `queue_bytes` at most (one message may be larger): then `send` waits. A
thread reads from each peer, and leaves in the network what comes while `inbox_bytes` of this peer wait to be received:
ranks that both send more than that without receiving wait for each other. A peer that is stopped is waited for.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import Collective, CollectiveError
from headrace.comm.boxes import Boxes, serve_in_thread
from headrace.comm.frames import HANDSHAKE_S, MAX_FRAME, ChannelError, FrameSocket, prepare
from headrace.comm.listener import Listener
from headrace.comm.local import LocalCollective
from headrace.comm.mailbox import NO_BYTES, Mailbox, Message, check_message
from headrace.comm.metered import Metered

PIECE = 1 << 20
_PURPOSE = b"headrace mailbox"
_BYE = -1
_RETRY_S = 0.1


@dataclass(frozen=True)
class MailboxLimits:
    """Bounds of a mailbox; `max_body` is the same on all ranks.

    Args:
        max_body: bytes of a message's body.
        queue_bytes: of messages that wait to be written, by peer.
        inbox_bytes: of messages that have come and wait to be received, by peer.
        open_s: how long ranks may take to connect.
        handshake_s: how long a connection may take to prove that it knows the key.
        linger_s: how long `close` waits for what was sent to be written.
        silent_s: a peer whose machine takes nothing of what was sent to it for so long is gone.
    """

    max_body: int = 1 << 30
    queue_bytes: int = 256 << 20
    inbox_bytes: int = 1 << 30
    open_s: float = 60.0
    handshake_s: float = HANDSHAKE_S
    linger_s: float = 10.0
    silent_s: float = 180.0


def open_mailbox(
    collective: Collective, key: bytes, *, host: str = "127.0.0.1", limits: MailboxLimits | None = None
) -> Mailbox:
    """This rank's mailbox; all ranks call it at the same time.

    Args:
        collective: over whom; threads of one process and simulated ranks have mailboxes of their group.
        key: the launch's secret, the same on all ranks.
        host: address of this machine at which the other ranks reach it, and at which alone it listens.
        limits: see MailboxLimits.

    Raises:
        CollectiveError: ranks could not be connected.
    """
    while isinstance(collective, Metered):
        collective = collective.inner
    if isinstance(collective, LocalCollective):
        return collective.mailbox()
    return TcpMailbox(collective, key, host, limits or MailboxLimits())


class TcpMailbox:
    """One rank's end; see `open_mailbox`."""

    def __init__(self, collective: Collective, key: bytes, host: str, limits: MailboxLimits) -> None:
        self.rank, self.size = collective.rank, collective.size
        self._key, self.limits = key, limits
        self.boxes = Boxes(limits.inbox_bytes)
        self._peers: dict[int, _Peer] = {}
        self._ended: tuple[str, int] | None = None
        self._changed = threading.Condition()
        self._session = secrets.token_hex(16)
        self._known = threading.Event()
        listener = Listener(host, self.size, self._welcome, limits.silent_s)
        try:
            self._connect(collective.allgather_object([host, listener.port, self._session, limits.max_body]))
        except BaseException as error:
            self.fail(f"rank {self.rank} could not open its mailbox: {error!r}")
            raise
        finally:
            listener.close()

    def send(self, to: int, box: str, kind: str, head: Any = None, body: Tensor | None = None) -> None:
        """See `Mailbox.send`; waits while `queue_bytes` wait for this rank, and a peer that is stopped may be why."""
        body = check_message(self, to, body)
        text = json.dumps([box, kind, head, body.numel()]).encode()
        if body.numel() > self.limits.max_body or len(text) > MAX_FRAME:
            raise ValueError(
                f"a message of {len(text):,} + {body.numel():,} bytes; at most {MAX_FRAME:,} of head and "
                f"{self.limits.max_body:,} of body"
            )
        if (reason := self.boxes.reason) is not None:
            raise CollectiveError(reason)
        if to == self.rank:
            self.boxes.put(box, Message(self.rank, kind, json.loads(text)[2], body))
        else:
            self._peers[to].put(text, body)

    def receive(self, box: str, timeout_s: float | None = None) -> Message | None:
        """See `Mailbox.receive`."""
        return self.boxes.take(box, timeout_s)

    def serve(self, box: str, handler: Callable[[Message], None]) -> None:
        """See `Mailbox.serve`."""
        serve_in_thread(self, box, handler, self.fail)

    def close(self) -> None:
        """See `Mailbox.close`; what was sent before is still written, for `linger_s` at most."""
        reason, origin = self._ended or (f"rank {self.rank} closed its mailbox", self.rank)
        self.boxes.fail("this mailbox was closed")
        self._leave(reason, origin)
        deadline = time.monotonic() + self.limits.linger_s
        for peer in list(self._peers.values()):
            peer.writer.join(max(deadline - time.monotonic(), 0.0))
            if peer.writer.is_alive():
                peer.end()

    def fail(self, reason: str) -> None:
        """End for this rank, and by that for all; the first reason stays."""
        if self.boxes.reason is None:
            self.boxes.fail(reason)
            self._leave(reason, self.rank)

    def end(self, reason: str, origin: int) -> None:
        """End for this rank because `origin` left. The others hear that from `origin` itself, after what it sent them:
        from here it could come before."""
        self._ended = self._ended or (reason, origin)
        self.boxes.fail(reason)
        for peer in list(self._peers.values()):
            peer.wake()

    def _leave(self, reason: str, origin: int) -> None:
        """Tell the peers after all that was sent before: why, and who began."""
        for peer in list(self._peers.values()):
            peer.bye(json.dumps(["", "", [reason, origin], _BYE]).encode())

    def _connect(self, everyone: list[list[Any]]) -> None:
        if len({max_body for *_, max_body in everyone}) > 1:
            raise CollectiveError(f"ranks have different max_body: {[max_body for *_, max_body in everyone]}")
        self._session = everyone[0][2]
        self._known.set()
        deadline = time.monotonic() + self.limits.open_s
        for rank, (host, port, *_) in enumerate(everyone[: self.rank]):
            self._reach(rank, str(host), int(port), deadline)
        with self._changed:
            if not self._changed.wait_for(self._complete, max(deadline - time.monotonic(), 0.0)):
                missing = [rank for rank in range(self.size) if rank != self.rank and rank not in self._peers]
                raise CollectiveError(f"ranks {missing} did not connect within {self.limits.open_s} s")

    def _complete(self) -> bool:
        return len(self._peers) == self.size - 1

    def _reach(self, rank: int, host: str, port: int, deadline: float) -> None:
        """Try again: strangers may hold all places of a listener for a while."""
        while True:
            try:
                return self._call(rank, host, port, deadline)
            except OSError as error:
                if time.monotonic() + _RETRY_S > deadline:
                    raise CollectiveError(f"rank {rank} cannot be reached at {host}:{port}: {error}") from error
                time.sleep(_RETRY_S)

    def _call(self, rank: int, host: str, port: int, deadline: float) -> None:
        sock = socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.001))
        prepare(sock, self.limits.silent_s)
        left = max(deadline - time.monotonic(), 0.001)
        try:
            frames = FrameSocket(sock, self._key, purpose=_PURPOSE, first=False, handshake_s=left)
            frames.send_bytes(self._hello(self.rank, rank))
            if frames.receive_bytes() != self._hello(rank, self.rank):
                raise ChannelError(f"another than rank {rank} answers")
        except OSError:
            sock.close()
            raise
        frames.proved()
        self._admit(rank, frames)

    def _welcome(self, sock: socket.socket) -> Callable[[], None]:
        if not self._known.wait(self.limits.open_s):
            raise ChannelError("nobody is expected yet")
        frames = FrameSocket(sock, self._key, purpose=_PURPOSE, first=True, handshake_s=self.limits.handshake_s)
        hello = bytes(frames.receive_bytes())
        callers = [rank for rank in range(self.rank + 1, self.size) if hello == self._hello(rank, self.rank)]
        if not callers:
            raise ChannelError("nobody of this mailbox")
        frames.proved()
        return lambda: self._accept(callers[0], frames)

    def _accept(self, rank: int, frames: FrameSocket) -> None:
        with contextlib.suppress(ChannelError):
            frames.send_bytes(self._hello(self.rank, rank))
            self._admit(rank, frames)

    def _hello(self, rank: int, to: int) -> bytes:
        return json.dumps({"session": self._session, "from": rank, "to": to}).encode()

    def _admit(self, rank: int, frames: FrameSocket) -> None:
        with self._changed:
            if rank in self._peers:
                frames.close()  # the first one stays
                return
            peer = self._peers[rank] = _Peer(rank, frames, self)
            peer.writer.start()
            peer.reader.start()
            self._changed.notify_all()


class _Peer:
    """The connection to one other rank, the thread that writes to it, and the one that reads from it."""

    def __init__(self, rank: int, frames: FrameSocket, mailbox: TcpMailbox) -> None:
        self._rank, self._frames, self._mailbox = rank, frames, mailbox
        self._queue: deque[tuple[bytes, Tensor] | None] = deque()
        self._waiting = 0
        self._over = False
        self._changed = threading.Condition()
        self.writer = threading.Thread(target=self._write, name=f"headrace-to-{rank}", daemon=True)
        self.reader = threading.Thread(target=self._read, name=f"headrace-from-{rank}", daemon=True)

    def put(self, text: bytes, body: Tensor) -> None:
        """Queue a message; waits for room."""
        nbytes = len(text) + body.numel()
        with self._changed:
            self._changed.wait_for(lambda: self._is_over() or self._has_room(nbytes))
            if self._is_over():
                raise CollectiveError(self._mailbox.boxes.reason or f"rank {self._rank} is gone")
            self._queue.append((text, body))
            self._waiting += nbytes
            self._changed.notify_all()

    def wake(self) -> None:
        """Who waits for room looks anew at whether there is a way on."""
        with self._changed:
            self._changed.notify_all()

    def bye(self, text: bytes) -> None:
        """Queue the last message, without waiting."""
        with self._changed:
            if not self._over:
                self._over = True
                self._queue.extend([(text, NO_BYTES), None])
                self._changed.notify_all()

    def end(self) -> None:
        """Drop the connection, and what waits for it."""
        with self._changed:
            self._over = True
            self._queue.appendleft(None)
            self._changed.notify_all()
        self._frames.close()

    def _is_over(self) -> bool:
        return self._over or self._mailbox.boxes.reason is not None

    def _has_room(self, nbytes: int) -> bool:
        return not self._waiting or self._waiting + nbytes <= self._mailbox.limits.queue_bytes

    def _write(self) -> None:
        try:
            while (message := self._following()) is not None:
                text, body = message
                self._frames.send_bytes(text)
                view = body.numpy().data
                for begin in range(0, body.numel(), PIECE):
                    self._frames.send_bytes(view[begin : begin + PIECE])
                with self._changed:
                    self._waiting -= len(text) + body.numel()
                    self._changed.notify_all()
            self._frames.finish()
        except Exception as error:
            self._lost(f"rank {self._rank} is gone: {error}")

    def _following(self) -> tuple[bytes, Tensor] | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue))
            return self._queue.popleft()

    def _read(self) -> None:
        try:
            while True:
                text = self._frames.receive_bytes()
                box, kind, head, length = json.loads(text)
                if length == _BYE:
                    return self._told(*head)
                message = Message(self._rank, str(kind), head, self._body(length))
                self._mailbox.boxes.put(str(box), message, len(text) + length)
        except Exception as error:  # whatever it is (no memory, no JSON), nobody may wait for this thread
            self._lost(f"rank {self._rank} is gone: {error}")

    def _body(self, length: int) -> Tensor:
        if not isinstance(length, int) or not 0 <= length <= self._mailbox.limits.max_body:
            raise ChannelError(f"a body of {length} bytes is refused")
        body = torch.empty(length, dtype=torch.uint8)
        view = body.numpy().data
        for begin in range(0, length, PIECE):
            self._frames.receive_into(view[begin : begin + PIECE])
        return body

    def _told(self, reason: str, origin: int) -> None:
        """This peer left; where another was why, that one's own last word is still to come."""
        if origin == self._rank:
            self._mailbox.end(str(reason), origin)
        self.end()

    def _lost(self, reason: str) -> None:
        self._mailbox.fail(reason)  # first: the end of the connection is news to the other thread, and says less
        self.end()
