"""A web server on this machine for tests: serves a folder with ranges, and fails as it is told to."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Server:
    """What is served and how.

    Args:
        folder: of the files.
        faults: by path, what the next requests meet, one after the other: `503`, `429 AFTER`, `404`, `cut N` (the
            connection drops after N bytes of the body), `long` (more bytes than stated), `plain` (ranges are ignored),
            `shifted` (another range than asked for), `gzip` (says that it encodes), `away` (redirects to ftp:),
            `stall N` (N bytes of the body, the rest when `go` is set).
        stalled: set when an answer stalls.
        go: lets it go on.
    """

    folder: Path
    faults: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server for a folder, on a port of its own, while the context is open."""
    state = Server(folder)

    class Handler(_Handler):
        server_state = state

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        name = unquote(self.path).lstrip("/")
        state.requests.append((name, self.headers.get("Range")))
        faults = state.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        if fault[:1].isdigit():
            self._refuse(*fault.split(maxsplit=1))
        elif fault == "away":
            self._head(302, 0, {"Location": "ftp://127.0.0.1/x"})
        elif (state.folder / name).is_file():
            self._send((state.folder / name).read_bytes(), fault)
        else:
            self._refuse("404")

    def _refuse(self, status: str, after: str = "") -> None:
        self._head(int(status), 0, {"Retry-After": after} if after else {})

    def _send(self, data: bytes, fault: str) -> None:
        tag = f'"{len(data)}-{data[:20].hex()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        fresh = self.headers.get("If-Range", tag) == tag
        if not asked or not fresh or fault == "plain":
            self._body(200, data, {"ETag": tag}, fault)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            self._head(416, 0, {"Content-Range": f"bytes */{len(data)}"})
            return
        said = start + 1 if fault == "shifted" else start
        head = {"ETag": tag, "Content-Range": f"bytes {said}-{end}/{len(data)}"}
        self._body(206, data[start : end + 1], head, fault)

    def _body(self, status: int, data: bytes, headers: dict[str, str], fault: str) -> None:
        encoding = {"Content-Encoding": "gzip"} if fault == "gzip" else {}
        self._head(status, len(data) - (5 if fault == "long" else 0), headers | encoding)
        with contextlib.suppress(OSError):
            if fault.startswith("stall"):
                at = int(fault.split()[1])
                self.wfile.write(data[:at])
                self.wfile.flush()
                self.server_state.stalled.set()
                self.server_state.go.wait(120)
                data = data[at:]
            self.wfile.write(data[: int(fault.split()[1])] if fault.startswith("cut") else data)
        self.close_connection = True

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
