"""The planted model against slow references, the real file's traits, and its own claims."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from headrace.errors import UserError
from headrace.ingest import generated_criteo as files
from headrace.ingest import planted, planted_truth
from headrace.ingest.criteo_parse import Format, parse_line
from headrace.ingest.generated_criteo import BlockRange, Generation
from headrace.ingest.planted import CATEGORIES, INTS, Block, PlantedModel

ROWS = 60_000


@pytest.fixture(scope="module")
def model() -> PlantedModel:
    return planted.calibrate(5, 0.25)


@pytest.fixture(scope="module")
def block(model: PlantedModel) -> Block:
    return model.block(2, 0, ROWS)


def slow_splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_splitmix64_is_the_published_one() -> None:
    """The generator's first three outputs from state 1234567, as its authors' program prints them."""
    states = np.array([(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in range(3)], np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert planted.splitmix64(states).tolist() == expected
    assert [slow_splitmix64(int(state)) for state in states] == expected


def test_a_row_does_not_depend_on_the_block_it_is_made_in(model: PlantedModel) -> None:
    whole, part = model.block(1, 0, 5_000), model.block(1, 3_210, 3_217)
    for name in ("label", "ints", "ints_missing", "ids", "codes", "probability"):
        assert np.array_equal(getattr(whole, name)[..., 3_210:3_217], getattr(part, name)), name


def test_seed_and_day_change_the_rows(model: PlantedModel) -> None:
    here = model.block(1, 0, 1_000)
    for other in (model.block(2, 0, 1_000), planted.calibrate(6, 0.25).block(1, 0, 1_000)):
        assert (here.codes[2] == other.codes[2]).mean() < 0.1
        assert (here.ints[4] == other.ints[4]).mean() < 0.1


def test_probability_is_the_stated_formula(model: PlantedModel, block: Block) -> None:
    """Row by row in Python floats, with every pair of latent vectors multiplied out."""
    turn = planted.TURN_PER_DAY * 2
    for row in range(25):
        ints = -model.int_centre
        for j, column in enumerate(INTS):
            if column.weight and not block.ints_missing[j, row]:
                x = math.log((block.ints[j, row] + 3) / (column.median + 3)) / (column.spread * 1.8)
                ints += column.weight * (math.tanh(x) if column.shape == "rise" else 1.8 * math.exp(-x * x) - 1)
        main, vectors = 0.0, []
        for c, column in enumerate(CATEGORIES):
            if block.ids[c, row] < 0:
                main += 0.5 * column.main
                continue
            unit = slow_effects(model, c, int(block.codes[c, row]))
            main += column.main * (unit[0] * math.cos(turn) + unit[1] * math.sin(turn))
            vectors.append([column.vector * value for value in unit[2:]])
        pairs = sum(
            sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))
            for b in range(len(vectors))
            for a in range(b)
        )
        level = planted.LEVEL_SWING * math.sin(4 * math.pi / 7)
        logit = model.bias + level + model.int_scale * ints + model.main_scale * main + model.pair_scale * pairs
        assert block.probability[row] == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-9)


def slow_effects(model: PlantedModel, c: int, code: int) -> list[float]:
    key = planted.stream_key(model.seed, -1, f"effects {c}")
    known = model.effects[c]
    result = []
    for k in range(2 + planted.RANK):
        bits = slow_splitmix64((code + key + k * 0x9E3779B97F4A7C15) % 2**64)
        raw = ((bits & 0xFFFFFFFF) + (bits >> 32)) / 2**32 - 1
        result.append((raw - known.centre[k]) * known.scale[k])
    return result


def test_labels_are_drawn_with_the_stated_probability(block: Block) -> None:
    """Calibration in 20 bins of p: chi-square with 20 degrees of freedom stays under its 0.9999 quantile."""
    order = np.argsort(block.probability)
    chi = 0.0
    for rows in np.array_split(order, 20):
        p, y = block.probability[rows], block.label[rows]
        chi += (y.sum() - p.sum()) ** 2 / (p * (1 - p)).sum()
    assert chi < 52.4


@pytest.mark.parametrize("rate", [0.03, 0.25, 0.5])
def test_the_click_rate_can_be_set(rate: float) -> None:
    rows = planted.calibrate(9, rate).block(0, 200_000, 240_000)
    assert rows.probability.mean() == pytest.approx(rate, rel=0.05)


def test_parts_have_their_variances_whatever_the_seed() -> None:
    for seed in (1, 2**40):
        rows = planted.calibrate(seed, 0.25).block(0, 300_000, 340_000)
        assert rows.ints_part.var() == pytest.approx(planted.INT_VARIANCE, rel=0.1)
        assert rows.main_part.var() == pytest.approx(planted.MAIN_VARIANCE, rel=0.1)
        assert rows.pair_part.var() == pytest.approx(planted.PAIR_VARIANCE, rel=0.15)


def test_pairs_cannot_be_had_from_single_columns(block: Block) -> None:
    """The best additive model of the pair part, fitted on the columns it is made of, explains next to none of it."""
    columns = [c for c, column in enumerate(CATEGORIES) if column.vector and column.values < 1_000]
    explained = np.zeros(ROWS)
    for _ in range(5):  # backfitting
        for c in columns:
            rest = block.pair_part - explained
            size = np.bincount(block.ids[c] + 1)
            mean = np.bincount(block.ids[c] + 1, rest - rest.mean()) / np.maximum(size, 1)
            explained += mean[block.ids[c] + 1]
    assert 1 - (block.pair_part - explained).var() / block.pair_part.var() < 0.10
    assert block.pair_part.var() > 0.25


def test_who_is_blind_to_what_loses_what(block: Block) -> None:
    """The truth without pairs, and without categories, is worse than the best by more than is promised."""
    best = roc_auc_score(block.label, block.probability)
    assert 0.78 < best < 0.85
    assert best - roc_auc_score(block.label, block.ints_part + block.main_part) > 0.02
    assert best - roc_auc_score(block.label, block.ints_part) > 0.05


def test_a_fit_recovers_the_parts(block: Block) -> None:
    """Logistic regression of the label on the three parts finds each with weight 1: no part is decoration."""
    parts = np.stack([block.ints_part, block.main_part, block.pair_part], axis=1)
    fit = LogisticRegression(C=1e6).fit(parts, block.label)
    assert fit.coef_[0] == pytest.approx([1.0, 1.0, 1.0], abs=0.1)


def test_columns_of_over_a_million_values_matter(model: PlantedModel, block: Block) -> None:
    big = [c for c, column in enumerate(CATEGORIES) if column.values > 1_000_000 and (column.main or column.vector)]
    assert len(big) >= 2
    c = next(c for c in big if CATEGORIES[c].vector)
    top = np.bincount(block.ids[c][block.ids[c] >= 0]).argmax()
    rest = block.probability[block.ids[c] != top].mean() - block.probability[block.ids[c] == top].mean()
    assert abs(rest) > 0.005


def test_new_values_appear_every_day_and_stay(model: PlantedModel) -> None:
    column = CATEGORIES[2]
    shares = []
    for day in (0, 1, 4):
        ids = model.block(day, 0, 50_000).ids[2]
        shares.append((ids >= column.values).mean())
        assert ids.max() < column.id_space(day + 1)
    assert shares[0] == 0.0
    assert 0 < shares[1] < shares[2]
    assert shares[2] == pytest.approx(4 * column.new * (1 - planted.MISSING[column.missing]), rel=0.3)


def test_main_effects_turn_with_the_days(model: PlantedModel) -> None:
    block = model.block(0, 0, 20_000)
    now = model._categories(0, block.ids, block.codes)[0]
    near, far = (model._categories(day, block.ids, block.codes)[0] for day in (1, 100))
    assert 0.999 < np.corrcoef(now, near)[0, 1] < 1.0
    assert np.corrcoef(now, far)[0, 1] < 0.8
    assert far.var() == pytest.approx(now.var(), rel=0.25)


def test_codes_are_a_bijection() -> None:
    codes = planted.codes_of(3, 2, np.arange(3_000_000))
    assert len(np.unique(codes)) == 3_000_000


def test_ranks_follow_the_power_law() -> None:
    n, exponent = 50, 1.3
    u = (np.arange(200_000) + 0.5) / 200_000
    share = np.bincount(planted.zipf_rank(u, n, exponent), minlength=n) / len(u)
    edges = [(k + 1) ** (1 - exponent) for k in range(n + 1)]
    for k in range(n):
        assert share[k] == pytest.approx((edges[k] - edges[k + 1]) / (edges[0] - edges[n]), abs=2e-5)


def test_cells_are_missing_as_in_the_real_file(block: Block, criteo_kaggle: Path) -> None:
    lines = [line.split("\t") for line in (criteo_kaggle / "train.tsv").read_text().splitlines()]
    for j in range(39):
        real = sum(line[1 + j] == "" for line in lines) / len(lines)
        ours = block.ints_missing[j].mean() if j < 13 else (block.ids[j - 13] < 0).mean()
        assert ours == pytest.approx(real, abs=0.02), j


def test_values_look_like_the_real_file(block: Block, criteo_kaggle: Path) -> None:
    """Medians of the integers, negatives in I2, and the head of every large categorical column."""
    lines = [line.split("\t") for line in (criteo_kaggle / "train.tsv").read_text().splitlines()]
    for j in range(13):
        real = np.array([int(line[1 + j]) for line in lines if line[1 + j]])
        ours = block.ints[j][~block.ints_missing[j]]
        for q in (0.25, 0.5, 0.75):
            assert abs(math.log((np.quantile(ours, q) + 3) / (np.quantile(real, q) + 3))) < 1.0, (j, q)
        assert (ours < 0).mean() == pytest.approx((real < 0).mean(), abs=0.02)
        assert np.quantile(ours, 0.999) > 3 * np.quantile(ours, 0.75)
    for c in range(26):
        real_top = Counter(line[14 + c] for line in lines if line[14 + c]).most_common(1)[0][1]
        if CATEGORIES[c].values > 100_000:
            ids = block.ids[c][block.ids[c] >= 0]
            share = np.bincount(ids).max() / len(ids)
            assert share == pytest.approx(real_top / len(lines), rel=2.5), c


def test_text_parses_back_to_the_block(model: PlantedModel) -> None:
    """The package's own exact parser reads each line as the block has it."""
    block = model.block(1, 0, 700)
    lines = files.encode(block).split(b"\n")
    assert lines.pop() == b""
    for row, line in enumerate(lines):
        values = parse_line(line, Format())
        ints = [None if block.ints_missing[j, row] else int(block.ints[j, row]) for j in range(13)]
        categories = [None if block.ids[c, row] < 0 else int(block.codes[c, row]) for c in range(26)]
        assert values == [int(block.label[row]), *ints, *categories]
        assert all(len(cell) in (0, 8) for cell in line.split(b"\t")[14:])


def test_decimals_of_every_length() -> None:
    values = np.array([0, 1, -1, -2, 9_999, 10_000, 10_001, 12_345_678, 99_999_999, 100_000])
    texts = [bytes(cells).replace(b"\0", b"") for cells in files._decimal(values)]
    assert texts == [str(value).encode() for value in values]


@pytest.mark.parametrize("kind", files.BAD_KINDS)
def test_every_kind_of_bad_line_is_bad(model: PlantedModel, kind: str) -> None:
    line = files.encode(model.block(0, 0, 1)).rstrip(b"\n")
    assert not isinstance(parse_line(line, Format()), str)
    assert isinstance(parse_line(files.spoil(line, kind), Format()), str)


def test_bad_lines_are_all_planted_once() -> None:
    generation = Generation(rows=300_000, days=2, seed=5, click_rate=0.25, gzip=False, bad_rows=40)
    found = [files.bad_lines(generation, block) for block in generation.blocks()]
    kinds = Counter(kind for bad in found for kind in bad.kind.tolist())
    assert kinds == Counter(k % len(files.BAD_KINDS) for k in range(40))
    text = b"".join(b"%d\n" % k for k in range(20))
    bad = files.BadLines(np.array([0, 7, 7, 19]), np.array([6, 6, 5, 6]))
    lines = files.plant_bad_lines(text, bad).split(b"\n")
    assert [line for line in lines[:-1] if line not in (b"", b"2")] == [b"%d" % k for k in range(20) if k != 2]
    assert len(lines) - 1 == 24
    assert lines[1] == b""
    assert lines[9:11] == [b"", b"2"]


def test_score_equals_independent_computations(block: Block) -> None:
    score = planted_truth.Score()
    for rows in np.array_split(np.arange(ROWS), 3):
        score.add(block.probability[rows], block.label[rows])
    figures = score.figures()
    p = block.probability
    assert figures["best_logloss"] == pytest.approx(log_loss(block.label, p), abs=1e-12)
    assert figures["mean_entropy"] == pytest.approx(np.mean([planted_truth.entropy(x) for x in p]), abs=1e-12)
    assert figures["best_auc"] == pytest.approx(
        roc_auc_score(block.label, p), abs=figures["best_auc_error_bound"] + 1e-12
    )
    assert figures["best_auc_error_bound"] < 1e-5
    assert figures["click_rate"] == block.label.mean()


def test_score_of_one_class_has_no_auc() -> None:
    score = planted_truth.Score()
    score.add(np.array([0.2, 0.3]), np.zeros(2, np.uint8))
    assert score.figures()["best_auc"] is None
    assert score.figures()["best_normalized_entropy"] is None


def test_evidence_survives_its_file(block: Block) -> None:
    evidence = planted_truth.Evidence.of(block, np.array([1, 1, 3]), 77)
    again = planted_truth.Evidence.from_bytes(evidence.to_bytes())
    assert np.array_equal(evidence.probability, again.probability)
    assert again.text_bytes == 77
    assert again.bad_kinds.tolist() == [1, 1, 3]
    for ids, values in zip(block.ids, again.values, strict=True):
        assert values.tolist() == sorted(set(ids[ids >= 0].tolist()))


def test_blocks_tile_the_days_and_gzip_has_no_time() -> None:
    generation = Generation(rows=300_001, days=2, seed=5, click_rate=0.25, gzip=True, bad_rows=0)
    assert generation.blocks() == [
        BlockRange(0, 0, 131_072),
        BlockRange(0, 131_072, 150_001),
        BlockRange(1, 0, 131_072),
        BlockRange(1, 131_072, 150_000),
    ]
    packed = files.compress(b"a") + files.compress(b"b")
    assert gzip.decompress(packed) == b"ab"
    assert packed[3:8] == b"\0" * 5  # no flags, no time


@pytest.mark.parametrize("change", [{"rows": 1}, {"days": 0}, {"click_rate": 0.0}, {"bad_rows": -1}, {"days": 201}])
def test_senseless_settings_are_refused(change: dict[str, float]) -> None:
    settings = {"rows": 1_000, "days": 2, "seed": 1, "click_rate": 0.25, "gzip": True, "bad_rows": 0}
    with pytest.raises(UserError, match=next(iter(change))):
        Generation(**(settings | change)).check()
