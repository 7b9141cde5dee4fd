"""What became of the documents of each crawl: a table for people, a waterfall as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STAYS = "stays"
_MOST_CRAWLS = 6
_BAR, _LEFT = "#b5533c", "#3c6e8f"

Counts = Mapping[str, Mapping[str, int]]


def ordered(counts: Counts, order: Sequence[str]) -> list[str]:
    """The reasons that occur, in the order in which they are asked; what is not in the order comes before the rules.

    Args:
        counts: by crawl, by reason, documents.
        order: names of reasons.
    """
    found = {reason for by_reason in counts.values() for reason in by_reason} - {STAYS}
    places = {reason: place for place, reason in enumerate(order)}
    return sorted(found, key=lambda reason: (places.get(reason, -1), reason))


def table(counts: Counts, reasons: Sequence[str]) -> list[str]:
    """Lines: a reason each with what it removes by crawl and in all, its share, and what is left after it.

    Args:
        counts: by crawl, by reason, documents; `stays` for those that no rule removes.
        reasons: as `ordered` returns them.
    """
    crawls = sorted(counts)[-_MOST_CRAWLS:]
    all_of = {reason: sum(by.get(reason, 0) for by in counts.values()) for reason in (*reasons, STAYS)}
    total = sum(all_of.values())
    width = max([len(reason) for reason in reasons] + [len("documents")])
    columns = [max(len(crawl), 11) for crawl in crawls] if len(counts) > 1 else []
    head = f"{'':<{width}}" + "".join(f"  {crawl:>{w}}" for crawl, w in zip(crawls, columns, strict=False))
    lines = [f"{head}  {'all':>13}  {'share':>6}  {'left':>13}"]
    sums = [sum(counts[crawl].values()) for crawl in crawls]
    lines.append(_line("documents", width, _cells(sums, columns), total, total, total))
    left = total
    for reason in reasons:
        left -= all_of[reason]
        cells = _cells([counts[crawl].get(reason, 0) for crawl in crawls], columns)
        lines.append(_line(reason, width, cells, all_of[reason], total, left))
    stay = _cells([counts[crawl].get(STAYS, 0) for crawl in crawls], columns)
    return [*lines, _line(STAYS, width, stay, all_of[STAYS], total, left)]


def _cells(numbers: Iterable[int], columns: Sequence[int]) -> str:
    return "".join(f"  {number:>{width},}" for number, width in zip(numbers, columns, strict=False))


def _line(name: str, width: int, cells: str, number: int, total: int, left: int) -> str:
    share = number / total if total else 0.0
    return f"{name:<{width}}{cells}  {number:>13,}  {share:>6.1%}  {left:>13,}"


def draw(counts: Counts, reasons: Sequence[str], path: Path) -> None:
    """A waterfall from all documents to those that stay, a bar a reason, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    all_of = {reason: sum(by.get(reason, 0) for by in counts.values()) for reason in (*reasons, STAYS)}
    names = ["documents", *reasons, STAYS]
    left = sum(all_of.values())
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh(0, left, color=_LEFT)
    for place, reason in enumerate(reasons, 1):
        left -= all_of[reason]
        axes.barh(place, all_of[reason], left=left, color=_BAR)
        axes.text(left + all_of[reason], place, f" {all_of[reason]:,}", va="center", fontsize=7)
    axes.barh(len(names) - 1, all_of[STAYS], color=_LEFT)
    axes.text(all_of[STAYS], len(names) - 1, f" {all_of[STAYS]:,}", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title=f"What removes documents ({', '.join(sorted(counts)[:3])}{' ...' if len(counts) > 3 else ''})")
    axes.set_xlabel("documents")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)
