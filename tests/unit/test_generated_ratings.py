"""Generated ratings: the truth beside them is true, and the bytes depend on the settings alone."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.config import parse
from headrace.errors import UserError
from headrace.ingest.generated_ratings import BLOCK_USERS, STEPS, Generation, Truth, figures, make_block, moments
from headrace.ingest.ratings_parse import Format, Layout, layout_of, parse_block
from headrace.pipelines import generate_ratings


def generation(**settings: object) -> Generation:
    usual = {"rows": 20_000, "users": 300, "items": 400, "rank": 4, "noise": 0.75, "seed": 3, "format": "csv"}
    return Generation(**(usual | {"duplicates": 0, "bad_rows": 0} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["csv", "tsv", "double_colon"])
def test_an_ingest_reads_what_was_generated(name: str) -> None:
    made = generation(format=name, duplicates=50, bad_rows=9)
    block = make_block(made, 0)
    layout, header = layout_of(block.text.split(b"\n", 1)[0])
    assert (layout, header) == (Layout({"csv": ",", "tsv": "\t", "double_colon": "::"}[name]), name == "csv")
    parsed = parse_block(block.text.split(b"\n", 1)[1] if header else block.text, Format(layout))
    assert len(parsed.rejects) == 9 and len({reject.reason for reject in parsed.rejects}) == 4
    found = sorted(
        zip(*(each.to_pylist() for each in (parsed.user, parsed.item, parsed.rating, parsed.timestamp)), strict=True)
    )
    columns = (block.user.astype(str), block.item.astype(str), block.rating, block.timestamp)
    assert found == sorted(zip(*(each.tolist() for each in columns), strict=True))
    pairs = block.user * 1000 + block.item
    assert len(np.unique(pairs)) == 20_000 and len(pairs) == 20_050
    assert np.isin(block.rating, STEPS).all() and len(np.unique(block.user)) == 300


def test_the_best_error_is_the_error_of_the_expectation() -> None:
    block = make_block(generation(rows=60_000, items=2000), 0)
    error = ((block.rating - block.expectation) ** 2).mean()
    assert error == pytest.approx(block.variance.mean(), rel=0.02)  # standard error about 0.7 %
    truth = Truth()
    truth.add(figures(block))
    said = truth.figures(generation())
    assert said["best_rmse"] == pytest.approx(np.sqrt(block.variance.mean()))
    assert said["rmse_of_the_mean"] == pytest.approx(block.rating.std())
    assert said["best_rmse"] < 0.85 * said["rmse_of_the_mean"]


def test_moments_against_drawing() -> None:
    rng = np.random.default_rng(0)
    for mean in (0.3, 2.6, 4.9):
        drawn = np.clip(np.round((mean + rng.normal(0, 0.8, 400_000)) * 2), 1, 10) / 2
        expectation, variance = moments(np.array([mean]), 0.8)
        assert drawn.mean() == pytest.approx(expectation[0], abs=0.005)
        assert drawn.var() == pytest.approx(variance[0], abs=0.01)


def test_the_same_bytes_again_and_other_ones_with_another_seed() -> None:
    assert make_block(generation(), 0).text == make_block(generation(), 0).text
    assert make_block(generation(), 0).text != make_block(generation(seed=4), 0).text
    two = generation(rows=2 * BLOCK_USERS, users=BLOCK_USERS + 10, bad_rows=100)
    assert two.blocks == 2
    blocks = [make_block(two, number) for number in range(2)]
    assert sum(len(block.user) for block in blocks) == two.rows and sum(block.bad_rows for block in blocks) == 100
    assert blocks[1].user.min() == BLOCK_USERS + 1


def test_settings_that_cannot_be() -> None:
    for wrong in ({"format": "json"}, {"rows": 10}, {"rows": 10**6}, {"noise": 0.0}, {"bad_rows": -1}, {"items": 0}):
        with pytest.raises(UserError):
            generation(**wrong).check()
    generation().check()


def test_the_command_line_reaches_the_generation() -> None:
    config = parse({"": generate_ratings.Config}, ["--dest", "x", "--rows", "5000", "--num_items", "300"], "x")[""]
    assert config.generation() == generation(rows=5000, users=50, items=300, rank=8, seed=1)
