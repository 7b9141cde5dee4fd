"""Shingles against plain Python, signatures against datasketch and the exact Jaccard."""

from __future__ import annotations

import hashlib
import unicodedata
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash as Datasketch
from hypothesis import given
from hypothesis import strategies as st
from unit.planted_texts import alone, chain, pair

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError
from headrace.features import minhash as module
from headrace.features.minhash import MinHash, buckets, signatures, signer
from headrace.features.shingles import shingle_sets, shingles, text_hashes, words

MASK = (1 << 64) - 1
CHARACTERS = st.sampled_from(
    "abZ09 \t\n.,-_'\"äÉſßñøŁſžΩΣбЯйёÅﬁ²①漢字仮かガーไทยก한글हिन्दीעשلا٣«»…–—€😀\u0301\u200b\x00"
)
TEXTS = st.lists(st.none() | st.text(CHARACTERS, max_size=30) | st.text("ab .é", max_size=60), max_size=8)


def slow_words(text: str | None, fold_digits: bool = False) -> list[str]:
    """The normal form, a character at a time."""
    cut = ""
    for char in unicodedata.normalize("NFKD", text or ""):
        lower = char.lower() if len(char.lower()) == 1 else char
        kind = unicodedata.category(lower)[0]
        if 0x300 <= ord(char) <= 0x36F:
            continue
        if kind == "N" and fold_digits and char in "0123456789":
            cut += "0"
        elif unicodedata.name(char, "").split(" ")[0] in ("CJK", "HIRAGANA", "KATAKANA", "THAI") and kind == "L":
            cut += f" {lower}\n"
        elif kind == "M":
            cut = cut.removesuffix("\n") + lower + ("\n" if cut.endswith("\n") else "")
        else:
            cut += lower if kind in "LN" else " "
    return cut.split()


def slow_sets(texts: list[str | None], ngram: int) -> list[list[int]]:
    """Ascending shingle numbers, in Python's integers."""
    found = []
    for text in texts:
        numbers = [
            int.from_bytes(hashlib.blake2b(f"{w} ".encode(), digest_size=8).digest(), "little")
            for w in slow_words(text)
        ]
        length = min(ngram, len(numbers))
        grams = {tuple(numbers[i : i + length]) for i in range(len(numbers) - length + 1)} if numbers else set()
        found.append(sorted(_as_int64(_mix(gram)) for gram in grams))
    return found


def _mix(gram: tuple[int, ...]) -> int:
    total = len(gram)
    for number in gram:
        total = (total * 0x9E3779B97F4A7C15 + number) & MASK
    return int(splitmix64(np.array([total], np.uint64))[0])


def _as_int64(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


@given(TEXTS, st.integers(1, 6))
def test_shingle_sets_are_those_of_plain_python(texts: list[str | None], ngram: int) -> None:
    column = pa.array(texts, pa.string())
    found = words(column)
    assert np.diff(found.places).tolist() == [len(slow_words(text)) for text in texts]
    assert [sorted(each) for each in shingle_sets(column, ngram).to_pylist()] == slow_sets(texts, ngram)


@given(TEXTS)
def test_texts_are_exact_duplicates_where_their_words_are_the_same(texts: list[str | None]) -> None:
    hashes = text_hashes(words(pa.array(texts, pa.string()), fold_digits=True)).tolist()
    forms = [tuple(slow_words(text, fold_digits=True)) for text in texts]
    assert [a == b for a in hashes for b in hashes] == [a == b for a in forms for b in forms]


def test_case_accents_spacing_and_punctuation_do_not_matter() -> None:
    a, b, c, d = text_hashes(
        words(pa.array(["Café, au  lait!", "CAFE\u0301 au\nlait", "cafe au lait 1", "cafe au lait 2"]))
    )
    assert (a == b).all() and not (a == c).all() and not (c == d).all()


@given(TEXTS, st.integers(1, 40))
def test_signing_does_not_depend_on_how_documents_are_batched(texts: list[str | None], size: int) -> None:
    minhash = MinHash(ngram=2, bands=3, rows=2)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(range(len(texts)), pa.int64()), pa.array(texts, pa.string())], ["key", "text"]
    )
    whole = [row for part in signer(minhash)([batch]) for row in part.to_pylist()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLICE_BYTES", size)
        patch.setattr(module, "_BLOCK", 3)
        parts = [row for part in signer(minhash)([batch]) for row in part.to_pylist()]
    assert parts == whole
    assert [row["buckets"] is None for row in whole] == [not slow_words(text) for text in texts]
    assert [row["shingles"] for row in whole] == [max(min(n, 1), n - 1) for n in (len(slow_words(t)) for t in texts)]


def test_signatures_are_the_least_permuted_shingles() -> None:
    minhash = MinHash(bands=2, rows=3, seed=-5)
    cut = shingles(words(pa.array([alone("p"), "", alone("q", 7)])), 5)
    a, b = (array.tolist() for array in minhash.coefficients())
    for text, signed in enumerate(signatures(cut, minhash).tolist()):
        own = cut.hashes[cut.places[text] : cut.places[text + 1]].tolist()
        assert signed == [min(((x * m + c) & MASK for x in own), default=MASK) for m, c in zip(a, b, strict=True)]
    assert len(set(a)) == len(a) and all(x % 2 for x in a)


def test_planted_pairs_have_the_jaccard_they_say() -> None:
    for jaccard in (Fraction(1, 2), Fraction(4, 5), Fraction(19, 20)):
        a, b = (set(each) for each in shingle_sets(pa.array(pair("t", jaccard)), 5).to_pylist())
        assert Fraction(len(a & b), len(a | b)) == jaccard
    first, second, *_, last = (set(each) for each in shingle_sets(pa.array(chain("t", 40)), 5).to_pylist())
    assert len(first & second) / len(first | second) == 96 / 104 and not first & last


@pytest.mark.parametrize("jaccard", [Fraction(1, 5), Fraction(1, 2), Fraction(4, 5)])
def test_the_estimator_is_unbiased_with_the_binomials_spread_as_datasketch_is(jaccard: Fraction) -> None:
    minhash, pairs = MinHash(), 400
    texts = [text for number in range(pairs) for text in pair(f"p{number}", jaccard, scale=4)]
    cut = shingles(words(pa.array(texts)), 5)
    signed = signatures(cut, minhash)
    ours = (signed[::2] == signed[1::2]).mean(axis=1)
    theirs = np.array([_datasketch(cut.hashes, cut.places, 2 * number) for number in range(0, pairs, 4)])
    s, num_perm = float(jaccard), minhash.bands * minhash.rows
    spread = (s * (1 - s) / num_perm) ** 0.5
    for estimates in (ours, theirs):
        assert abs(estimates.mean() - s) < 4 * spread / len(estimates) ** 0.5
        assert 0.8 < estimates.std() / spread < 1.25


def _datasketch(hashes: np.ndarray, places: np.ndarray, first: int) -> float:
    made = []
    for text in (first, first + 1):
        one = Datasketch(num_perm=112, hashfunc=lambda x: x & 0xFFFFFFFF)
        one.update_batch(hashes[places[text] : places[text + 1]].tolist())
        made.append(one)
    return float(made[0].jaccard(made[1]))


def test_pairs_meet_in_a_bucket_as_the_s_curve_says() -> None:
    minhash, pairs = MinHash(), 600
    print("\n  s     met    1 - (1 - s^8)^14")
    for jaccard in (Fraction(1, 2), Fraction(3, 5), Fraction(7, 10), Fraction(4, 5), Fraction(9, 10)):
        texts = [text for number in range(pairs) for text in pair(f"m{number}", jaccard, scale=3)]
        signed = buckets(signatures(shingles(words(pa.array(texts)), 5), minhash), minhash)
        met = (signed[::2] == signed[1::2]).any(axis=1).mean()
        p = minhash.meeting(float(jaccard))
        print(f"  {float(jaccard):.2f}  {met:.3f}  {p:.3f}")
        assert abs(met - p) < 4 * (p * (1 - p) / pairs) ** 0.5 + 1e-9


def test_bands_do_not_share_buckets() -> None:
    same = np.full((1, 112), 7, np.uint64)
    assert np.unique(buckets(same, MinHash())).size == 14


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="bands is 0"):
        MinHash(bands=0).check()
