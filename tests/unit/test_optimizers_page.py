"""docs/optimizers.md is what the specifications say; the verb that lists, shows and writes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from headrace.errors import UserError
from headrace.optim import OPTIMIZERS
from headrace.pipelines import optimizers
from headrace.report import Report

PAGE = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"


def run(**settings: object) -> str:
    said = io.StringIO()
    optimizers.run(None, optimizers.Config(**settings), Report("optimizers", out=said))  # type: ignore[arg-type]
    return said.getvalue()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == optimizers.render(), (
        "run `headrace optimizers --page docs/optimizers.md` and commit it"
    )


def test_the_page_is_written_and_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(UserError, match="headrace optimizers --page"):
        run(page=str(page), check=True)
    run(page=str(page))
    run(page=str(page), check=True)
    for name in OPTIMIZERS:
        assert f"\n## {name}\n" in page.read_text()


def test_list_and_show() -> None:
    assert all(name in run() for name in OPTIMIZERS)
    said = run(name="adam")
    assert "Kingma and Ba 2015" in said and "lr=0.001" in said and "dense only" in said
    with pytest.raises(UserError, match="did you mean adam"):
        run(name="adm")
