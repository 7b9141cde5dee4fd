"""Packing against plain Python: every token once, the same sequences wherever the stream of documents is cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.features.packing import Pieces, Sequences, best_fit, best_fit_bins, concatenate

END, PAD = 0, 1
DOCUMENTS = st.lists(st.lists(st.integers(2, 9), max_size=9), max_size=12)


def pieces_of(documents: list[list[int]], first_key: int = 100) -> Pieces:
    keys = np.arange(first_key, first_key + len(documents))
    lengths = np.array([len(each) for each in documents], np.int64)
    return Pieces.of_documents(keys, lengths, np.array([token for each in documents for token in each], np.uint16), END)


def rows_of(packed: list[Sequences]) -> list[tuple[object, ...]]:
    """Sequences as plain rows: number, tokens, segments, pieces."""
    rows: list[tuple[object, ...]] = []
    for each in packed:
        ends = np.cumsum(each.counts)
        for i in range(len(each)):
            part = slice(int(ends[i] - each.counts[i]), int(ends[i]))
            pieces = list(
                zip(each.keys[part].tolist(), each.offsets[part].tolist(), each.starts[part].tolist(), strict=True)
            )
            rows.append((int(each.numbers[i]), each.tokens[i].tolist(), each.segments[i].tolist(), pieces))
            assert each.filled[i] == sum(segment > 0 for segment in each.segments[i])
    return rows


def slow_concatenate(documents: list[list[int]], length: int, pad: bool) -> list[tuple[object, ...]]:
    stream = [(token, 100 + i, at) for i, each in enumerate(documents) for at, token in enumerate([*each, END])]
    rows: list[tuple[object, ...]] = []
    for number, start in enumerate(range(0, len(stream), length)):
        part = stream[start : start + length]
        if len(part) < length and not pad:
            break
        keys = sorted({key for _, key, _ in part})
        segments = [keys.index(key) + 1 for _, key, _ in part]
        pieces = [next((key, at, i) for i, (_, k, at) in enumerate(part) if k == key) for key in keys]
        fill = length - len(part)
        rows.append((number, [token for token, _, _ in part] + [PAD] * fill, segments + [0] * fill, pieces))
    return rows


@given(DOCUMENTS, st.integers(1, 8), st.booleans(), st.lists(st.integers(0, 12), max_size=4), st.integers(1, 3))
def test_concatenate_wherever_the_stream_is_cut(
    documents: list[list[int]], length: int, pad: bool, cuts: list[int], bunch: int
) -> None:
    """Stretches as Spark's tasks have them, each with no more of what follows than it is promised."""
    borders = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    packed: list[Sequences] = []
    for first, last in itertools.pairwise(borders):
        before = pieces_of(documents[:first]).num_tokens
        after = pieces_of(documents[last:], 100 + last)
        after = after.span(0, min(after.num_tokens, length - 1))
        bunches = (pieces_of(documents[i : min(i + bunch, last)], 100 + i) for i in range(first, last, bunch))
        packed += concatenate(bunches, before, length, after, pad=PAD if pad else None)
    assert rows_of(packed) == slow_concatenate(documents, length, pad)


@given(DOCUMENTS, st.integers(1, 8), st.booleans())
def test_best_fit_cuts_only_what_must_be_cut(documents: list[list[int]], length: int, drop: bool) -> None:
    packed = best_fit(pieces_of(documents), length, pad=PAD, drop_long=drop)
    found: dict[int, dict[int, list[int]]] = {}
    for _, tokens, segments, pieces in rows_of([packed]):
        for number, (key, offset, start) in enumerate(pieces, 1):  # type: ignore[arg-type]
            part = [token for token, segment in zip(tokens, segments, strict=True) if segment == number]  # type: ignore[call-overload]
            assert tokens[start : start + len(part)] == part  # type: ignore[index]
            found.setdefault(key, {})[offset] = part
        assert all(tokens[i] == PAD for i in range(length) if segments[i] == 0)  # type: ignore[index]
        assert segments[0] == 1  # type: ignore[index]
    expected = {}
    for key, each in enumerate(documents, 100):
        ended = [*each, END]
        if len(ended) <= length or not drop:
            expected[key] = {at: ended[at : at + length] for at in range(0, len(ended), length)}
    assert found == expected


@given(st.lists(st.integers(1, 10), max_size=40))
def test_best_fit_bins_are_those_of_the_rule(lengths: list[int]) -> None:
    bins = best_fit_bins(np.array(lengths, np.int64), 10).tolist()
    left: dict[int, int] = {}
    for at in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [room for room in left.values() if room >= lengths[at]]
        before = left.get(bins[at], 10)
        assert before == (min(fitting) if fitting else 10)
        assert (bins[at] in left) == bool(fitting)
        left[bins[at]] = before - lengths[at]
    assert sorted(left) == list(range(len(left)))
    assert len(left) <= 11 / 9 * -(-sum(lengths) // 10) + 4


def test_nothing_to_pack() -> None:
    assert list(concatenate([], 0, 4, Pieces.none(), pad=PAD)) == []
    assert list(concatenate([pieces_of([])], 0, 4, Pieces.none())) == []
    assert len(best_fit(Pieces.none(), 4, pad=PAD)) == 0


@pytest.mark.parametrize("length", [64, 333])
def test_a_large_stretch(length: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 400, 2000)
    whole = Pieces.of_documents(np.arange(2000), lengths, rng.integers(2, 500, lengths.sum()), END)
    packed = list(concatenate([whole], 0, length, Pieces.none()))
    flat = np.concatenate([each.tokens.ravel() for each in packed])
    np.testing.assert_array_equal(flat, whole.tokens[: len(flat)])
    assert whole.num_tokens - len(flat) < length
    fitted = best_fit(whole, length, pad=PAD)
    assert fitted.filled.sum() == whole.num_tokens
    assert fitted.filled.mean() > 0.97 * length
