"""Which files a crawl source names, where they are, and what they are called where they land.

A source is files, folders, patterns, URLs, or lists of paths as a crawl publishes them (`warc.paths.gz`). Lines of a
list are data: they are joined to the base only, may not leave it, and never become a local name. A landed file is
named by the SHA-256 of where it came from, with so much of its last name behind as is letters, digits, `.`, `_`, `-`.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from headrace.errors import UserError
from headrace.ingest.commoncrawl_fetch import Fetcher, FetchError
from headrace.ingest.days import find_files
from headrace.ingest.textfiles import BrokenFileError, inflate

MAX_PATHS = 1_000_000
MAX_PATH_BYTES = 4096
_MAX_LIST_BYTES = 256 << 20
_WEB = ("http://", "https://")
_CRAWL_FOLDER = re.compile(r"(?:^|/)crawl-data/([A-Za-z0-9][A-Za-z0-9-]{0,63})/")
_CRAWL_NAME = re.compile(r"CC-MAIN-\d{4}-\d{2}(?![\d])")
_LIST = re.compile(r"\.paths(\.gz)?$")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
NO_CRAWL = "unknown"
COMMON_CRAWL = "https://data.commoncrawl.org"


@dataclass(frozen=True)
class Origin:
    """An input file: an absolute local path, or a web address and how to get there.

    Args:
        name: how it is known in the ledger and in the tables: path or URL as given.
        url: to fetch it from; None where it is a local file.
    """

    name: str
    url: str | None = None

    def landed(self, landing: Path) -> Path:
        """Where it is read from: itself, or its copy in the landing folder."""
        return Path(self.name) if self.url is None else landing / safe_name(self.name)


def safe_name(origin: str) -> str:
    """A file name for what came from `origin`: unique, without anything that a name could do harm with."""
    digest = hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    last = _UNSAFE.sub("_", origin.split("?")[0].rstrip("/").rsplit("/", 1)[-1])[-80:].lstrip(".-")
    return f"{digest}-{last}" if last else digest


def crawl_of(name: str) -> str:
    """The crawl that a path belongs to, such as CC-MAIN-2024-22; `unknown` where it does not tell."""
    if folder := _CRAWL_FOLDER.search(name):
        return folder[1]
    found = _CRAWL_NAME.search(name)
    return found[0] if found else NO_CRAWL


def resolve(source: str, base: str, fetcher: Fetcher, landing: Path, s3_endpoint: str = "") -> list[Origin]:
    """The files that a source names, each once, in order.

    Args:
        source: files, folders, patterns, URLs and lists of paths, separated by commas.
        base: what a list's lines stand under; '' for the place above `crawl-data/` where the list itself lies.
        fetcher: for lists on the web.
        landing: folder for such lists.
        s3_endpoint: see `web_address`.

    Raises:
        UserError: nothing is found, a list cannot be read, or a line leaves the base.
    """
    found: dict[str, Origin] = {}
    for part in filter(None, (part.strip() for part in source.split(","))):
        if is_remote(part):
            origins = [Origin(part, web_address(part, s3_endpoint))]
        else:
            origins = [Origin(path) for path in find_files(part)]
        for origin in origins:
            more = listed_in(origin, base, fetcher, landing, s3_endpoint) if is_list(origin.name) else [origin]
            found.update((each.name, each) for each in more)
    if not found:
        raise UserError("--source names no file", "give files, URLs or a list such as warc.paths.gz")
    return list(found.values())


def is_remote(name: str) -> bool:
    """Is it an address on the web or in S3?"""
    return name.lower().startswith((*_WEB, "s3://", "s3a://"))


def is_list(name: str) -> bool:
    """Is it a list of paths, by its name?"""
    return bool(_LIST.search(urlsplit(name).path if is_remote(name) else name))


def web_address(name: str, s3_endpoint: str = "") -> str:
    """Where to fetch an address from: `s3://` by anonymous HTTPS.

    `s3://commoncrawl/KEY` is https://data.commoncrawl.org/KEY; another bucket's https://BUCKET.s3.amazonaws.com/KEY, or
    ENDPOINT/BUCKET/KEY where an endpoint is given.

    Raises:
        UserError: no such address.
    """
    scheme, _, rest = name.partition("://")
    if scheme.lower() in ("http", "https"):
        if not _host(name):
            raise UserError(f"{name[:200]!r} names no host", "give a URL such as https://data.commoncrawl.org/...")
        return quote(name, safe="%/:=&?~#+!$,;'@()*[]")
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or not key:
        raise UserError(f"{name[:200]!r} is no object in S3", "write s3://BUCKET/KEY")
    if s3_endpoint:
        return f"{s3_endpoint.rstrip('/')}/{bucket}/{quote(key)}"
    if bucket == "commoncrawl":
        return f"{COMMON_CRAWL}/{quote(key)}"
    return f"https://{bucket}.s3.amazonaws.com/{quote(key)}"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def under(base: str, path: str, s3_endpoint: str = "") -> Origin:
    """A path of a list or an index, joined to the base.

    Raises:
        UserError: it would leave the base, or is no path.
    """
    shown = ascii(path[:200])
    if is_remote(path):
        if not is_remote(base):
            raise UserError(f"{shown} is on the web, --base {base} is not", "give --base https://... to allow that")
        return Origin(path, web_address(path, s3_endpoint))
    if not path or path.startswith("/") or "\0" in path or "\\" in path or len(path.encode()) > MAX_PATH_BYTES:
        raise UserError(f"{shown} is no path under --base", "is this a list of paths as the crawl publishes it?")
    if any(step in ("..", ".", "") for step in path.split("/")):
        raise UserError(f"{shown} leads out of --base {base}", "this list is not to be trusted")
    if is_remote(base):
        name = f"{base.rstrip('/')}/{path}"
        return Origin(name, web_address(name, s3_endpoint))
    return Origin(os.path.join(os.path.abspath(base.removeprefix("file://")), path))


def base_of(name: str) -> str:
    """The place above `crawl-data/` or `cc-index/` in a path or URL.

    Raises:
        UserError: there is no such folder in it.
    """
    for folder in ("crawl-data/", "cc-index/"):
        before, found, _ = name.partition(f"/{folder}")
        if found:
            return before
    raise UserError(
        f"what are the paths in {name} relative to?", "--base https://data.commoncrawl.org, or the folder they lie in"
    )


def listed_in(origin: Origin, base: str, fetcher: Fetcher, landing: Path, s3_endpoint: str = "") -> list[Origin]:
    """The files that a list of paths names.

    Raises:
        UserError: it cannot be read, or a line is no path under the base.
    """
    path = str(land(origin, fetcher, landing))
    lines = list(bounded_lines(path, MAX_PATH_BYTES, _MAX_LIST_BYTES))
    if len(lines) > MAX_PATHS:
        raise UserError(f"{origin.name} names more than {MAX_PATHS:,} files", "split it")
    names = [line.decode("utf-8", "surrogateescape").strip() for line in lines]
    base = base or (base_of(origin.name) if any(names) else "")
    found = [under(base, name, s3_endpoint) for name in names if name]
    for each in found:
        if each.url is None and not os.path.exists(each.name):
            raise UserError(f"{each.name}, named by {origin.name}, is not there", "mend --base, or fetch the file")
    return found


def land(origin: Origin, fetcher: Fetcher, landing: Path) -> Path:
    """Fetch a file from the web, unless it is there; a local one is where it is.

    Raises:
        UserError: it cannot be had.
    """
    if origin.url is None:
        return Path(origin.name)
    try:
        return fetcher.to_file(origin.url, origin.landed(landing))
    except FetchError as error:
        remedy = "check the address, or run the same command again: it goes on where it stopped"
        raise UserError(str(error), remedy) from error


def bounded_lines(path: str, max_line_bytes: int, max_bytes: int | None = None) -> Iterator[bytes]:
    """The lines of a plain or gzip text file, without their ends; neither file nor line may be larger than told.

    Raises:
        UserError: larger, or a damaged gzip.
    """
    try:
        with open(path, "rb") as file:
            gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            chunks = inflate(file, path) if gzip else iter(lambda: file.read(1 << 20), b"")
            yield from _lines(chunks, path, max_line_bytes, max_bytes)
    except (BrokenFileError, zlib.error) as error:
        raise UserError(str(error), "fetch it again") from error


def _lines(chunks: Iterator[bytes], path: str, max_line_bytes: int, max_bytes: int | None) -> Iterator[bytes]:
    carry, seen = b"", 0
    for chunk in chunks:
        seen += len(chunk)
        if max_bytes is not None and seen > max_bytes:
            raise UserError(f"{path} inflates to more than {max_bytes:,} bytes", "is this a list of paths?")
        *lines, carry = (carry + chunk).split(b"\n")
        yield from lines
        if len(carry) > max_line_bytes:
            raise UserError(f"{path} has a line of more than {max_line_bytes:,} bytes", "is this a text file?")
    if carry:
        yield carry
