"""Generated pages as WARC, WET and WAT records, a gzip member each, and as members that a reader must refuse.

Records have the fields that Common Crawl's have (WARC 1.0): SHA-1 digests in base 32, identifiers as URN, references
from response to request and from conversion to response.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import json
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.ingest.generated_crawl_pages import Mix, Page
from headrace.ingest.generated_crawl_words import LANGUAGES, Draw

GZIP_LEVEL = 6
FORMATS = ("warc", "wet", "wat")
BAD_KINDS = ("truncated_member", "flipped_crc", "bad_deflate", "wrong_length", "bad_digest", "no_version")
"""Planted bad records; with `bomb_bytes` there is a bomb too."""
BOMB = "bomb"
_CHUNK_BYTES = 1 << 20
_EPOCH = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
LANGUAGE_CODES = {"en": "eng", "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "nl": "nld", "ru": "rus"}
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Member:
    """A record as it stands in the file.

    Args:
        kind: WARC-Type.
        record_id: with `<urn:uuid:...>` around it.
        data: the gzip member, damaged where `bad` is not None.
        bad: which of BAD_KINDS.
    """

    kind: str
    record_id: str
    data: bytes
    bad: str | None = None


@dataclass(frozen=True)
class Response:
    """What a page's server answered: status line and headers, body as sent."""

    head: bytes
    body: bytes
    mime: str
    charset: str | None


def members(page: Page, mix: Mix, name: str, bad: str | None, bomb_bytes: int) -> dict[str, list[Member]]:
    """A page's members by format, in the order of the files; the main one of each is damaged as `bad` says.

    Args:
        page: the page.
        mix: where it comes from.
        name: of the WARC file, for references.
        bad: one of BAD_KINDS, BOMB or None; a bomb is planted in WARC only.
        bomb_bytes: how much a bomb inflates to.
    """
    ids = {kind: record_id(mix.seed, page.number, kind) for kind in ("request", "response", "metadata", "text", "wat")}
    answer = response(page, mix)
    request = _request(page, mix, ids)
    main = _response(page, mix, ids, answer, bad, bomb_bytes)
    found = {"warc": [request, main, _fetch(page, mix, ids)], "wet": [], "wat": [_wat(page, mix, ids, answer, name)]}
    if page.kind != "other":
        found["wet"] = [_conversion(page, mix, ids, None if bad == BOMB else bad)]
    return found


def warcinfo(mix: Mix, name: str, crawl: str) -> Member:
    """The record that begins a file."""
    fields = f"isPartOf: {crawl}\r\nsoftware: headrace generate-crawl\r\nformat: WARC File Format 1.0\r\n\r\n"
    own = f"<urn:uuid:{_uuid(mix.seed, name, 'warcinfo')}>"
    headers = [("WARC-Filename", name)]
    return Member(
        "warcinfo", own, _member("warcinfo", own, _date(0), headers, fields.encode(), "application/warc-fields")
    )


def record_id(seed: int, number: int, kind: str) -> str:
    """Of one of a page's records."""
    return f"<urn:uuid:{_uuid(seed, number, kind)}>"


def digest(data: bytes) -> str:
    """As in WARC-Payload-Digest."""
    return f"sha1:{base64.b32encode(hashlib.sha1(data).digest()).decode()}"


def response(page: Page, mix: Mix) -> Response:
    """HTML in the page's site's looks and encoding, or JSON."""
    if page.kind == "other":
        body = json.dumps({"page": page.number, "title": page.title, "text": page.text[:500]}).encode()
        return Response(_http_head("application/json", body), body, "application/json", None)
    draw = Draw(mix.seed, page.template, "site")
    charset = LANGUAGES[page.language].charset if draw.below(3) == 0 else "utf-8"
    said = draw.pick(("header", "meta", "both", "nowhere"))
    text = document(page, draw, charset if said in ("meta", "both") else None)
    body = text.encode(charset, "xmlcharrefreplace")
    mime = f"text/html; charset={charset}" if said in ("header", "both") else "text/html"
    return Response(_http_head(mime, body), body, "text/html", charset)


def document(page: Page, draw: Draw, charset: str | None) -> str:
    """The page with what stands around a text on real sites: menus, scripts, a sidebar, a footer."""
    language = LANGUAGES[page.language]
    menu = "".join(f'<li><a href="/{word}">{word}</a></li>' for word in language.words(draw, 6 + draw.below(8)))
    aside = "".join(f'<li><a href="/{n}.html">{" ".join(language.words(draw, 3))}</a></li>' for n in range(5))
    meta = f'<meta charset="{charset}">' if charset else ""
    owner = " ".join(language.words(draw, 2))
    paragraphs = "\n".join(f"<p>{html.escape(line)}</p>" for line in page.text.split("\n"))
    return (
        f'<!DOCTYPE html>\n<html lang="{page.language}"><head>{meta}<title>{html.escape(page.title)}</title>\n'
        f"<style>body {{ margin: {draw.below(40)}px }} nav li {{ display: inline }}</style>\n"
        f'<script>var site = "{owner}"; if (site < 1 && 2) {{ track("{draw.bits():x}"); }}</script></head>\n<body>\n'
        f"<header><nav><ul>{menu}</ul></nav></header>\n<main><article><h1>{html.escape(page.title)}</h1>\n"
        f"{paragraphs}\n</article></main>\n<aside><ul>{aside}</ul></aside>\n"
        f"<footer><p>&copy; 2024 {owner}</p></footer>\n<!-- {draw.bits():x} -->\n</body></html>\n"
    )


def _http_head(mime: str, body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {mime}\r\nContent-Length: {len(body)}\r\nServer: made\r\n\r\n".encode()


def _request(page: Page, mix: Mix, ids: dict[str, str]) -> Member:
    block = b"GET / HTTP/1.1\r\nUser-Agent: headrace\r\nAccept: text/html\r\n\r\n"
    headers = [("WARC-Target-URI", page.uri), ("WARC-Block-Digest", digest(block))]
    mime = "application/http; msgtype=request"
    return Member(
        "request", ids["request"], _member("request", ids["request"], _date(page.number), headers, block, mime)
    )


def _response(page: Page, mix: Mix, ids: dict[str, str], answer: Response, bad: str | None, bomb_bytes: int) -> Member:
    block = answer.head + answer.body
    headers = [
        ("WARC-Concurrent-To", ids["request"]),
        ("WARC-IP-Address", "192.0.2.1"),
        ("WARC-Target-URI", page.uri),
        ("WARC-Payload-Digest", digest(answer.body)),
        ("WARC-Block-Digest", digest(block)),
        ("WARC-Identified-Payload-Type", answer.mime),
    ]
    record = _Record(
        "response", ids["response"], _date(page.number), headers, block, "application/http; msgtype=response"
    )
    data = record.bomb(len(answer.head), bomb_bytes) if bad == BOMB else record.damaged(bad)
    return Member("response", ids["response"], data, bad)


def _fetch(page: Page, mix: Mix, ids: dict[str, str]) -> Member:
    block = f"fetchTimeMs: {10 + page.number % 900}\r\nlanguages-cld2: {page.language}\r\n\r\n".encode()
    headers = [("WARC-Concurrent-To", ids["response"]), ("WARC-Target-URI", page.uri)]
    data = _member("metadata", ids["metadata"], _date(page.number), headers, block, "application/warc-fields")
    return Member("metadata", ids["metadata"], data)


def _conversion(page: Page, mix: Mix, ids: dict[str, str], bad: str | None) -> Member:
    block = page.text.encode()
    headers = [
        ("WARC-Target-URI", page.uri),
        ("WARC-Refers-To", ids["response"]),
        ("WARC-Block-Digest", digest(block)),
        ("WARC-Payload-Digest", digest(block)),
        ("WARC-Identified-Content-Language", LANGUAGE_CODES[page.language]),
    ]
    record = _Record("conversion", ids["text"], _date(page.number), headers, block, "text/plain")
    return Member("conversion", ids["text"], record.damaged(bad), bad)


def _wat(page: Page, mix: Mix, ids: dict[str, str], answer: Response, name: str) -> Member:
    envelope = {
        "WARC-Header-Metadata": {
            "WARC-Type": "response",
            "WARC-Target-URI": page.uri,
            "WARC-Record-ID": ids["response"],
        },
        "Payload-Metadata": {
            "HTTP-Response-Metadata": {
                "Headers": {"Content-Length": str(len(answer.body))},
                "HTML-Metadata": {"Head": {"Title": page.title}} if page.kind != "other" else {},
            }
        },
    }
    block = json.dumps({"Container": {"Filename": name, "Compressed": True}, "Envelope": envelope}).encode()
    headers = [("WARC-Target-URI", page.uri), ("WARC-Refers-To", ids["response"]), ("WARC-Block-Digest", digest(block))]
    data = _member("metadata", ids["wat"], _date(page.number), headers, block, "application/json")
    return Member("metadata", ids["wat"], data)


@dataclass(frozen=True)
class _Record:
    kind: str
    record_id: str
    date: str
    headers: Headers
    block: bytes
    mime: str

    def text(self, length: int, version: str = "WARC/1.0", headers: Headers | None = None) -> bytes:
        """The record, uncompressed."""
        fields = [("WARC-Type", self.kind), ("WARC-Date", self.date), ("WARC-Record-ID", self.record_id)]
        fields += [
            ("Content-Length", str(length)),
            ("Content-Type", self.mime),
            *(self.headers if headers is None else headers),
        ]
        lines = [version, *(f"{name}: {value}" for name, value in fields), "", ""]
        return "\r\n".join(lines).encode() + self.block + b"\r\n\r\n"

    def bomb(self, keep: int, zeros: int) -> bytes:
        """The gzip member with the first bytes of its block and then zeros, made without holding them."""
        engine = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
        head = replace(self, block=self.block[:keep], headers=()).text(keep + zeros).removesuffix(b"\r\n\r\n")
        parts = [engine.compress(head)]
        for start in range(0, zeros, _CHUNK_BYTES):
            parts.append(engine.compress(bytes(min(_CHUNK_BYTES, zeros - start))))
        return b"".join([*parts, engine.compress(b"\r\n\r\n"), engine.flush()])

    def damaged(self, bad: str | None) -> bytes:
        """The gzip member, spoilt in one of the ways of BAD_KINDS."""
        length = len(self.block)
        if bad == "wrong_length":
            return gzip_member(self.text(length + 1000))
        if bad == "no_version":
            return gzip_member(self.text(length, version="HTTP/1.0"))
        if bad == "bad_digest":
            lying = [(name, digest(b"") if name.endswith("Digest") else value) for name, value in self.headers]
            return gzip_member(self.text(length, headers=lying))
        data = gzip_member(self.text(length))
        if bad == "truncated_member":
            return data[: len(data) // 2]
        if bad == "flipped_crc":
            return data[:-8] + bytes([data[-8] ^ 0xFF]) + data[-7:]
        if bad == "bad_deflate":
            middle = len(data) // 2
            return data[:middle] + b"\xff" * 16 + data[middle + 16 :]
        return data


def _member(kind: str, own: str, date: str, headers: Headers, block: bytes, mime: str) -> bytes:
    return gzip_member(_Record(kind, own, date, headers, block, mime).text(len(block)))


def gzip_member(data: bytes) -> bytes:
    """One gzip member without time or name, so that equal data gives equal bytes."""
    engine = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    return engine.compress(data) + engine.flush()


def _date(number: int) -> str:
    return _moment(number).strftime("%Y-%m-%dT%H:%M:%SZ")


def timestamp(number: int) -> str:
    """When a page was fetched, in the index's 14 digits."""
    return _moment(number).strftime("%Y%m%d%H%M%S")


def _moment(number: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(seconds=number % 10**9)


def _uuid(*key: object) -> str:
    return str(uuid.UUID(bytes=hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()))
