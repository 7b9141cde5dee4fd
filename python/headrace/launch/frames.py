"""JSON messages between the driver and its ranks, in authenticated frames."""

from __future__ import annotations

import json
import socket
from typing import Any

from headrace.comm.frames import FrameSocket


class JsonSocket(FrameSocket):
    """One end of the channel.

    Args:
        sock: connected socket.
        key: the launch's secret.
        driver: whether this is the driver's end.
    """

    def __init__(self, sock: socket.socket, key: bytes, *, driver: bool) -> None:
        super().__init__(sock, key, purpose=b"headrace channel", first=driver)

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            ValueError: it is no JSON or larger than MAX_FRAME.
            ChannelError: the other side is gone.
        """
        self.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """The next message; blocks.

        Raises:
            ChannelError: the other side is gone, or the frame is not genuine.
        """
        message: dict[str, Any] = json.loads(self.receive_bytes())
        return message
