"""Negative triples: never a known one, drawn with the stated probabilities, the same whatever the batch."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import UserError
from headrace.features import triple_negatives
from headrace.features.negatives import Known, Negatives, Options, Triples
from headrace.features.sampling import NONE


def triples(rows: list[tuple[int, int, int]]) -> Triples:
    h, r, t = np.array(rows, np.int64).reshape(-1, 3).T
    return Triples(h, r, t)


@pytest.fixture(scope="module")
def wn18rr(wn18rr_folder: Path) -> tuple[Triples, Triples, Options]:
    """Training triples, all triples, sizes: ids by order of first appearance."""
    lines = [
        line.split("\t")
        for text in (
            gzip.decompress((wn18rr_folder / "train.txt.gz").read_bytes()).decode(),
            (wn18rr_folder / "valid.txt").read_text(),
            (wn18rr_folder / "test.txt").read_text(),
        )
        for line in text.splitlines()
    ]
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}
    rows = [
        (
            entities.setdefault(h, len(entities)),
            relations.setdefault(r, len(relations)),
            entities.setdefault(t, len(entities)),
        )
        for h, r, t in lines
    ]
    assert len(rows) == 86_835 + 3_034 + 3_134
    return (
        triples(rows[:86_835]),
        triples(rows),
        Options(num_entities=len(entities), num_relations=len(relations), per_triple=8),
    )


def test_wordnet_no_negative_is_true(wn18rr: tuple[Triples, Triples, Options]) -> None:
    train, every, options = wn18rr
    assert (options.num_entities, options.num_relations) == (40_943, 11)
    known = set(zip(every.head.tolist(), every.relation.tolist(), every.tail.tolist(), strict=True))
    negatives = Negatives.of(train, options, Known(every, options))
    drawn = negatives.draw(train, 1, 0)
    flat = [x.reshape(-1).tolist() for x in (drawn.head, drawn.relation, drawn.tail)]
    assert min(flat[0] + flat[2]) >= 0
    assert not known & set(zip(*flat, strict=True))
    same_head, same_tail = drawn.head == train.head[:, None], drawn.tail == train.tail[:, None]
    assert (same_head ^ same_tail).all()  # one end replaced, the other kept
    for r in range(11):  # Bernoulli by relation, counted the slow way
        rows = [
            (h, t)
            for h, rel, t in zip(train.head.tolist(), train.relation.tolist(), train.tail.tolist(), strict=True)
            if rel == r
        ]
        tph = len(rows) / len({h for h, _ in rows})
        hpt = len(rows) / len({t for _, t in rows})
        share = tph / (tph + hpt)
        assert negatives.head_share[r] == pytest.approx(share)
        found = (~same_head)[train.relation == r]
        assert found.mean() == pytest.approx(share, abs=4 / np.sqrt(found.size))


def test_wordnet_without_the_filter_hits_true_triples(wn18rr: tuple[Triples, Triples, Options]) -> None:
    """So the filter has something to do."""
    train, every, options = wn18rr
    plain = Negatives.of(
        train, Options(options.num_entities, options.num_relations, 8, filtered=False, entities="degree")
    )
    drawn = plain.draw(train, 1, 0)
    assert Known(every, options).holds(drawn.head, drawn.relation, drawn.tail).sum() > 50


def test_negatives_are_a_function_of_the_triple(wn18rr: tuple[Triples, Triples, Options]) -> None:
    train, _, options = wn18rr
    negatives = Negatives.of(train, options)
    first = triples(list(zip(train.head[:500], train.relation[:500], train.tail[:500], strict=True)))
    whole = negatives.draw(first, 7, 3)
    pick = np.random.default_rng(0).permutation(500)[:77]
    part = negatives.draw(Triples(first.head[pick], first.relation[pick], first.tail[pick]), 7, 3)
    assert np.array_equal(part.head, whole.head[pick])
    assert np.array_equal(part.tail, whole.tail[pick])
    for other in (negatives.draw(first, 7, 4), negatives.draw(first, 8, 3)):
        assert (other.head == whole.head).mean() < 0.7
    wider = Negatives.of(train, Options(options.num_entities, options.num_relations, 12)).draw(first, 7, 3)
    assert np.array_equal(wider.head[:, :8], whole.head)  # asking for more leaves those before as they are


@pytest.mark.parametrize("entities", ["uniform", "degree"])
def test_entities_are_drawn_with_their_shares(entities: str) -> None:
    """Entity 0 to 4 with degrees 1, 2, 4, 8, 1; chi-square with 4 degrees of freedom under its 0.9999 quantile."""
    degrees = [1, 2, 4, 8, 1]
    ends = [e for e, d in enumerate(degrees) for _ in range(d)]
    train = triples([(ends[i], 0, ends[i + 1]) for i in range(0, 16, 2)])
    options = Options(5, 1, 20_000, sides="tail", entities=entities, filtered=False)
    drawn = Negatives.of(train, options).draw(triples([(0, 0, 1)]), 5, 0)
    weight = np.array(degrees) ** 0.75 if entities == "degree" else np.ones(5)
    expected = 20_000 * weight / weight.sum()
    found = np.bincount(drawn.tail.reshape(-1), minlength=5)
    assert ((found - expected) ** 2 / expected).sum() < 23.5


def test_filter_leaves_the_rest_in_proportion_also_when_little_is_left() -> None:
    """Of 1,000 entities 998 are known tails: the two left come as often as one another; where none is left: NONE."""
    train = triples([(0, 0, t) for t in range(998)] + [(1, 0, t) for t in range(1_000)])
    options = Options(1_000, 1, 4_000, sides="tail")
    negatives = Negatives.of(train, options)
    drawn = negatives.draw(triples([(0, 0, 5), (1, 0, 5)]), 3, 0)
    found = Counter(drawn.tail[0].tolist())
    assert set(found) == {998, 999}
    assert abs(found[998] - 2_000) < 4 * np.sqrt(1_000)
    assert set(drawn.tail[1].tolist()) == {NONE}


def test_what_makes_no_sense_is_refused() -> None:
    one = triples([(0, 0, 1)])
    for options, match in (
        (Options(2, 1, sides="both"), "sides"),
        (Options(2, 1, 0), "1 or more"),
        (Options(1, 1), "tail is not within"),
        (Options(2**32, 2), "2\\^64"),
    ):
        with pytest.raises(UserError, match=match):
            Negatives.of(one, options)
    with pytest.raises(UserError, match="no triple"):
        Negatives.of(triples([]), Options(2, 1, entities="degree"))
    assert (0, 0, 1) in Known(one, Options(2, 1))
    assert (1, 0, 1) not in Known(one, Options(2, 1))
    assert (1, 0, 1) not in Known(triples([]), Options(2, 1))


@pytest.mark.parametrize("sides", ["bernoulli", "uniform", "head", "tail"])
def test_the_end_that_is_said_is_the_one_that_is_replaced(sides: str) -> None:
    rng = np.random.default_rng(4)
    triples = Triples(rng.integers(0, 30, 200), rng.integers(0, 4, 200), rng.integers(0, 30, 200))
    options = Options(30, 4, 5, sides)
    negatives = Negatives.of(triples, options)
    at_head, drawn = negatives.at_head(triples, 3, 1), negatives.draw(triples, 3, 1)
    assert at_head.shape == (200, 5) and at_head.any() == (sides != "tail") and at_head.all() == (sides == "head")
    assert np.array_equal(drawn.head != triples.head[:, None], at_head), "filtered, so never the triple itself"
    assert np.array_equal(drawn.tail != triples.tail[:, None], ~at_head)


def test_rows_are_the_draws_of_any_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    triples = Triples(rng.integers(0, 30, 100), rng.integers(0, 4, 100), rng.integers(0, 30, 100))
    negatives = Negatives.of(triples, Options(30, 4, 6, entities="degree"))
    (whole,) = triple_negatives.batches_of(triples, 2, negatives, 7, 3)
    monkeypatch.setattr(triple_negatives, "_BATCH_NEGATIVES", 6 * 7)
    parts = list(triple_negatives.batches_of(triples, 2, negatives, 7, 3))
    assert len(parts) == 15 and pa.Table.from_batches(parts).to_pylist() == pa.Table.from_batches([whole]).to_pylist()
    drawn = negatives.draw(triples, 7, 3)
    for number, row in enumerate(whole.to_pylist()):
        assert row["key"] == (row["head"] * 4 + row["relation"]) * 30 + row["tail"] and row["split"] == 2
        for j, (side, entity) in enumerate(zip(row["side"], row["negative"], strict=True)):
            pair = (drawn.head[number, j], drawn.tail[number, j])
            assert pair == ((entity, row["tail"]) if side == triple_negatives.HEAD else (row["head"], entity))


def test_known_triples_of_sorted_keys() -> None:
    triples = Triples(np.array([3, 1, 3]), np.array([0, 1, 0]), np.array([2, 2, 2]))
    options = Options(5, 2)
    known = Known.of_keys(Known(triples, options).keys, options)
    assert len(known) == 2 and (3, 0, 2) in known and (1, 0, 2) not in known
