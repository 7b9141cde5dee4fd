"""Optimizers, schedules, wrappers and precision: from command line, file or environment to the ranks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from distributed.ctr_lake import make_ctr_lake, small_config, small_job

from headrace.config import parse, to_yaml
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS, WRAPPERS, create
from headrace.optim.schedules import SCHEDULES
from headrace.optim.spec import ACCEPTS_SPARSE
from headrace.pipelines import cli, train_ctr
from headrace.pipelines.train_config import (
    DenseRuleConfig,
    OptimizerConfig,
    RuleConfig,
    find_run,
    from_dict,
    resumed,
)
from headrace.report import Report
from headrace.train.events import read_events
from headrace.train.export import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


def load(*argv: str) -> train_ctr.Config:
    config: train_ctr.Config = parse({"": train_ctr.Config}, ["--lake", "x", *argv], "headrace train-ctr")[""]
    return config


def text(value: Any) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_of_every_rule_is_reached_by_its_name_with_its_type(name: str) -> None:
    spec = OPTIMIZERS[name]
    part = "sparse" if ACCEPTS_SPARSE in spec.traits else "dense"
    words = [f"--optimizer.{part}.name", name]
    for option, value in spec.defaults.items():
        words += [f"--optimizer.{part}.{option}", text(value)]
    given = getattr(load(*words).optimizer, part).given()
    assert set(spec.defaults) <= set(given)
    rule = {option: given[option] for option in spec.defaults}
    from headrace.options import choose

    made = choose(name, spec.defaults, rule)
    assert made == spec.defaults
    assert [type(v) for v in made.values()] == [type(v) for v in spec.defaults.values()]


def test_no_option_has_the_name_of_a_setting_beside_it() -> None:
    taken = {"name", "options", "wrappers", "layer_decay", "params", "model", "row_sparse", *WRAPPERS}
    for name, spec in OPTIMIZERS.items():
        assert not taken & set(spec.defaults), name
    for name, schedule in SCHEDULES.items():
        assert not {"name", "by", "warmup", "warmup_epochs", "options"} & set(schedule.defaults), name


def test_help_names_every_rule_wrapper_and_schedule_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train-ctr", "--help"])
    shown = " ".join(capsys.readouterr().out.split()).replace(", ", ",")
    for name, spec in {**OPTIMIZERS, **WRAPPERS, **SCHEDULES}.items():
        assert name in shown
        assert all(f"{option} " in shown for option in spec.defaults), name


def test_environment_then_files_then_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_OPTIMIZER__DENSE__LR", "1e-3")
    monkeypatch.setenv("HEADRACE_OPTIMIZER__DENSE__EPS", "0.5")
    monkeypatch.setenv("HEADRACE_OPTIMIZER__DENSE__NAME", "adamw")
    monkeypatch.setenv("HEADRACE_TRAIN__SCHEDULE__GAMMA", "0.7")
    file = tmp_path / "c.yaml"
    file.write_text(
        "train:\n  schedule: {name: step, every: 7}\n"
        "optimizer:\n  dense:\n    lr: 2e-3\n    betas: [0.8, 0.9]\n    wrappers: [sam]\n    sam: {rho: 0.2}\n"
    )
    cfg = load("--config", str(file), "--optimizer.dense.sam.adaptive=true", "--optimizer.dense.weight-decay", "0.1")
    assert cfg.optimizer.dense.given() == {
        "name": "adamw", "lr": 2e-3, "eps": 0.5, "betas": [0.8, 0.9], "weight_decay": 0.1, "layer_decay": 1.0,
        "wrappers": {"sam": {"rho": 0.2, "adaptive": True}},
    }  # fmt: skip
    assert cfg.train.schedule.chosen() == {"every": 7, "gamma": 0.7}
    monkeypatch.setenv("HEADRACE_CONFIG", str(file))
    assert load().optimizer.dense.options["sam"] == {"rho": 0.2}
    assert load("--optimizer.dense.lr", "5").optimizer.dense.options["lr"] == 5
    later = load("--optimizer.dense.lr", "9", "--config", str(file))
    assert later.optimizer.dense.options["lr"] == 2e-3  # the later wins, as for all settings


def test_what_is_saved_reads_back_the_same(tmp_path: Path) -> None:
    cfg = load(
        "--optimizer.dense.name", "adamw", "--optimizer.dense.betas", "[0.8,0.9]",
        "--optimizer.dense.wrappers", "[ema]", "--optimizer.dense.ema.decay", "0.9",
        "--train.schedule.name", "cosine", "--train.schedule.period", "50",
        "--train.clipping.rule", "norm", "--train.clipping.exclude", "[top.*]", "--train.precision.compute", "fp16",
    )  # fmt: skip
    saved = yaml.safe_load(to_yaml(cfg))
    assert saved["optimizer"]["dense"]["betas"] == [0.8, 0.9]
    assert saved["optimizer"]["dense"]["ema"] == {"decay": 0.9}
    assert from_dict(train_ctr.Config, saved) == cfg
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load("--config", str(tmp_path / "config.yaml")) == cfg
    plain = load()
    assert resumed(plain, tmp_path) == cfg
    with pytest.raises(UserError, match=r"--optimizer\.dense\.lr differs from that .*: its default\n"):
        resumed(load("--optimizer.dense.lr", "3"), tmp_path)
    with pytest.raises(UserError, match=r"--train\.schedule\.name differs"):
        resumed(load("--train.schedule.name", "linear"), tmp_path)


def test_a_default_that_is_typed_at_a_resume_is_meant(tmp_path: Path) -> None:
    cfg = load("--ranks", "4", "--compression.name", "qsgd", "--strategy.name", "local_sgd", "--train.log_every", "7")
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    usual = train_ctr.Config(lake="x")
    assert (usual.ranks, usual.train.log_every, resumed(load(), tmp_path)) == (1, 20, cfg)
    changed = resumed(load("--ranks", "1", "--train.log_every=20"), tmp_path)
    assert (changed.ranks, changed.train.log_every) == (1, 20)
    assert changed.compression == cfg.compression and changed.strategy == cfg.strategy
    for group, was in (("compression", "qsgd"), ("strategy", "local_sgd")):
        name = getattr(usual, group).name
        with pytest.raises(UserError, match=f"--{group}.name differs from that of the run .*: {was}\n"):
            resumed(load(f"--{group}.name", name), tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(load("--train.scaling", "linear", "--train.base_batch", "64")))
    with pytest.raises(UserError, match=r"--train\.scaling differs"):
        resumed(load("--train.scaling", "none"), tmp_path)


@pytest.mark.parametrize(
    ("saved", "again"),
    [
        (["--tracking.uri", "sqlite:///a", "--tracking.experiment", "e"], ["--tracking.enabled", "true"]),
        (["--data.remainder", "pad"], ["--data.lanes", "16"]),
        (["--compression.sparse", "int8"], ["--compression.name", "none"]),
        (["--compression.name", "qsgd", "--compression.levels", "3"], ["--compression.name", "qsgd"]),
        (["--compression.name", "topk", "--compression.ratio", "0.1", "--compression.values", "float16"],
         ["--compression.ratio", "0.1"]),
        (["--train.batch_size", "4096", "--threads", "3"], ["--train.batch_size", "0", "--threads", "0"]),
    ],
)  # fmt: skip
def test_what_a_run_has_already_may_be_said_again(tmp_path: Path, saved: list[str], again: list[str]) -> None:
    cfg = load(*saved)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert resumed(load(*again), tmp_path) == cfg


def test_a_run_of_before_is_told_apart_from_a_broken_one() -> None:
    with pytest.raises(UserError, match="another version"):
        from_dict(train_ctr.Config, {"lake": "x", "train": {"schedule": "linear", "warmup": 3}})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "--optimizer.dense.lrr 1",
            r"adam has no option 'lrr'\n  -> did you mean lr\? its options are lr 0.001, betas",
        ),
        ("--optimizer.dense.momentum 0.9", "adam has no option 'momentum'"),
        ("--optimizer.dense.lr fast", "lr must be of type float"),
        ("--optimizer.dense.nam sgd", "no option 'nam'"),
        ("--optimizer.dense.name adma", "did you mean adam"),
        ("--optimizer.sparse.name adam", "--optimizer.sparse.name rowwise_adagrad"),
        ("--optimizer.sparse.wrappers [ema]", r"--optimizer\.dense\.wrappers"),
        ("--optimizer.sparse.ema.decay 0.9", r"--optimizer\.dense\.ema"),
        ("--optimizer.sparse.lr x --model.categories false", "lr must be of type float"),
        ("--optimizer.dense.wrappers [sam] --optimizer.dense.sam.rh 3", r"did you mean rho\?"),
        ("--optimizer.dense.sam.rho 3", r"--optimizer\.dense\.wrappers \[sam\]"),
        ("--optimizer.dense.wrappers [sam] --optimizer.dense.sam 0.05", r"-> --optimizer\.dense\.sam\.rho"),
        ("--optimizer.dense.name lbfgs --optimizer.dense.wrappers [sam]", r"--optimizer\.dense\.wrappers without sam"),
        ("--optimizer.dense.name svrg --train.clipping.rule norm", r"svrg .*\n  -> --train\.clipping\.rule none"),
        ("--optimizer.dense.name kfac --optimizer.dense.fallback_lr abc", "fallback_lr must be of type float"),
        ("--optimizer.dense.layer_decay 2", "at most 1"),
        ("--train.schedule.gamma 2", "schedule constant has no option 'gamma'"),
        ("--train.schedule.name cosin", "did you mean cosine"),
        ("--train.clipping.limit 0", "limit above 0"),
        ("--train.clipping.lmit 0", "did you mean train.clipping.limit"),
        ("--train.accumulate 0", "1 .the batch in one piece. or more"),
        ("--train.precision.parameters bf16", "--train.precision.compute bf16"),
        (
            "--train.clipping.exclude [deep.2.*,depp.0.weight]",
            r"exclude 'depp\.0\.weight' is the name of no parameter\n  -> there are deep\.0\.weight",
        ),
        (
            "--optimizer.dense.name lamb --optimizer.dense.exclude [embedding.*]",  # of the other part
            r"--optimizer\.dense\.exclude 'embedding\.\*' is the name of no parameter",
        ),
        ("--train.log_every 0", r"--train\.log_every 0\n  -> 1"),
        ("--train.eval_every -1", r"--train\.eval_every -1\n  -> 0 or more"),
        (
            "--train.schedule.name inverse_sqrt --train.schedule.timescale -5",
            "timescale must be a number of at least 0",
        ),
        ("--train.schedule.name linear --train.schedule.end -0.1", "end must be a number of at least 0, not -0.1"),
        ("--train.scaling cubic --train.base_batch 256", "one of none, linear, sqrt"),
        ("--train.scaling linear", "the batch that the learning rates were tuned at"),
        ("--train.base_batch 256", "linear or sqrt"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(words: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        train_ctr.check(load(*words.split()))


def test_patterns_of_names_that_are_there_are_taken() -> None:
    words = '--optimizer.dense.name lars --optimizer.dense.exclude ["*.bias"] --optimizer.dense.layer_decay 0.9'
    train_ctr.check(load(*words.split(), "--train.clipping.exclude", "[embedding.*,deep.*.weight]"))


def test_rates_tuned_at_another_batch_are_carried_to_the_runs(tmp_path: Path) -> None:
    lake = make_ctr_lake(tmp_path / "lake", {"train": 300, "validation": 50, "test": 50})
    words = (
        f"--lake {lake} --launcher local --threads 1 --device cpu --model.embedding_dim 2 --model.hidden [4] "
        "--train.batch_size 128 --tracking.enabled false --optimizer.dense.name kfac --optimizer.dense.fallback_lr 0.01"
    ).split()
    scaling = ["--train.scaling", "sqrt", "--train.base_batch", "32"]
    cfg = load(*words, *scaling)
    train_ctr.check(cfg)
    job = small_job(cfg, tmp_path / "run")
    plain = small_job(load(*words), tmp_path / "plain")
    assert job.optimizers["dense"] == plain.optimizers["dense"] | {"lr": 0.2, "fallback_lr": 0.02}  # sqrt(128 / 32)
    assert job.optimizers["sparse"]["lr"] == pytest.approx(2 * 0.02)
    said = io.StringIO()
    results = train_ctr.run(None, cfg, Report("train-ctr", out=said)).results
    assert "sqrt from 32: dense 0.2, sparse 0.04" in said.getvalue()
    (run,) = (lake / "runs").iterdir()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["train"]["scaling"] == "sqrt"
    assert "lr" not in saved["optimizer"]["dense"]
    again = train_ctr.run(None, load("--lake", str(lake), "--resume", run.name), Report("train-ctr")).results
    assert again["weights_sha256"] == results["weights_sha256"]  # scaled once, not twice
    assert "base_batch" in (run / "report.html").read_text()


def test_a_stop_while_test_is_evaluated_leaves_the_run_to_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = make_ctr_lake(tmp_path / "lake", {"train": 300, "validation": 50, "test": 50})
    cfg = small_config(lake)
    with monkeypatch.context() as patched:
        patched.setattr("headrace.train.job.evaluate", lambda *args, **options: None)  # as when a stop was asked for
        results = train_ctr.run(None, cfg, Report("train-ctr")).results
    (run,) = (lake / "runs").iterdir()
    assert (results["stopped"], results["exit_status"]) == ("asked", 143)
    assert not (run / "report.json").exists()
    assert find_run(str(lake), "auto") == run
    done = train_ctr.run(None, load("--lake", str(lake), "--resume", "auto"), Report("train-ctr")).results
    assert done["stopped"] == ""
    assert done["test_logloss"] > 0
    assert (run / "model" / "model.safetensors").exists()


def test_parts_can_be_made_in_python_as_on_the_command_line() -> None:
    typed = load("--optimizer.dense.name", "sgd", "--optimizer.dense.lr", "0.5", "--optimizer.sparse.lr", "0.1")
    assert typed.optimizer == OptimizerConfig(
        dense=DenseRuleConfig(name="sgd", options={"lr": 0.5}), sparse=RuleConfig(options={"lr": 0.1})
    )
    assert create(**typed.optimizer.dense.given(), model_or_params=torch.nn.Linear(1, 1)).param_groups[0]["lr"] == 0.5


def test_a_run_with_everything_on_is_recorded_exported_and_resumed(tmp_path: Path) -> None:
    lake = make_ctr_lake(tmp_path / "lake", {"train": 900, "validation": 200, "test": 200})
    words = (
        f"--lake {lake} --ranks 2 --launcher local --threads 1 --device cpu --model.embedding_dim 4 --model.hidden [8] "
        "--train.batch_size 128 --train.log_every 1 --train.eval_every 4 --tracking.enabled false "
        "--optimizer.dense.wrappers [sam,ema] --optimizer.dense.ema.decay 0.8 --optimizer.dense.layer_decay 0.9 "
        "--train.schedule.name one_cycle --train.schedule.warmup 2 --train.accumulate 2 "
        "--train.clipping.rule norm --train.clipping.limit 0.1 --train.precision.compute fp16"
    ).split()
    cfg = parse({"": train_ctr.Config}, words, "headrace train-ctr")[""]
    train_ctr.early(cfg)
    planned = train_ctr.run(None, parse({"": train_ctr.Config}, [*words, "--plan"], "x")[""], Report("train-ctr"))
    assert planned.results["seconds_per_step"] > 0
    results = train_ctr.run(None, cfg, Report("train-ctr")).results
    (run,) = (lake / "runs").iterdir()
    steps = [e for e in read_events(run / "events.jsonl") if e["type"] == "step"]
    assert steps[-1]["clipped_steps"] == results["clipped_steps"] > 0
    assert results["overflow_steps"] == steps[-1]["overflow_steps"]
    assert {"lr", "gradient_norm", "loss_scale"} <= set(steps[0])
    model, _ = load_model(run)
    store = max((run / "checkpoints").iterdir())
    from safetensors.torch import load_file

    trained = load_file(store / "model.safetensors")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    dense = {name for name, _ in model.named_parameters() if not name.startswith("embedding")}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[name]) != (name in dense), name  # exported: averages, tables as they are
    resume = parse({"": train_ctr.Config}, ["--lake", str(lake), "--resume", run.name], "x")[""]
    again = train_ctr.run(None, resume, Report("train-ctr")).results  # goes on from the end: nothing left to do
    assert again["weights_sha256"] == results["weights_sha256"]
    assert again["test_logloss"] == results["test_logloss"]
