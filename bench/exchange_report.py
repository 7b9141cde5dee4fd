"""Row f's page and figure, made of nothing but its lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.studies.figures import figure_of, save
from bench.studies.lines import Line, identity

HEADER = """# Gradient exchange behind slow links
Written by `bench/exchange_lab.py --report` from `exchange.jsonl`: no figure here comes from elsewhere.

Ranks are processes in network namespaces of their own, each behind a link of the given speed in both directions, MTU
1500. All train the same perceptron from the same weights on the same rows. **ms** is of a step (rank 0, all of it),
**alone** that of a step in which nothing is exchanged, **link** the time that the step's bytes take at the link's
speed. **kB** is what the busiest interface counted a step, headers included; Horovod's ranks talk in every cycle of a
millisecond, so its bytes grow with a step's time. **formula** are those bytes over what
`Metered` counts (peers: a ring's bytes of the numbers that they send), and the same without the 66 bytes of a packet's
headers. Over 1 is faster than peers: **fastest** is the time of the fastest over that of the line, **as good** that of
the fastest whose loss is at most 1 % above the line's, **fp16** that of Horovod with fp16. A burst of a millisecond's
bytes, 32 KiB at least, passes a link at once: what sends less a step is faster than its link. Of `auto` it is said how
many steps went as they are, because that measured faster or to compare. **others** are tasks of other programs that
wanted a core just before or after a run.
"""
HEAD = "| who | ms | median | alone | link | kB | formula | no headers | loss | fastest | as good | fp16 | others |"
EQUAL = 1.01  # loss of a peer over a line's, at most


def told(line: Line) -> str:
    """A run as it ends."""
    run = line["run"]
    return (
        f"{name_of(line):<34} {run['ranks']} ranks {run['mbit']:>4} Mbit/s {line['ms']:8.2f} ms a step, "
        f"alone {line['alone_ms']:.2f}, link {line['link_ms']:.2f}; {line['bytes'] / 1e3:8.1f} kB, "
        f"{line['of_formula']:.3f} of the formula ({line['of_formula_without_headers']:.3f} without headers); "
        f"loss {loss_of(line)}; {'busy' if line['noisy'] else 'quiet'}"
    )


def name_of(line: Line) -> str:
    """As in `headrace/torch/int8`."""
    return "/".join(line["run"]["entry"])


def is_peer(line: Line) -> bool:
    """Whether it is of none of ours."""
    return bool(line["run"]["entry"][0] != "headrace")


def loss_of(line: Line) -> str:
    """After the last step."""
    return "diverged" if line["loss"] is None else f"{line['loss']:.4f}"


def write(lines: Sequence[Line], path: Path) -> None:
    """The page at `path`, and its figure beside it."""
    parts = [HEADER]
    groups = grouped(lines)
    for about, some in groups:
        parts.append(text_of(about, some))
    if groups:
        figure = path.with_suffix(".svg")
        picture(groups, figure)
        parts.append(f"![Loss against milliseconds of a step]({figure.name})\n")
    path.write_text("\n".join(parts))


def grouped(lines: Sequence[Line]) -> list[tuple[dict[str, Any], list[Line]]]:
    """Lines that compare: equal in all but who they are of."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(identity(about(line)), []).append(line)
    found = [(about(some[0]), some) for some in groups.values()]
    return sorted(found, key=lambda each: (each[0]["mbit"], each[0]["ranks"], each[0]["steps"], each[0]["seed"]))


def about(line: Line) -> dict[str, Any]:
    """Of the run, all but who it is of."""
    return {name: value for name, value in line["run"].items() if name not in ("entry", "transport")}


def text_of(about: dict[str, Any], lines: Sequence[Line]) -> str:
    """A table, the fastest first."""
    peers = [line for line in lines if is_peer(line)]
    noisy = sum(line["noisy"] for line in lines)
    said = f"{noisy} of {len(lines)} runs began or ended on a busy machine: their times say little.\n" if noisy else ""
    rows = [row(line, peers) for line in sorted(lines, key=lambda line: float(line["ms"]))]
    title = f"## {about['mbit']} Mbit/s, {about['ranks']} ranks, {about['steps']} steps, seed {about['seed']}"
    return "\n".join([title, said, HEAD, "| --- " * (HEAD.count("|") - 1) + "|", *rows, ""])


def row(line: Line, peers: Sequence[Line]) -> str:
    """One run."""
    as_is = f" ({line['as_is']:.0f} of {line['run']['steps']} steps as they are)" if "as_is" in line else ""
    cells = [
        name_of(line) + as_is + ("" if line["same_loss"] else " (ranks differ)"),
        *(f"{line[name]:.1f}" for name in ("ms", "ms_median", "alone_ms", "link_ms")),
        f"{line['bytes'] / 1e3:,.1f}",
        *(f"{line[name]:.3f}" for name in ("of_formula", "of_formula_without_headers")),
        loss_of(line),
        *(["", "", ""] if is_peer(line) else ratios(line, peers)),
        str(max(line["others"])),
    ]
    return f"| {' | '.join(cells)} |"


def ratios(line: Line, peers: Sequence[Line]) -> list[str]:
    """The times of peers over the line's: all, those as good, Horovod with fp16; the fastest of each, or nothing."""
    good = [peer for peer in peers if None not in (line["loss"], peer["loss"]) and peer["loss"] <= EQUAL * line["loss"]]
    fp16 = [peer for peer in peers if name_of(peer) == "horovod/horovod/fp16"]
    least = [min((peer["ms"] for peer in some), default=None) for some in (peers, good, fp16)]
    return ["" if ms is None else f"{ms / line['ms']:.2f}" for ms in least]


def picture(groups: Sequence[tuple[dict[str, Any], list[Line]]], path: Path) -> None:
    """Loss at the end against milliseconds of a step, a panel a table."""
    figure = figure_of(4.6 * len(groups), 4.2)
    for axis, (about, lines) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        for line in [line for line in lines if line["loss"] is not None]:
            marker, color = ("s", "C3") if is_peer(line) else ("o", "C0")
            axis.plot(line["ms"], line["loss"], marker, color=color, markersize=4)
            axis.annotate(name_of(line).removeprefix("headrace/"), (line["ms"], line["loss"]), fontsize=5)
        axis.set(title=f"{about['mbit']} Mbit/s, {about['ranks']} ranks", xlabel="ms a step", xscale="log")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("loss at the end; squares are peers")
    save(figure, path)
