"""Checkpoints that are whole or not there: safetensors and JSON, checksummed, renamed into place.

    checkpoints/step-000000120/  model.safetensors  optimizer.safetensors  rank-0.safetensors ...  state.json
    manifest.json

A checkpoint is written under a hidden name, synced to disk, and renamed; manifest.json holds size and sha256 of every
other file and is checked before anything is parsed. Nothing in it is executed on loading. The run directory must be
one that all ranks see.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from headrace.comm.base import Collective
from headrace.errors import UserError

FORMAT = 1
_NAME = re.compile(r"step-(\d{9})")
_FILE = re.compile(r"model\.safetensors|optimizer\.safetensors|rank-\d{1,6}\.safetensors|state\.json")
_MAX_JSON = 64 << 20
_TENSOR, _ITEMS = "$tensor", "$items"


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message names it."""


@dataclass
class Checkpoint:
    """What is kept.

    Args:
        model: parameters and buffers by name.
        optimizer: state of all optimizers; nested dicts and lists of tensors and JSON values.
        rank: what differs from rank to rank (strategy, random state), of the rank that saves or loads.
        state: JSON: cursor, audit sum, versions, configuration.
    """

    model: dict[str, Tensor]
    optimizer: Any
    rank: Any
    state: dict[str, Any] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: made where it is missing.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 1:
            raise UserError(f"{keep} checkpoints cannot be kept", "--train.keep_checkpoints 1 or more")
        self.directory, self.keep = Path(directory), keep

    def names(self) -> list[str]:
        """Names of complete-looking checkpoints, newest first."""
        if not self.directory.is_dir():
            return []
        return sorted((p.name for p in self.directory.iterdir() if _NAME.fullmatch(p.name)), reverse=True)

    def latest(self, on_damaged: Callable[[str, str], None]) -> Path | None:
        """The newest checkpoint whose checksums hold; `on_damaged(path, reason)` for each one passed over."""
        for name in self.names():
            try:
                verify(self.directory / name)
            except CheckpointError as error:
                on_damaged(str(self.directory / name), error.problem)
            else:
                return self.directory / name
        return None

    def save(self, checkpoint: Checkpoint, step: int, collective: Collective) -> Path:
        """Write a checkpoint: rank 0 the shared part, every rank its own. All ranks call it with equal `model` and
        `optimizer`.

        Raises:
            CheckpointError: on every rank, if any could not write; the checkpoints before stay as they were.
        """
        target = self.directory / f"step-{step:09d}"
        draft = self.directory / f".draft-{target.name}"
        _together(collective, lambda: _fresh(draft) if collective.rank == 0 else None, self)
        _together(collective, lambda: _write_part(draft, checkpoint, collective), self)
        _together(collective, lambda: self._publish(draft, target) if collective.rank == 0 else None, self)
        return target

    def _publish(self, draft: Path, target: Path) -> None:
        files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(draft.iterdir())}
        _write_json(draft / "manifest.json", {"format": FORMAT, "files": files})
        _sync_directory(draft)
        _remove(target)
        draft.rename(target)
        _sync_directory(self.directory)
        # A newer one is damaged, or the run would have gone on from it: it must not take the place of a good one.
        for name in [name for name in self.names() if name <= target.name][self.keep :]:
            _remove(self.directory / name)


def verify(path: Path) -> None:
    """Check names, sizes and checksums of a checkpoint before anything of it is parsed.

    Raises:
        CheckpointError: it is damaged, incomplete, or holds what does not belong there.
    """
    files = _manifest(path)
    present = {p.name for p in path.iterdir()} - {"manifest.json"}
    for name in sorted(present ^ set(files)):
        what = "is missing" if name in files else "does not belong to a checkpoint"
        raise CheckpointError(f"checkpoint {path}: {name} {what}", "use the checkpoint before it")
    for name, entry in files.items():
        mode = (path / name).lstat()
        if not stat.S_ISREG(mode.st_mode) or mode.st_size != entry["bytes"]:
            raise CheckpointError(f"checkpoint {path}: {name} has {mode.st_size} bytes instead of {entry['bytes']}")
        if _sha256(path / name) != entry["sha256"]:
            raise CheckpointError(f"checkpoint {path}: {name} does not have its checksum: damaged or tampered with")


def load(path: Path, rank: int, ranks: int | None = None) -> Checkpoint:
    """Read a checkpoint after `verify`. `rank` gives `Checkpoint.rank`: {} where the run that wrote it had no such
    rank, or had not as many as `ranks`.

    Raises:
        CheckpointError: it is damaged, or not a checkpoint of this format.
    """
    verify(path)
    with _of_this_format(path):
        state = _read_json(path / "state.json")
        own = path / f"rank-{rank}.safetensors"
        known = own.exists() and ranks in (None, len(state["ranks"]))
        rank_tensors = load_file(own) if known else {}
        layout = state["ranks"].get(str(rank), {}) if known else {}
        return Checkpoint(
            model=load_file(path / "model.safetensors"),
            optimizer=_unflatten(state["optimizer"], load_file(path / "optimizer.safetensors")),
            rank=_unflatten(layout, rank_tensors),
            state=state["run"],
        )


@contextmanager
def parts_of_ranks(path: Path) -> Iterator[list[Any]]:
    """`Checkpoint.rank` of every rank that wrote a checkpoint that `load` has read, with a StoredTensor for a tensor:
    none is in memory before it is asked for.

    Raises:
        CheckpointError: it is not a checkpoint of this format; also for what is wrong with it inside.
    """
    with _of_this_format(path):
        layouts = _read_json(path / "state.json")["ranks"]
        parts = []
        for rank in range(len(layouts)):
            file = path / f"rank-{rank}.safetensors"
            with safe_open(file, framework="pt") as opened:
                stored = {name: StoredTensor(file, name) for name in opened.keys()}  # noqa: SIM118
            parts.append(_unflatten(layouts[str(rank)], stored))
        yield parts


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of safetensors, which is open while something is read: what was read stays mapped till then.

    Args:
        file: of safetensors.
        name: in it.
    """

    file: Path
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        with safe_open(self.file, framework="pt") as opened:
            return tuple(opened.get_slice(self.name).get_shape())

    def read(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        with safe_open(self.file, framework="pt") as opened:
            rows: Tensor = opened.get_slice(self.name)[start:stop]
        return rows

    def whole(self) -> Tensor:
        """All of it."""
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(self.name)
        return tensor


@contextmanager
def _of_this_format(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {path} is not one of this format: {error!r}") from error


def _write_part(draft: Path, checkpoint: Checkpoint, collective: Collective) -> None:
    """This rank's files; rank 0 also gathers the layouts of the ranks' parts into state.json."""
    layout, tensors = _flatten(checkpoint.rank)
    failure: OSError | SafetensorError | None = None
    try:
        _write_tensors(draft / f"rank-{collective.rank}.safetensors", tensors)
    except (OSError, SafetensorError) as error:
        failure = error
    layouts = collective.allgather_object(layout)  # every rank gets here, also one that failed
    if failure is not None:
        raise failure
    if collective.rank != 0:
        return
    optimizer, state = _flatten(checkpoint.optimizer)
    _write_tensors(draft / "model.safetensors", checkpoint.model)
    _write_tensors(draft / "optimizer.safetensors", state)
    ranks = {str(rank): value for rank, value in enumerate(layouts)}
    _write_json(draft / "state.json", {"run": checkpoint.state, "optimizer": optimizer, "ranks": ranks})


def _together(collective: Collective, work: Callable[[], None], store: CheckpointStore) -> None:
    """Run `work`; if it fails on any rank, fail on all with that rank's reason."""
    reason = ""
    try:
        work()
    except (OSError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
    reasons = collective.allgather_object(reason)
    bad = [(rank, text) for rank, text in enumerate(reasons) if text]
    if bad:
        kept = store.names()
        raise CheckpointError(
            f"rank {bad[0][0]} could not write a checkpoint under {store.directory}: {bad[0][1]}",
            f"free space there and resume; the last good checkpoint is {kept[0] if kept else '(none yet)'}",
        )


def _flatten(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Nested dicts, lists, tensors, JSON values -> JSON with references, and the tensors."""
    tensors: dict[str, Tensor] = {}

    def visit(node: Any, key: str) -> Any:
        if torch.is_tensor(node):
            tensors[key] = node
            return {_TENSOR: key}
        if isinstance(node, Mapping):
            return {_ITEMS: [[k, visit(v, f"{key}/{k}")] for k, v in node.items()]}
        if isinstance(node, list | tuple):
            return [visit(v, f"{key}/{i}") for i, v in enumerate(node)]
        return node

    return visit(value, "t"), tensors


def _unflatten(node: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        if _TENSOR in node:
            return tensors[node[_TENSOR]]
        return {k: _unflatten(v, tensors) for k, v in node.get(_ITEMS, [])}
    return [_unflatten(v, tensors) for v in node] if isinstance(node, list) else node


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = _read_json(path / "manifest.json")
        files = manifest["files"]
        known = manifest["format"] == FORMAT and all(_FILE.fullmatch(name) for name in files)
        complete = {"model.safetensors", "optimizer.safetensors", "state.json"} <= set(files)
        typed = all(isinstance(e["bytes"], int) and isinstance(e["sha256"], str) for e in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: manifest.json cannot be read: {error!r}") from error
    if not (known and complete and typed):
        raise CheckpointError(f"checkpoint {path}: manifest.json lists files that are not a checkpoint's")
    return dict(files)


def _read_json(path: Path) -> Any:
    if not path.is_file() or path.is_symlink() or path.stat().st_size > _MAX_JSON:
        raise ValueError(f"{path.name} is missing, a link, or larger than {_MAX_JSON} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fresh(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(".draft-*"):
        shutil.rmtree(old, ignore_errors=True)
    path.mkdir()


def _remove(path: Path) -> None:
    """Delete a checkpoint so that no half of it can be taken for one."""
    if path.exists():
        hidden = path.with_name(f".draft-old-{path.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
