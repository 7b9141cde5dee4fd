"""Words and sentences of a text as spaCy's English tokenizer and sentencizer cut them, without spaCy.

The published rules count words, and datatrove counts them with spaCy: a rule's value means the same only over the
same words. After `make peers`, tests/unit/test_text_peers.py compares. A text is cut at white space into chunks, a
chunk by `chunks`; chunks repeat, so their tokens are kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain

from headrace.features.text_rules.chunks import merged_cases, tokens_of
from headrace.features.text_rules.codepoints import SENTENCE_ENDS
from headrace.features.text_rules.contractions import special_cases

_SPACES = re.compile(r"(\s+)")
_KEPT_CHUNKS = 100_000
_KEPT_LENGTH = 64
_GAP = ""  # stands for white space that is a token of its own: more than one blank


class Words(dict[str, tuple[str, ...]]):
    """The tokenizer; a dictionary of the chunks it has cut, bounded."""

    def __init__(self) -> None:
        super().__init__()
        self._specials = special_cases()
        self._merged = merged_cases()
        self._starts = {tokens[0]: max(len(t) for t in self._merged if t[0] == tokens[0]) for tokens in self._merged}
        self._mergeable: set[str] = set()
        self._sentences: dict[tuple[str, bool], tuple[int, bool]] = {}

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        tokens = tuple(tokens_of(chunk, self._specials))
        if chunk not in self._specials and any(self._replacement(tokens[a:b]) for a, b in self._spans(tokens)):
            self._mergeable.add(chunk)
        if len(chunk) <= _KEPT_LENGTH:
            if len(self) >= _KEPT_CHUNKS:
                self.clear()
            self[chunk] = tokens
        return tokens

    def cut(self, text: str) -> list[str]:
        """The words of a text, punctuation marks among them."""
        if len(self._mergeable) > _KEPT_CHUNKS:
            self._mergeable.clear()
            self.clear()  # or known chunks would not be entered again
        chunks = text.split()
        tokens = list(chain.from_iterable(map(self.__getitem__, chunks)))
        if self._mergeable and not self._mergeable.isdisjoint(chunks):
            return [token for token in self._sequence(text) if token != _GAP]
        return tokens

    def sentences(self, text: str) -> int:
        """How many sentences: a mark that ends one, other punctuation, then anything else begins the next."""
        chunks = text.split()
        if " ".join(chunks) != text:
            return 1 + _starts(self._sequence(text), False)[0]
        count, ended = 1, False
        for chunk in chunks:
            more, ended = self._begun(chunk, ended)
            count += more
        if self._mergeable and not self._mergeable.isdisjoint(chunks):
            return 1 + _starts(self._sequence(text), False)[0]
        return count

    def _begun(self, chunk: str, ended: bool) -> tuple[int, bool]:
        found = self._sentences.get((chunk, ended))
        if found is None:
            found = _starts(self[chunk], ended)
            if len(chunk) <= _KEPT_LENGTH:
                if len(self._sentences) >= _KEPT_CHUNKS:
                    self._sentences.clear()
                self._sentences[chunk, ended] = found
        return found

    def _sequence(self, text: str) -> list[str]:
        """All tokens, with gaps, special cases put together."""
        tokens: list[str] = []
        joints: set[int] = set()  # places between tokens where a single blank stands
        pieces = _SPACES.split(text)
        for at, piece in enumerate(pieces):
            if at % 2 == 0 and piece:
                tokens.extend(self[piece])
            elif piece == " " and 0 < at < len(pieces) - 1 and pieces[at - 1]:
                joints.add(len(tokens))
            elif piece:
                tokens.append(_GAP)
        return self._merge(tokens, joints)

    def _merge(self, tokens: list[str], joints: set[int]) -> list[str]:
        """Replace runs of tokens that a special case spells; what only looks like one across a blank stays."""
        merged: list[str] = []
        done = 0
        for start, end in sorted(self._chosen(self._spans(tokens))):
            replacement = self._replacement(tokens[start:end])
            if replacement is None or any(place in joints for place in range(start + 1, end)):
                continue
            merged += tokens[done:start]
            merged += replacement
            done = end
        return merged + tokens[done:]

    def _replacement(self, tokens: Sequence[str]) -> tuple[str, ...] | None:
        """The tokens instead of these, None if they are to stay."""
        found = self._specials.get("".join(tokens))
        return None if found is None or found == tuple(tokens) else found

    def _spans(self, tokens: Sequence[str]) -> list[tuple[int, int]]:
        """Where a special case begins and ends."""
        found = []
        for start, token in enumerate(tokens):
            for end in range(start + 1, start + self._starts.get(token, 0) + 1):
                if tuple(tokens[start:end]) in self._merged and end <= len(tokens):
                    found.append((start, end))
        return found

    def _chosen(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The longest first, the leftmost of equals; one that begins or ends in another's range gives way."""
        chosen: list[tuple[int, int]] = []
        seen: set[int] = set()
        for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
            if start not in seen and end - 1 not in seen:
                chosen.append((start, end))
            seen.update(range(start, end))
        return chosen


def _starts(tokens: Sequence[str], ended: bool) -> tuple[int, bool]:
    """Sentences that begin in the tokens after one has ended or not, and whether one has ended in the end."""
    count = 0
    for token in tokens:
        is_end = token in SENTENCE_ENDS
        if ended and not is_end and not _is_punctuation(token):
            count, ended = count + 1, False
        elif is_end:
            ended = True
    return count, ended


def _is_punctuation(token: str) -> bool:
    """Whether every character is of a category P; a gap is not."""
    return token != _GAP and all(unicodedata.category(letter)[0] == "P" for letter in token)
