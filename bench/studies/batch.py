"""`make study-batch`: accuracy against batch at a fixed number of epochs, for SGD with momentum, Adam, LARS and LAMB.

    .venv/bin/python -m bench.studies.batch [--task mnist] [--epochs 20] [--batches 64,256] [--minutes 110] [--report]

At the base batch (256 rows) each rule is tuned over the learning rates of its space. At any other batch the best of
them is scaled by the rule's own scaling (momentum and LARS linear, Adam and LAMB square root: headrace.optim.scaling)
and tried at once, a third and three times of that; the least final validation loss chooses, then come seeds 1, 2, 3.
All runs: the rate rises linearly over the first tenth of the epochs, then falls linearly to 0. A batch of more rows
than there are for training is one of all of them. A run is a line of docs/results/study_batch.jsonl; call again to go
on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial

from bench.studies.clicks import ClickTask
from bench.studies.found import TUNING_SEED
from bench.studies.images import ROOT, mnist
from bench.studies.lines import Lines, read
from bench.studies.optimizers import SEEDS, best_of_all, chosen, with_seed
from bench.studies.running import add_arguments, command, study
from bench.studies.space import rounded, tried
from bench.studies.task import DENSE, TABLES, Setting, Task
from headrace.optim import OPTIMIZERS
from headrace.optim.scaling import scaled, sqrt

RESULTS = ROOT / "docs" / "results" / "study_batch.jsonl"
BASE, BATCHES = 256, (64, 256, 1024, 4096, 8192)
SCALING = {"momentum": "linear", "adam": "sqrt", "lars": "linear", "lamb": "sqrt"}
FACTORS = (1.0, 10**-0.5, 10**0.5)
WARMUP = 0.1


def setting_of(task: Task, rule: str, batch: int, epochs: int, options: dict[str, object]) -> Setting:
    """A tuning run. The tables' rate, where a task has tables, is scaled by the square root."""
    beside: dict[str, object] = {}
    if TABLES in task.parts:
        lr = float(OPTIMIZERS["rowwise_adagrad"].defaults["lr"])
        beside = {"name": "rowwise_adagrad", "lr": rounded(sqrt(lr, batch, BASE))}
    return Setting(
        rule=rule, part=DENSE, options=options, beside=beside, batch=batch, epochs=epochs, seed=TUNING_SEED,
        schedule={"name": "linear", "warmup_epochs": WARMUP * epochs},
    )  # fmt: skip


def tuning(task: Task, rule: str, batch: int, epochs: int, lines: Lines) -> list[Setting]:
    """The settings of a rule at a batch; none before the base batch is tuned."""
    grid = [found.options for found in tried(rule)]
    base = [setting_of(task, rule, BASE, epochs, options) for options in grid]
    if batch == BASE:
        return base
    best = best_of_all(task, base, lines)
    if best is None:
        return []
    lr = scaled(SCALING[rule], float(best.options["lr"]), batch, BASE)
    rates = [dict(best.options) | {"lr": rounded(lr * factor)} for factor in FACTORS]
    return [setting_of(task, rule, batch, epochs, options) for options in rates]


def due(task: Task, epochs: int, lines: Lines, batches: Sequence[int] = BATCHES) -> Iterator[tuple[Task, Setting]]:
    """What is left to run: the base batch first, then batch by batch, then the seeds of all."""
    known: dict[tuple[str, int], Setting | None] = {}
    for batch in sorted(batches, key=lambda b: (b != BASE, b)):
        for turn in range(len(tried("adam"))):
            for rule in SCALING:
                some = tuning(task, rule, batch, epochs, lines)
                if turn < len(some) and lines.get(task, some[turn]) is None:
                    yield task, some[turn]
        for rule in SCALING:
            some = tuning(task, rule, batch, epochs, lines)
            known[rule, batch] = chosen(lines.found(task, some))
    for seed in SEEDS:
        for best in known.values():
            if best is not None and lines.get(task, with_seed(best, seed)) is None:
                yield task, with_seed(best, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the study, then write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist", choices=("mnist", "criteo"))
    parser.add_argument("--epochs", type=int, default=0, help="of every run; 0: 20 for mnist, 1 for criteo")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help=f"rows of a step, {BASE} among them")
    add_arguments(parser, RESULTS, limit="ten times the task's", data="mnist_test")
    args = parser.parse_args(argv)
    if not args.report:
        rows = args.rows
        task: Task = mnist(args.data) if args.task == "mnist" else ClickTask(rows=rows, held=max(1000, rows // 10))
        epochs = args.epochs or {"mnist": 20, "criteo": 1}[args.task]
        args.run_seconds = args.run_seconds or 10 * task.limit_s
        study(args, partial(due, task, epochs, batches=[int(batch) for batch in args.batches.split(",")]))
    from bench.studies.batch_report import write

    write(read(args.results), args.results.with_suffix(".md"))


if __name__ == "__main__":
    command(main)
