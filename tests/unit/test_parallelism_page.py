"""docs/parallelism.md does what it says: its code, run as it stands there, trains; its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from headrace.parallel import PARALLELISMS, SCHEDULES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "parallelism.md").read_text(encoding="utf-8")


def test_the_example_trains() -> None:
    made: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/parallelism.md", "exec"), made)
    assert len(made["results"]) == 4 and len(set(made["results"])) == 1
    assert made["results"][0] < 0.6  # of ln 3


def test_the_tables_are_complete() -> None:
    for name in (*PARALLELISMS, *SCHEDULES):
        assert re.search(rf"^\| `{name}`", PAGE, re.MULTILINE), name
