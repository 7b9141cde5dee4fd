"""The study of exchange: ranks that share batches, bytes, the order of runs, going on, the report from given lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.studies import exchange, exchange_report, ranks
from bench.studies.clicks import ClickTask
from bench.studies.exchange_cells import (
    ASKED,
    BOTH,
    CODECS,
    DENSE_RUN,
    EF,
    FIRST,
    NONE,
    OWN,
    RANKS,
    RATES,
    STEPS,
    Cell,
    cells,
    key_of,
    missing,
)  # fmt: skip
from bench.studies.exchange_found import Result, interval, milliseconds, pays_below
from bench.studies.images import ImageTask
from bench.studies.lag import Energy, Measured
from bench.studies.lines import Lines, identity, read
from bench.studies.ranks import POINTS, Exchange, Ranked
from bench.studies.resnet import MOVED, ResNet, ResNetTask, moved
from bench.studies.running import Call, go_on
from bench.studies.task import DIVERGED, DONE, REFUSED, TIME, Setting, Trained, Watch
from headrace.compress import COMPRESSORS, create
from headrace.data.batch import Batch
from headrace.strategies import STRATEGIES
from headrace.strategies.compression import CompressionConfig, check
from headrace.strategies.strategy_config import StrategyConfig, check_strategy
from headrace.strategies.surroundings import Surroundings
from headrace.train.replica import losses_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clicks() -> Ranked:
    return Ranked(ClickTask(rows=960, held=200, min_count=5, hidden=(16, 8), batch=96))


@pytest.fixture(scope="module")
def images() -> Ranked:
    """240 images of 8 x 8 in three channels: a bright row says the class."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 240)
    pixels = rng.normal(0.0, 0.3, (240, 3, 8, 8)).astype(np.float32)
    pixels[np.arange(240), :, 2 * labels] += 2.0
    source = ImageTask(
        "cifar10", torch.from_numpy(pixels), torch.from_numpy(labels), 160, 40, channels=(1, 1), hidden=1
    )  # fmt: skip
    return Ranked(ResNetTask(source, width=4, batch=32, epochs=2))


def setting(cell: Cell = DENSE_RUN, ranks: int = 2, **more: Any) -> Exchange:
    chosen = {"options": {"lr": 0.05}, "batch": 96, "epochs": 1, "schedule": {"name": "linear"}} | more
    return Exchange(rule=cell.rule, ranks=ranks, compression=cell.compression, strategy=cell.strategy, **chosen)


def ran(task: Ranked, how: Exchange, limit_s: float = 60.0) -> tuple[Trained, Watch]:
    watch = Watch(limit_s)
    return task.train(how, watch), watch


def without_seconds(watch: Watch) -> list[dict[str, Any]]:
    return [{k: v for k, v in point.items() if "seconds" not in k} for point in watch.curve]


def test_ranks_share_the_same_global_batches(clicks: Ranked, images: Ranked) -> None:
    """One rank and four learn the same; the same setting gives the same curve to the bit, another seed not."""
    for task, more in ((clicks, {}), (images, {"batch": 32, "epochs": 2})):
        curves = [ran(task, setting(ranks=ranks, **more))[1].curve for ranks in (1, 4)]
        assert len(curves[0]) == POINTS and curves[0][-1]["epoch"] == more.get("epochs", 1)
        for one, other in zip(*curves, strict=True):
            for name in ("train_loss", "validation_loss"):
                assert one[name] == pytest.approx(other[name], rel=2e-4)
        assert curves[0][-1]["test_loss"] == pytest.approx(curves[1][-1]["test_loss"], rel=2e-4)
    assert curves[0][-1]["validation_loss"] < 0.9 * curves[0][0]["validation_loss"]
    first, again, other = (ran(clicks, setting(cells("criteo", 10)[1], seed=seed))[1] for seed in (0, 0, 1))
    assert without_seconds(first) == without_seconds(again) != without_seconds(other)


def test_bytes_are_told_apart(clicks: Ranked) -> None:
    """Dense: those of an exact sum, by its formula. Sparse: what is left is control words only. Points cost nothing."""
    trained, watch = ran(clicks, setting(ranks=4))
    count = sum(p.numel() for p in clicks.model(0).dense_parameters())
    first = len(torch.arange(count).tensor_split(4)[0])
    assert watch.steps == 10 and trained.outcome == DONE
    assert watch.curve[-1]["dense_bytes"] == trained.more["sent"]["dense"][0] == 10 * 4 * (count - first + 3 * first)
    assert watch.curve[-1]["sparse_bytes"] == trained.more["sent"]["sparse"][0]
    word = 3 * 4 * 8  # loss, rows, bad gradient, stop to three others
    last = watch.curve[-1]
    rest = last["sent_bytes"] - last["dense_bytes"] - last["sparse_bytes"]
    assert 10 * word <= rest < 10 * word + 200
    rows = {name: size for name, size in trained.more["sent"].items() if name == "sparse"}["sparse"]
    assert all(size > 10 * 3 * 26 for size in rows)
    local = Cell(label="", part=STEPS, strategy={"name": "local_sgd", "options": {"steps": 5}})
    trained, _ = ran(clicks, setting(local, ranks=4))
    assert trained.more["sent"]["dense"][0] == 2 * 4 * (count - first + 3 * first)  # two rounds, eight points


def test_outcomes_of_ranks(clicks: Ranked) -> None:
    """NaN, a refusal and a limit are results, and JSON."""
    unknown = Cell(label="", part=FIRST, compression={"name": "qsgd", "options": {"levels": 0}, "feedback": EF})
    for how, limit, outcome, why in (
        (setting(options={"lr": 1e30}), 60.0, DIVERGED, "not a finite number"),
        (setting(unknown), 60.0, REFUSED, "levels"),
        (setting(Cell(label="", part=STEPS, strategy={"name": "local_sgd", "options": {"steps": 0}})), 60.0, REFUSED,
         "steps"),
        (setting(), 0.0, TIME, "limit of 0 CPU s"),
    ):  # fmt: skip
        trained, watch = ran(clicks, how, limit)
        assert trained.outcome == outcome and why in trained.why
        json.dumps([watch.curve, trained.more], allow_nan=False)
        assert all(len(sent) == 2 for sent in trained.more["sent"].values())
    assert watch.steps == 1 and watch.curve[-1]["test_loss"] is not None


def test_how_late_a_codec_sends_is_measured(clicks: Ranked, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 4 of (3, 4) goes at once, the 3 waits in memory and goes along with (1, 0). Runs do not change by it."""
    energy = Energy(looks=True)
    feedback = Measured(create("topk", ratio=0.5), "ef", 1.0, energy)
    assert energy.told == {}
    sent = feedback.send(torch.tensor([3.0, 4.0]), feedback.init(torch.zeros(2)))
    assert energy.told == pytest.approx({"at_once": 16 / 25, "held": 0.0})
    feedback.send(torch.tensor([1.0, 0.0]), sent.state)
    assert energy.told == pytest.approx({"at_once": 1 - 9 / (25 + 16), "held": (9 / 26) ** 0.5})

    topk = next(cell for cell in cells("criteo", 10) if (cell.label, cell.feedback) == ("top 1 %", EF))
    found, watch = ran(clicks, setting(topk))
    assert 0 < found.more["lag"]["at_once"] < 1 and found.more["lag"]["held"] > 0.1
    assert "lag" not in ran(clicks, setting())[0].more
    monkeypatch.setattr(ranks, "EVERY", 99)
    unseen, other = ran(clicks, setting(topk))
    assert "lag" not in unseen.more and without_seconds(watch) == without_seconds(other)


def test_images_are_moved_by_row_and_epoch(images: Ranked) -> None:
    """As cut out of a bordered image one by one; what a row looks like does not depend on ranks."""
    rng = torch.Generator().manual_seed(1)
    image = torch.randn(5, 3, 8, 8, generator=rng)
    across, flipped = torch.tensor([[0, 4, 8, 3, 4], [4, 4, 1, 8, 4]]), torch.tensor([False, False, True, True, True])
    got = moved(image, across, flipped)
    for i in range(5):
        wide = torch.zeros(3, 8 + 2 * MOVED, 8 + 2 * MOVED)
        wide[:, MOVED:-MOVED, MOVED:-MOVED] = image[i]
        down, right = across[:, i].tolist()
        cut = wide[:, down : down + 8, right : right + 8]
        assert torch.equal(got[i], cut.flip(2) if flipped[i] else cut)
    assert torch.equal(got[1], image[1]) and torch.equal(got[4], image[4].flip(2))
    how = setting(batch=32, epochs=2)
    whole = list(images.training(how, 0, 1).epoch(1))
    for rank in range(4):
        for own, every in zip(images.training(how, rank, 4).epoch(1), whole, strict=True):
            assert torch.equal(own["key"], every["key"][rank::4]) and torch.equal(own["image"], every["image"][rank::4])
    again = list(images.training(how, 0, 1).epoch(0))
    assert not torch.equal(again[0]["key"], whole[0]["key"])


def test_integer_labels_are_classes() -> None:
    logits, label = torch.randn(6, 10), torch.arange(6)
    batch = Batch({"label": label, "key": label}, mask=label < 4)
    wanted = -torch.log_softmax(logits.double(), 1)[label, label] * (label < 4)
    assert torch.allclose(losses_of(logits, batch).double(), wanted, atol=1e-6)
    net = ResNet(width=4)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert not [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] and not list(net.buffers())


def test_cells_are_what_can_be_set() -> None:
    """Every codec is in the study, with feedback and without where both may be; no cell is there twice."""
    for task in BOTH:
        made = cells(task, 350)
        assert len({(cell.key, cell.ranks, cell.factors, cell.longer) for cell in made}) == len(made)
        assert len({(cell.label, cell.feedback, cell.ranks, cell.longer) for cell in made}) == len(made)
        for cell in made:
            check(CompressionConfig(**cell.compression))
            strategy = StrategyConfig(name=cell.strategy["name"], options=dict(cell.strategy.get("options", {})))
            compression = CompressionConfig(**cell.compression)
            check_strategy(strategy, Surroundings(ranks=min(cell.ranks), compression=compression))
    names = {cell.compression["name"] for cell in cells("criteo", 350)}
    assert set(COMPRESSORS) | {"powersgd"} == names
    assert set(missing()) == {asked.name for asked in ASKED} - set(STRATEGIES)


def test_strategies_that_do_not_wait_repeat(clicks: Ranked) -> None:
    """On a simulated cluster: the same curve and the same bytes twice; gradients are stale, and a codec is not lost on
    strategies that look for one."""
    by = {cell.label: cell for cell in cells("criteo", 10) if cell.part == STEPS}
    (first, one), (again, two) = (ran(clicks, setting(by["SSP, bound 4"], ranks=4)) for _ in range(2))
    assert without_seconds(one) == without_seconds(two) and first.more["sent"] == again.more["sent"]
    assert first.outcome == DONE and first.more["exchange"][1]["staleness_max"] > 0
    sent = first.more["sent"]
    assert min(sent["dense"]) > 10 * 3 * 4 * 100 and min(sent["sparse"]) > 10 * 26 * 4 and not any(sent["rest"])
    packed, plain = (ran(clicks, setting(by[name], ranks=4))[0] for name in (
        "gossip, ring, QSGD 4 bits (CHOCO)", "gossip, ring"))  # fmt: skip
    assert packed.more["ratio"] > 7 and plain.more["ratio"] is None
    count = sum(p.numel() for p in clicks.model(0).dense_parameters())
    once = 4 * (count + 2 * len(torch.arange(count).tensor_split(4)[0]))  # the mean over ranks at the end
    words = plain.more["sent"]["dense"][0] - 10 * 2 * 4 * count - once  # every step to two neighbours
    assert 0 <= words < 10 * 500 and packed.more["sent"]["dense"][0] < once + 10 * 2 * 4 * count / 5
    rows = plain.more["sent"]["sparse"][0]
    assert rows > 10 * 26 * 4 and packed.more["sent"]["sparse"][0] == pytest.approx(rows, rel=0.01)


class Fake:
    """A task whose test loss is a function of the setting; nothing is trained."""

    name, metric, batch, epochs, limit_s, steps = "cifar10", "accuracy", 128, 10, 1.0, 350

    def about(self) -> dict[str, Any]:
        return {"name": self.name, "metric": self.metric, "train": 4500}

    def train(self, setting: Setting, watch: Watch) -> Trained:
        assert isinstance(setting, Exchange)
        dense = key_of(asdict(setting)) == DENSE_RUN.key
        loss = 1.0 + abs(float(np.log10(setting.options["lr"] / 0.0316))) / 10 + 0.01 * setting.seed
        loss *= 1.0 if dense else 1.02
        watch.step(loss, 1)
        watch.point(10.0, validation_loss=loss, validation=0.5, test_loss=loss, test=0.5, sent_bytes=100)
        sent = {"dense": [8] * setting.ranks, "sparse": [0] * setting.ranks, "rest": [1] * setting.ranks}
        return Trained(outcome=DONE, more={"sent": sent, "exchange": [{}] * setting.ranks})


def test_runs_go_part_by_part_and_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of dense first; the best of them for all cells; those with rates of their own last; in two calls."""
    task, path = Fake(), tmp_path / "x.jsonl"
    tasks: Any = [task]
    few = [cell for part in range(RATES) for cell in [c for c in cells("cifar10", 350) if c.part == part][:3]]
    few += [cell for cell in cells("cifar10", 350) if cell.part == RATES]
    monkeypatch.setattr(exchange, "cells", lambda task, total: few)
    count = sum(len(cell.ranks) for cell in few)
    tuning = {ranks: sum(len(c.factors) for c in few if c.part == RATES and ranks in c.ranks) for ranks in (2, 4)}
    assert tuning[2] >= 6 and tuning[4] >= 3
    more = 2 * len(exchange.MORE_SEEDS)  # dense and 4 bits with feedback
    for runs, whole in ((20, 20), (0, 5 + 3 * count + tuning[2] + tuning[4] + more)):
        lines = Lines(path)
        go_on(lines, lambda kept=lines: exchange.due(tasks, kept), Call(60.0, runs))
        assert len(lines.all) == whole
        lines.close()
    made = [line["run"] for line in read(path)]
    assert len({identity(run) for run in made}) == len(made)
    made, last = made[:-more], made[-more:]
    assert [(run["seed"], run["compression"]["name"]) for run in last] == [
        (seed, name) for seed in exchange.MORE_SEEDS for name in ("none", "qsgd")
    ]
    assert all((run["ranks"], run["options"]["lr"]) == (2, 0.0316) for run in last)
    assert {run["compression"]["feedback"] for run in last} == {"none", "ef"}
    assert [run["options"]["lr"] for run in made[:5]] == list(exchange.RATES_TRIED)
    part_of = {(c.key, ranks, c.longer): c.part for c in few if c.part != RATES for ranks in c.ranks}
    order = [
        (part_of[key_of(run), run["ranks"], run["epochs"] // 10], run["ranks"], run["seed"])
        for run in made[5:]
        if run["options"]["lr"] == 0.0316
    ]
    assert order == sorted(order) and {part for part, _, _ in order} == set(range(RATES))
    own = [run for run in made[5:] if run["options"]["lr"] != 0.0316]
    seeds = [(run["ranks"], run["seed"]) for run in own]
    assert own == made[-len(own) :] and seeds == sorted(seeds)
    assert {ranks: seeds.count((ranks, 0)) for ranks in (2, 4)} == tuning
    signs = [run["options"]["lr"] for run in own if run["compression"]["name"] == "signsgd_unscaled"]
    assert signs[:3] == [0.00096, 0.0032, 0.0096] and set(signs[3:]) == {0.0096}


def line(cell: Cell, seed: int, loss: float | None, lr: float = 0.1, **more: Any) -> dict[str, Any]:
    """A line as the study writes it."""
    ranks = more.pop("ranks", 2)
    task = {"name": "cifar10", "metric": "accuracy", "train": 4500}
    run = {"task": task, "rule": cell.rule, "options": {"lr": lr}, "batch": 128, "epochs": 10, "seed": seed}
    run |= {"ranks": ranks, "compression": dict(cell.compression), "strategy": dict(cell.strategy)}
    scores = {"train_loss": loss, "validation_loss": loss, "test_loss": loss, "test": 0.5}
    curve = [{"epoch": 10.0, "step": 100, **scores, "sent_bytes": 1000, "dense_bytes": 900, "seconds": 1.0}]
    dense = more.pop("bytes", 400_000)
    rest = {"outcome": DONE, "why": "", "steps": 100, "cpu_seconds": 36.0, "noisy": seed == 3, "threads": 1}
    sent = {"dense": [dense, dense - 10], "sparse": [0, 0], "rest": [100, 100]}
    codec = {"encode_cpu_seconds": 0.2, "decode_cpu_seconds": 0.1} if cell.compression["name"] != "none" else {}
    return {"run": run, "curve": curve, "sent": sent, "exchange": [codec, codec]} | rest | more


def rows_of(text: str) -> Mapping[tuple[str, ...], list[str]]:
    """Cells of the first table that has such a row, by its first three."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in text.splitlines():
        parts = [part.strip() for part in row.strip("|").split("|")]
        if row.startswith("| ") and len(parts) == 13:
            found.setdefault(tuple(parts[:3]), parts)
    return found


def test_the_report_is_of_the_lines(tmp_path: Path) -> None:
    by = {(c.label, c.feedback): c for c in cells("cifar10", 350) if c.part == FIRST}
    top, four, bit = by["top 1 %", EF], by["QSGD 4 bits, by largest", EF], by["1 bit", NONE]
    lines = [line(DENSE_RUN, 0, 1.3, lr=0.1), line(DENSE_RUN, 0, None, lr=1.0, outcome=DIVERGED)]
    lines += [line(DENSE_RUN, seed, loss) for seed, loss in ((1, 1.0), (2, 2.0), (3, 4.0))]
    lines += [line(top, seed, loss, bytes=20_000) for seed, loss in ((1, 1.02), (2, 2.06), (3, 4.16))]
    lines += [line(four, seed, loss, bytes=50_000) for seed, loss in ((1, 1.001), (2, 2.004), (3, 4.012))]
    lines += [line(bit, 1, 1.5) | {"lag": {"at_once": 0.25, "held": 0.0}}, line(bit, 2, None, outcome=DIVERGED)]
    exchange_report.write(lines, tmp_path / "s.md")
    text = (tmp_path / "s.md").read_text()
    rows = rows_of(text)
    half = 4.30265 / 3**0.5  # Student's t of two degrees of freedom, of a deviation of 1 %
    assert rows["top 1 %", EF, "2"] == [
        "top 1 %", EF, "2", "2.4133 ± 1.5995", f"+3.00 ({3 - half:+.2f} to {3 + half:+.2f})", "open",
        "0.5000 ± 0.0000", "200", "5 %", "0", "201", "3.0", "3",
    ]  # fmt: skip
    assert rows["QSGD 4 bits, by largest", EF, "2"][4:6] == ["+0.20 (-0.05 to +0.45)", "yes"]
    assert rows["1 bit", NONE, "2"][3:6] == ["1.5000 (1 diverged)", "+50.00", "no"]
    assert rows["dense", "", "2"][3:6] == ["2.3333 ± 1.5275", "", ""] and rows["dense", "", "2"][11] == ""
    assert set(rows["1 bit", EF, "2"][3:]) == {""} and set(rows["dense", "", "4"][3:]) == {""}
    why = (
        "- 1 bit without feedback, 2 ranks: biased, and what is left out is never sent; measured: a turn sends 25 % of "
    )
    assert f"{why}the energy that it is given, of 100 steps." in text
    assert "0.1: 1.3000, 1: diverged" in text
    assert f"{len(lines)} runs" in text and "3 began on a busy machine" in text
    # 201 bytes, 3 ms of codec; dense sends 4,001.
    assert "| top 1 % | ef | 2 | 3.0 | 3.0 | 10 |" in text and "computed, not measured" in text
    assert "| dense |  | 2 | 0.3 | 0.0 |" in text
    first = (tmp_path / "s_cifar10.svg").read_bytes()
    exchange_report.write(lines, tmp_path / "s.md")
    assert (tmp_path / "s_cifar10.svg").read_bytes() == first and b"PowerSGD" not in first and b"top 1 %" in first
    assert all(name in text for name in missing())


@pytest.mark.parametrize(
    ("label", "feedback", "lag", "said"),
    [
        (
            "top 1 %",
            EF,
            (0.07, 4.1),
            "a turn sends 7 % of the energy that it is given, and its memory is as long as 4.1 ",
        ),
        ("TernGrad", NONE, (-1.25, 0.0), "a turn is off by 2.25 times the energy that it is given, of 100 steps"),
        ("DGC 1 %", OWN, (-17.0, 0.0), ""),
        ("sign by vote, own rate", NONE, (-40.0, 0.0), ""),
    ],
)
def test_how_late_a_codec_sends_is_told(label: str, feedback: str, lag: tuple[float, float], said: str) -> None:
    cell = next(c for c in cells("cifar10", 350) if c.label == label and c.feedback == feedback)
    found = line(cell, 1, 1.5) | {"lag": {"at_once": lag[0], "held": lag[1]}}
    text = exchange_report.reason(Result(cell, 2, {1: found}, {}))
    assert said in text and ("measured" in text) == bool(said)


def test_figures_by_formula() -> None:
    assert interval([1.0]) is None and interval([2.0, 2.0]) == (2.0, 2.0)
    low, high = interval([1.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == (pytest.approx(2 - 12.7062, rel=1e-5), pytest.approx(2 + 12.7062, rel=1e-5))
    assert milliseconds(sent=1_000_000, codec_ms=3.0, megabits=100) == 83.0
    below = pays_below(1_000_000, 250_000, 6.0)
    assert below == 1000.0 and pays_below(10, 10, 1.0) is None
    assert milliseconds(1_000_000, 0.0, below) == milliseconds(250_000, 6.0, below)


def test_a_study_in_two_calls(tmp_path: Path) -> None:
    """Real runs, tiny: no run is made twice; a report follows every call."""
    results = tmp_path / "study_exchange.jsonl"
    argv = ["--tasks", "criteo", "--rows", "1600", "--results", str(results)]
    exchange.main([*argv, "--runs", "3"])
    first = results.read_bytes()
    exchange.main([*argv, "--runs", "5"])
    assert results.read_bytes().startswith(first)
    lines = read(results)
    assert len({identity(found["run"]) for found in lines}) == len(lines) == 8
    assert [found["run"]["seed"] for found in lines] == [0] * 5 + [1] * 3
    assert {found["outcome"] for found in lines} == {DONE} and lines[-1]["ratio"] > 7 and lines[0]["ratio"] is None
    assert [found["run"]["ranks"] for found in lines[5:]] == [2, 2, 2]
    text = results.with_suffix(".md").read_text()
    assert rows_of(text)["dense", "", "2"][-1] == "1" and str(tmp_path) not in text + results.read_text()
    exchange.main(["--report", "--results", str(tmp_path / "none.jsonl")])
    assert "| what |" not in (tmp_path / "none.md").read_text()


def test_lines_of_the_study_of_optimizers_are_known_still() -> None:
    """Settings have the fields that its lines have: none of its runs is made again."""
    known = {found.name for found in fields(Setting)}
    for found in read(ROOT / "docs" / "results" / "study_optimizers.jsonl"):
        assert set(found["run"]) == known | {"task"}
    assert set(ClickTask().about()) == {
        "name", "metric", "train", "validation", "test", "data_seed", "min_count", "hidden",
    }  # fmt: skip


def test_parts_have_an_order() -> None:
    assert [FIRST, STEPS, CODECS, RANKS] == [0, 1, 2, 3] and max(c.part for c in cells("criteo", 10)) == RATES
