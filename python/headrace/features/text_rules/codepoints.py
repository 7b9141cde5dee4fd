"""Classes of characters as ranges of code points: letters, symbols, punctuation, what ends a sentence.

The tokenizer's classes are those of spaCy 3.8 (letters of the scripts it knows; symbols: category So of Unicode 11),
the punctuation is what datatrove counts as such, so that words counted here are words counted there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

CASED = (
    "41-5A 61-7A C0-D6 D8-F6 F8-1BF 1C4-2AF 386 388-38A 38C 38E-38F 391-3A9 3AC-3AF 3B1-3C9 3CC-3CE 400-401 "
    "403-40A 40C-40D 410-451 453-45A 45C-45D 490-491 496-497 4A2-4A3 4AE-4AF 4BA-4BB 4D8-4D9 4E8-4E9 "
    "1D00-1D25 1D6B-1D77 1D79-1D9A 1E00-1EFF 2C60-2C7B 2C7E-2C7F A722-A76F A771-A787 A78B-A78E A790-A7B9 "
    "A7FA AB30-AB5A AB60-AB64 FF21-FF3A FF41-FF5A"
)
UNCASED = (
    "591-5F4 620-64A 66E-6D5 6E5-6FF 750-77F 8A0-8BD 900-9FF B80-CFF D80-DFF 1100-137F 2E80-2FDF 2FF0-30FF "
    "31C0-31EF 3200-4DBF 4E00-9FFF AC00-D7AF F900-FAFF FB1D-FBB1 FBD3-FD3D FD50-FDC7 FDF0-FDFB FE30-FE4F "
    "FE70-FEFC 1EE00-1EEBB 1F200-1F2FF 20000-2A6DF 2A700-2EBEF 2F800-2FA1F"
)
# Category So now, but not in Unicode 11.
_LATER_SYMBOLS = (
    "166D 2B97 2BC9 2BFF 2E50-2E51 32FF FD40-FD4F FDCF FDFE-FDFF 1019C 11FD5-11FDC 11FE1-11FF1 1CF50-1CFC3 "
    "1D1E9-1D1EA 1E14F 1ED2E 1F10D-1F10F 1F16C-1F16F 1F1AD 1F6D5-1F6DF 1F6FA-1F6FF 1F774-1F77F 1F7D9-1F7FF "
    "1F8B0-1F8FF 1F90C-1F90F 1F93F 1F971-1F972 1F977-1F979 1F97B 1F9A3-1F9AF 1F9BA-1F9BF 1F9C3-1F9CF "
    "1FA00-1FA5F 1FA6E-1FBFF"
)
TERMINAL = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 "
    "17D4-17D6 17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F "
    "203C-203D 2047-2049 2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F "
    "A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 "
    "10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C "
    "112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C "
    "11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F 1DA88"
)
# Of TERMINAL, those that do not end a sentence for the tokenizer.
_NO_SENTENCE = (
    "61D-61E 837 839 83D-83E 17D4-17D6 17D9-17DA 1B7D-1B7E 2E53-2E54 10F55-10F59 10F86-10F89 11944 11946 "
    "11EF7-11EF8 11F43-11F44 16E98"
)
_OTHER_PUNCTUATION = (
    "0-8 B-1F 22-2D 2F 3A-3E 40 5B-60 7B-9F AB B4 BB 2013-2014 2019 201C-201E 2026 2236 2501 25BA 3001 "
    "3008-300D 3010-3011 FF05 FF08-FF09 FF0C FF11 FF1A-FF1B FF5E"
)
_UPPER_TOO = {0x3A2}  # unassigned, inside the range of Greek capitals
_LOWER_TOO = {0x294}  # a letter without case, inside the range of phonetic letters


def members(ranges: str) -> set[int]:
    """The code points of `41-5A 5F`: hexadecimal, ends included."""
    found: set[int] = set()
    for piece in ranges.split():
        first, _, last = piece.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return found


def characters(ranges: str) -> frozenset[str]:
    """The same as one-character strings."""
    return frozenset(map(chr, members(ranges)))


def as_class(points: Iterable[int]) -> str:
    """The inside of a regular expression's [...], shortest ranges."""
    pieces: list[list[int]] = []
    for point in sorted(points):
        if pieces and pieces[-1][1] == point - 1:
            pieces[-1][1] = point
        else:
            pieces.append([point, point])
    return "".join(f"\\U{a:08x}" if a == b else f"\\U{a:08x}-\\U{b:08x}" for a, b in pieces)


TERMINAL_PUNCTUATION = characters(TERMINAL)
SENTENCE_ENDS = frozenset(map(chr, members(TERMINAL) - members(_NO_SENTENCE)))
PUNCTUATION = TERMINAL_PUNCTUATION | characters(_OTHER_PUNCTUATION)


@lru_cache
def letters() -> str:
    """Letters of every script the tokenizer knows, as the inside of a class."""
    return as_class(members(CASED) | members(UNCASED))


@lru_cache
def lower_letters() -> str:
    """Letters that are lower case, or of a script without case."""
    return as_class({p for p in members(CASED) if chr(p).islower()} | members(UNCASED) | _LOWER_TOO)


@lru_cache
def upper_letters() -> str:
    """Letters that are upper case, or of a script without case."""
    return as_class({p for p in members(CASED) if chr(p).isupper()} | members(UNCASED) | _UPPER_TOO)


@lru_cache
def symbols() -> str:
    """Pictures, dingbats, technical signs: category So as far as the tokenizer knows it."""
    found = {p for p in range(0xA0, 0x1FC00) if unicodedata.category(chr(p)) == "So"}
    return as_class(found - members(_LATER_SYMBOLS))
