"""A run's folder of the lake, beside other runs that come and go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.catalog.scratch import scratch


def test_another_run_takes_the_folder_above_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two folders that makedirs makes the last other run ends, and removes the empty one."""
    make = os.mkdir

    def once(path: str, mode: int = 0o777) -> None:
        if Path(path).name.startswith("mine-"):
            monkeypatch.setattr(os, "mkdir", make)
            os.rmdir(os.path.dirname(path))
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", once)
    with scratch(tmp_path, "mine") as place:
        assert Path(place).is_dir()
    assert list(tmp_path.iterdir()) == []
