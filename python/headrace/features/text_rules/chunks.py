"""Cut one chunk of text, that holds no white space, into tokens: affixes off, then the inside at its joints.

    while something comes off: stop at a special case; take a prefix; take a suffix
    what is left: a special case, a URL, or cut at infixes

The rules and their order are those of spaCy 3.8's English tokenizer. Ours works on positions instead of slices and
looks for suffixes in the last characters only, so a chunk of n characters costs O(n), not O(n^2).
"""

from __future__ import annotations

import re
from functools import lru_cache

from headrace.features.text_rules import codepoints
from headrace.features.text_rules.contractions import special_cases

_PUNCT = (
    "\u2026,:;!?\u00bf\u061f\u00a1()\\[\\]{}<>_#*&\u3002\uff1f\uff01\uff0c\u3001\uff1b\uff1a\uff5e\u00b7"
    "\u0964\u060c\u06d4\u061b\u066a"
)
_QUOTES = (
    "'\"\u201d\u201c`\u2018\u00b4\u2019\u201a,\u201e\u00bb\u00ab\u300c\u300d\u300e\u300f\uff08\uff09\u3014"
    "\u3015\u3010\u3011\u300a\u300b\u3008\u3009\u2329\u232a\u27e6\u27e7"
)
_CURRENCY = "$\u00a3\u20ac\u00a5\u0e3f\u20bd\ufdfc\u20a0-\u20bf"
_UNITS = (
    "km\u00b2 km\u00b3 km m\u00b2 m\u00b3 m dm\u00b2 dm\u00b3 dm cm\u00b2 cm\u00b3 cm mm\u00b2 mm\u00b3 mm "
    "ha \u00b5m nm yd in ft kg g mg \u00b5g t lb oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G "
    "M K % \u043a\u043c\u00b2 \u043a\u043c\u00b3 \u043a\u043c \u043c\u00b2 \u043c\u00b3 \u043c "
    "\u0434\u043c\u00b2 \u0434\u043c\u00b3 \u0434\u043c \u0441\u043c\u00b2 \u0441\u043c\u00b3 \u0441\u043c "
    "\u043c\u043c\u00b2 \u043c\u043c\u00b3 \u043c\u043c \u043d\u043c \u043a\u0433 \u0433 \u043c\u0433 "
    "\u043c/\u0441 \u043a\u043c/\u0447 \u043a\u041f\u0430 \u041f\u0430 \u043c\u0431\u0430\u0440 \u041a\u0431 "
    "\u041a\u0411 \u043a\u0431 \u041c\u0431 \u041c\u0411 \u043c\u0431 \u0413\u0431 \u0413\u0411 \u0433\u0431 "
    "\u0422\u0431 \u0422\u0411 \u0442\u0431\u0643\u0645 \u0643\u0645\u00b2 \u0643\u0645\u00b3 \u0645\u00b2 "
    "\u0645\u00b3 \u0645 \u0633\u0645\u00b2 \u0633\u0645\u00b3 \u0633\u0645 \u0645\u0645\u00b2 "
    "\u0645\u0645\u00b3 \u0645\u0645 \u0643\u0645 \u063a\u0631\u0627\u0645 \u062c\u0631\u0627\u0645 "
    "\u062c\u0645 \u0643\u063a \u0645\u0644\u063a \u0643\u0648\u0628 \u0627\u0643\u0648\u0627\u0628"
)
_LONGEST_SUFFIX, _LOOKBEHIND = 5, 2
_LONGEST_SPECIAL = max(map(len, special_cases()))
_HOST_CHAR = "A-Za-z0-9\u00a1-\uffff"


@lru_cache
def _prefix() -> re.Pattern[str]:
    single = f"[\u00a7%=\u2014\u2013{_PUNCT}{_QUOTES}{_CURRENCY}{codepoints.symbols()}]"
    return re.compile(rf"\+(?![0-9])|{single}|\.\.+|(?:US|C|A)\$")


@lru_cache
def _suffix() -> re.Pattern[str]:
    """Everything that comes off the end, but for a run of dots."""
    units = "|".join(map(re.escape, _UNITS.split()))
    before_dot = rf"[0-9{codepoints.lower_letters()}%\u00b2\-+|(?:){_PUNCT}{_QUOTES}]"
    upper = f"[{codepoints.upper_letters()}]"
    rules = (
        "\u2026\u2026",
        f"[{_PUNCT}{_QUOTES}{codepoints.symbols()}\u2014\u2013]",
        "['\u2019][sS]",
        r"(?<=[0-9])\+",
        r"(?<=\u00b0[FfCcKk])\.",
        rf"(?<=[0-9])(?:[{_CURRENCY}]|(?:US|C|A)\$)",
        f"(?<=[0-9])(?:{units})",
        rf"(?<={before_dot})\.",
        rf"(?<={upper}{upper})\.",
    )
    return re.compile("(?:" + "|".join(rules) + r")\Z")


@lru_cache
def _infix() -> re.Pattern[str]:
    letter = codepoints.letters()
    rules = (
        r"\.\.+",
        "\u2026",
        f"[{codepoints.symbols()}]",
        r"(?<=[0-9])[+\-*^](?=[0-9-])",
        rf"(?<=[{codepoints.lower_letters()}{_QUOTES}])\.(?=[{codepoints.upper_letters()}{_QUOTES}])",
        f"(?<=[{letter}]),(?=[{letter}])",
        f"(?<=[{letter}0-9])(?:---?|\u2014\u2014|[-\u2013\u2014~])(?=[{letter}])",
        f"(?<=[{letter}0-9])[:<>=/](?=[{letter}])",
    )
    return re.compile("|".join(rules))


@lru_cache
def _url() -> re.Pattern[str]:
    """scheme://user@host.tld:port/path, or a public IP number for the host; only the host is required."""
    private = (
        r"(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})"
        r"(?!172\.(?:1[6-9]|2\d|3[0-1])(?:\.\d{1,3}){2})"
    )
    octets = (
        r"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}"
        r"\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
    )
    name = rf"(?:(?:[{_HOST_CHAR}][{_HOST_CHAR}_-]{{0,62}})?[{_HOST_CHAR}]\.)+[{codepoints.lower_letters()}]{{2,63}}"
    return re.compile(rf"(?:[\w+\-.]{{2,}}://)?(?:\S+@)?(?:{private}{octets}|{name})(?::\d{{2,5}})?(?:[/?#]\S*)?$")


def tokens_of(chunk: str, specials: dict[str, tuple[str, ...]]) -> list[str]:
    """The tokens of a chunk; in order they spell it.

    Args:
        chunk: one or more characters, none of them white space.
        specials: chunks whose tokens are listed.
    """
    if chunk in specials:
        return list(specials[chunk])
    prefixes, (low, high), suffixes = _affixes(chunk, specials)
    return prefixes + (_inside(chunk[low:high], specials) if low < high else []) + suffixes[::-1]


def _affixes(chunk: str, specials: dict[str, tuple[str, ...]]) -> tuple[list[str], tuple[int, int], list[str]]:
    """Prefixes in order, the range that is left, suffixes from the outside in."""
    prefixes: list[str] = []
    suffixes: list[str] = []
    low, high, before = 0, len(chunk), -1
    longest = _LONGEST_SPECIAL if specials else 0
    while low < high and high - low != before:
        before = high - low
        if before <= longest and chunk[low:high] in specials:
            break
        prefix = _prefix_length(chunk, low, high)
        if prefix and high - low - prefix <= longest and chunk[low + prefix : high] in specials:
            prefixes.append(chunk[low : low + prefix])
            low += prefix
            break
        suffix = _suffix_length(chunk, low + prefix, high)
        if suffix and before - suffix <= longest and chunk[low : high - suffix] in specials:
            suffixes.append(chunk[high - suffix : high])
            high -= suffix
            break
        if prefix:
            prefixes.append(chunk[low : low + prefix])
        if suffix:
            suffixes.append(chunk[high - suffix : high])
        low, high = low + prefix, high - suffix
    return prefixes, (low, high), suffixes


def _prefix_length(chunk: str, low: int, high: int) -> int:
    match = _prefix().match(chunk, low, high)
    return match.end() - low if match else 0


def _suffix_length(chunk: str, low: int, high: int) -> int:
    """The longest suffix; those of several rules overlap."""
    if chunk.endswith("..", low, high):
        start = high
        while start > low and chunk[start - 1] == ".":
            start -= 1
        return high - start
    match = _suffix().search(chunk[max(low, high - _LONGEST_SUFFIX - _LOOKBEHIND) : high])
    return match.end() - match.start() if match else 0


def _inside(string: str, specials: dict[str, tuple[str, ...]]) -> list[str]:
    if string in specials:
        return list(specials[string])
    if "." in string and _url().match(string):
        return [string]
    tokens: list[str] = []
    start = 0
    for match in _infix().finditer(string):
        if match.start() == 0:
            continue
        if match.start() != start:
            tokens.append(string[start : match.start()])
        tokens.append(match.group())
        start = match.end()
    if start < len(string):
        tokens.append(string[start:])
    return tokens


@lru_cache
def merged_cases() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Special cases that affix rules would cut, by the tokens they would be cut into: they are put together again."""
    found = {}
    for chunk, tokens in special_cases().items():
        if _prefix().match(chunk) or _suffix_length(chunk, 0, len(chunk)) or _infix().search(chunk):
            found[tuple(tokens_of(chunk, {}))] = tokens
    return found
