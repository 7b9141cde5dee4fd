"""What a run says of itself: one line a stage, progress on long work, and a JSON last line.

A pipeline opens stages on its Report; the job prints nothing else of its own.
"""

from __future__ import annotations

import builtins
import contextlib
import html
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

PROGRESS_MODES = ("auto", "bar", "log", "none")
_LOG_EVERY_S = 10.0


@dataclass
class Stage:
    """One stage's account. `rows_in == rows_out + quarantined` unless `note` says why not."""

    name: str
    rows_in: int | None = None
    rows_out: int | None = None
    quarantined: int | None = None
    bytes_in: int | None = None
    seconds: float = 0.0
    note: str = ""

    def line(self) -> str:
        """The stage as one line of text: rows in, out, quarantined, seconds, MB/s."""
        parts = [f"{self.name:<18}"]
        for label, rows in (("in", self.rows_in), ("out", self.rows_out), ("quarantined", self.quarantined)):
            parts.append(f"{label} {rows:>12,}" if rows is not None else f"{label} {'-':>12}")
        parts.append(f"{self.seconds:8.1f} s")
        rate = self.bytes_in / 1e6 / self.seconds if self.bytes_in and self.seconds > 0 else None
        parts.append(f"{rate:8.1f} MB/s" if rate is not None else f"{'-':>8} MB/s")
        return "  ".join(parts + ([self.note] if self.note else []))


@dataclass
class Report:
    """What every pipeline returns and every job prints: stages, figures, paths, warnings.

    Args:
        verb: the verb that ran, as typed.
        progress: one of PROGRESS_MODES; `auto` is a bar on a terminal or in a notebook, else a line every 10 s.
        out: where stage lines go (standard error, so that standard output ends with one JSON line).
    """

    verb: str
    progress: str = "auto"
    out: TextIO = field(default_factory=lambda: sys.stderr, repr=False)
    stages: list[Stage] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage; its line is printed when it ends without an error."""
        stage = Stage(name)
        start = time.perf_counter()
        yield stage
        stage.seconds = time.perf_counter() - start
        self.stages.append(stage)
        self.say(stage.line())

    def part(self, verb: str) -> Report:
        """A report of its own for a step, with the same screen, the same list of stages and of warnings."""
        return Report(verb, self.progress, self.out, self.stages, warnings=self.warnings)

    def say(self, text: str) -> None:
        """Print one line for people."""
        if self.progress != "none":
            self._print(text)

    def warn(self, text: str) -> None:
        """Keep a warning for the end of the run and show it now, in red on a terminal."""
        self.warnings.append(text)
        red, plain = ("\033[31m", "\033[0m") if self.out.isatty() else ("", "")
        self._print(f"{red}warning: {text}{plain}")

    def _print(self, text: str) -> None:
        if "tqdm" not in sys.modules:
            print(text, file=self.out, flush=True)
            return
        from tqdm import tqdm

        tqdm.write(text, file=self.out)  # above the bars, which it draws again
        self.out.flush()

    def bar(self, total: int | None, title: str, unit: str = "rows") -> Progress:
        """Progress on long work: `with report.bar(n, "reading") as bar: bar.update(k)`."""
        return Progress(total, title, unit, self.progress, self.out)

    def to_json(self) -> str:
        """The last line on standard output, for schedulers."""
        return json.dumps(
            {
                "verb": self.verb,
                "stages": [asdict(stage) for stage in self.stages],
                "results": self.results,
                "paths": self.paths,
                "warnings": self.warnings,
            },
            default=str,
        )

    def _repr_html_(self) -> str:
        columns = ("name", "rows_in", "rows_out", "quarantined", "seconds", "note")
        head = "".join(f"<th>{name}</th>" for name in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{_cell(getattr(stage, name))}</td>" for name in columns) + "</tr>"
            for stage in self.stages
        )
        results = "".join(f"<li>{html.escape(str(k))}: {_cell(v)}</li>" for k, v in (self.results | self.paths).items())
        return f"<table><tr>{head}</tr>{rows}</table><ul>{results}</ul>"


class Progress:
    """A bar (terminal, notebook), a line every 10 s (cron), or nothing."""

    def __init__(self, total: int | None, title: str, unit: str, mode: str, out: TextIO) -> None:
        from tqdm.auto import tqdm

        kernel = hasattr(builtins, "__IPYTHON__")
        shown = mode == "bar" or (mode == "auto" and (out.isatty() or kernel))
        self._lines = mode == "log" or (mode == "auto" and not shown)
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}", unit_scale=True, disable=not shown, file=out)
        self._total, self._title, self._unit, self._out = total, title, unit, out
        self._done, self._before, self._text = 0, 0, ""
        self._start = self._last = time.monotonic()

    def begin(self, done: int = 0) -> None:
        """The work begins now, with `done` units done before: neither they nor the time until now count in the rate."""
        self._done = self._before = done
        self._start = self._last = time.monotonic()
        self._bar.reset()
        self._bar.initial = self._bar.n = done
        self._bar.refresh()

    def update(self, n: int, text: str = "") -> None:
        """`n` more units done; `text` is shown beside (a loss, a file name)."""
        self._done += n
        self._text = text or self._text
        if text:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(n)
        if self._lines and time.monotonic() - self._last >= _LOG_EVERY_S:
            self._last = time.monotonic()
            rate = (self._done - self._before) / (self._last - self._start)
            of = f" of {self._total:,}" if self._total else ""
            left = f", {(self._total - self._done) / rate:,.0f} s left" if self._total and rate > 0 else ""
            print(
                f"{self._title}: {self._done:,}{of} {self._unit}, {rate:,.0f}/s{left} {self._text}".rstrip(),
                file=self._out,
                flush=True,
            )

    def reach(self, done: int) -> None:
        """Be at `done` units in all, for work whose last part is not reported bit by bit."""
        self.update(done - self._done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))
