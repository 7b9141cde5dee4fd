"""The main text of a web page: decode the bytes, parse, leave navigation and boilerplate out.

The encoding is looked for where browsers look (WHATWG Encoding, section 4.2 names): byte order mark, HTTP header, meta
tag, then detection from the bytes; a declared one that the bytes contradict is dropped for detection. Parsing and
extraction are resiliparse's; no other module imports it.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import NamedTuple

HTML = ("text/html", "application/xhtml+xml")
PLAIN = "text/plain"
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_BINARY = (b"%PDF", b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"PK\x03\x04", b"\x1f\x8b", b"RIFF", b"\x00\x00\x01\x00")
_SNIFFED = 1024
_CHARSET = re.compile(r"(?i)charset\s*=\s*[\"']?([\w.:-]{1,40})")
_META = re.compile(rb"(?i)<meta[^>]{0,400}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})")
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127))
_MAX_TITLE = 1000
_LIST = re.compile(r"\n\n(?=• )")  # items of a list follow each other without a blank line


@dataclass(kw_only=True, frozen=True)
class Settings:
    """What a document may cost, and how its text is made.

    Args:
        main_content: leave navigation, headers, footers and other boilerplate out.
        max_bytes: a larger payload is refused (too_large).
        max_chars: a longer text is cut at the last line end before; this bounds what the rules cost.
        status: HTTP statuses whose pages are taken, separated by commas.
    """

    main_content: bool = True
    max_bytes: int = 4 << 20
    max_chars: int = 1_000_000
    status: str = "200"


class Extracted(NamedTuple):
    """The text of a document, or why there is none."""

    text: str | None
    error: str | None
    encoding: str | None = None
    title: str | None = None


def extract(payload: bytes, content_type: str | None, settings: Settings) -> Extracted:
    """The main text of an HTTP response's body.

    Args:
        payload: the body, without transfer and content encoding.
        content_type: the header as sent, None where there was none.
        settings: limits.

    Returns:
        Text with lines ended by newlines, or one of not_html, too_large, empty, parse_error.
    """
    kind = kind_of(payload, content_type)
    if kind is None:
        return Extracted(None, "not_html")
    if len(payload) > settings.max_bytes:
        return Extracted(None, "too_large")
    decoded, encoding = decode(payload, content_type)
    if kind == PLAIN:
        return _finished(decoded, encoding, None, settings)
    try:
        text, title = _parse(decoded, settings)
    except Exception:  # the parser's own exception types; hostile input decides which
        return Extracted(None, "parse_error", encoding)
    return _finished(text, encoding, title, settings)


def published(payload: bytes, settings: Settings) -> Extracted:
    """The text of a WET record, which is UTF-8 by its definition; what is not is replaced by U+FFFD."""
    if len(payload) > settings.max_bytes:
        return Extracted(None, "too_large")
    return _finished(payload.decode("utf-8", "replace"), "utf-8", None, settings)


def media_type(content_type: str | None) -> str | None:
    """`text/html` of `Text/HTML; charset=utf-8`; None where the header is absent or no media type."""
    found = (content_type or "").partition(";")[0].strip().lower()
    return found if re.fullmatch(r"[\w.+-]{1,80}/[\w.+-]{1,80}", found) else None


def kind_of(payload: bytes, content_type: str | None) -> str | None:
    """text/html, text/plain, or None: neither by its header, or binary whatever the header says."""
    head = payload[:_SNIFFED]
    bom = any(head.startswith(mark) for mark, _ in _BOMS)
    if head.startswith(_BINARY) or (b"\x00" in head and not bom and not _looks_utf16(head)):
        return None
    declared = media_type(content_type)
    if declared in HTML:
        return HTML[0]
    if declared in (PLAIN, None, "application/octet-stream", "unknown/unknown"):
        tag = re.search(rb"(?i)<(!doctype html|html|head|body|title|meta|p|div|script|table)[\s>]", head)
        return HTML[0] if tag and declared != PLAIN else PLAIN if declared == PLAIN else None
    return None


def decode(payload: bytes, content_type: str | None) -> tuple[str, str]:
    """The text of the bytes and the encoding that was taken; never fails, U+FFFD stands for what is invalid."""
    from resiliparse.parse.encoding import detect_encoding

    for mark, encoding in _BOMS:
        if payload.startswith(mark):
            return payload[len(mark) :].decode(encoding, "replace"), encoding
    for declared in _declared(payload, content_type):
        try:
            return payload.decode(declared), declared
        except (UnicodeDecodeError, LookupError):
            continue
    detected = detect_encoding(payload) or "utf-8"
    try:
        return payload.decode(detected, "replace"), detected
    except LookupError:
        return payload.decode("utf-8", "replace"), "utf-8"


def warm() -> None:
    """Import the parser, before a process forks children that use it."""
    decode(b"", None)
    _parse("<p>warm</p>", Settings())


@lru_cache(1)
def version() -> str:
    """What silver/documents names as the extractor."""
    return f"resiliparse {metadata.version('resiliparse')}"


def _declared(payload: bytes, content_type: str | None) -> list[str]:
    """Encodings named by the header and by a meta tag, as WHATWG maps them; UTF-8 where the bytes are that."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    header = _CHARSET.search(content_type or "")
    meta = _META.search(payload[:_SNIFFED])
    named = [header[1]] if header else []
    if meta:
        name = meta[1].decode("ascii", "replace")
        named.append("utf-8" if name.lower().startswith("utf-16") else name)
    mapped = [map_encoding_to_html5(name, fallback_utf8=False) for name in named]
    return [name for name in mapped if name] + ([] if mapped else ["utf-8"])


def _looks_utf16(head: bytes) -> bool:
    """UTF-16 without a mark: every other byte of markup is zero."""
    return len(head) > 8 and (head[1::2].count(0) > len(head) * 0.4 or head[::2].count(0) > len(head) * 0.4)


def _parse(decoded: str, settings: Settings) -> tuple[str, str | None]:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(decoded)
    text = extract_plain_text(
        tree, preserve_formatting=True, main_content=settings.main_content, list_bullets=True, alt_texts=False
    )
    return _LIST.sub("\n", text), tree.title or None


def _finished(text: str, encoding: str, title: str | None, settings: Settings) -> Extracted:
    """Without control characters and lone surrogates, line ends as newlines, not longer than allowed."""
    text = _clean(text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if len(text) > settings.max_chars:
        cut = text.rfind("\n", 0, settings.max_chars)
        text = text[: cut if cut > settings.max_chars // 2 else settings.max_chars].rstrip()
    if not text:
        return Extracted(None, "empty", encoding)
    return Extracted(text, None, encoding, _clean(" ".join(title.split()))[:_MAX_TITLE] if title else None)


def _clean(text: str) -> str:
    text = text.translate(_CONTROLS)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
