"""Filters by URL: lists of domains, of URLs, and of words in them, from files a user gives.

A domain stands for itself and all its subdomains. Lists are kept as sorted 64-bit hashes, 8 bytes an entry, so that a
block list of millions goes to every worker as a broadcast; two different domains share a hash with probability
2^-64 times the entries.

Files: one entry a line; `#` and `!` begin comments; hosts format (`0.0.0.0 example.com`) and `||example.com^` are read
as the domain. Lines that are none of this are counted and left out; a line is read up to 4,096 bytes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from headrace.errors import UserError

_Parser = Callable[[str], str | None]
UInt64s = npt.NDArray[np.uint64]
_MAX_LINE = 4096
_MAX_LABELS = 32
_DOMAIN = re.compile(r"(?=.{1,253}\Z)(?:[^\W_](?:[\w-]{0,61}[\w])?|_[\w-]{1,62})(?:\.[\w](?:[\w-]{0,61}[\w])?)*\.?")
_ADBLOCK = re.compile(r"\|\|([^/^$*]+)\^?(?:\$.*)?")
_WORD_ENDS = re.compile(r"[^a-zA-Z0-9]+")
# Labels under which names are registered where the last label is a country's: example.co.uk, example.com.au.
_SECOND_LEVEL = (
    " ac co com edu gob gov gouv govt go mil ne net nom nic or org asn id info ltd plc me sch school web gen biz firm "
    "art ad ed gr lg tm asso presse prd press nhs police "
)


@dataclass(kw_only=True, frozen=True)
class Settings:
    """Lists to filter by, each a path or several separated by commas; empty for none.

    Args:
        domains: domains to remove, with their subdomains (url_domain).
        allow: domains to keep whatever the other lists say.
        urls: URLs to remove, compared without scheme, port 80 or 443, fragment and last slash (url_listed).
        words: words that remove a URL which holds one between characters that are no letters or digits (url_word).
        soft_words: words of which soft_words_limit different ones remove a URL (url_soft_words).
        soft_words_limit: how many.
        subwords: texts that remove a URL whose letters and digits, run together, hold one (url_subword).
    """

    domains: str = ""
    allow: str = ""
    urls: str = ""
    words: str = ""
    soft_words: str = ""
    soft_words_limit: int = 2
    subwords: str = ""


class Place(NamedTuple):
    """Host and registered domain of a URL; None where it has none."""

    host: str | None
    domain: str | None


@dataclass(frozen=True)
class UrlFilter:
    """Lists in memory; picklable, to be broadcast."""

    domains: UInt64s
    allow: UInt64s
    urls: UInt64s
    words: frozenset[str]
    soft_words: frozenset[str]
    soft_words_limit: int
    subwords: re.Pattern[str] | None
    left_out: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(len(self.domains) or len(self.urls) or self.words or self.soft_words or self.subwords)

    def reason(self, url: str | None) -> str | None:
        """Why a URL is removed: url_domain, url_listed, url_word, url_soft_words, url_subword; None if it stays."""
        if not url:
            return None
        host = place(url).host
        names = _suffixes(host) if host else []
        if _any_in(self.allow, names):
            return None
        if _any_in(self.domains, names):
            return "url_domain"
        if len(self.urls) and _any_in(self.urls, [normal(url)]):
            return "url_listed"
        return self._by_words(url)

    def _by_words(self, url: str) -> str | None:
        if self.words or self.soft_words:
            words = {word.lower() for word in _WORD_ENDS.split(url)}
            if not self.words.isdisjoint(words):
                return "url_word"
            if self.soft_words and len(self.soft_words & words) >= self.soft_words_limit:
                return "url_soft_words"
        if self.subwords and self.subwords.search(_WORD_ENDS.sub("", url).lower()):
            return "url_subword"
        return None


def read(settings: Settings) -> UrlFilter:
    """Read the lists.

    Raises:
        UserError: a file cannot be read, or holds no entry at all.
    """
    left_out: dict[str, int] = {}
    subwords = sorted(_words(settings.subwords, left_out))
    return UrlFilter(
        domains=_hashes(settings.domains, _domain, left_out),
        allow=_hashes(settings.allow, _domain, left_out),
        urls=_hashes(settings.urls, _url, left_out),
        words=frozenset(_words(settings.words, left_out)),
        soft_words=frozenset(_words(settings.soft_words, left_out)),
        soft_words_limit=settings.soft_words_limit,
        subwords=re.compile("|".join(map(re.escape, subwords))) if subwords else None,
        left_out=left_out,
    )


def place(url: str | None) -> Place:
    """Host, lower case, and registered domain, of any text."""
    try:
        host = urlsplit(url or "").hostname
    except ValueError:
        host = None
    host = (host or "").rstrip(".").lower()
    if not host or len(host) > 253 or any(c.isspace() for c in host):
        return Place(None, None)
    return Place(host, _registered(host))


def normal(url: str) -> str:
    """What two spellings of a URL share: no scheme, no port 80 or 443, no fragment, no last slash, host lower case."""
    rest = re.sub(r"^[a-zA-Z][\w+.-]{0,20}://", "", url.strip()).partition("#")[0]
    host, slash, path = rest.partition("/")
    return (re.sub(r":(?:80|443)$", "", host).lower() + slash + path).rstrip("/")


def _registered(host: str) -> str | None:
    """The last two labels, three under a country's second level; an IP number is its own domain."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.split(".")
    country = len(labels) > 2 and len(labels[-1]) == 2 and f" {labels[-2]} " in _SECOND_LEVEL
    return ".".join(labels[-3 if country else -2 :])


def _suffixes(host: str) -> list[str]:
    """a.b.c, b.c, c."""
    labels = host.split(".")[-_MAX_LABELS:]
    return [".".join(labels[at:]) for at in range(len(labels))]


def _any_in(listed: UInt64s, names: Iterable[str]) -> bool:
    if not len(listed):
        return False
    hashes = np.array([_hash(name) for name in names], np.uint64)
    at = np.searchsorted(listed, hashes)
    return bool((listed[np.minimum(at, len(listed) - 1)] == hashes).any())


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _hashes(paths: str, parse: _Parser, left_out: dict[str, int]) -> UInt64s:
    found = np.fromiter((_hash(entry) for entry in _entries(paths, parse, left_out)), np.uint64)
    return np.unique(found)


def _words(paths: str, left_out: dict[str, int]) -> set[str]:
    return set(_entries(paths, _word, left_out))


def _entries(paths: str, parse: _Parser, left_out: dict[str, int]) -> Iterator[str]:
    """The entries of some files, the lines that are none counted."""
    for path in (name.strip() for name in paths.split(",") if name.strip()):
        found = 0
        for line in _lines(Path(path)):
            if not line or line[0] in "#!":
                continue
            entry = parse(line)
            if entry:
                found += 1
                yield entry
            else:
                left_out[path] = left_out.get(path, 0) + 1
        if not found:
            raise UserError(f"{path} holds no entry", "one domain, URL or word a line")


def _lines(path: Path) -> Iterator[str]:
    """Lines as text, each cut at 4,096 bytes; what is no UTF-8 becomes U+FFFD."""
    try:
        with path.open("rb") as file:
            within = False  # the rest of a line that was too long is no line of its own
            while piece := file.readline(_MAX_LINE):
                line, whole = piece.decode("utf-8", "replace").strip("\ufeff \t\r\n"), piece.endswith(b"\n")
                if not within:
                    yield line
                within = not whole
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}", "give the path of a text file") from None


def _domain(line: str) -> str | None:
    """The domain of a line: plain, in hosts format, or ||domain^."""
    fields = line.split("#")[0].split()
    if len(fields) >= 2 and _is_number(fields[0]):
        fields = fields[1:]
    if len(fields) != 1:
        return None
    if match := _ADBLOCK.fullmatch(fields[0]):
        fields = [match[1]]
    name = fields[0].lower().removeprefix("*.").removeprefix(".").rstrip(".")
    return name if _is_number(name) or _DOMAIN.fullmatch(name) else None


def _url(line: str) -> str | None:
    found = normal(line)
    return found if found and "\ufffd" not in found and not any(c.isspace() for c in found) else None


def _word(line: str) -> str | None:
    return _WORD_ENDS.sub("", line).lower() or None


def _is_number(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
