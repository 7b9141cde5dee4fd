"""Authenticated frames between the driver and its ranks: length, HMAC-SHA256, JSON. Nothing received is ever executed.

On connecting each side sends 16 random bytes; both derive the connection's key from the launch key and the two nonces.
Each frame's MAC covers its direction, its number in that direction, and its body, so a frame cannot be forged, altered,
replayed, reordered, dropped in the middle, or reflected. The content is not secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import struct
import threading
from typing import Any

MAX_FRAME = 16 << 20
_MAX_FIRST_FRAME = 4 << 10
_NONCE = 16
_HEADER = struct.Struct("!I32s")


class ChannelError(ConnectionError):
    """The other side is gone, or what it sent is not genuine."""


class FrameSocket:
    """One end of an authenticated connection.

    Args:
        sock: connected socket; its timeout holds for the exchange of nonces and the first frame.
        key: the launch's secret.
        driver: whether this is the driver's end.
    """

    def __init__(self, sock: socket.socket, key: bytes, *, driver: bool) -> None:
        self._sock = sock
        self._send_lock = threading.Lock()
        own = secrets.token_bytes(_NONCE)
        sock.sendall(own)
        other = self._receive_exactly(_NONCE)
        salt = own + other if driver else other + own
        self._key = hmac.digest(key, b"headrace channel" + salt, "sha256")
        self._out, self._in = (b"D", b"R") if driver else (b"R", b"D")
        self._sent = self._received = 0

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            ValueError: it is no JSON or larger than MAX_FRAME.
            ChannelError: the other side is gone.
        """
        body = json.dumps(message).encode()
        if len(body) > MAX_FRAME:
            raise ValueError(f"a message of {len(body):,} bytes; at most {MAX_FRAME:,}: keep large results on disk")
        with self._send_lock:
            mac = self._mac(self._out, self._sent, body)
            self._sent += 1
            try:
                self._sock.sendall(_HEADER.pack(len(body), mac) + body)
            except OSError as error:
                raise ChannelError(f"cannot send: {error}") from error

    def receive(self) -> dict[str, Any]:
        """The next message; blocks.

        Raises:
            ChannelError: the other side is gone, or the frame is not genuine.
        """
        length, mac = _HEADER.unpack(self._receive_exactly(_HEADER.size))
        # Until the peer has proved that it knows the key it gets little of our memory.
        if length > (MAX_FRAME if self._received else _MAX_FIRST_FRAME):
            raise ChannelError(f"a frame of {length:,} bytes is refused")
        body = self._receive_exactly(length)
        if not hmac.compare_digest(mac, self._mac(self._in, self._received, body)):
            raise ChannelError("a frame with a wrong signature")
        self._received += 1
        message: dict[str, Any] = json.loads(body)
        return message

    def close(self) -> None:
        """Close the connection; a thread blocked in `receive` gets ChannelError."""
        for step in (lambda: self._sock.shutdown(socket.SHUT_RDWR), self._sock.close):
            try:
                step()
            except OSError:
                continue

    def _mac(self, direction: bytes, number: int, body: bytes) -> bytes:
        mac = hmac.new(self._key, direction + struct.pack("!Q", number), hashlib.sha256)
        mac.update(body)
        return mac.digest()

    def _receive_exactly(self, n: int) -> bytes:
        data = bytearray()
        while len(data) < n:
            try:
                part = self._sock.recv(min(n - len(data), 1 << 16))
            except OSError as error:
                raise ChannelError(f"cannot receive: {error}") from error
            if not part:
                raise ChannelError("the connection was closed")
            data += part
        return bytes(data)
