"""report.html: one file that tells the run (settings, figures, curves) and says in red when the model is worthless."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.train.events import Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANCE = 0.005
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}img{max-width:100%}"
    ".warning{color:#fff;background:#c00;padding:.6em 1em;font-weight:bold}"
)


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What must be said in red about figures of an evaluation (see train.metrics); empty where all is well."""
    found = []
    auc, entropy = metrics.get("auc"), metrics.get("normalized_entropy")
    if metrics.get("nonfinite"):
        found.append(f"{metrics['nonfinite']:,} scores are not numbers")
    if auc is not None and abs(auc - 0.5) <= CHANCE:
        found.append(f"AUC {auc:.4f}: the model ranks no better than chance")
    elif auc is not None and auc < 0.5:
        found.append(f"AUC {auc:.4f}: the model ranks worse than chance")
    if entropy is not None and not entropy < 1.0:
        found.append(
            f"logloss {metrics['logloss']:.4f} is not under the entropy of the click rate "
            f"({metrics['logloss'] / entropy:.4f}): the model knows no more than the average"
        )
    return found


def figures(events: Iterable[Event]) -> dict[str, Figure]:
    """The pictures of a run by name: training loss, its distance from the minimum where that is known, validation by
    step, ROC and calibration of the last evaluation.

    Args:
        events: in the order they happened; what is not among them is not drawn.
    """
    listed = list(events)
    evaluations = [event for event in listed if event.get("type") == "eval"]
    made = {}
    steps = [event for event in listed if event.get("type") == "step" and "loss" in event]
    if steps:
        x = "epochs" if "epochs" in steps[0] else "step"
        points = [(event[x], event["loss"]) for event in steps]
        made["loss"] = _lines("training loss", x, "mean logloss", {"training": points})
    if gaps := [(event["epochs"], event["gap"]) for event in steps if event.get("gap", 0) > 0]:
        made["gap"] = _lines("distance from minimum", "epochs", "relative duality gap", {"training": gaps}, log=True)
    for name in ("auc", "logloss"):
        points = [(e["step"], e["metrics"].get(name)) for e in evaluations if e["split"] == "validation"]
        points = [(step, value) for step, value in points if value is not None]
        if points:
            made[f"validation_{name}"] = _lines(f"validation {name}", "step", name, {"validation": points})
    last = _last(evaluations)
    if last and last["curves"].get("roc"):
        roc = {last["split"]: last["curves"]["roc"], "chance": [(0, 0), (1, 1)]}
        made["roc"] = _lines("ROC", "false positive rate", "true positive rate", roc)
    if last and last["curves"].get("calibration"):
        points = [point[:2] for point in last["curves"]["calibration"]]
        top = max(max(point) for point in points)
        calibration = {last["split"]: points, "exact": [(0, 0), (top, top)]}
        made["calibration"] = _lines("calibration", "predicted probability", "observed click rate", calibration)
    return made


def write_report(
    path: Path, title: str, facts: Mapping[str, Any], events: Sequence[Event], warnings: Sequence[str] = ()
) -> list[str]:
    """Write the report, complete in itself.

    Args:
        path: of the file.
        title: the run's name.
        facts: what to list: settings, versions, results; nested ones as `a.b`.
        events: the run's.
        warnings: of the run, besides those of its last evaluation.

    Returns:
        The warnings it shows.
    """
    from headrace.train.tracking import flat

    last = _last([event for event in events if event.get("type") == "eval"])
    found = warnings_of(last["metrics"]) if last else ["the run was never evaluated"]
    warned = list(dict.fromkeys([*found, *warnings]))
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in warned]
    parts += [_metrics_table(events), *(_picture(name, figure) for name, figure in figures(events).items())]
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in flat(facts).items())
    parts.append(f"<h2>Settings and versions</h2><table>{rows}</table>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    path.write_text(f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>", encoding="utf-8")
    return warned


def _last(evaluations: Sequence[Event]) -> Event | None:
    """The evaluation that counts: the last on test, else the last."""
    test = [event for event in evaluations if event["split"] == "test"]
    counting = test or list(evaluations)
    return counting[-1] if counting else None


def _metrics_table(events: Sequence[Event]) -> str:
    latest = {event["split"]: event["metrics"] for event in events if event.get("type") == "eval"}
    if not latest:
        return ""
    names = list(next(iter(latest.values())))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *names])
    rows = "".join(
        f"<tr><td>{html.escape(split)}</td>" + "".join(f"<td>{_number(values[name])}</td>" for name in names) + "</tr>"
        for split, values in latest.items()
    )
    return f"<h2>Quality</h2><table><tr>{head}</tr>{rows}</table>"


def _number(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:,.4f}" if isinstance(value, float) else html.escape(f"{value:,}")


def _lines(title: str, x: str, y: str, lines: Mapping[str, Sequence[Sequence[float]]], log: bool = False) -> Figure:
    """One picture; drawn without pyplot, so no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in lines.items():
        style = "--" if name in ("chance", "exact") else "-"
        marker = "o" if 1 < len(points) <= 40 and style == "-" else None
        axes.plot([p[0] for p in points], [p[1] for p in points], style, label=name, marker=marker, markersize=3)
    axes.set(title=title, xlabel=x, ylabel=y, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _picture(name: str, figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{data}"></figure>'
