"""E-mail addresses and public IP numbers replaced by fixed examples, and counted.

Replaced: addresses local@domain.tld, local@[number], local@number; IPv4 and IPv6 numbers that are globally reachable.
Left: private, loopback, documentation and other special ranges; numbers that are part of a longer one, of a word or of
a version (`version 1.2.3.4`, `v1.2.3.4`, `1.2.3.4.5`), times and prices. Every pattern is bounded: O(n) on any text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_LOCAL = r"\w(?:[\w!#$%&'*+/=?^`{|}~-]|\.(?=[\w!#$%&'*+/=?^`{|}~-])){0,63}"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = re.compile(rf"(?<!\w){_LOCAL}@(?:(?:{_LABEL}\.){{1,12}}[^\W\d_](?:[\w-]{{0,61}}[^\W_])|\[?{_IPV4}\]?)")
_NUMBER = re.compile(rf"(?<![\w.])(?:{_IPV4})(?!\w|\.\d|-(?!{_IPV4})[A-Za-z\d])", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}+:){2,7}(?::?[0-9A-Fa-f]{1,4}+){0,7}(?![\w:]|\.\d)", re.ASCII)
_VERSION = re.compile(r"(?i)\b(?:versions?|ver|release|rev(?:ision)?|build|firmware|update|patch)[\s.:#=v]{0,3}$")
_BEFORE = 24
_Choice = Callable[[re.Match[str]], str | None]
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


@dataclass(kw_only=True, frozen=True)
class Settings:
    """What stands for what was masked.

    Args:
        email: for an e-mail address.
        ip: for an IPv4 number; the default is reserved for documentation.
        ipv6: for an IPv6 number; the default is reserved for documentation.
    """

    email: str = "email@example.com"
    ip: str = "192.0.2.1"
    ipv6: str = "2001:db8::1"


class Masked(NamedTuple):
    """The text, and how many addresses and numbers were replaced in it."""

    text: str
    num_emails: int
    num_ips: int


def mask(text: str, settings: Settings | None = None) -> Masked:
    """Replace e-mail addresses, then public IP numbers."""
    settings = settings or Settings()
    emails = 0
    if "@" in text:
        text, emails = _replaced(_EMAIL, text, lambda found: None if found[0] == settings.email else settings.email)
    ips = 0
    if "." in text:
        text, ips = _replaced(_NUMBER, text, lambda match: settings.ip if _is_public(match) else None)
    if ":" in text:
        text, more = _replaced(_IPV6, text, lambda match: settings.ipv6 if _is_public_v6(match.group()) else None)
        ips += more
    return Masked(text, emails, ips)


def _replaced(pattern: re.Pattern[str], text: str, instead: _Choice) -> tuple[str, int]:
    """Replace the matches for which `instead` says a text; how many."""
    pieces: list[str] = []
    done = count = 0
    for match in pattern.finditer(text):
        replacement = instead(match)
        if replacement is None:
            continue
        pieces += (text[done : match.start()], replacement)
        done, count = match.end(), count + 1
    return ("".join(pieces) + text[done:], count) if count else (text, 0)


def _is_public(match: re.Match[str]) -> bool:
    if not ipaddress.ip_address(match.group()).is_global:
        return False
    before = match.string[max(0, match.start() - _BEFORE) : match.start()]
    return not _VERSION.search(before)


def _is_public_v6(number: str) -> bool:
    try:
        found = ipaddress.IPv6Address(number)
    except ValueError:
        return False
    return found in _GLOBAL_UNICAST and found.is_global
