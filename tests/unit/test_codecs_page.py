"""docs/codecs.md is what the specifications say; the verb that lists, shows and writes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from headrace.compress import COMPRESSORS
from headrace.errors import UserError
from headrace.pipelines import codecs
from headrace.report import Report

PAGE = Path(__file__).resolve().parents[2] / "docs" / "codecs.md"


def run(**settings: object) -> str:
    said = io.StringIO()
    codecs.run(None, codecs.Config(**settings), Report("codecs", out=said))  # type: ignore[arg-type]
    return said.getvalue()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == codecs.render(), "run `headrace codecs --page docs/codecs.md`, commit it"


def test_the_page_is_written_and_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(UserError, match="headrace codecs --page"):
        run(page=str(page), check=True)
    run(page=str(page))
    run(page=str(page), check=True)


def test_list_and_show() -> None:
    assert all(name in run() for name in COMPRESSORS)
    said = run(name="qsgd")
    assert "Alistarh et al. 2017" in said and "levels=7" in said and "omega" in said
    with pytest.raises(UserError, match="did you mean qsgd"):
        run(name="qsdg")
    for name in ("powersgd", "auto"):
        with pytest.raises(UserError, match=f"{name} is no codec of one tensor") as error:
            run(name=name)
        assert "docs/exchange.md" in error.value.remedy
