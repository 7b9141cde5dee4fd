"""The notebook runs from the first cell to the last, as a user's kernel would run it."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart_ctr.ipynb"


def text_of(cell) -> str:
    parts = []
    for output in cell.get("outputs", []):
        parts.append(output.get("text", "") or output.get("data", {}).get("text/html", ""))
    return "\n".join(parts)


def test_quickstart_runs_and_learns(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are stripped before a commit"
    monkeypatch.setenv("HEADRACE_QUICKSTART", str(tmp_path))
    monkeypatch.setenv("HEADRACE_QUICKSTART_ROWS", "40000")
    NotebookClient(notebook, timeout=280, kernel_name="python3").execute(cwd=str(tmp_path))
    said = "\n".join(text_of(cell) for cell in notebook.cells if cell.cell_type == "code")
    auc, best = map(float, re.search(r"test AUC ([\d.]+), best possible ([\d.]+)", said).groups())
    assert 0.6 < auc < best
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 1
