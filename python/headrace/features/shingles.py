"""Text to word n-grams as 64-bit numbers: the sets that near-duplicates are compared by, whole Arrow columns at a time.

    normal form   NFKD, lower case, combining accents (U+0300-036F) dropped, all but letters, marks and digits made
                  spaces; each character of a script without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) a word
    shingle       splitmix64(sum over j of word(i+j) M^(n-1-j) mod 2^64), word(x) = BLAKE2b-64 of x, for every n words
                  in a row; a text of fewer words is one shingle of all of them; a text without words has none
    J(A, B) = |A and B| / |A or B|   over the sets of shingles

Two different n-grams share a number with probability 2^-64: a document of a million words meets one with 3e-8. The
normal form follows FineWeb's and datatrove's (which fold digits to 0 as well: `fold_digits`); different from theirs,
punctuation separates words instead of vanishing, and scripts without spaces are cut. Reference for shingling: Broder,
"On the resemblance and containment of documents", SEQUENCES 1997.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.catalog.fingerprint import splitmix64

if TYPE_CHECKING:
    import pyarrow as pa

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
VERSION = 1  # of the normal form and the hashes: bands of another version cannot be compared
_M = np.uint64(0x9E3779B97F4A7C15)
_SPACE = 32
_ACCENTS = "[\\x{0300}-\\x{036F}]"
_OTHERS = r"[^\x{00}-\x{7F}\p{L}\p{M}\p{N}]+"  # ASCII goes through a table
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*)"


@dataclass(frozen=True)
class Words:
    """The words of N texts in normal form.

    `data`: the texts, each word followed by one space, end to end; text k is `data[starts[k]:starts[k+1]]`.
    `hashes`: uint64 [W], a number a word; those of text k are `hashes[places[k]:places[k+1]]`.
    """

    data: npt.NDArray[np.uint8]
    starts: Int64s
    hashes: UInt64s
    places: Int64s


@dataclass(frozen=True)
class Shingles:
    """Shingles of N texts: those of text k are `hashes[places[k]:places[k+1]]`, in text order, repetitions kept."""

    hashes: UInt64s
    places: Int64s


def words(texts: pa.Array, fold_digits: bool = False) -> Words:
    """Normal form and word numbers of a column of texts.

    Args:
        texts: string [N]; null is an empty text. Less than 1 GB.
        fold_digits: every ASCII digit becomes 0, so that texts differing in numbers only are the same.
    """
    data, starts = _compact(_spaced(texts), _table(fold_digits))
    ends = np.flatnonzero(data == _SPACE) + 1
    places = np.concatenate([[0], np.searchsorted(ends, starts[1:], side="right")])
    return Words(data, starts, _hash_words(data, ends), places)


def shingles(found: Words, ngram: int) -> Shingles:
    """The n-grams of each text; see the module."""
    counts = np.diff(found.places)
    sizes = np.where(counts >= ngram, counts - ngram + 1, np.minimum(counts, 1))
    places = np.concatenate([[0], np.cumsum(sizes)])
    hashes = np.empty(places[-1], np.uint64)
    for length in range(1, ngram + 1):
        own = counts == length if length < ngram else counts >= ngram
        firsts = _ranges(found.places[:-1][own], sizes[own])
        hashes[_ranges(places[:-1][own], sizes[own])] = _grams(found.hashes, firsts, length)
    return Shingles(hashes, places)


def text_hashes(found: Words) -> Int64s:
    """BLAKE2b-128 of each normal form, int64 [N, 2]: equal where texts are the same but for case, accents, spacing."""
    view = memoryview(found.data.tobytes())
    pairs = zip(found.starts[:-1].tolist(), found.starts[1:].tolist(), strict=True)
    digests = b"".join(hashlib.blake2b(view[a:b], digest_size=16).digest() for a, b in pairs)
    return np.frombuffer(digests, np.int64).reshape(-1, 2)


def shingle_sets(texts: pa.Array, ngram: int, fold_digits: bool = False) -> pa.Array:
    """The set of each text as an ascending list<int64>: what Jaccard is computed on."""
    import pyarrow as pa

    found = shingles(words(texts, fold_digits), ngram)
    document = np.repeat(np.arange(len(texts)), np.diff(found.places))
    order = np.lexsort((found.hashes, document))
    hashes, document = found.hashes[order], document[order]
    new = np.ones(hashes.size, bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (document[1:] != document[:-1])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(document[new], minlength=len(texts)))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(hashes[new].view(np.int64)))


def _spaced(texts: pa.Array) -> pa.Array:
    """Everything that needs Unicode tables, for the texts that are not plain ASCII; a space at the end of each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.fill_null(texts.cast(pa.large_string()), "")
    wide = pc.invert(pc.string_is_ascii(texts))
    if pc.any(wide).as_py():
        part = pc.utf8_lower(pc.utf8_normalize(texts.filter(wide), form="NFKD"))
        for pattern, replacement in ((_ACCENTS, ""), (_OTHERS, " "), (_UNSPACED, r" \1 ")):
            part = pc.replace_substring_regex(part, pattern, replacement)
        texts = pc.replace_with_mask(texts, wide, part)
    return pc.binary_join_element_wise(texts, *(pa.scalar(end, pa.large_string()) for end in ("", " ")))


def _table(fold_digits: bool) -> npt.NDArray[np.uint8]:
    """Byte -> byte: ASCII letters in lower case, digits, bytes of longer characters; anything else is a space."""
    table = np.full(256, _SPACE, np.uint8)
    table[128:] = np.arange(128, 256)
    table[ord("a") : ord("z") + 1] = table[ord("A") : ord("Z") + 1] = np.arange(ord("a"), ord("z") + 1)
    table[ord("0") : ord("9") + 1] = ord("0") if fold_digits else np.arange(ord("0"), ord("9") + 1)
    return table


def _compact(texts: pa.Array, table: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], Int64s]:
    """The texts end to end through `table`, a single space after every word and nothing else between them."""
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = table[np.frombuffer(data_buffer, np.uint8)[first:last]] if last > first else np.empty(0, np.uint8)
    keep = data != _SPACE
    keep[1:] |= keep[:-1] & ~keep[1:]  # the space right after a word
    # Every text ends with a space, so none is empty here and reduceat sums each one's own bytes.
    sizes = np.add.reduceat(keep, offsets[:-1] - first, dtype=np.int64) if len(texts) else np.empty(0, np.int64)
    return data[keep], np.concatenate([[0], np.cumsum(sizes)])


def _hash_words(data: npt.NDArray[np.uint8], ends: Int64s) -> UInt64s:
    """A number for each word, computed once a distinct word."""
    import pyarrow as pa

    if not ends.size:
        return np.empty(0, np.uint64)
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), ends.size, [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    )
    coded = column.dictionary_encode()
    digests = b"".join(hashlib.blake2b(word, digest_size=8).digest() for word in coded.dictionary.to_pylist())
    return np.frombuffer(digests, np.uint64)[coded.indices.to_numpy()]


def _grams(hashes: UInt64s, firsts: Int64s, length: int) -> UInt64s:
    total = np.full(firsts.size, length, np.uint64)
    for step in range(length):
        total *= _M
        total += hashes[firsts + step]
    mixed: UInt64s = splitmix64(total)
    return mixed


def _ranges(firsts: Int64s, sizes: Int64s) -> Int64s:
    """firsts[0], firsts[0] + 1, ... for each range, end to end."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if ends.size else 0
    starts_at: npt.NDArray[Any] = np.repeat(firsts - (ends - sizes), sizes)
    return np.arange(total) + starts_at
