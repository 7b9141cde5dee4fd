"""Authenticated frames over a connection: length, HMAC-SHA256, bytes. Nothing received is ever executed.

On connecting each side sends 16 random bytes; both derive the connection's key from a shared one and the two nonces.
Each frame's MAC covers its direction, its number in that direction, and its body, so a frame cannot be forged, altered,
replayed, reordered, dropped in the middle, or reflected. The content is not secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import struct
import threading
import time

MAX_FRAME = 16 << 20
HANDSHAKE_S = 10.0
_MAX_FIRST_FRAME = 4 << 10
_NONCE = 16
_HEADER = struct.Struct("!I32s")
FRAME_OVERHEAD = _HEADER.size
# Below this a copy is cheaper than a packet of its own for the header.
_JOIN_BYTES = 1 << 16

Buffer = bytes | bytearray | memoryview


class ChannelError(ConnectionError):
    """The other side is gone, or what it sent is not genuine."""


class FrameSocket:
    """One end of an authenticated connection.

    Args:
        sock: connected socket.
        key: the shared secret.
        purpose: what the connection is for; both ends must say the same.
        first: which of the two ends this is; the other end must be the other one.
        handshake_s: how long the exchange of nonces and whatever comes before `proved` may take together.
    """

    def __init__(
        self, sock: socket.socket, key: bytes, *, purpose: bytes, first: bool, handshake_s: float = HANDSHAKE_S
    ) -> None:
        self._sock = sock
        self._send_lock = threading.Lock()
        # A date, not a timeout of every read: who sends a byte now and then must not hold the line.
        self._deadline: float | None = time.monotonic() + handshake_s
        sock.settimeout(handshake_s)
        own = secrets.token_bytes(_NONCE)
        self._write(own)
        other = bytes(self._receive_exactly(_NONCE))
        salt = own + other if first else other + own
        self._key = hmac.digest(key, purpose + salt, "sha256")
        self._out, self._in = (b"D", b"R") if first else (b"R", b"D")
        self._sent = self._received = 0

    def proved(self) -> None:
        """The other side has shown that it knows the key: from now on it may take its time."""
        self._deadline = None
        self._sock.settimeout(None)

    def send_bytes(self, body: Buffer) -> None:
        """Send one frame.

        Raises:
            ValueError: it is larger than MAX_FRAME.
            ChannelError: the other side is gone.
        """
        if len(body) > MAX_FRAME:
            raise ValueError(f"a message of {len(body):,} bytes; at most {MAX_FRAME:,}: keep large results on disk")
        with self._send_lock:
            header = _HEADER.pack(len(body), self._mac(self._out, self._sent, body))
            self._sent += 1
            if len(body) <= _JOIN_BYTES:
                self._write(header + bytes(body))
            else:
                self._write(header)
                self._write(body)

    def receive_bytes(self) -> bytearray:
        """The next frame; blocks.

        Raises:
            ChannelError: the other side is gone, or the frame is not genuine.
        """
        length, mac = self._header()
        # Until the peer has proved that it knows the key it gets little of our memory.
        if length > (MAX_FRAME if self._received else _MAX_FIRST_FRAME):
            raise ChannelError(f"a frame of {length:,} bytes is refused")
        body = self._receive_exactly(length)
        self._check(mac, body)
        return body

    def receive_into(self, place: memoryview) -> None:
        """The next frame, which must be as long as its place; blocks.

        Raises:
            ChannelError: see `receive_bytes`.
        """
        length, mac = self._header()
        if length != len(place):
            raise ChannelError(f"a frame of {length:,} bytes is refused where {len(place):,} are due")
        self._fill(place)
        self._check(mac, place)

    def finish(self) -> None:
        """Say that nothing more will be sent; what has been sent still arrives."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection; a thread blocked in receiving gets ChannelError."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._sock.close()

    def _header(self) -> tuple[int, bytes]:
        length, mac = _HEADER.unpack(self._receive_exactly(_HEADER.size))
        return length, mac

    def _check(self, mac: bytes, body: Buffer) -> None:
        if not hmac.compare_digest(mac, self._mac(self._in, self._received, body)):
            raise ChannelError("a frame with a wrong signature")
        self._received += 1

    def _mac(self, direction: bytes, number: int, body: Buffer) -> bytes:
        mac = hmac.new(self._key, direction + struct.pack("!Q", number), hashlib.sha256)
        mac.update(body)
        return mac.digest()

    def _write(self, data: Buffer) -> None:
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise ChannelError(f"cannot send: {error}") from error

    def _receive_exactly(self, n: int) -> bytearray:
        data = bytearray()
        while len(data) < n:  # grows with what comes: a length alone takes no memory
            part = bytearray(min(n - len(data), 1 << 16))
            data += memoryview(part)[: self._read(memoryview(part))]
        return data

    def _fill(self, place: memoryview) -> None:
        done = 0
        while done < len(place):
            done += self._read(place[done:])

    def _read(self, place: memoryview) -> int:
        """Some bytes, at least one."""
        try:
            if self._deadline is not None:
                self._sock.settimeout(max(self._deadline - time.monotonic(), 0.001))
            count = self._sock.recv_into(place)
        except OSError as error:
            raise ChannelError(f"cannot receive: {error}") from error
        if not count:
            raise ChannelError("the connection was closed")
        return count


def prepare(sock: socket.socket, silent_s: float | None = None) -> None:
    """Small frames at once; a peer whose machine vanished without a word is noticed within half a minute.

    Args:
        sock: connected.
        silent_s: where something is under way to it, the connection ends when its machine has not taken it for so long
            (a peer that is stopped takes what its buffers hold); None: a quarter of an hour.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if silent_s is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * silent_s))
