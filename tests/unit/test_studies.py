"""The studies of optimizers: runs that are killed and go on, outcomes, the order of runs, reports from given lines."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.studies import batch, batch_report, optimizers, optimizers_report
from bench.studies.clicks import ClickTask
from bench.studies.found import entries_of
from bench.studies.images import cifar10, mnist
from bench.studies.lines import Lines, identity, read
from bench.studies.running import Call, go_on
from bench.studies.space import BUDGET, space_of, tried
from bench.studies.task import DENSE, DIVERGED, DONE, REFUSED, TABLES, TIME, Setting, Trained, Watch
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS
from headrace.options import choose

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images of 28 x 28 in MNIST's format: a bright row says the class."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist_test").mkdir()
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 400).astype(np.uint8)
    pixels = rng.integers(0, 60, (400, 28, 28)).astype(np.uint8)
    pixels[np.arange(400), 2 * labels + 3] += 150
    for name, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        head = b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (folder / "mnist_test" / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return folder


pytestmark = pytest.mark.usefixtures("one_thread")


def setting(rule: str, **more: Any) -> Setting:
    chosen = {"batch": 64, "epochs": 3, "schedule": {"name": "linear"}} | more
    return Setting(rule=rule, **chosen)


KILLED = """
import os, signal, sys
from pathlib import Path
from bench.studies.lines import Lines
from bench.studies.running import Call, go_on
from bench.studies.task import DONE, Setting, Trained

class Task:
    name, metric, limit_s = "fake", "accuracy", 1.0
    def about(self):
        return {"name": "fake"}
    def train(self, setting, watch):
        if setting.seed == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return Trained(outcome=DONE)

task, lines = Task(), Lines(Path(sys.argv[1]))
settings = [Setting(rule="sgd", batch=1, epochs=1, seed=seed) for seed in range(5)]
go_on(lines, lambda: ((task, s) for s in settings if lines.get(task, s) is None), Call(60.0))
"""


def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    """After SIGKILL in a run, twice, and a line that a kill cut: whole lines stay, no run has two, none is left out."""
    results, env = tmp_path / "x.jsonl", os.environ | {"PYTHONPATH": f"{ROOT / 'python'}{os.pathsep}{ROOT}"}
    kept = b""
    for fatal, whole in ((2, 2), (3, 3), (-1, 5)):
        done = subprocess.run([sys.executable, "-c", KILLED, str(results), str(fatal)], env=env, capture_output=True)
        assert done.returncode == (0 if fatal < 0 else -signal.SIGKILL), done.stderr
        assert [found["run"]["seed"] for found in read(results)] == list(range(whole))
        assert results.read_bytes().startswith(kept)
        kept = results.read_bytes()
        with results.open("ab") as file:
            file.write(b'{"run": {"task"')


def test_a_study_from_its_first_run_to_its_report(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two calls: no run is made twice; the report is of the chosen settings."""
    monkeypatch.setattr(optimizers, "MOST_BEYOND", 0)
    results = tmp_path / "study_optimizers.jsonl"
    argv = ["--tasks", "mnist", "--rules", "momentum,adam", "--configurations", "2", "--seeds", "1"]
    argv += ["--data", str(data), "--results", str(results)]
    optimizers.main([*argv, "--runs", "3"])
    first = results.read_bytes()
    assert len(read(results)) == 3
    optimizers.main(argv)
    assert results.read_bytes().startswith(first)
    lines = read(results)
    assert len({identity(line["run"]) for line in lines}) == len(lines) == 6
    assert [(line["run"]["rule"], line["run"]["seed"]) for line in lines] == [
        ("momentum", 0), ("adam", 0), ("momentum", 0), ("adam", 0), ("momentum", 1), ("adam", 1)
    ]  # fmt: skip
    for entry in entries_of(lines):
        assert entry.best is not None and entry.runs[0]["run"]["options"] == entry.best["run"]["options"]
    text = results.with_suffix(".md").read_text()
    assert "## mnist, 10 epochs" in text and "| adam | 2 |" in text
    assert "<svg" in (tmp_path / "study_optimizers_mnist.svg").read_text()
    assert str(tmp_path) not in text + results.read_text()


def test_one_study_writes_at_a_time(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="another study"):
        Lines(tmp_path / "x.jsonl")
    lines.close()
    Lines(tmp_path / "x.jsonl").close()


def test_a_run_on_images_is_a_function_of_its_setting(data: Path) -> None:
    task = mnist(data)
    curves = []
    for seed in (0, 0, 1):
        watch = Watch(60.0)
        trained = task.train(setting("adam", options={"lr": 3e-3}, epochs=6, seed=seed), watch)
        assert trained.outcome == DONE and watch.steps == 6 * 4
        assert trained.state_bytes is not None and trained.state_bytes >= 8 * task.about()["parameters"]
        curves.append([{k: v for k, v in p.items() if "seconds" not in k} for p in watch.curve])
    assert curves[0] == curves[1] != curves[2]
    assert [p["epoch"] for p in curves[0]] == [0.5 * i for i in range(1, 13)]
    assert curves[0][-1]["test"] > 0.9 and curves[0][-1]["train_loss"] < curves[0][0]["train_loss"]


def test_outcomes_on_images(data: Path) -> None:
    """NaN, a refusal and a limit are results; JSON has no NaN."""
    task = mnist(data)
    for rule, options, limit, outcome, why in (
        ("sgd", {"lr": 1e30}, 60.0, DIVERGED, "not a number"),
        ("sag", {"table_bytes": 1000}, 60.0, REFUSED, "table_bytes"),
        ("sgd", {"lr": 0.1}, 0.0, TIME, "limit of 0 CPU s"),
    ):
        watch = Watch(limit)
        trained = task.train(setting(rule, options=options), watch)
        assert trained.outcome == outcome and why in trained.why
        json.dumps(watch.curve, allow_nan=False)
    assert watch.steps == 1 and watch.curve[-1]["epoch"] == 0.25


def test_clicks_train_by_the_project_s_loop() -> None:
    task = ClickTask(rows=3000, held=600, min_count=5, hidden=(8,), batch=256)
    aucs = {}
    for rule, part, options in (
        ("adam", DENSE, {"lr": 0.01}), ("svrg", DENSE, {"lr": 0.1}), ("sgd", TABLES, {"lr": 1.0}),
    ):  # fmt: skip
        watch = Watch(60.0)
        trained = task.train(setting(rule, part=part, options=options, batch=256, epochs=2), watch)
        assert trained.outcome == DONE, trained.why
        assert watch.steps == 22 and [p["step"] for p in watch.curve][-2:] == [20, 22]
        assert trained.state_bytes is not None and (trained.state_bytes == 0) == (rule == "sgd")
        aucs[rule] = watch.curve[-1]["test"]
    assert min(aucs.values()) > 0.55
    watch = Watch(0.0)
    assert task.train(setting("sgd", options={"lr": 0.1}), watch).outcome == TIME and len(watch.curve) == 1
    assert task.train(setting("sgd", options={"lr": 1e30}), Watch(60.0)).outcome == DIVERGED
    assert task.train(setting("sag", options={"table_bytes": 1000}), Watch(60.0)).outcome == REFUSED


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_rule_has_the_same_budget(rule: str) -> None:
    found = tried(rule)
    assert len({json.dumps([f.options, f.batch]) for f in found}) == len(found) == BUDGET
    for one in found:
        choose(rule, OPTIMIZERS[rule].defaults, one.options)
    assert set(space_of(rule).fixed) <= set(found[0].options)


def test_images_are_read_from_tars(tmp_path: Path) -> None:
    """JPEGs by class, the same number of each, channels first, labels by the folders' order."""
    from PIL import Image

    (tmp_path / "cifar10_jpeg").mkdir()
    for name in ("train", "test"):
        with tarfile.open(tmp_path / "cifar10_jpeg" / f"{name}.tar.gz", "w:gz") as tar:
            for label in range(10):
                for i in range(4):
                    buffer = io.BytesIO()
                    Image.new("RGB", (32, 32), (25 * label, 0, 255 - 25 * label)).save(buffer, "JPEG")
                    info = tarfile.TarInfo(f"{name}/c{label}/{i:04d}.jpg")
                    info.size = buffer.tell()
                    buffer.seek(0)
                    tar.addfile(info, buffer)
    task = cifar10(tmp_path, train=20, validation=10, test=20)
    assert task.images.shape == (50, 3, 32, 32) and task.about()["test"] == 20
    assert torch.bincount(task.labels).tolist() == [5] * 10
    red = task.images[:, 0].mean((1, 2))
    order = torch.argsort(task.labels, stable=True)
    assert (red[order].diff() > -0.02).all() and not torch.equal(task.labels[:30], task.labels[:30].sort().values)


class Fake:
    """A task whose final loss is a function of the setting: |log10(lr / best)|; nothing is trained."""

    name, metric, batch, epochs, limit_s, parts = "fake", "accuracy", 128, 10, 1.0, (DENSE,)

    def __init__(self, best: Callable[[Setting], float]) -> None:
        self.best = best

    def about(self) -> dict[str, Any]:
        return {"name": "fake", "metric": "accuracy"}

    def train(self, setting: Setting, watch: Watch) -> Trained:
        if setting.rule == "sag":
            return Trained(outcome=REFUSED, why="no table")
        loss = abs(float(np.log10(setting.options["lr"] / self.best(setting))))
        for epoch in (1, 2):
            watch.step(loss, 1)
            watch.point(epoch, validation_loss=loss, validation=1 - loss, test_loss=loss, test=1 - loss / epoch)
        return Trained(outcome=DONE, state_bytes=4)


def test_runs_go_in_rounds_over_all_rules(tmp_path: Path) -> None:
    """First settings of all rules, then the second ones; a refused rule once; beyond the ends of the rates while the
    best is there; then the best with the seeds."""
    task, lines = Fake(lambda s: 0.0316), Lines(tmp_path / "x.jsonl")
    rules = ["sgd", "sag", "adam"]
    made = go_on(lines, lambda: ((task, s) for s in optimizers.due(task, rules, lines, 3, (1, 2))), Call(60.0))
    runs = [(line["run"]["rule"], line["run"]["options"].get("lr"), line["run"]["seed"]) for line in lines.all]
    assert made == 15 and runs == [
        ("sgd", 0.1, 0), ("sag", 0.1, 0), ("adam", 0.001, 0), ("sgd", 0.0316, 0), ("adam", 0.000316, 0),
        ("sgd", 0.316, 0), ("adam", 0.00316, 0),
        ("sgd", 0.00999, 0), ("adam", 0.00999, 0), ("adam", 0.0316, 0), ("adam", 0.0999, 0),
        ("sgd", 0.0316, 1), ("adam", 0.0316, 1), ("sgd", 0.0316, 2), ("adam", 0.0316, 2),
    ]  # fmt: skip
    assert optimizers.best_rules(task, rules, lines, 3, (1, 2)) == ["sgd", "adam"]
    assert go_on(lines, lambda: iter([(task, setting("sgd", options={"lr": 1.0}))]), Call(minutes=1 / 61)) == 0


def test_rates_are_scaled_by_batch(tmp_path: Path) -> None:
    """The best of the base batch, scaled, and its neighbours; where another is better it is chosen and told."""
    wanted = {"momentum": 0.01, "adam": 0.001, "lars": 3.0, "lamb": 0.002}
    power = {"momentum": 0.5, "adam": 0.5, "lars": 1.0, "lamb": 0.5}  # momentum's is not what its scaling says
    task = Fake(lambda s: wanted[s.rule] * (s.batch / 256) ** power[s.rule])
    lines = Lines(tmp_path / "study_batch.jsonl")
    made = go_on(lines, lambda: batch.due(task, 20, lines, (64, 256, 4096)), Call(60.0))
    assert made == 4 * (BUDGET + 3 + 3) + 4 * 3 * 3
    rates = {
        (r["rule"], r["batch"]): r["options"]["lr"] for line in lines.all if (r := line["run"])["seed"] == 3
    }  # fmt: skip
    assert rates["adam", 4096] == 0.004 and rates["lars", 4096] == 48.0 and rates["lars", 64] == 0.75
    assert rates["momentum", 256] == 0.01 and rates["momentum", 4096] == pytest.approx(0.16 / 10**0.5, rel=1e-2)
    batch_report.write(lines.all, tmp_path / "study_batch.md")
    text = (tmp_path / "study_batch.md").read_text()
    assert (
        "| momentum | 4096 | 2 | 3 | 0.0506 | 0.32 | 0.9" in text
        and "| lars | 4096 | 2 | 3 | 48 | 1 | 1.0000 ±" in text
    )


def line(rule: str, lr: float, seed: int, tests: list[float], **more: Any) -> dict[str, Any]:
    """A line as a study writes it; a point an epoch."""
    curve = [
        {"epoch": i + 1.0, "step": 10 * (i + 1), "train_loss": 1 - t, "validation_loss": 1 - t, "validation": t,
         "test_loss": 1 - t, "test": t, "seconds": 2.0 * (i + 1), "cpu_seconds": 3.0 * (i + 1)}
        for i, t in enumerate(tests)
    ]  # fmt: skip
    run = {"task": {"name": "mnist", "metric": "accuracy"}, "rule": rule, "part": DENSE, "options": {"lr": lr}}
    run |= {"beside": {}, "batch": 128, "epochs": 2, "schedule": {}, "seed": seed}
    rest = {"outcome": DONE, "why": "", "steps": 20, "seconds": 4.0, "cpu_seconds": 3.0 * len(tests), "noisy": False}
    return {"run": run, "curve": curve, "state_bytes": 1000, "threads": 1, "limit_s": 90.0} | rest | more


def test_the_report_is_of_the_lines(tmp_path: Path) -> None:
    lines = [
        line("adam", 1e-3, 0, [0.5, 0.9]), line("adam", 0.0316, 0, [0.97, 0.6]), line("adam", 0.0316, 9, [0.99, 0.99]),
        line("adam", 1e-4, 0, [0.4, 0.5]),
        line("adam", 1e-3, 1, [0.96, 0.97]), line("adam", 1e-3, 2, [0.98, 0.99], noisy=True),
        line("adam", 1e-3, 3, [0.94, 0.95]),
        line("sgd", 3.16, 0, [0.5, 0.8]), line("sgd", 0.1, 0, [], outcome=DIVERGED, why="step 3"),
        line("sag", 0.1, 0, [], outcome=REFUSED, why="no room\n  -> another", state_bytes=None),
        line("kfac", 0.1, 0, [0.9, 0.9]), line("kfac", 0.1, 1, [0.98, 0.98]),
        line("shampoo", 0.1, 0, [0.9, 0.9]),
    ]  # fmt: skip
    optimizers_report.write(lines, tmp_path / "s.md")
    text = (tmp_path / "s.md").read_text()
    table = text.split("Second order")[0]
    assert (
        "| adam | 3 | lr 0.001, batch 128 | 0.0300 ± 0.0200 | 0.9700 ± 0.0200 | 3 | 1.50 (2 of 3) | 3.0 (2 of 3) | "
        "3.00 | 1,000 |" in table
    )
    assert "| sgd | 2 (1 diverged) | lr 3.16, batch 128 † |  |  |  |  |  |  | 1,000 |" in table
    second = text.split("Second order")[1]
    assert "| shampoo |  | loss at the end |  |  |  |  |  |  |  |" in second
    assert "| kfac | lr 0.1 | loss at the end | 1 | 1.00 | 2.0 | 1.00 | 2.0 | 1.00 | 2.0 |" in second
    assert "| adam | lr 0.0316 | the target | 1 | 1.00 | 2.0 | 1.00 | 2.0 | 1.00 | 2.0 |" in second
    assert "| kfac |  | the target |  |  |  |  |  |  |  |" in second
    assert "- sag: refused (1 tried): no room\n" in text and "1 of the 12 runs began on a busy machine" in text
    first = (tmp_path / "s_mnist.svg").read_bytes()
    optimizers_report.write(lines, tmp_path / "s.md")
    assert (tmp_path / "s_mnist.svg").read_bytes() == first


def test_the_report_of_nothing(tmp_path: Path) -> None:
    optimizers.main(["--report", "--results", str(tmp_path / "none.jsonl")])
    assert "| rule |" not in (tmp_path / "none.md").read_text()


def test_cifar_waits_for_mnist(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not known yet"):
        optimizers.main(["--tasks", "cifar10", "--data", str(data), "--results", str(tmp_path / "x.jsonl")])
