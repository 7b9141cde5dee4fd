"""The folder of one generated graph: claimed by its settings, complete when all files of its truth are there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from headrace.errors import UserError

SETTINGS_FILE, TRUTH_FILE, RECORDS_DIR = "generation.json", "truth.json", ".units"
OGB_SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def claim(settings: dict[str, object], dest: Path, overwrite: bool) -> bool:
    """Make `dest` ready for this generation.

    Returns:
        True where the same generation is complete there already.

    Raises:
        UserError: another generation, or files of unknown origin, are there and `overwrite` is not set.
    """
    file = dest / SETTINGS_FILE
    there = _read_json(file)
    if there == settings and not overwrite:
        return _complete(dest)
    if dest.exists() and any(dest.iterdir()) and not (overwrite and there is not None):
        what = "files of another origin" if there is None else "another generation: " + _difference(there, settings)
        remedy = "give an empty --dest" + ("" if there is None else ", the same settings, or --overwrite true")
        raise UserError(f"{dest} holds {what}", remedy)
    clear(dest)
    dest.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(settings, indent=1).encode())
    return False


def clear(dest: Path) -> None:
    """Remove what a generation wrote, and nothing else."""
    if not dest.exists():
        return
    shutil.rmtree(dest / RECORDS_DIR, ignore_errors=True)
    (dest / TRUTH_FILE).unlink(missing_ok=True)
    (dest / SETTINGS_FILE).unlink(missing_ok=True)
    for pattern in ("edges-*.*", "nodes-*.parquet", "labels-*.tsv", "features-*.tsv"):
        for path in dest.glob(pattern):
            path.unlink()
    for name in (
        "edge_index.npy",
        "node_feat.npy",
        "node_label.npy",
        *(f"split/{s}.npy" for s in OGB_SPLITS.values()),
    ):
        (dest / name).unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write beside and rename: the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _complete(dest: Path) -> bool:
    truth = _read_json(dest / TRUTH_FILE)
    return truth is not None and all(
        (dest / file["name"]).is_file() and (dest / file["name"]).stat().st_size == file["bytes"]
        for file in truth["files"]
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _difference(there: dict[str, Any], here: dict[str, object]) -> str:
    changed = [name for name, value in here.items() if there.get(name) != value]
    return ", ".join(f"{name} {there.get(name)!r} there, {here[name]!r} asked for" for name in changed)
