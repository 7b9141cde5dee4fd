"""`make study-lars-qsgd`: LARS + QSGD with levels by layer norm (conf/lars_qsgd.yaml) against either alone.

    .venv/bin/python -m bench.studies.lars_qsgd [--bits 3] [--epochs 12] [--minutes 20] [--report]

Rules: SGD with momentum, and LARS, whose trust ratios are of decoded gradients. Each alone; each with QSGD of the same
levels for all layers; and at the bytes of that

    by layer norm        levels s_l that minimise  sum_l E_l(s_l) / |g_l|^2, the errors relative to layers' norms
    by error             levels s_l that minimise  sum_l E_l(s_l)

with E_l the squared error of what ranks decode of layer l and |g_l| the norm of its decoded sum: LARS makes a step of
length lr c |w_l| of whatever g_l is, so that a layer's error counts by its share of |g_l|. QSGD is right in the mean
and goes without feedback, as in its paper. Levels by layer may send a thousandth more, so that the same for all are
among them. The small net on MNIST's 10,000 test images, all tensors of 128 numbers and more compressed, batches of
1,024, 4 ranks. See `bench.studies.equal_bytes` for the order; a run is a line of docs/results/study_lars_qsgd.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.studies.equal_bytes import Plan, due
from bench.studies.equal_bytes_report import write
from bench.studies.exchange_cells import FIRST, NONE, Cell
from bench.studies.images import ROOT, mnist
from bench.studies.lines import read
from bench.studies.rank_images import NetTask
from bench.studies.ranks import Ranked
from bench.studies.running import add_arguments, command, study

RESULTS = ROOT / "docs" / "results" / "study_lars_qsgd.jsonl"
RANKS, BATCH, EPOCHS, BITS, INTERVAL = 4, 1024, 12, 3, 10
MIN_NUMEL, SLACK = 128, 1.001
RATES = {"momentum": (0.01, 0.0316, 0.1, 0.316), "lars": (3.16, 10.0, 31.6)}
HEADER = """# LARS + QSGD against either alone
Written by `python -m bench.studies.lars_qsgd --report` from `study_lars_qsgd.jsonl` (`make study-lars-qsgd` goes on
with it): no figure here comes from elsewhere, and what has not been run is blank. The design is at the top of
`bench/studies/lars_qsgd.py`; "absolute" and "relative" are what levels by layer make least. Losses are of the test rows
at the end, mean and deviation over seeds; bytes are those that `Metered` counts, of the rank that sends most.
"""


def qsgd(rule: str, bits: int) -> Cell:
    """A rule with the same levels for all layers."""
    options = {"levels": 2 ** (bits - 1) - 1, "norm": "max"}
    return _cell(f"{rule} + QSGD {bits} bits", rule, "qsgd", options)


def _cell(label: str, rule: str, name: str, options: dict[str, Any]) -> Cell:
    compression = {"name": name, "feedback": NONE, "min_numel": MIN_NUMEL, "options": options}
    return Cell(label=label, part=FIRST, rule=rule, compression=compression)


def beside(cell: Cell, share: float) -> list[Cell]:
    """Levels by layer, at the bytes of the same levels for all."""
    made = []
    for error, how in (("relative", "by layer norm"), ("absolute", "by error")):
        options = {"budget": share, "switch": False, "error": error, "codecs": ["qsgd"], "interval": INTERVAL}
        made.append(_cell(f"{cell.label}, {how}", cell.rule, "auto", options))
    return made if cell.rule == "lars" else made[1:]


def plan(path: Path = RESULTS, bits: int = BITS) -> Plan:
    """The study."""
    fixed = [qsgd(rule, bits) for rule in RATES]
    return Plan(path=path, header=HEADER, ranks=RANKS, rates=RATES, fixed=fixed, beside=beside, slack=SLACK)


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the study, then write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=BITS, choices=range(2, 9), help="of QSGD for all layers")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    add_arguments(parser, RESULTS, limit="the task's own limit", data="mnist_test")
    args = parser.parse_args(argv)
    made = plan(args.results, args.bits)
    if not args.report:
        study(args, partial(due, made, [Ranked(NetTask(mnist(args.data), batch=BATCH, epochs=args.epochs))]))
    write(made, read(args.results), args.results.with_suffix(".md"))


if __name__ == "__main__":
    command(main)
