"""Links go down in the middle of a step (fault 6): the launch ends and says why, and no process is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LAB = Path(__file__).with_name("blocked_links.py")
ALSO = pytest.mark.campaign


def lab(how: str, what: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, LAB, "lab", how, what], capture_output=True, text=True, timeout=170)
    for reason in ("network namespaces are not allowed", "links cannot be made", "the kernel may lack"):
        if reason in done.stderr:
            pytest.skip(f"{reason}: no links on this machine")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", ["messages", pytest.param("allreduce", marks=ALSO)])
def test_a_machine_that_cannot_be_reached_is_named_and_its_rank_ends_itself(what: str) -> None:
    found = lab("machine", what)
    assert found["errors"][1].startswith("rank 1 (host 10.77.0.2, pid ")
    assert "stalled: not heard of for 3 s; stopped, or its machine cannot be reached" in found["errors"][1]
    assert found["released"] == [True, False]
    assert all(seconds is not None and 2 < seconds < 30 for seconds in found["ended_s"])


@pytest.mark.parametrize("what", ["messages", pytest.param("allreduce", marks=ALSO)])
def test_ranks_that_cannot_reach_each_other_give_up(what: str) -> None:
    """The driver hears of all of them: nobody is stopped, and nobody is to blame."""
    found = lab("ranks", what)
    own = [error for error in found["errors"] if "CollectiveError" in error]
    assert own and all("Timed out" in error or "Connection timed out" in error for error in own)
    assert 5 < found["told_s"] < 60 and all(seconds is not None for seconds in found["ended_s"])
