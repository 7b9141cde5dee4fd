"""`make study-optimizers`: every optimizer on the same tasks, tuned by the same small budget, then with three seeds.

    .venv/bin/python -m bench.studies.optimizers [--tasks mnist,criteo,cifar10] [--minutes 110] [--report]

A task's runs, in rounds over all rules, so that a part of the study says something of every rule: the first setting of
each rule's space (bench/studies/space.py), the second of each, ... all with seed 0; then the setting of each rule whose
validation loss was the least at the end of its run, with seeds 1, 2, 3. CIFAR-10 is for the five rules that are the
best on MNIST by that loss. A run is a line of docs/results/study_optimizers.jsonl; call again to go on. --report writes
docs/results/study_optimizers.md and its figures from these lines, and so does the end of every call.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from bench.studies.clicks import ClickTask
from bench.studies.found import COMPARED, TUNING_SEED, final_loss, quickest
from bench.studies.images import ROOT, cifar10, mnist
from bench.studies.lines import AnySetting, Line, Lines, read
from bench.studies.running import add_arguments, command, named, study
from bench.studies.space import BUDGET, BUDGETS, rounded, space_of, tried
from bench.studies.task import DENSE, REFUSED, Setting, Task
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS
from headrace.optim.spec import ACCEPTS_SPARSE

RESULTS = ROOT / "docs" / "results" / "study_optimizers.jsonl"
SEEDS = (1, 2, 3)
BEST = 5
MOST_BEYOND = 3
Entry = tuple[str, str]


def entries(task: Task, rules: Sequence[str]) -> list[Entry]:
    """What is compared on a task: rules of the dense parameters, then rules of the tables by their trait."""
    return [
        (rule, part)
        for part in task.parts
        for rule in rules
        if part == DENSE or ACCEPTS_SPARSE in OPTIMIZERS[rule].traits
    ]


def settings(task: Task, entry: Entry, budget: int = BUDGET) -> list[Setting]:
    """The settings that an entry is tuned over."""
    rule, part = entry
    return [
        Setting(
            rule=rule, part=part, options=found.options, batch=found.batch * task.batch, epochs=task.epochs,
            schedule=space_of(rule).schedule, seed=TUNING_SEED,
        )
        for found in tried(rule, budget)
    ]  # fmt: skip


def extended(task: Task, entry: Entry, lines: Lines, budget: int = BUDGET) -> list[Setting]:
    """The settings of an entry and, as far as runs say so, those beyond the ends of its learning rates."""
    some = settings(task, entry, budget)
    for _ in range(MOST_BEYOND):
        best = best_of_all(task, some, lines)
        further = None if best is None else beyond(best, some)
        if further is None:
            break
        some.append(further)
    return some


def beyond(best: Setting, some: Sequence[Setting]) -> Setting | None:
    """The best setting with the next learning rate, where its own is the least or the greatest of several."""
    rates = {float(setting.options["lr"]) for setting in some if "lr" in setting.options}
    if len(rates) < 2 or best.options["lr"] not in (min(rates), max(rates)):
        return None
    factor = 10**0.5 if best.options["lr"] == max(rates) else 10**-0.5
    return replace(best, options=dict(best.options) | {"lr": rounded(best.options["lr"] * factor)})


def chosen(found: Sequence[tuple[AnySetting, Line]]) -> AnySetting | None:
    """Of tuning's runs the setting with the least final validation loss."""
    losses = [(loss, setting) for setting, line in found if (loss := final_loss(line)) is not None]
    return min(losses, key=lambda pair: pair[0])[1] if losses else None


def best_of_all(task: Task, tried: Sequence[AnySetting], lines: Lines) -> AnySetting | None:
    """Of settings that were all run, the one with the least final validation loss."""
    found = lines.found(task, tried)
    return chosen(found) if len(found) == len(tried) else None


def with_seed(setting: AnySetting, seed: int) -> AnySetting:
    """The same, otherwise drawn."""
    return replace(setting, seed=seed)


def due(task: Task, rules: Sequence[str], lines: Lines, budget: int, seeds: Sequence[int]) -> Iterator[Setting]:
    """What is left to run, in order; what follows may change with every new line."""
    tuning = {entry: extended(task, entry, lines, budget) for entry in entries(task, rules)}
    known = {entry: lines.found(task, some) for entry, some in tuning.items()}
    refused = {entry for entry, found in known.items() if any(line["outcome"] == REFUSED for _, line in found)}
    for turn in range(budget + MOST_BEYOND):
        for entry, some in tuning.items():
            if entry not in refused and turn < len(some) and lines.get(task, some[turn]) is None:
                yield some[turn]
    for seed in seeds:
        for (rule, _), found in known.items():
            for best in (chosen(found), first_at_target(task, found) if rule in COMPARED else None):
                if best is not None and lines.get(task, with_seed(best, seed)) is None:
                    yield with_seed(best, seed)


def first_at_target(task: Task, found: Sequence[tuple[Setting, Line]]) -> Setting | None:
    """Of tuning's runs the setting that was the first at the task's target."""
    first = quickest([line for _, line in found], task.name)
    return next((setting for setting, line in found if line is first), None)


def best_rules(task: Task, rules: Sequence[str], lines: Lines, budget: int, seeds: Sequence[int]) -> list[str]:
    """The rules of the least final validation losses, in the mean over the seeds that were run."""
    ranking: dict[str, float] = {}
    for entry in entries(task, rules):
        setting = chosen(lines.found(task, extended(task, entry, lines, budget)))
        if setting is None or entry[1] != DENSE:
            continue
        ran = [lines.get(task, with_seed(setting, seed)) for seed in seeds]
        losses = [loss for line in ran if line is not None and (loss := final_loss(line)) is not None]
        if len(losses) == len(seeds):
            ranking[entry[0]] = statistics.fmean(losses)
    return sorted(ranking, key=lambda rule: ranking[rule])[:BEST]


def makers(data: Path | None, rows: int) -> Mapping[str, Callable[[], Task]]:
    """The tasks by name, each made once."""
    held = max(1000, rows // 10)
    return {
        "mnist": cache(lambda: mnist(data)),
        "criteo": cache(lambda: ClickTask(rows=rows, held=held)),
        "cifar10": cache(lambda: cifar10(data)),
    }


def plan(
    tasks: Mapping[str, Callable[[], Task]], names: Sequence[str], rules: Sequence[str], lines: Lines,
    budgets: Mapping[str, int], seeds: Sequence[int],
) -> Iterator[tuple[Task, Setting]]:  # fmt: skip
    """What is left to run over all tasks; `budgets`: settings of a rule that are tried, by task."""
    for name in names:
        ours = rules if name != "cifar10" else best_rules(tasks["mnist"](), rules, lines, budgets["mnist"], seeds)
        if not ours:
            raise UserError("the best rules on MNIST are not known yet", "--tasks mnist,cifar10")
        for setting in due(tasks[name](), ours, lines, budgets[name], seeds):
            yield tasks[name](), setting


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="mnist,criteo,cifar10")
    parser.add_argument("--rules", default=",".join(OPTIMIZERS))
    known = ", ".join(f"{name} {count}" for name, count in BUDGETS.items())
    parser.add_argument("--configurations", type=int, default=0, help=f"settings of a rule that are tried: {known}")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="runs of the chosen setting")
    add_arguments(parser, RESULTS, limit="the task's own limit", data="mnist_test and cifar10_jpeg")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the study, then write its report."""
    args = parsed(argv)
    tasks = makers(args.data, args.rows)
    names = named(args.tasks, tasks)
    if not args.report:
        rules, seeds = args.rules.split(","), range(1, args.seeds + 1)
        budgets = {name: args.configurations or count for name, count in BUDGETS.items()}
        study(args, lambda lines: plan(tasks, names, rules, lines, budgets, seeds))
    from bench.studies.optimizers_report import write

    write(read(args.results), args.results.with_suffix(".md"))


if __name__ == "__main__":
    command(main)
