"""`make study-exchange`: final loss against bytes for codecs, with and without feedback, and for strategies.

    .venv/bin/python -m bench.studies.exchange [--tasks criteo,cifar10] [--minutes 110] [--report]

Questions, each with the cells (bench/studies/exchange_cells.py) that answer it, in the order in which they run:

    1 Does feedback bring 4 bits, and the top 1 %, within 1 % of dense? What without it? Do 4 ranks, where sums are
      encoded a second time, differ from 2?       dense, QSGD by two norms, top-k, 1 bit, PowerSGD; both; 2 and 4 ranks
    2 What may ranks save by meeting seldom?      local SGD with H 1, 4, 16, post-local, growing H, outer momentum, two
                                                  with a codec; what else STRATEGIES has; 4 ranks
    3 Which codec gives the least loss at its bytes?                          all codecs, with and without; 2 ranks
    4 Does a vote need more than two?                                         signs, 4 ranks
    5 Is what feedback sends late made up for later?                          top-k, 1 bit; 3 times the epochs, CIFAR
    6 Is it the rate that a codec fails by?       a rate of its own where theory asks for one: signs, large variance,
                                                  long memory
    7 Is it the same with five times the rows?    dense, QSGD, top-k, 1 bit, both; 2 ranks, 1,000,000 rows of Criteo
    8 What of 4 bits with feedback, on 2 ranks and CIFAR-10, which three seeds left open?      it and dense, three more

How late a codec sends is measured in every run of one codec (bench/studies/lag.py): the report's reasons have it.

Tasks: DeepFM on 200,000 generated Criteo rows (1 epoch of batch 512, momentum for dense parameters, row-wise AdaGrad
for tables, whose rows go as they are), and ResNet-8 on 5,000 of CIFAR-10's images (500 of them for validation; 10
epochs of batch 128). Not every pair of codec and task: near-lossless ones are run on Criteo only. Global batches and
their order are those of (seed, epoch), for any number of ranks. The rate (momentum 0.9, warm-up over a tenth, then
linear to 0) is chosen from 5 for the dense run of 2 ranks by validation loss with seed 0, and then used for all but
question 6. Seeds 1, 2, 3, in question 8 also 4, 5, 6; a cell is judged by its test loss relative to the dense run's of
the same seed and ranks.

Within a question the cells go seed by seed over both tasks, 2 ranks before 4. A run is a line of
docs/results/study_exchange.jsonl; call again to go on. About 4 hours of one core in all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

from bench.studies.clicks import ClickTask
from bench.studies.exchange_cells import BASE, CRITEO_1M, DENSE_RUN, LARGE, Cell, cells, missing, narrowed
from bench.studies.found import TUNING_SEED
from bench.studies.images import ROOT, cifar10
from bench.studies.lines import Lines, read
from bench.studies.optimizers import SEEDS, best_of_all, with_seed
from bench.studies.ranks import Exchange, Ranked
from bench.studies.resnet import ResNetTask
from bench.studies.running import add_arguments, command, named, study
from bench.studies.task import Setting, Task

RESULTS = ROOT / "docs" / "results" / "study_exchange.jsonl"
WARMUP = 0.1
MORE_SEEDS = (4, 5, 6)  # of question 8
RATES_TRIED = (0.01, 0.0316, 0.1, 0.316, 1.0)
ROWS, LARGE_ROWS = 200_000, 1_000_000


def setting_of(task: Ranked, cell: Cell, ranks: int, lr: float, seed: int) -> Exchange:
    """One run of a cell."""
    epochs = cell.longer * task.epochs
    return Exchange(
        rule=cell.rule, options={"lr": lr}, batch=task.batch, epochs=epochs, seed=seed, ranks=ranks,
        schedule={"name": "linear", "warmup_epochs": WARMUP * epochs},
        compression=cell.compression, strategy=cell.strategy,
    )  # fmt: skip


def tried_for(task: Ranked, cell: Cell, ranks: int, dense_lr: float) -> list[Exchange]:
    """A cell's tuning runs; one setting where its rate is given."""
    unit = task.batch / ranks if cell.per_step else dense_lr
    rates = [float(f"{unit * factor:.3g}") for factor in cell.factors]
    return [setting_of(task, cell, ranks, lr, TUNING_SEED) for lr in rates]


def dense_rates(task: Ranked) -> list[Exchange]:
    """The runs that choose the learning rate of all."""
    return [setting_of(task, DENSE_RUN, BASE, lr, TUNING_SEED) for lr in RATES_TRIED]


def due(tasks: Sequence[Ranked], lines: Lines) -> Iterator[tuple[Task, Setting]]:
    """What is left to run, in order; what follows may change with every new line."""
    rate: dict[str, float] = {}
    for task in tasks:
        yield from ((task, setting) for setting in dense_rates(task) if lines.get(task, setting) is None)
        found = best_of_all(task, dense_rates(task), lines)
        if found is None:
            return
        rate[task.name] = found.options["lr"]
    for part, ranks, seed in product(range(LARGE + 1), (2, 4), (TUNING_SEED, *SEEDS)):
        for task in tasks:
            some = [cell for cell in cells(task.name, task.steps) if cell.part == part and ranks in cell.ranks]
            tried = [tried_for(task, cell, ranks, rate[task.name]) for cell in some]
            yield from _left(task, tried, seed, lines)
    for seed, task in product(MORE_SEEDS, tasks):
        some = [cell for cell in narrowed() if task.name in cell.tasks]
        yield from _left(task, [tried_for(task, cell, BASE, rate[task.name]) for cell in some], seed, lines)


def _left(task: Task, tried: Sequence[list[Exchange]], seed: int, lines: Lines) -> Iterator[tuple[Task, Setting]]:
    """Cells' runs with a seed that have no line."""
    yield from ((task, setting) for setting in _with_seed(task, tried, seed, lines) if lines.get(task, setting) is None)


def _with_seed(task: Task, tried: Sequence[list[Exchange]], seed: int, lines: Lines) -> Iterator[Exchange]:
    """Cells' runs with a seed, of their tuning runs: with the tuning seed, those of cells that have several rates."""
    for rates in tried:
        if seed == TUNING_SEED:
            yield from rates if len(rates) > 1 else ()
        elif (found := rates[0] if len(rates) == 1 else best_of_all(task, rates, lines)) is not None:
            yield with_seed(found, seed)


def makers(data: Path | None, rows: int) -> Mapping[str, Callable[[], Ranked]]:
    """The tasks by name, each made once."""
    held = max(1000, rows // 10)
    return {
        "criteo": cache(lambda: Ranked(ClickTask(rows=rows, held=held, batch=min(512, rows // 8)))),
        "cifar10": cache(lambda: Ranked(ResNetTask(cifar10(data)))),
        CRITEO_1M: cache(lambda: Ranked(ClickTask(name=CRITEO_1M, rows=LARGE_ROWS, held=50_000, batch=512))),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the study, then write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=f"criteo,cifar10,{CRITEO_1M}")
    add_arguments(parser, RESULTS, limit="the task's own limit", data="cifar10_jpeg")
    parser.set_defaults(rows=ROWS)
    args = parser.parse_args(argv)
    makes = makers(args.data, args.rows)
    names = named(args.tasks, makes)
    if not args.report:
        if missing():
            print(f"left out, not in STRATEGIES: {', '.join(missing())}")
        tasks = [makes[name]() for name in names]
        study(args, partial(due, tasks))
    from bench.studies.exchange_report import write

    write(read(args.results), args.results.with_suffix(".md"))


if __name__ == "__main__":
    command(main)
