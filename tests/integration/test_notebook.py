"""The notebooks run from the first cell to the last, as a user's kernel would run them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def text_of(cell) -> str:
    parts = []
    for output in cell.get("outputs", []):
        parts.append(output.get("text", "") or output.get("data", {}).get("text/html", ""))
    return "\n".join(parts)


def executed(name: str, folder: Path, timeout: int) -> tuple[str, int]:
    """What the cells said, and how many pictures they drew."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are stripped before a commit"
    NotebookClient(notebook, timeout=timeout, kernel_name="python3").execute(cwd=str(folder))
    said = "\n".join(text_of(cell) for cell in notebook.cells if cell.cell_type == "code")
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    return said, len(pictures)


def test_quickstart_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_QUICKSTART", str(tmp_path))
    monkeypatch.setenv("HEADRACE_QUICKSTART_ROWS", "40000")
    said, pictures = executed("quickstart_ctr.ipynb", tmp_path, 280)
    auc, best = map(float, re.search(r"test AUC ([\d.]+), best possible ([\d.]+)", said).groups())
    assert 0.6 < auc < best
    assert pictures == 1


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_baselines_run_and_stand_in_one_table(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_BASELINES", str(tmp_path))
    monkeypatch.setenv("HEADRACE_BASELINES_ROWS", "20000")
    said, pictures = executed("baselines.ipynb", tmp_path, 1500)
    table = said[said.index("seconds by stage") :]
    assert all(f" {model} " in table for model in ("lbfgs", "saga", "gbt", "deepfm", "als"))
    saga, lbfgs = map(float, re.search(r"test AUC of saga ([\d.]+), of lbfgs ([\d.]+)", said).groups())
    assert saga == pytest.approx(lbfgs, abs=0.01) and "relative gap <= " in said
    rmse, best = (float(re.search(rf"{name} ([\d.]+)", said)[1]) for name in ("RMSE of known rows", "possible RMSE"))
    assert best < rmse < 2 * best
    assert pictures == 2
