"""Compression and aggregation from the command line to the ranks' reducer; what does not go together is refused."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from distributed.ctr_lake import SIZES, make_ctr_lake

from headrace import models, strategies
from headrace.comm import LocalGroup
from headrace.compress import COMPRESSORS, create
from headrace.compress.spec import EXACT, NO_SIZES, OWN_FEEDBACK
from headrace.config import parse, to_yaml
from headrace.data.stream import DataConfig
from headrace.errors import UserError
from headrace.launch import Worker
from headrace.optim import OPTIMIZERS, create_parts
from headrace.optim.spec import (
    NEEDS_CLOSURE,
    NEEDS_FULL_PASS,
    NEEDS_KEYS,
    NEEDS_MODEL,
    NEEDS_OUTPUTS,
    OWN_GRADIENT,
)  # fmt: skip
from headrace.pipelines import train_ctr
from headrace.pipelines.train_config import from_dict, resumed
from headrace.pipelines.train_exchange import Decisions, tell_of_compression, warn_of_feedback
from headrace.report import Report
from headrace.strategies.adaptive import Adaptive, AdaptiveConfig
from headrace.strategies.aggregation import AGGREGATIONS
from headrace.strategies.allreduce import AllReduce
from headrace.strategies.coded_rows import CodedRows, why_not
from headrace.strategies.compressed import CompressedReducer
from headrace.strategies.compression import CompressionConfig
from headrace.strategies.gossip import Gossip
from headrace.strategies.hierarchical import Hierarchical
from headrace.strategies.hogwild import Hogwild
from headrace.strategies.local_sgd import LocalSGD
from headrace.strategies.majority import MajorityVote
from headrace.strategies.parameter_server import ParameterServer
from headrace.strategies.powersgd import PowerSGD
from headrace.strategies.reducers import BucketReducer
from headrace.strategies.robust import Coordinatewise, Krum, NormClip
from headrace.train.events import read_events
from headrace.train.job import TrainJob
from headrace.train.tracking import metrics_of

SSP = ["--strategy.name", "ssp"]
POWERSGD = ["--compression.name", "powersgd"]
SGD = ["--optimizer.dense.name", "sgd"]
TOPK = ["--compression.name", "topk"]
HALF = ["--train.precision.compute", "bf16", "--train.precision.parameters", "bf16"]
AUTO = ["--compression.name", "auto"]
ROOT = Path(__file__).resolve().parents[2]


def load(*argv: str) -> train_ctr.Config:
    config: train_ctr.Config = parse({"": train_ctr.Config}, ["--lake", "x", *argv], "headrace train-ctr")[""]
    return config


def job(cfg: train_ctr.Config) -> TrainJob:
    """What is pickled to the ranks, whatever launches them; without tables."""
    made = TrainJob(
        tables={}, model={}, optimizers={}, data=DataConfig(), batch_size=1, fit=train_ctr.fit_config(cfg),
        reduction=cfg.reduction, device="cpu", directory="", compression=cfg.compression, aggregation=cfg.aggregation,
        strategy=cfg.strategy, overlap=cfg.train.overlap,
    )  # fmt: skip
    copy: TrainJob = pickle.loads(pickle.dumps(made))
    return copy


def reducer(*argv: str) -> Any:
    """Of the strategy that a rank makes of a command line that `check` accepts."""
    return strategy(*argv).reducer


def strategy(*argv: str) -> Any:
    """What a rank makes of a command line that `check` accepts; closed."""
    return strategy_of(load(*argv))


def strategy_of(cfg: train_ctr.Config) -> Any:
    """What a rank makes of settings that `check` accepts; closed."""
    train_ctr.check(cfg)
    model = models.create("deepfm", {"c1": 3}, 2, embedding_dim=2, hidden=(4,))
    group = LocalGroup(1)
    worker = Worker(group.collective(0), 0, lambda event: None, lambda: False, lambda: group.mailbox(0))
    optimizer = create_parts(model, {part: getattr(cfg.optimizer, part).given() for part in ("dense", "sparse")})
    made: Any = job(cfg).make_strategy(model, worker.collective, optimizer, worker)
    made.close()
    return made


def test_every_reducer_is_reached_by_its_setting() -> None:
    made = reducer(*POWERSGD, "--compression.rank", "3", "--compression.decay", "0.5", "--seed", "9")
    assert isinstance(made, PowerSGD) and (made.cfg.rank, made.cfg.decay, made.cfg.seed) == (3, 0.5, 9)
    assert reducer(*POWERSGD).cfg.rank == 2
    assert isinstance(reducer("--compression.name", "signsgd", "--compression.exchange", "vote"), MajorityVote)
    made = reducer("--compression.hierarchical", "true", "--compression.name", "bf16")
    assert isinstance(made, Hierarchical) and made.min_numel == 1024
    made = reducer("--compression.sparse", "fp16")
    assert isinstance(made, CodedRows) and isinstance(made.inner, BucketReducer)
    made = reducer("--compression.sparse", "bf16", "--compression.hierarchical", "true")
    assert isinstance(made, CodedRows) and isinstance(made.inner, Hierarchical)
    made = reducer(*POWERSGD, "--compression.sparse", "bf16")
    assert isinstance(made, CodedRows) and isinstance(made.inner, PowerSGD)
    made = reducer("--aggregation.name", "median", "--model.categories", "false", "--ranks", "3")
    assert isinstance(made, Coordinatewise)
    krum = ["--aggregation.name", "krum", "--ranks", "7"]
    assert reducer(*krum, "--aggregation.faulty", "2", "--aggregation.chosen", "3") == Krum(4 << 20, 2, 3)
    made = reducer("--aggregation.name", "norm_clip", "--aggregation.factor", "2", "--ranks", "2")
    assert isinstance(made, NormClip) and made.factor == 2.0
    assert type(reducer()) is BucketReducer
    made = reducer("--compression.name", "auto", "--compression.budget", "0.2", "--compression.codecs", "[qsgd,none]")
    assert isinstance(made, Adaptive)
    assert made.adaptive == AdaptiveConfig(budget=0.2, interval=50, switch=True, error="absolute")
    assert [rung.label for rung in made.rungs][-2:] == ["qsgd 127", "none"]
    made = reducer(*AUTO, "--compression.feedback", "none", "--compression.hierarchical", "true")
    assert isinstance(made.inner, Adaptive) and "topk" not in " ".join(rung.label for rung in made.inner.rungs)
    made = reducer(*AUTO, "--compression.sparse", "bf16")
    assert isinstance(made, CodedRows) and isinstance(made.inner, Adaptive)


def test_the_recipe_of_lars_and_qsgd_is_a_file_of_settings() -> None:
    cfg = load("--config", str(ROOT / "conf" / "lars_qsgd.yaml"), "--ranks", "4")
    saved = yaml.safe_load(to_yaml(cfg))
    assert saved["optimizer"]["dense"]["name"] == "lars" and saved["compression"]["name"] == "auto"
    made = strategy_of(cfg).reducer
    assert made.adaptive == AdaptiveConfig(budget=0.1, interval=50, switch=False, error="relative")
    assert {rung.spec.factory.__name__ for rung in made.rungs} == {"Qsgd"} and made.feedback.variant == "none"


def test_overlap_is_around_what_goes_by_buckets_only() -> None:
    on = ["--train.overlap", "on"]
    for argv in (POWERSGD, ["--compression.hierarchical", "true"], ["--compression.sparse", "bf16"]):
        assert isinstance(reducer(*argv, *on), strategies.Overlap)
    median = ["--aggregation.name", "median", "--model.categories", "false", "--ranks", "3"]
    assert isinstance(reducer(*median, *on), strategies.Overlap)


@pytest.mark.parametrize(("argv", "problem", "remedy"), [
    (["--compression.exchange", "allgather", *POWERSGD], "has its own", "auto"),
    (["--compression.exchange", "allreduce", *POWERSGD], "has its own", "auto"),
    (["--compression.feedback", "ef", *POWERSGD], "by itself", "feedback none"),
    (["--compression.hierarchical", "true", *POWERSGD], "whole matrices", "false"),
    (["--compression.name", "dgc", "--compression.exchange", "reduce_scatter", *SGD], "once more", "exchange auto"),
    (["--compression.name", "signsgd_unscaled", "--compression.feedback", "ef"], "sends no sizes", "signsgd"),
    (["--compression.name", "signsgd_unscaled", "--compression.feedback", "ef21"], "sends no sizes", "feedback none"),
    (["--compression.rank", "0", *POWERSGD], "rank 0", "1 or more"),
    (["--compression.rank", "two", *POWERSGD], "of type int", ""),
    (["--compression.levels", "7", *POWERSGD], "no option 'levels'", "rank"),
    (["--compression.rank", "2"], "no option 'rank'", ""),
    (["--compression.name", "powersdg"], "unknown", "powersgd"),
    (["--compression.decay", "0.5"], "none with feedback none keeps nothing", "decay 1"),
    (["--compression.decay", "0.5", "--compression.feedback", "ef21", *TOPK], "feedback ef21 keeps", "feedback ef"),
    (["--compression.decay", "0.5", "--compression.feedback", "none", *AUTO], "feedback none keeps", "feedback ef"),
    (["--compression.sparse", "bf61"], "unknown", "bf16"),
    (["--compression.sparse", "powersgd"], "unknown", "one of none"),
    (["--aggregation.trim", "1"], "no options", "--aggregation.name"),
    (["--aggregation.name", "krum"], "5 ranks or more", ""),
    (["--aggregation.name", "median", "--ranks", "5"], "row-sparse", "--model.categories false"),
    (["--aggregation.name", "krum", "--ranks", "5", "--train.overlap", "on"], "whole gradients", "overlap auto"),
    (["--aggregation.name", "krum", "--ranks", "5", "--compression.name", "bf16"], "compressed ones", "none"),
    (["--aggregation.name", "krum", "--ranks", "5", *POWERSGD], "compressed ones", "none"),
    (["--compression.name", "topk", "--compression.exchange", "vote"], "votes are of signs", "signsgd"),
    (["--compression.exchange", "vote", *AUTO], "votes are of signs", "exchange auto"),
    (["--compression.exchange", "allreduce", *AUTO], "cannot be added up", "exchange auto"),
    (["--compression.feedback", "ef21", *AUTO], "follows what is sent", "switch false"),
    (["--train.batch_size", "-5"], "-5 rows cannot be shared", "set the batch size to 16"),
    (["--train.batch_size", "200"], "200 rows cannot be shared equally by 16 lanes", "192, or data.lanes to 8"),
    (["--compression.budget", "0", *AUTO], "budget 0", "over 0"),
    (["--compression.budget", "0.0001", *AUTO], "0.00088 at least", "0.002"),
    (["--compression.budget", "0.1", "--compression.codecs", "[int8_nearest,none]", *AUTO], "0.25 at least", "0.5"),
    (
        ["--compression.name", "bf16", "--compression.feedback", "ef21", "--compression.exchange", "allreduce"],
        "drift away",
        "exchange auto",
    ),
    (["--compression.feedback", "ef"], "feedback ef is of compressed", "--compression.name"),
    (["--compression.exchange", "allgather"], "exchange allgather is of compressed", "--compression.name"),
    (["--compression.interval", "0", *AUTO], "interval 0", "1 or more"),
    (["--compression.error", "relativ", *AUTO], "relativ", "relative"),
    (["--compression.codecs", "[qsgd,tok]", *AUTO], "tok", "topk"),
    (["--compression.codecs", "[threshold]", *AUTO], "bytes are not known", "some of"),
    (["--compression.codecs", "[dgc]", *AUTO], "in its own way", "some of"),
    (["--compression.codecs", "[topk]", "--compression.feedback", "none", *AUTO], "right in the mean", "qsgd"),
    (["--compression.levels", "7", *AUTO], "no option 'levels'", "codecs"),
    (["--aggregation.name", "krum", "--ranks", "5", "--compression.sparse", "bf16"], "compressed ones", "none"),
    (["--aggregation.name", "krum", "--ranks", "5", "--compression.hierarchical", "true"], "hosts' sums", "none"),
    (["--aggregation.name", "krum", "--ranks", "5", "--optimizer.dense.wrappers", "[sam]"], "sam sums", "leave sam"),
    (["--aggregation.name", "krum", "--ranks", "5", "--optimizer.dense.name", "kfac"], "kfac sums", "leave kfac"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(argv: list[str], problem: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        train_ctr.check(load(*argv))
    assert problem in str(caught.value) and remedy in caught.value.remedy


@pytest.mark.parametrize("name", sorted(n for n, spec in COMPRESSORS.items() if why_not(spec)))
def test_codecs_that_need_memory_are_refused_for_rows(name: str) -> None:
    with pytest.raises(UserError, match=f"compression.sparse {name}"):
        train_ctr.check(load("--compression.sparse", name))


def test_a_saved_run_keeps_them_and_refuses_others(tmp_path: Path) -> None:
    krum = ["--aggregation.name", "krum", "--aggregation.faulty", "2", "--ranks", "7"]
    for argv in (krum, [*POWERSGD, "--compression.rank", "3", "--compression.sparse", "bf16"]):
        cfg = load(*argv)
        saved = yaml.safe_load(to_yaml(cfg))
        assert from_dict(train_ctr.Config, saved) == cfg
        (tmp_path / "config.yaml").write_text(to_yaml(dataclasses.replace(cfg, lake="x")))
        assert resumed(load("--resume", "r"), tmp_path).aggregation == cfg.aggregation
        with pytest.raises(UserError, match=r"--aggregation\.name differs"):
            resumed(load("--resume", "r", "--aggregation.name", "norm_clip"), tmp_path)


def test_help_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for word in (
        "powersgd: rank 2",
        "auto: budget 0.1",
        "--compression.hierarchical",
        "--compression.sparse",
        *AGGREGATIONS,
    ):
        assert word in shown, word


def test_compression_that_never_engaged_says_why() -> None:
    def told(figures: dict[str, float], *argv: str) -> tuple[str, dict[str, Any]]:
        report = Report("train-ctr")
        tell_of_compression(load(*argv), [figures], report)
        return " ".join(report.warnings), report.results

    assert told({}) == ("", {})
    assert "one rank" in told({}, *POWERSGD)[0]
    assert "2 rank (n + m)" in told({}, *POWERSGD, "--ranks", "2")[0]
    assert "--compression.sparse bf16" in told({}, "--compression.sparse", "bf16", "--ranks", "2")[0]
    rows = {"bytes_before": 8.0, "bytes_after": 2.0, "row_bytes_after": 2.0}
    both = ["--compression.sparse", "bf16", "--ranks", "2"]
    assert told(rows, *TOPK, *both)[0].startswith("--compression.name topk never engaged: no dense gradient has")
    said, results = told(rows | {"row_bytes_after": 0.0}, *TOPK, *both)
    assert said == "--compression.sparse bf16 never engaged: no gradient is row-sparse"
    assert results["compression_ratio"] == 4.0
    tiers = ["--compression.name", "bf16", "--compression.hierarchical", "true", "--ranks", "2"]
    assert "one host" in told({}, *tiers)[0]
    figures = rows | {"encode_seconds": 1.0}
    warned, results = told(figures, "--compression.sparse", "bf16", "--ranks", "2")
    assert not warned and results["compression_ratio"] == 4.0 and results["compression_sparse"] == "bf16"


def test_feedback_that_may_grow_is_warned_of() -> None:
    def told(*argv: str) -> list[str]:
        report = Report("train-ctr")
        warn_of_feedback(load(*argv), report)
        return report.warnings

    by_norm = ["--compression.name", "qsgd", "--compression.options.norm", "l2", "--compression.options.levels", "7"]
    for feedback in ("ef", "ef21"):
        (warned,) = told(*by_norm, "--compression.feedback", feedback, "--ranks", "2")
        assert warned.startswith(f"--compression.feedback {feedback}: errors of qsgd are up to ")
        assert not told(*by_norm, "--compression.feedback", feedback)  # one rank sends nothing
        assert not told(*TOPK, "--compression.feedback", feedback, "--ranks", "2")
    assert not told(*by_norm, "--ranks", "2")


def test_what_compression_decided_is_told() -> None:
    told = Decisions()
    assert told.take({"layers": {"a": "qsgd 7", "b": "onebit"}}) == "codecs: qsgd 7 (1), onebit (1)"
    assert told.take({"layers": {"b": "qsgd 7"}}) == "codecs: qsgd 7 (2)" and told.take({"layers": {}}) == ""
    even = {"turn": 9, "compress": True, "changed": False, "compressed": 0.002, "as_is": 0.0021}
    assert told.take(even) == "" and not told.switched
    off = told.take(even | {"compress": False, "changed": True, "as_is": 0.001})
    assert "goes off after exchange 9: it takes 2 ms compressed, 1 ms as it is" in off
    report, figures = Report("train-ctr"), {"bytes_before": 8.0, "bytes_after": 4.0, "turns": 8, "turns_as_is": 2}
    tell_of_compression(load(*AUTO), [figures], report, told)
    assert report.results["compression_layers"] == {"a": "qsgd 7", "b": "qsgd 7"}
    assert report.results["compression_off_share"] == 0.25 and report.results["compression_switches"] == 1
    assert len(report.warnings) == 1 and "is off at the end" in report.warnings[0]
    on = told.take(even | {"changed": True})
    assert "goes on" in on and not told.switched and told.changes == 2
    resumed = Decisions()
    resumed.take({"layers": {}, "compress": False, "resumed": True})
    assert "was off where the run was resumed" in resumed.switched


RUNS = {
    "auto": ["--compression.name", "auto", "--compression.interval", "2"],
    "served": [
        *("--strategy.name", "ssp", "--strategy.bound", "1", "--strategy.tune", "true"),
        *("--compression.name", "qsgd", "--compression.sparse", "bf16", "--optimizer.dense.layer_decay", "0.9"),
        *("--train.precision.compute", "bf16", "--train.precision.parameters", "bf16"),
    ],
    "powersgd": ["--compression.name", "powersgd", "--compression.rank", "1", "--compression.sparse", "bf16"],
    "tiers": ["--compression.name", "bf16", "--compression.hierarchical", "true", "--train.overlap", "on"],
    "krum": ["--aggregation.name", "krum", "--ranks", "5"],
    "trimmed_mean": ["--aggregation.name", "trimmed_mean", "--ranks", "3", "--model.categories", "false"],
    "gossip": ["--strategy.name", "gossip", "--compression.name", "topk", "--train.precision.compute", "bf16"],
    "hogwild": ["--strategy.name", "hogwild", "--train.precision.compute", "float32"],
}


def test_runs_from_the_command_line(tmp_path: Path) -> None:
    lake = make_ctr_lake(tmp_path / "lake", {"train": 600, "validation": 50, "test": 50})
    common = (
        f"--lake {lake} --ranks 2 --launcher local --threads 1 --device cpu --model.hidden [32] "
        "--model.embedding_dim 2 --train.batch_size 160 --tracking.enabled false --train.precision.compute fp16"
    ).split()
    for kind, argv in RUNS.items():
        cfg = parse({"": train_ctr.Config}, [*common, *argv], "headrace train-ctr")[""]
        report = train_ctr.run(None, cfg, Report("train-ctr", progress="none"))
        assert report.results["test_logloss"] > 0 and report.results["steps"] > 0, kind
        assert ("compression_ratio" in report.results) == (kind in ("auto", "powersgd", "gossip", "served"))
        assert ("staleness_max" in report.results) == (kind == "served")
        events = read_events(Path(report.paths["run"]) / "events.jsonl")
        assert all(report.results[f"{what}_seconds"] > 0 for what in ("send", "wait")), kind
        told = [event for event in events if event["type"] == "exchange"]
        shown = metrics_of(told[0])
        assert len(told) == 1 and shown["exchange/megabytes_sent"] == report.results["megabytes_sent"]
        assert ("exchange/encode_seconds" in shown) == ("compression_ratio" in report.results)
        parts = [report.results[f"megabytes_sent_{part}"] for part in ("dense", "tables")]
        assert (parts[0] > 0 or kind == "hogwild") and sum(parts) <= report.results["megabytes_sent"]
        assert (parts[1] > 0) == (kind not in ("trimmed_mean", "hogwild")), kind
        decided = [event for event in events if event["type"] == "compression" and event.get("layers")]
        assert bool(decided) == (kind == "auto")
        assert set(report.results.get("compression_layers", [])) == {n for e in decided for n in e["layers"]}
        assert any("one host" in words for words in report.warnings) == (kind == "tiers")


def test_strategies_are_reached_by_their_settings() -> None:
    assert isinstance(strategy(), AllReduce)
    made = strategy("--strategy.name", "local_sgd", "--strategy.steps", "300", "--strategy.outer_lr", "0.7")
    assert isinstance(made, LocalSGD) and (made.rounds.steps, made.rounds.outer_lr) == (300, 0.7)
    argv = ["--strategy.name", "local_sgd", "--strategy.steps", "3", "--strategy.outer_momentum", "0.5"]
    rounds = strategy(*argv, "--strategy.nesterov", "true").rounds
    assert (rounds.steps, rounds.outer_momentum, rounds.nesterov) == (3, 0.5, True)
    made = strategy("--strategy.name", "local_sgd", "--compression.name", "bf16")
    assert isinstance(made.reducer, CompressedReducer)
    made = strategy("--strategy.name", "gossip", "--strategy.graph", "one_peer", "--strategy.steps", "2")
    assert isinstance(made, Gossip) and (made.cfg.graph, made.cfg.steps, made.choco) == ("one_peer", 2, None)
    made = strategy("--strategy.name", "gossip", "--compression.name", "qsgd", "--compression.levels", "3")
    assert made.choco and made.choco.cfg.options["levels"] == 3
    made = strategy("--strategy.name", "hogwild", "--strategy.told_steps", "5")
    assert isinstance(made, Hogwild) and made.cfg.told_steps == 5
    made = strategy("--strategy.name", "ssp", "--strategy.tune", "true", "--compression.name", "qsgd", "--seed", "3")
    assert isinstance(made, ParameterServer) and (made.options.bound, made.options.tune) == (4, True)
    codecs = made.equipment.codecs
    assert codecs.dense is not None and codecs.dense.variant == "none" and codecs.rows is None and codecs.seed == 3
    made = strategy("--strategy.name", "parameter_server", "--compression.sparse", "bf16", "--strategy.servers", "1")
    assert made.options.bound == -1 and made.equipment.codecs.rows is not None
    assert made.equipment.tables == {"embedding.weight"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--strategy.name", "lokal_sgd"], "local_sgd"),
        (["--strategy.steps", "3"], "strategy allreduce has no option 'steps'"),
        (["--strategy.name", "local_sgd", "--strategy.steps", "0"], "--strategy.steps 0"),
        (["--strategy.name", "local_sgd", "--strategy.outer_momentum", "1"], "outer_momentum"),
        (["--strategy.name", "local_sgd", "--strategy.nesterov", "true"], "--strategy.nesterov True"),
        (["--strategy.name", "local_sgd", "--strategy.max_steps", "32"], "--strategy.max_steps 32"),
        (
            ["--strategy.name", "local_sgd", "--strategy.growth", "2", "--strategy.steps", "65"],
            "--strategy.max_steps 64",
        ),
        (["--strategy.name", "local_sgd", "--train.precision.compute", "fp16"], "fp16"),
        (["--strategy.name", "local_sgd", "--train.overlap", "on"], "while backward runs"),
        (["--strategy.name", "local_sgd", "--aggregation.name", "norm_clip", "--ranks", "4"], "all ranks' gradients"),
        (["--strategy.name", "local_sgd", "--optimizer.dense.name", "svrg"], "svrg goes through all rows"),
        (["--strategy.name", "local_sgd", *HALF], "local_sgd with bf16 parameters"),
        (["--strategy.name", "local_sgd", "--compression.name", "signsgd_unscaled"], "sends no sizes"),
        (
            ["--strategy.name", "local_sgd", "--strategy.outer_momentum", "0.5", "--compression.name", "dgc", *SGD],
            "dgc applies momentum itself",
        ),
        (["--strategy.name", "gossip", *HALF], "gossip with bf16 parameters"),
        (["--strategy.name", "gossip", "--strategy.graph", "rong"], "ring"),
        (["--strategy.name", "gossip", "--strategy.steps", "0"], "--strategy.steps 0"),
        (["--strategy.name", "gossip", "--strategy.gamma", "1.5"], "--strategy.gamma 1.5"),
        (["--strategy.name", "gossip", "--strategy.gamma", "0.1"], "gamma is of compressed gossip"),
        (["--strategy.name", "gossip", "--strategy.seed", "1"], "--strategy.seed 1"),
        (["--strategy.name", "gossip", "--strategy.graph", "one_peer", "--strategy.seed", "1"], "--strategy.seed 1"),
        (["--strategy.name", "gossip", "--reduction", "ring"], "no sums of gradients"),
        (["--strategy.name", "hogwild", "--reduction", "ring"], "no sums of gradients"),
        ([*SSP, "--reduction", "ring"], "no sums of gradients"),
        ([*SSP, "--strategy.bound_max", "8"], "--strategy.bound_max 8"),
        ([*SSP, "--strategy.bound_min", "1"], "--strategy.bound_min 1"),
        ([*SSP, "--strategy.window", "8"], "--strategy.window 8"),
        ([*SSP, "--strategy.strength", "1"], "--strategy.strength 1"),
        (["--strategy.name", "gossip", "--strategy.graph", "one_peer", *TOPK], "neighbours must stay"),
        (["--strategy.name", "gossip", "--strategy.graph", "exponential", *TOPK], "hear each other"),
        (["--strategy.name", "gossip", *POWERSGD], "powersgd sums gradients"),
        (["--strategy.name", "gossip", "--compression.name", "dgc", *SGD], "remembers what it did not send"),
        (["--strategy.name", "gossip", "--compression.name", "threshold"], "need not come nearer"),
        (["--strategy.name", "gossip", *TOPK, "--compression.feedback", "ef21"], "--compression.feedback ef21"),
        (["--strategy.name", "gossip", *TOPK, "--compression.exchange", "allgather"], "differences to neighbours"),
        (["--strategy.name", "gossip", *TOPK, "--compression.decay", "0.5"], "decay 0.5 is of sums of gradients"),
        (["--strategy.name", "gossip", "--compression.sparse", "bf16"], "--compression.sparse bf16"),
        (["--strategy.name", "hogwild", *TOPK], "nothing is sent"),
        (["--strategy.name", "hogwild", "--device", "cuda"], "--device cuda with hogwild"),
        (["--strategy.name", "hogwild", "--optimizer.dense.wrappers", "[lookahead]"], "weights of its own"),
        (["--strategy.name", "hogwild", "--optimizer.dense.name", "kfac"], "kfac evaluates the loss"),
        (["--strategy.name", "hogwild", *HALF], "hogwild with bf16 parameters"),
        ([*SSP, "--strategy.bound", "20", "--strategy.tune", "true"], "--strategy.bound 20"),
        ([*SSP, "--strategy.compensation", "some"], "one of none, constant, adaptive"),
        ([*SSP, "--strategy.rates", "some"], "one of none, staleness"),
        ([*SSP, "--strategy.servers", "-1"], "--strategy.servers -1"),
        ([*SSP, "--strategy.servers", "3", "--ranks", "2"], "--strategy.servers 3 of 2 ranks"),
        ([*SSP, "--train.precision.compute", "fp16"], "fp16"),
        ([*SSP, "--train.overlap", "on"], "while backward runs"),
        ([*SSP, "--aggregation.name", "norm_clip", "--ranks", "4"], "all ranks' gradients"),
        ([*SSP, "--optimizer.dense.wrappers", "[sam]"], "sam evaluates the loss"),
        ([*SSP, "--optimizer.dense.wrappers", "[ema]"], "ema has averages"),
        ([*SSP, *POWERSGD], "powersgd is of sums over ranks"),
        ([*SSP, *AUTO], "auto is of sums over ranks"),
        (["--strategy.name", "gossip", *AUTO], "gossip has none"),
        ([*SSP, "--compression.name", "topk", "--compression.feedback", "ef21"], "ef21 is of sums"),
        ([*SSP, "--compression.name", "topk", "--compression.exchange", "allgather"], "allgather is of sums"),
        ([*SSP, "--compression.name", "topk", "--compression.hierarchical", "true"], "hierarchical is of sums"),
    ],
)
def test_strategies_that_cannot_be_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_ctr.check(load(*argv))


SERVED = [name for name, spec in strategies.STRATEGIES.items() if spec.remote]
NEEDS_MORE = {
    NEEDS_CLOSURE, NEEDS_OUTPUTS, NEEDS_KEYS, NEEDS_FULL_PASS, NEEDS_MODEL, OWN_GRADIENT,
}  # fmt: skip


@pytest.mark.parametrize("rule", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", SERVED)
def test_servers_refuse_the_rules_that_need_more_than_gradients_of_their_part(name: str, rule: str) -> None:
    argv = ["--strategy.name", name, "--optimizer.dense.name", rule]
    if not OPTIMIZERS[rule].traits & NEEDS_MORE:
        train_ctr.check(load(*argv))
        return
    with pytest.raises(UserError, match=rule):
        train_ctr.check(load(*argv))


def test_sharded_tables_from_the_command_line(tmp_path: Path) -> None:
    """The run, its model and its figures are those of replicated tables; a plan says what a rank holds."""
    lake = make_ctr_lake(tmp_path / "lake", {"train": 600, "validation": 50, "test": 70})
    common = (
        f"--lake {lake} --ranks 3 --launcher local --threads 1 --device cpu --model.hidden [32] "
        "--model.embedding_dim 2 --train.batch_size 160 --tracking.enabled false --train.eval_every 2 "
        "--optimizer.dense.wrappers [ema] --train.overlap on"
    ).split()
    found, files = [], []
    for tables in ("replicated", "sharded"):
        argv = [*common, "--parallel.tables", tables]
        cfg = parse({"": train_ctr.Config}, argv, "headrace train-ctr")[""]
        report = train_ctr.run(None, cfg, Report("train-ctr", progress="none"))
        found.append(report.results)
        files.append((Path(report.paths["model"]) / "model.safetensors").read_bytes())
        saved = yaml.safe_load((Path(report.paths["run"]) / "config.yaml").read_text())
        assert saved["parallel"] == {"tables": tables}
    assert files[0] == files[1]
    same = ("weights_sha256", "test_logloss", "test_auc", "validation", "steps", "audits")
    assert [found[0][name] for name in same] == [found[1][name] for name in same]
    rows = sum(SIZES.values())
    assert found[1]["table_rows_held"] == -(-rows // 3) and 1 <= found[1]["table_balance"] < 1.2
    assert found[1]["megabytes_sent"] < found[0]["megabytes_sent"] and "table_balance" not in found[0]
    dense = [each["megabytes_sent_dense"] for each in found]
    assert dense[1] == pytest.approx(dense[0], rel=0.05)  # control words differ


OWN = [name for name, spec in OPTIMIZERS.items() if {NEEDS_MODEL, OWN_GRADIENT} <= spec.traits]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--parallel.tables", "shraded"], "sharded"),
        (["--model.categories", "false"], "no tables"),
        (["--strategy.name", "local_sgd"], "whom the others ask in every step"),
        (["--aggregation.name", "krum", "--ranks", "5"], "compares whole gradients"),
        (["--compression.sparse", "bf16"], "go to their owners as they are"),
        *((["--optimizer.dense.name", name], f"{name} evaluates the model at other tables") for name in OWN),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_what_does_not_go_with_sharded_tables_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_ctr.check(load("--parallel.tables", "sharded", *argv))


def test_what_goes_with_sharded_tables_is_let_pass() -> None:
    for argv in ([], ["--compression.name", "topk"], ["--optimizer.dense.name", "kfac"], ["--reduction", "ring"]):
        train_ctr.check(load("--parallel.tables", "sharded", "--ranks", "4", *argv))
    train_ctr.check(load("--parallel.tables", "sharded", "--train.precision.compute", "fp16"))


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_feedback_by_itself_is_for_codecs_whose_errors_it_can_hold(name: str) -> None:
    """A contraction by its own bound, or right in the mean with an error under the gradient; else it may diverge."""
    spec = COMPRESSORS[name]
    variant = CompressionConfig(name=name).variant
    if spec.omega is not None:
        assert variant == ("ef" if spec.omega(1 << 20, spec.defaults) < 1 else "none")
    elif spec.traits & {EXACT, OWN_FEEDBACK, NO_SIZES}:
        assert variant == "none"
    else:
        assert variant == "ef"
    assert CompressionConfig(name=name, feedback="ef").variant == "ef"


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_codecs_say_whether_they_send_sizes(name: str) -> None:
    """A thousand times the tensor: the same is decoded where they do not."""
    x, codec = torch.randn(600, generator=torch.Generator().manual_seed(0)), create(name)
    small, large = (codec.decompress(codec.compress(y, codec.init(y, 1))[0]) for y in (x, 1024 * x))
    assert torch.equal(small, large) == (NO_SIZES in COMPRESSORS[name].traits)


def test_more_levels_bring_feedback_back() -> None:
    variants = [CompressionConfig(name="qsgd", options={"levels": levels}).variant for levels in (7, 22, 23)]
    assert variants == ["none", "none", "ef"], "of 512 numbers omega is sqrt(512) / levels = 22.6 / levels"
