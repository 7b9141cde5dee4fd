"""Documents' tokens in sequences of one length, every token accounted for; pure.

`concatenate` lays documents end to end, an end-of-text token after each, and cuts every `length` tokens:

    sequence s = stream[s L : (s + 1) L]

`best_fit` cuts no document that fits a sequence. Longer ones are cut every L tokens; then, longest first, each piece
goes to the sequence with the least room that still takes it (best-fit decreasing; H. Ding et al., Fewer Truncations
Improve Language Modeling, 2024, there over the whole corpus, here over one slice of it, so that memory is bounded).

What a sequence is made of is kept as pieces: which document, from which of its tokens on, how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Runs of documents' tokens, one after the other.

    Args:
        keys: [n] the document of each piece.
        offsets: [n] which token of its document a piece begins with.
        lengths: [n] tokens of each piece, at least 1.
        tokens: [sum of lengths] the tokens themselves.
    """

    keys: Int64s
    offsets: Int64s
    lengths: Int64s
    tokens: Int64s

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_tokens(self) -> int:
        """Tokens of all pieces."""
        return len(self.tokens)

    @classmethod
    def none(cls) -> Pieces:
        """No piece."""
        return cls(*(np.empty(0, np.int64) for _ in range(4)))

    @classmethod
    def of_documents(cls, keys: Int64s, lengths: Int64s, tokens: npt.NDArray[Any], end_of_text: int) -> Pieces:
        """Whole documents, each ended by the token `end_of_text`.

        Args:
            keys: [n] of the documents.
            lengths: [n] tokens of each, may be 0.
            tokens: [sum of lengths].
            end_of_text: the token put after each.
        """
        ended = np.insert(tokens.astype(np.int64), np.cumsum(lengths), end_of_text)
        return cls(keys, np.zeros(len(lengths), np.int64), lengths + 1, ended)

    @classmethod
    def concat(cls, parts: Iterable[Pieces]) -> Pieces:
        """One after the other."""
        parts = [cls.none(), *parts]
        joined = ([getattr(part, name) for part in parts] for name in ("keys", "offsets", "lengths", "tokens"))
        return cls(*(np.concatenate(arrays) for arrays in joined))

    def span(self, start: int, stop: int) -> Pieces:
        """The tokens [start, stop), with the pieces they belong to."""
        ends = np.cumsum(self.lengths)
        begins = ends - self.lengths
        kept = np.flatnonzero((ends > start) & (begins < stop))
        first, last = np.maximum(begins[kept], start), np.minimum(ends[kept], stop)
        return Pieces(self.keys[kept], self.offsets[kept] + first - begins[kept], last - first, self.tokens[start:stop])

    def cut(self, every: Int64s | int) -> Pieces:
        """Each piece in pieces of `every` tokens, the last of each with what is left."""
        counts = -(-self.lengths // every)
        owner = np.repeat(np.arange(len(self)), counts)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        inside = number * every
        lengths = np.minimum(self.lengths[owner] - inside, every)
        return Pieces(self.keys[owner], self.offsets[owner] + inside, lengths, self.tokens)

    def take(self, order: Int64s) -> Pieces:
        """Pieces in another order, or some of them."""
        begins = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[order]
        at = np.arange(lengths.sum()) + np.repeat(begins[order] - (np.cumsum(lengths) - lengths), lengths)
        return Pieces(self.keys[order], self.offsets[order], lengths, self.tokens[at])


@dataclass(frozen=True)
class Sequences:
    """Packed sequences.

    Args:
        numbers: [n] the number of each sequence.
        tokens: [n, length]; padding at the end of a row only.
        segments: [n, length] which document of the sequence a token belongs to, from 1; 0 for padding.
        filled: [n] tokens that are no padding.
        counts: [n] pieces in each sequence.
        keys: [sum of counts] the document of each piece, sequence after sequence.
        offsets: [sum of counts] which token of its document stands first in the piece; 0 where it was not cut before.
        starts: [sum of counts] where in its sequence a piece begins.
    """

    numbers: Int64s
    tokens: Int64s
    segments: Int64s
    filled: Int64s
    counts: Int64s
    keys: Int64s
    offsets: Int64s
    starts: Int64s

    def __len__(self) -> int:
        return len(self.numbers)


def concatenate(
    documents: Iterable[Pieces], start: int, length: int, following: Pieces, *, pad: int | None = None
) -> Iterator[Sequences]:
    """The sequences that begin in one stretch of the stream of all documents.

    Args:
        documents: the stretch, in bunches, in order.
        start: how many tokens of the stream come before it.
        length: tokens of a sequence.
        following: the stream after the stretch, at least its first `length - 1` tokens, or all there is.
        pad: the padding that fills the stream's last sequence; None drops what is left there. Only what comes before
            the end of `following` is taken for the end of the stream.

    Yields:
        Sequences, numbered by their place in the stream.
    """
    number = -(-start // length)
    skip, position, carry = number * length - start, 0, Pieces.none()
    for bunch in documents:
        position += bunch.num_tokens
        carry = Pieces.concat([carry, bunch])
        skipped = min(skip, carry.num_tokens)
        carry, skip = carry.span(skipped, carry.num_tokens), skip - skipped
        whole = carry.num_tokens // length
        if whole:
            yield lay_out(carry.span(0, whole * length), length, number, pad or 0)
            number, carry = number + whole, carry.span(whole * length, carry.num_tokens)
    if number * length >= start + position:
        return  # what is left of the stretch belongs to a sequence that began before it
    last = Pieces.concat([carry, following.span(0, min(following.num_tokens, length - carry.num_tokens))])
    if last.num_tokens == length or pad is not None:
        yield lay_out(last, length, number, pad or 0)


def best_fit(documents: Pieces, length: int, *, pad: int, drop_long: bool = False) -> Sequences:
    """Whole documents to sequences, in bounded rooms.

    Args:
        documents: all documents of a slice.
        length: tokens of a sequence.
        pad: fills what stays empty.
        drop_long: leave out documents that do not fit a sequence, instead of cutting them.

    Returns:
        Sequences, numbered from 0.
    """
    if drop_long:
        documents = documents.take(np.flatnonzero(documents.lengths <= length))
    pieces = documents.cut(length)
    bins = best_fit_bins(pieces.lengths, length)
    order = np.argsort(bins, kind="stable")
    return _fill(pieces.take(order), bins[order], length, 0, pad)


def best_fit_bins(lengths: Int64s, room: int) -> Int64s:
    """Best-fit decreasing: the bin of each length; bins are numbered in the order in which they are opened.

    Bins are kept by the room they have left, and a set of bits says which rooms there are, so that the smallest that
    is large enough is one shift away.

    Args:
        lengths: [n], 1 to `room`.
        room: of an empty bin.
    """
    bins = np.empty(len(lengths), np.int64)
    by_room: list[list[int]] = [[] for _ in range(room + 1)]
    rooms, opened = 0, 0
    order = np.argsort(-lengths, kind="stable")
    for at, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            chosen = by_room[left].pop()
            if not by_room[left]:
                rooms ^= 1 << left
        else:
            left, chosen, opened = room, opened, opened + 1
        bins[at] = chosen
        if left > length:
            by_room[left - length].append(chosen)
            rooms |= 1 << (left - length)
    return bins


def lay_out(pieces: Pieces, length: int, first: int, pad: int) -> Sequences:
    """A stretch of the stream that begins at a sequence's start, as sequences numbered from `first` on."""
    ends = np.cumsum(pieces.lengths)
    borders = np.union1d(ends, np.arange(length, pieces.num_tokens, length))
    begins = np.concatenate([[0], borders[:-1]]).astype(np.int64)
    owner = np.searchsorted(ends, begins, side="right")
    inside = begins - (ends - pieces.lengths)[owner]
    cut = Pieces(pieces.keys[owner], pieces.offsets[owner] + inside, borders - begins, pieces.tokens)
    return _fill(cut, begins // length, length, first, pad)


def _fill(pieces: Pieces, row: Int64s, length: int, first: int, pad: int) -> Sequences:
    """Pieces, ordered by their row, at the beginning of the rows, one behind the other."""
    rows = int(row[-1]) + 1 if len(row) else 0
    counts = np.bincount(row, minlength=rows).astype(np.int64)
    filled = np.bincount(row, pieces.lengths, minlength=rows).astype(np.int64)
    starts = _within(pieces.lengths, counts, filled)
    place = np.repeat(row * length + starts, pieces.lengths)
    place += np.arange(pieces.num_tokens) - np.repeat(np.cumsum(pieces.lengths) - pieces.lengths, pieces.lengths)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    tokens, segments = np.full(rows * length, pad, np.int64), np.zeros(rows * length, np.int64)
    tokens[place], segments[place] = pieces.tokens, np.repeat(number, pieces.lengths)
    return Sequences(
        np.arange(first, first + rows),
        tokens.reshape(rows, length),
        segments.reshape(rows, length),
        filled,
        counts,
        pieces.keys,
        pieces.offsets,
        starts,
    )


def _within(lengths: Int64s, counts: Int64s, filled: Int64s) -> Int64s:
    """Where each piece begins in its row."""
    begins = np.cumsum(lengths) - lengths
    return begins - np.repeat(np.cumsum(filled) - filled, counts)
