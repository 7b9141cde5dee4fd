"""Files and byte ranges over HTTP: resumed where the connection broke, repeated with patience, throttled.

A try that fails for a reason that may pass (no connection, timeout, 408, 425, 429, 5xx, fewer bytes than stated) is
repeated after a wait drawn from [b/2, b], b = min(cap, base * 2^k); a server's Retry-After is waited for at least. What
arrived stays: the next try asks for the rest (Range, with If-Range so that a file changed meanwhile starts over). A
file is complete when it has the length that the server stated; it then gets its name by renaming.
"""

from __future__ import annotations

import datetime
import email.utils
import http.client
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace import __version__
from headrace.errors import UserError

CHUNK_BYTES = 1 << 18
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_MAX_RETRY_AFTER_S = 600.0
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class FetchError(Exception):
    """What could not be fetched and why, in words; `passing` where another try may help."""

    def __init__(self, problem: str, passing: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.passing, self.wait_s = passing, wait_s


class BeyondEndError(FetchError):
    """Bytes that were asked for lie, all or some of them, behind the end of their file."""


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How to ask.

    Args:
        attempts: tries in a row without a byte of progress before it is given up.
        timeout_s: without a byte from the server.
        backoff_s: first wait; doubles up to `max_backoff_s`.
        max_backoff_s: longest wait that we choose ourselves.
        requests_per_second: over all downloads; 0 = as fast as it goes.
        bytes_per_second: over all downloads; 0 = as fast as it goes.
        max_file_bytes: larger files are refused.
    """

    attempts: int = 8
    timeout_s: float = 60.0
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    requests_per_second: float = 4.0
    bytes_per_second: float = 0.0
    max_file_bytes: int = 16 << 30

    def check(self) -> None:
        """Raise UserError where the settings make no sense."""
        for name in ("requests_per_second", "bytes_per_second", "backoff_s", "max_backoff_s"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)} is negative", f"leave --{name} out")
        for name in ("attempts", "timeout_s", "max_file_bytes"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} {getattr(self, name)} is not positive", f"leave --{name} out")


class Rate:
    """So many units a second over all threads: each reservation is told how long to wait."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock = per_second, clock
        self._lock, self._free_at = threading.Lock(), 0.0

    def wait_s(self, units: float) -> float:
        """Reserve the units; the seconds to wait before they may be used."""
        if self._per_second <= 0:
            return 0.0
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)
            self._free_at = begin + units / self._per_second
            return begin - now


@dataclass
class Fetcher:
    """One throttle for all downloads of a run.

    Args:
        settings: how to ask.
        sleep: how to wait; a test's own to see the waits.
        mark: in the names of files that are arriving, where nothing keeps other runs from writing to the same ones.
    """

    settings: FetchSettings = field(default_factory=FetchSettings)
    sleep: Callable[[float], None] = time.sleep
    mark: str = ""
    _random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._requests = Rate(self.settings.requests_per_second)
        self._bytes = Rate(self.settings.bytes_per_second)
        self._opener = urllib.request.build_opener(_WebRedirects())

    def to_file(self, url: str, target: Path) -> Path:
        """The URL's content as a file, from wherever an earlier try or run left it.

        Args:
            url: http or https.
            target: a path of ours; `.part` beside it holds what has arrived so far.

        Raises:
            FetchError: it is not there, too large, or not to be had within `attempts`.
        """
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _Part(target, self.arriving(target))
        self._persist(url, lambda: self._rest(url, part), part.size)
        part.finish()
        return target

    def arriving(self, target: Path) -> Path:
        """What a file is called until it is whole."""
        return target.with_name(f"{target.name}{self.mark}.part")

    def bytes_at(self, url: str, offset: int, length: int) -> bytes:
        """Exactly these bytes of the URL's content.

        Raises:
            BeyondEndError: the file is shorter.
            FetchError: the server does not serve ranges, or the bytes are not to be had within `attempts`.
        """
        found: list[bytes] = []
        self._persist(url, lambda: found.append(self._piece(url, offset, length)), lambda: 0)
        return found[0]

    def _persist(self, url: str, act: Callable[[], None], progress: Callable[[], int]) -> None:
        """Try until it succeeds; tries that brought bytes do not count."""
        failed, before = 0, progress()
        while True:
            try:
                self.sleep(self._requests.wait_s(1))
                return act()
            except ValueError as error:  # a host that is none, in the address or where it sends us
                raise FetchError(f"{url} is no address: {error}") from error
            except (FetchError, OSError, http.client.HTTPException) as error:
                problem = _explained(url, error)
                failed, before = (0, progress()) if progress() > before else (failed + 1, before)
                if not problem.passing:
                    raise problem from error
                if failed >= self.settings.attempts:
                    raise FetchError(f"{problem} ({failed} tries in a row)") from error
                self.sleep(max(problem.wait_s, self._backoff_s(failed)))

    def _backoff_s(self, failed: int) -> float:
        longest = min(self.settings.max_backoff_s, self.settings.backoff_s * 2.0 ** min(max(failed - 1, 0), 30))
        return longest * (0.5 + self._random.random() / 2)

    def _opened(self, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        own = {"User-Agent": f"headrace/{__version__}", "Accept-Encoding": "identity"}
        request = urllib.request.Request(url, headers=own | headers)
        response: http.client.HTTPResponse = self._opener.open(request, timeout=self.settings.timeout_s)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise FetchError(f"{url}: the server encodes what was asked for as it is")
        return response

    def _rest(self, url: str, part: _Part) -> None:
        """Fetch what is missing of a file."""
        try:
            answer = self._opened(url, part.headers())
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            part.drop()  # what we hold is no beginning of what is there now
            raise FetchError(f"{url}: changed while it was fetched", passing=True) from error
        with answer as response:
            total = part.begin(url, response)
            if total is not None and total > self.settings.max_file_bytes:
                raise FetchError(f"{url} has {total:,} bytes, more than --max_file_bytes")
            for chunk in self._chunks(response):
                part.append(chunk)
                if part.size() > self.settings.max_file_bytes:
                    raise FetchError(f"{url} has more bytes than --max_file_bytes")
        part.check(url, total)

    def _piece(self, url: str, offset: int, length: int) -> bytes:
        last = offset + length - 1
        missing = f"{url} does not hold bytes {offset} to {last}"
        try:
            answer = self._opened(url, {"Range": f"bytes={offset}-{last}"})
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            with error:
                raise BeyondEndError(missing) from error
        with answer as response:
            if response.status != 206:
                raise FetchError(f"{url}: the server does not serve single ranges (status {response.status})")
            first, end, size = _content_range(url, response)
            if (first, end) != (offset, last):
                ends = first == offset and size is not None and end == size - 1 < last
                raise (BeyondEndError if ends else FetchError)(missing)
            data = b"".join(self._chunks(response, length))
        if len(data) != length:
            raise FetchError(f"{url}: {len(data)} bytes arrived instead of {length}", passing=True)
        return data

    def _chunks(self, response: http.client.HTTPResponse, limit: int | None = None) -> Iterator[bytes]:
        while limit is None or limit > 0:
            chunk = response.read1(CHUNK_BYTES) if limit is None else response.read1(min(CHUNK_BYTES, limit))
            if not chunk:
                return
            limit = None if limit is None else limit - len(chunk)
            yield chunk
            self.sleep(self._bytes.wait_s(len(chunk)))


class _Part:
    """A file that is arriving: its bytes in `.part`, what identifies the server's version in `.etag`."""

    def __init__(self, target: Path, path: Path) -> None:
        self._target, self._path = target, path
        self._tag = path.with_suffix(".etag")

    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def headers(self) -> dict[str, str]:
        """Ask for the rest of the same version; without a strong validator start over."""
        validator = self._tag.read_text() if self._tag.exists() else ""
        if not self.size() or not validator:
            return {}
        return {"Range": f"bytes={self.size()}-", "If-Range": validator}

    def begin(self, url: str, response: http.client.HTTPResponse) -> int | None:
        """Take the answer's head; the length of the whole file, where it is stated."""
        if response.status == 206:
            start, _, total = _content_range(url, response)
            if start != self.size():
                self.drop()
                raise FetchError(f"{url}: the server sent another range than was asked for", passing=True)
            return total
        self.drop()
        tag = response.headers.get("ETag") or ""
        validator = response.headers.get("Last-Modified") or "" if tag.startswith("W/") or not tag else tag
        self._tag.write_text(validator)
        stated = response.headers.get("Content-Length")
        return int(stated) if stated is not None and stated.isdecimal() else None

    def append(self, chunk: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(chunk)

    def check(self, url: str, total: int | None) -> None:
        """Is it whole?"""
        if total is not None and self.size() < total:
            raise FetchError(f"{url}: the connection ended at byte {self.size():,} of {total:,}", passing=True)
        if total is not None and self.size() > total:
            self.drop()
            raise FetchError(f"{url}: more bytes than the {total:,} that the server stated", passing=True)

    def finish(self) -> None:
        """Under its name, and there to stay."""
        if not self._path.exists():  # an empty file
            self._path.touch()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._path, self._target)
        self._tag.unlink(missing_ok=True)

    def drop(self) -> None:
        self._path.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to other web addresses only, at most five."""

    max_redirections = 5

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith(("http://", "https://")):
            raise FetchError(f"{req.full_url}: the server sends us to an address that is not of the web")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _content_range(url: str, response: http.client.HTTPResponse) -> tuple[int, int, int | None]:
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not match:
        raise FetchError(f"{url}: the server does not say which range it sends")
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def _explained(url: str, error: BaseException) -> FetchError:
    """Any failure as ours: may another try help?"""
    if isinstance(error, FetchError):
        return error
    if isinstance(error, urllib.error.HTTPError):
        with error:
            words = f"{url}: the server answered {error.code} {error.reason}"
            return FetchError(words, error.code in _PASSING, _retry_after_s(error.headers.get("Retry-After")))
    passing = not isinstance(error, http.client.InvalidURL)
    reason = getattr(error, "reason", None) or error
    return FetchError(f"{url}: {type(error).__name__}: {reason}", passing)


def _retry_after_s(value: str | None) -> float:
    """Seconds or an HTTP date; at most ten minutes."""
    if not value:
        return 0.0
    if value.strip().isdecimal():
        return min(float(value), _MAX_RETRY_AFTER_S)
    try:
        until = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    left = (until - datetime.datetime.now(datetime.UTC)).total_seconds()
    return min(max(left, 0.0), _MAX_RETRY_AFTER_S)
