"""`make study-adaptive`: codecs chosen by layer (`--compression.name auto`) against fixed ones, at equal bytes.

    .venv/bin/python -m bench.studies.adaptive [--tasks criteo,mnist] [--minutes 20] [--report]

Fixed: QSGD with 4 bits by the largest number, 1 bit, the top 1 % with values in half precision, all with feedback. At
the bytes of each: auto for the least total error, and for the least relative error. And auto as it is by default, which
may switch itself off: ranks are threads here, so that it should. Four ranks, sums by reduce-scatter.

Tasks: DeepFM on generated Criteo rows (1 epoch, momentum for the dense parameters, row-wise AdaGrad for tables, whose
rows go as they are), and the small net on MNIST's 10,000 test images (3 epochs). See `bench.studies.equal_bytes` for
the order; a run is a line of docs/results/study_adaptive.jsonl, call again to go on. About 15 minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.studies.clicks import ClickTask
from bench.studies.equal_bytes import Plan, due
from bench.studies.equal_bytes_report import write
from bench.studies.exchange_cells import EF, FIRST, Cell
from bench.studies.images import ROOT, mnist
from bench.studies.lines import read
from bench.studies.rank_images import NetTask
from bench.studies.ranks import Ranked
from bench.studies.running import add_arguments, command, named, study

RESULTS = ROOT / "docs" / "results" / "study_adaptive.jsonl"
RANKS, ROWS, INTERVAL = 4, 60_000, 20
RATES = (0.0316, 0.1, 0.316)
FIXED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "QSGD 4 bits": ("qsgd", {"levels": 7, "norm": "max"}),
    "1 bit": ("onebit", {}),
    "top 1 %": ("topk", {"ratio": 0.01, "values": "float16"}),
}
HEADER = """# Codecs chosen by layer against fixed ones, at equal bytes
Written by `python -m bench.studies.adaptive --report` from `study_adaptive.jsonl` (`make study-adaptive` goes on with
it): no figure here comes from elsewhere, and what has not been run is blank. The design is at the top of
`bench/studies/adaptive.py`. Losses are of the test rows at the end, mean and deviation over seeds; bytes are those that
`Metered` counts of dense gradients, of the rank that sends most. "codec" is CPU time a rank spends encoding and
decoding a step, without deciding.
"""


def auto(label: str, **options: Any) -> Cell:
    """A cell whose codecs are chosen."""
    options = {"interval": INTERVAL} | options
    return Cell(label=label, part=FIRST, compression={"name": "auto", "feedback": EF, "options": options})


def beside(cell: Cell, share: float) -> list[Cell]:
    """Auto at the bytes of a fixed codec."""
    return [
        auto(f"auto, {error}, as {cell.label}", budget=share, switch=False, error=error)
        for error in ("absolute", "relative")
        if cell.compression["name"] != "auto"
    ]


def plan(path: Path = RESULTS) -> Plan:
    """The study."""
    fixed = [
        Cell(label=label, part=FIRST, compression={"name": name, "feedback": EF, "options": dict(options)})
        for label, (name, options) in FIXED.items()
    ]
    fixed.append(auto("auto, by default"))
    return Plan(path=path, header=HEADER, ranks=RANKS, rates={"momentum": RATES}, fixed=fixed, beside=beside)


def makers(data: Path | None, rows: int) -> Mapping[str, Callable[[], Ranked]]:
    """The tasks by name, each made once."""
    held, batch = max(1000, rows // 10), min(512, rows // 8)
    return {
        "criteo": cache(lambda: Ranked(ClickTask(rows=rows, held=held, batch=batch))),
        "mnist": cache(lambda: Ranked(NetTask(mnist(data), epochs=3))),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the study, then write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="criteo,mnist")
    add_arguments(parser, RESULTS, limit="the task's own limit", data="mnist_test")
    parser.set_defaults(rows=ROWS)
    args = parser.parse_args(argv)
    made, makes = plan(args.results), makers(args.data, args.rows)
    names = named(args.tasks, makes)
    if not args.report:
        study(args, partial(due, made, [makes[name]() for name in names]))
    write(made, read(args.results), args.results.with_suffix(".md"))


if __name__ == "__main__":
    command(main)
