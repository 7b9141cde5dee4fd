"""Mailboxes over TCP: who is let in, what is refused, what a slow, silent or dying peer does, how memory is bounded.

The exam of all mailboxes is in tests/contract/test_mailbox.py.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from contract.collective_exam import on_ranks
from contract.mailbox_exam import KEY, ends, tcp_mailbox

from headrace.comm import CollectiveError
from headrace.comm.frames import MAX_FRAME, ChannelError, FrameSocket
from headrace.comm.tcp_mailbox import PIECE, MailboxLimits, TcpMailbox

QUICK = MailboxLimits(open_s=20.0, handshake_s=0.3, linger_s=0.2)


class Peer:
    """Rank 1 of 2, played by hand: what a broken or hostile rank could send to rank 0."""

    rank, size = 0, 2  # the collective of rank 0

    def __init__(self, limits: MailboxLimits = QUICK) -> None:
        self.address: queue.Queue[list[Any]] = queue.Queue()
        self.found: queue.Queue[TcpMailbox | Exception] = queue.Queue()
        threading.Thread(target=self._open, args=(limits,), daemon=True).start()
        self.host, self.port, self.session, _ = self.address.get(timeout=20)

    def _open(self, limits: MailboxLimits) -> None:
        try:
            self.found.put(tcp_mailbox(self, limits))  # type: ignore[arg-type]
        except Exception as error:
            self.found.put(error)

    def allgather_object(self, mine: list[Any]) -> list[list[Any]]:
        self.address.put(mine)
        return [mine, ["127.0.0.1", 1, "", mine[3]]]

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=20)

    def frames(self, key: bytes = KEY, purpose: bytes = b"headrace mailbox") -> FrameSocket:
        return FrameSocket(self.connect(), key, purpose=purpose, first=False)

    def hello(self, session: str | None = None, who: int = 1, to: int = 0) -> bytes:
        return json.dumps({"session": self.session if session is None else session, "from": who, "to": to}).encode()

    def join(self) -> tuple[TcpMailbox, FrameSocket]:
        frames = self.frames()
        frames.send_bytes(self.hello())
        assert bytes(frames.receive_bytes()) == self.hello(who=0, to=1)
        frames.proved()
        box = self.found.get(timeout=20)
        assert isinstance(box, TcpMailbox)
        return box, frames


def text(*message: Any) -> bytes:
    return json.dumps(list(message)).encode()


def dropped(frames: FrameSocket) -> None:
    with pytest.raises(ChannelError):
        frames.receive_bytes()


STRANGERS: dict[str, Callable[[Peer], None]] = {
    "another key": lambda p: _says(p.frames(key=b"x" * 32), p.hello()),
    "the driver's channel": lambda p: _says(p.frames(purpose=b"headrace channel"), p.hello()),
    "another mailbox": lambda p: _says(p.frames(), p.hello(session="0" * 32)),
    "meant for another": lambda p: _says(p.frames(), p.hello(to=2)),
    "a rank too many": lambda p: _says(p.frames(), p.hello(who=2)),
    "the rank itself": lambda p: _says(p.frames(), p.hello(who=0)),
    "no json": lambda p: _says(p.frames(), b"\xff"),
    "a web browser": lambda p: _is_cut_off(p.connect(), b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 100),
    "a silent one": lambda p: _is_cut_off(p.connect(), b""),
    "an oversized first frame": lambda p: _is_cut_off(p.connect(), b"n" * 16 + struct.pack("!I32s", 5000, b"")),
}


def _says(frames: FrameSocket, hello: bytes) -> None:
    frames.send_bytes(hello)
    dropped(frames)


def _is_cut_off(sock: socket.socket, sent: bytes) -> None:
    sock.sendall(sent)
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(100):
            pass  # its nonce, then the end


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_dropped_and_the_rank_still_let_in(stranger: Callable[[Peer], None]) -> None:
    peer = Peer()
    stranger(peer)
    box, frames = peer.join()
    frames.send_bytes(text("a", "k", [1], 0))
    message = box.receive("a", 20)
    assert message is not None and message[:3] == (1, "k", [1]) and message.body.numel() == 0
    box.close()


def test_who_drips_is_cut_off_by_the_date() -> None:
    """A byte now and then does not make the time for the handshake begin anew."""
    peer = Peer()
    sock, bytes_sent = peer.connect(), 0
    with contextlib.suppress(ConnectionError):
        while bytes_sent < 50:  # it wants 52 before it looks at what comes
            bytes_sent += sock.send(b"n")
            time.sleep(0.05)
    assert 0 < bytes_sent < 50
    peer.join()[0].close()


def test_many_silent_strangers_do_not_keep_the_rank_out() -> None:
    peer = Peer()
    strangers = [peer.connect() for _ in range(100)]  # more than may be unproved at once
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(ChannelError):
            peer.join()[0].close()
            break
    else:
        raise AssertionError("the rank was never let in")
    for sock in strangers:
        sock.close()


def test_a_second_connection_of_a_rank_is_closed_and_the_first_stays() -> None:
    limits = MailboxLimits(open_s=20.0)
    found: list[str] = []

    def fn(c: Any) -> Any:
        box = tcp_mailbox(c, limits)
        c.barrier()
        if c.rank == 0:
            frames = box._peers[1]._frames
            box._admit(1, FakeFrames(found))  # type: ignore[arg-type]
            assert box._peers[1]._frames is frames
        else:
            box.send(0, "a", "still here")
        came = box.receive("a", 20) if c.rank == 0 else None
        c.barrier()
        box.close()
        return came and came.kind

    assert on_ranks(2, fn) == ["still here", None] and found == ["closed"]


class FakeFrames:
    def __init__(self, found: list[str]) -> None:
        self.close = lambda: found.append("closed")


def raw(data: bytes) -> Callable[[FrameSocket], Any]:
    return lambda frames: frames._write(data)


def signed(*bodies: bytes) -> Callable[[FrameSocket], Any]:
    return lambda frames: [frames.send_bytes(body) for body in bodies]


def replay(frames: FrameSocket) -> None:
    """The first of two frames once more, taken off the wire."""
    written: list[bytes] = []
    write = frames._write

    def record(data: Any) -> None:
        written.append(bytes(data))
        write(data)

    frames._write = record  # type: ignore[method-assign]
    frames.send_bytes(text("a", "k", None, 0))
    write(b"".join(written))


MAX_BODY = PIECE + 10
HEADER = struct.Struct("!I32s")
BROKEN: dict[str, tuple[Callable[[FrameSocket], Any], str]] = {
    "dies between frames": (signed(), "the connection was closed"),
    "dies in a header": (raw(b"\0\0"), "the connection was closed"),
    "dies in a frame": (raw(HEADER.pack(1000, b"") + b"x" * 999), "the connection was closed"),
    "dies before a body": (signed(text("a", "k", None, 10)), "the connection was closed"),
    "dies between pieces": (signed(text("a", "k", None, PIECE + 1), b"p" * PIECE), "the connection was closed"),
    "forges": (raw(HEADER.pack(3, b"m" * 32) + b"abc"), "wrong signature"),
    "replays": (replay, "wrong signature"),
    "sends an oversized frame": (raw(HEADER.pack(MAX_FRAME + 1, b"")), "16,777,217 bytes is refused"),
    "has a body over max_body": (signed(text("a", "k", None, MAX_BODY + 1)), f"{MAX_BODY + 1} bytes is refused"),
    "has a body of less than nothing": (signed(text("a", "k", None, -2)), "a body of -2 bytes is refused"),
    "has a body of no size": (signed(text("a", "k", None, "1")), "a body of 1 bytes is refused"),
    "sends a longer piece": (signed(text("a", "k", None, 10), b"p" * 11), "11 bytes is refused where 10 are due"),
    "sends a shorter piece": (signed(text("a", "k", None, 10), b"p" * 9), "9 bytes is refused where 10 are due"),
    "sends no message": (signed(b"{}"), "rank 1 is gone"),
    "sends no json": (signed(b"["), "rank 1 is gone"),
}


@pytest.mark.parametrize(("act", "told"), BROKEN.values(), ids=BROKEN)
def test_a_broken_peer_is_gone_and_what_came_before_is_kept(act: Callable[[FrameSocket], Any], told: str) -> None:
    peer = Peer(MailboxLimits(max_body=MAX_BODY, linger_s=0.2))
    box, frames = peer.join()
    signed(text("a", "before", None, 3), b"xyz")(frames)
    act(frames)
    frames.finish()
    first = box.receive("a", 20)
    assert first is not None and first.kind == "before" and bytes(first.body.numpy()) == b"xyz"
    if act is replay:
        assert box.receive("a", 20) is not None
    for call in (lambda: box.receive("a", 20), lambda: box.send(1, "a", "x")):
        assert told in ends(call) and "rank 1 is gone" in ends(call)
    box.close()


def test_a_body_is_announced_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that says it is large and is not signed takes no memory for its body."""
    taken: list[int] = []
    original = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: (taken.append(a[0]), original(*a, **k))[1])
    peer = Peer(MailboxLimits(max_body=1 << 40, linger_s=0.2))
    box, frames = peer.join()
    body = text("a", "k", None, 1 << 39)
    frames._write(HEADER.pack(len(body), b"m" * 32) + body)
    assert "wrong signature" in ends(lambda: box.receive("a", 20))
    assert 1 << 39 not in taken
    box.close()


def test_a_rank_with_another_key_is_never_let_in() -> None:
    def fn(c: Any) -> Any:
        return tcp_mailbox(c, MailboxLimits(open_s=0.5, linger_s=0.1), key=bytes([c.rank]) * 32)

    told = [str(error) for error in on_ranks(2, fn)]
    assert any("rank 0 cannot be reached" in text or "ranks [1] did not connect within 0.5 s" in text for text in told)
    assert all(isinstance(error, CollectiveError) for error in on_ranks(2, fn))


def test_who_answers_in_place_of_a_rank_is_no_rank() -> None:
    """A stranger that took the port: it answers with a nonce and a frame that nobody signed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = taken.accept()
                    sock.sendall(b"n" * 16 + HEADER.pack(2, b"m" * 32) + b"{}")

        threading.Thread(target=answer, daemon=True).start()

        class Second:
            rank, size = 1, 2
            allgather_object = staticmethod(lambda mine: [["127.0.0.1", taken.getsockname()[1], "", mine[3]], mine])

        with pytest.raises(CollectiveError, match="rank 0 cannot be reached at .*: a frame with a wrong signature"):
            tcp_mailbox(Second(), MailboxLimits(open_s=0.3, linger_s=0.1))  # type: ignore[arg-type]
        taken.shutdown(socket.SHUT_RDWR)


def test_bounds_must_agree() -> None:
    def fn(c: Any) -> Any:
        return tcp_mailbox(c, MailboxLimits(max_body=10 + c.rank))

    for error in on_ranks(2, fn):
        assert "different max_body: [10, 11]" in str(error)


def test_bytes_on_the_wire_are_those_of_the_formula() -> None:
    """36 bytes a frame: one of [box, kind, head, bytes], and one for each MiB begun of the body."""
    peer = Peer()
    box, frames = peer.join()
    read: list[int] = []
    fill = frames._read

    def record(place: memoryview) -> int:
        read.append(fill(place))
        return read[-1]

    frames._read = record  # type: ignore[method-assign]
    for n, pieces in ((0, 0), (1, 1), (PIECE, 1), (PIECE + 1, 2)):
        box.send(1, "a", "k", [n], torch.zeros(n, dtype=torch.uint8))
        read.clear()
        assert frames.receive_bytes() == text("a", "k", [n], n)
        for _ in range(pieces):
            frames.receive_bytes()
        assert sum(read) == len(text("a", "k", [n], n)) + n + 36 * (1 + pieces)
    box.close()


@pytest.fixture
def slow() -> Iterator[tuple[TcpMailbox, FrameSocket]]:
    """Rank 0, with room for 3 MiB on the way to rank 1, which reads nothing."""
    peer = Peer(MailboxLimits(queue_bytes=3 << 20, inbox_bytes=1 << 20, max_body=64 << 20, linger_s=0.2))
    box, frames = peer.join()
    yield box, frames
    frames.close()
    box.close()


def _fill(box: TcpMailbox) -> tuple[threading.Thread, list[Any]]:
    """Send until `send` waits; the thread that waits, and what became of its sends."""
    found: list[Any] = []
    body = torch.arange(1 << 20).to(torch.uint8)

    def run() -> None:
        try:
            for k in range(64):
                box.send(1, "a", "piece", k, body)
                found.append(k)
        except CollectiveError as error:
            found.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    before = -1
    while len(found) != before:  # sends stop when nothing was sent for a while
        before = len(found)
        time.sleep(0.5)
    assert thread.is_alive() and box._peers[1]._waiting <= 3 << 20 < 64 << 20
    return thread, found


def test_send_waits_for_room_and_goes_on_when_there_is_some(slow: tuple[TcpMailbox, FrameSocket]) -> None:
    box, frames = slow
    thread, found = _fill(box)
    for k in range(64):
        assert json.loads(frames.receive_bytes()) == ["a", "piece", k, 1 << 20]
        assert len(frames.receive_bytes()) == PIECE
    thread.join(20)
    assert found == list(range(64))


@pytest.mark.parametrize("end", ["peer", "own"])
def test_who_waits_for_room_is_released(slow: tuple[TcpMailbox, FrameSocket], end: str) -> None:
    box, frames = slow
    thread, found = _fill(box)
    frames.close() if end == "peer" else box.close()
    thread.join(20)
    assert not thread.is_alive()
    assert ("rank 1 is gone" if end == "peer" else "this mailbox was closed") in found[-1]


def test_a_message_larger_than_the_queue_goes_when_nothing_waits(slow: tuple[TcpMailbox, FrameSocket]) -> None:
    box, frames = slow
    body = torch.arange(5 << 20).to(torch.uint8)
    box.send(1, "a", "large", None, body)
    assert json.loads(frames.receive_bytes())[3] == 5 << 20
    assert b"".join(bytes(frames.receive_bytes()) for _ in range(5)) == bytes(body.numpy())
    with pytest.raises(ValueError, match=r"at most 16,777,216 of head and 67,108,864 of body"):
        box.send(1, "a", "x", None, torch.empty((64 << 20) + 1, dtype=torch.uint8))


def test_what_nobody_receives_stays_in_the_network(slow: tuple[TcpMailbox, FrameSocket]) -> None:
    box, frames = slow
    sent: list[int] = []

    def run() -> None:
        for k in range(64):
            frames.send_bytes(text("a", "piece", k, 1 << 20))
            frames.send_bytes(b"p" * PIECE)
            sent.append(k)

    threading.Thread(target=run, daemon=True).start()
    time.sleep(1.0)
    assert box.boxes._held[1] < (2 << 20) + 100 and len(sent) < 64
    for k in range(64):
        message = box.receive("a", 20)
        assert message is not None and message.head == k and message.body.numel() == PIECE


def test_what_was_sent_arrives_though_its_sender_closes_at_once() -> None:
    def fn(c: Any) -> Any:
        box = tcp_mailbox(c, MailboxLimits(linger_s=20))
        if c.rank == 0:
            for k in range(20):
                box.send(1, "a", "n", k, torch.full((1 << 20,), k).to(torch.uint8))
            box.close()
            return None
        time.sleep(0.3)
        found = [box.receive("a", 20) for _ in range(20)]
        told = ends(lambda: box.receive("a", 20))
        box.close()
        return [m.head for m in found if m and bool((m.body == m.head).all())], told

    assert on_ranks(2, fn)[1] == (list(range(20)), "rank 0 closed its mailbox")


def test_a_rank_that_left_is_heard_to_its_end_though_others_have_heard_of_it_before() -> None:
    """Rank 1's last message to rank 0 is slow; rank 2 knows long before that rank 1 is gone."""

    def fn(c: Any) -> Any:
        box = tcp_mailbox(c)
        if c.rank == 1:
            frames = box._peers[0]._frames
            send = frames.send_bytes
            frames.send_bytes = lambda body: (time.sleep(0.3), send(body))  # type: ignore[method-assign]
            box.send(0, "a", "last")
            box.close()
            return None
        told = [message.kind] if c.rank == 0 and (message := box.receive("a", 20.0)) else []
        return [*told, ends(lambda: box.receive("a", 20.0)), ends(lambda: box.send(2 - c.rank, "a", "x"))]

    left, _, right = on_ranks(3, fn)
    assert left == ["last", *["rank 1 closed its mailbox"] * 2]
    assert right == ["rank 1 closed its mailbox"] * 2
