"""The URL index of a crawl: lines of CDX and CDXJ as captures, chosen by address, type, status or language.

CDXJ, as Common Crawl publishes it, is `urlkey timestamp {JSON}`; CDX is the same in columns that a first line names by
letters (` CDX N b a m s k r M S V g`). A line says where a record is: file, offset, length. It is believed in nothing:
whoever reads the record compares its address with the line's, and nothing in a line is used as a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAX_LINE_BYTES = 1 << 16
MAX_RECORD_BYTES = 1 << 30  # crawlers cut pages at a thousandth of it
_LETTERS = {
    "b": "timestamp",
    "a": "uri",
    "m": "mime",
    "s": "status",
    "k": "digest",
    "S": "length",
    "V": "offset",
    "g": "filename",
}
_LEGENDS = {9: "N b a m s k r V g", 10: "N b a m s k r M V g", 11: "N b a m s k r M S V g"}
_WWW = re.compile(r"^www\d*\.")
_SURROGATE = re.compile("[\ud800-\udfff]")  # valid in JSON, in no encoding
_INT64 = 1 << 63


@dataclass(frozen=True)
class Capture:
    """One capture of an address.

    Args:
        uri: as it was asked for.
        timestamp: 14 digits, UTC.
        filename: of the WARC file, relative to where the crawl is published.
        offset: of the record in the file, bytes.
        length: of the record in the file, bytes; None where the index does not say.
        status: of the answer; None for `-`.
        mime: as the server said it.
        digest: SHA-1 of the payload in base 32, without `sha1:`.
        languages: three-letter codes separated by commas, most first.
        charset: of the page.
        mime_detected: as the crawler found it.
    """

    uri: str
    timestamp: str
    filename: str
    offset: int
    length: int | None
    status: int | None = None
    mime: str = ""
    digest: str = ""
    languages: str = ""
    charset: str = ""
    mime_detected: str = ""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which captures are wanted: those that satisfy all that is given.

    Args:
        domains: hosts, their subdomains included.
        prefixes: beginnings of addresses, without the scheme.
        mimes: types, as the server or the crawler says; `text/*` for all of a kind.
        statuses: answers, such as 200.
        languages: three-letter codes; one among the capture's languages is enough.
    """

    domains: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    mimes: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    languages: tuple[str, ...] = ()

    def accepts(self, capture: Capture) -> bool:
        """Whether the capture is wanted."""
        return (
            (not self.statuses or capture.status in self.statuses)
            and (not self.mimes or any(_is_mime(capture, mime) for mime in self.mimes))
            and (not self.languages or bool(set(self.languages) & set(capture.languages.split(","))))
            and (not self.domains or _in_domains(host(capture.uri), self.domains))
            and (not self.prefixes or _bare(capture.uri).startswith(tuple(map(_bare, self.prefixes))))
        )


class IndexLines:
    """A parser of one index file's lines; it remembers the legend that a CDX file begins with."""

    def __init__(self) -> None:
        self._legend: tuple[str, ...] = ()

    def parse(self, line: bytes) -> Capture | str | None:
        """A capture; in words why it is none; None for blank lines and legends."""
        if len(line) > MAX_LINE_BYTES:
            return f"index line of more than {MAX_LINE_BYTES} bytes"
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text.lstrip().startswith("CDX "):
            self._legend = tuple(text.split()[1:])
            return None
        if not text.strip():
            return None
        parts = text.split(" ", 2)
        if len(parts) == 3 and parts[2].startswith("{"):
            return _of_json(parts[1], parts[2])
        return _of_columns(text.split(" "), self._legend)


def captures(lines: Iterable[bytes], match: Match) -> Iterator[Capture | str]:
    """The wanted captures of an index file's lines; for lines that are none, why."""
    parser = IndexLines()
    for line in lines:
        found = parser.parse(line)
        if isinstance(found, str) or (found is not None and match.accepts(found)):
            yield found


def index_line(capture: Capture) -> str:
    """The capture as a line of CDXJ, with the fields in Common Crawl's order."""
    fields = {
        "url": capture.uri,
        "mime": capture.mime,
        "mime-detected": capture.mime_detected or capture.mime,
        "status": None if capture.status is None else str(capture.status),
        "digest": capture.digest,
        "length": None if capture.length is None else str(capture.length),
        "offset": str(capture.offset),
        "filename": capture.filename,
        "charset": capture.charset,
        "languages": capture.languages,
    }
    body = json.dumps({name: value for name, value in fields.items() if value})
    return f"{urlkey(capture.uri)} {capture.timestamp} {body}\n"


def urlkey(uri: str) -> str:
    """The address in the index's order: `com,example)/path?query`, lower case, without www and port."""
    split = _split(uri)
    name = _WWW.sub("", host(uri))
    labels = [name] if re.fullmatch(r"[\d.]+", name) else name.split(".")[::-1]
    path = re.sub(r"\s", lambda found: f"%{ord(found[0]):02x}", split[1].lower()).rstrip("/") or "/"
    query = "&".join(sorted(split[2].lower().split("&"))).replace(" ", "%20")
    return f"{','.join(labels)}){path}" + (f"?{query}" if query else "")


def host(uri: str) -> str:
    """The host in lower case, '' where the address has none."""
    return _split(uri)[0]


def _split(uri: str) -> tuple[str, str, str]:
    """Host, path, query: of any string, since addresses in a crawl may be anything."""
    try:
        parts = urlsplit(uri)
        return (parts.hostname or "").lower(), parts.path, parts.query
    except ValueError:
        return "", uri, ""


def _bare(uri: str) -> str:
    """Without scheme; host in lower case."""
    rest = uri.split("://", 1)[-1]
    name, slash, path = rest.partition("/")
    return name.lower() + slash + path


def _in_domains(name: str, domains: Sequence[str]) -> bool:
    return any(name == domain or name.endswith(f".{domain}") for domain in map(str.lower, domains))


def _is_mime(capture: Capture, wanted: str) -> bool:
    found = (capture.mime.lower(), capture.mime_detected.lower())
    if wanted.endswith("/*"):
        return any(mime.startswith(wanted[:-1].lower()) for mime in found)
    return wanted.lower() in found


def _of_json(timestamp: str, body: str) -> Capture | str:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return "index line whose JSON cannot be read"
    if not isinstance(fields, dict):
        return "index line without a JSON object"
    names = {"url": "uri", "mime-detected": "mime_detected"}
    values: dict[str, Any] = {names.get(name) or name: value for name, value in fields.items()}
    return _capture(values | {"timestamp": timestamp})


def _of_columns(cells: Sequence[str], legend: Sequence[str]) -> Capture | str:
    legend = legend or _LEGENDS.get(len(cells), "").split()
    if len(cells) != len(legend):
        return f"index line of {len(cells)} columns" + (f" instead of {len(legend)}" if legend else "")
    values = {_LETTERS[letter]: cell for letter, cell in zip(legend, cells, strict=True) if letter in _LETTERS}
    return _capture({name: "" if cell == "-" else cell for name, cell in values.items()})


def _capture(values: dict[str, Any]) -> Capture | str:
    """From the fields of either form; every one is checked."""
    texts = {name: "" if values.get(name) is None else values[name] for name in Capture.__dataclass_fields__}
    offset, length, status = (_number(texts.pop(name)) for name in ("offset", "length", "status"))
    if offset is None or not all(isinstance(text, str) for text in texts.values()):
        return "index line without an offset, or with fields that are no text"
    if any(_SURROGATE.search(text) for text in texts.values()):
        return "index line with characters that are none"
    if not texts["uri"] or not texts["filename"]:
        return "index line without an address or a file"
    if length == 0:
        return "index line with a length of 0"
    if length is not None and length > MAX_RECORD_BYTES:
        return f"index line with a length of more than {MAX_RECORD_BYTES:,} bytes"
    return Capture(offset=offset, length=length, status=status, **texts)


def _number(value: object) -> int | None:
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) and int(text) < _INT64 else None
