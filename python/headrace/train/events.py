"""What a run says while it goes on: JSON objects with a `type`, one a line in events.jsonl, in the order they happened.

start, resume, batches (fingerprint of the first global batches), step (loss, rows a second; no loss where the step was
left out), eval, epoch (the audit), checkpoint, damaged (a checkpoint passed over), reset (state of another number of
ranks, or of ranks on other hosts), nonfinite (a bad step), overflow (a step left out by fp16, with the next scale of
the loss), compression (what `--compression.name auto` decided: codecs by layer, or whether to compress, with the
seconds of both ways), exchange (at the end: what ranks sent, how long that and waiting, encoding and decoding took).
Of baselines: step (objective by iteration; of certified ones the relative gap, and epochs, gradients, seconds and
megabytes until then; no loss where a batch was looked at), eval, tune (a point of the grid), costs (seconds by stage,
memory, bytes shuffled).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.train.spool import append_line

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


class EventLog:
    """Appends events to a file; a full disk loses the log, never the run.

    Args:
        path: of events.jsonl; its directory exists.
        on_failure: told once, with the reason, when the file cannot be written.
    """

    def __init__(self, path: Path, on_failure: Callable[[str], None]) -> None:
        self._path, self._on_failure, self._failed = path, on_failure, False

    def write(self, event: Event) -> None:
        """Append one event with the time (seconds since 1970)."""
        try:
            append_line(self._path, json.dumps({"time": round(time.time(), 3)} | event).encode() + b"\n")
        except OSError as error:
            if not self._failed:
                self._on_failure(f"events are no longer written to {self._path}: {error}")
            self._failed = True


def read_events(path: Path) -> list[Event]:
    """All whole events of a file; a line that a crash or a full disk cut is left out."""
    events = []
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
    return events
