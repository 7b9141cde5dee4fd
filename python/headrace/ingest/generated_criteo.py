"""Files in the Criteo Terabyte format made from the planted model: `day_0.gz` ... and `truth.json` beside them.

A line is label, 13 integers, 26 categories of 8 hex digits, tab separated; an empty cell is missing. Work is cut into
blocks of `BLOCK_ROWS` rows of a day. A task makes one block: a gzip member (or plain text) and its `Evidence`, each
renamed into place when complete. A day's file is its members end to end, which is a valid gzip file. Blocks do not
depend on each other, so the bytes do not depend on partitions or cores, and a run that was killed goes on with the
blocks it lacks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.errors import UserError
from headrace.ingest import planted
from headrace.ingest.planted import Block, PlantedModel
from headrace.ingest.planted_truth import Evidence

Bytes = npt.NDArray[np.uint8]

FORMAT_VERSION = 1
"""Raised whenever the same settings would give other bytes."""
BLOCK_ROWS = 1 << 17
GZIP_LEVEL = 1
BAD_KINDS = (
    "too_few_columns",
    "too_many_columns",
    "bad_integer",
    "integer_overflow",
    "bad_category",
    "bad_label",
    "blank_line",
)
"""Kinds of planted bad lines; bad line k is of kind k modulo their number."""
SETTINGS_FILE = "generation.json"
TRUTH_FILE = "truth.json"
PARTS_DIR = ".parts"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the bytes depend on.

    Args:
        rows: good rows over all days.
        days: number of day files; earlier days take one row more where rows do not divide.
        seed: of everything.
        click_rate: mean click probability on day 0.
        gzip: day_0.gz ... instead of day_0 ....
        bad_rows: lines to plant that an ingest must refuse, beside the good rows.
    """

    rows: int
    days: int
    seed: int
    click_rate: float
    gzip: bool
    bad_rows: int

    def check(self) -> None:
        """Raise UserError where the settings make no sense."""
        if self.days < 1 or self.rows < self.days:
            raise UserError(f"--rows {self.rows} over --days {self.days}", "give at least one day and one row a day")
        if not 0.001 <= self.click_rate <= 0.999:
            raise UserError(f"--click_rate {self.click_rate} is not within 0.001 and 0.999", "try 0.25 or 0.03")
        if not 0 <= self.bad_rows <= self.rows:
            raise UserError(
                f"--bad_rows {self.bad_rows} is not within 0 and --rows {self.rows}", "plant fewer bad rows"
            )
        if self.days > 200:
            raise UserError(
                f"--days {self.days} is more than 200", "give fewer days: new values would fill the columns"
            )

    def day_rows(self, day: int) -> int:
        """Good rows of a day."""
        return self.rows // self.days + (1 if day < self.rows % self.days else 0)

    def day_file(self, day: int) -> str:
        """Name of a day's file."""
        return f"day_{day}.gz" if self.gzip else f"day_{day}"

    def blocks(self) -> list[BlockRange]:
        """All blocks in the order of the files."""
        return [
            BlockRange(day, start, min(start + BLOCK_ROWS, self.day_rows(day)))
            for day in range(self.days)
            for start in range(0, self.day_rows(day), BLOCK_ROWS)
        ]

    def settings(self) -> dict[str, object]:
        """As kept in SETTINGS_FILE."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}


class BlockRange(NamedTuple):
    """Rows start..stop-1 of a day."""

    day: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its files in PARTS_DIR."""
        return f"day_{self.day}.{self.start:012d}"


@dataclass(frozen=True)
class BadLines:
    """Planted bad lines of one block: each stands after the good row `after` (counted in the block).

    Attributes:
        after: int64 [k], ascending.
        kind: int64 [k], index in BAD_KINDS.
    """

    after: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]


def bad_lines(generation: Generation, block: BlockRange) -> BadLines:
    """Where this block's bad lines stand: positions are hashed over all rows of all days."""
    k = np.arange(generation.bad_rows, dtype=np.uint64)
    key = np.uint64(planted.stream_key(generation.seed, -1, "bad rows"))
    place = planted.splitmix64(k + key) % np.uint64(generation.rows)
    before = sum(generation.day_rows(day) for day in range(block.day)) + block.start
    after = place.astype(np.int64) - before
    here = np.flatnonzero((after >= 0) & (after < block.stop - block.start))
    here = here[np.argsort(after[here], kind="stable")]
    return BadLines(after[here], here % len(BAD_KINDS))


def write_block(model: PlantedModel, generation: Generation, block: BlockRange, folder: Path) -> int:
    """Make one block's part and evidence in `folder`, unless they are there.

    Returns:
        Rows made (0 where the block was there).
    """
    part = folder / block.name
    if part.exists():
        return 0
    rows = model.block(*block)
    bad = bad_lines(generation, block)
    text = encode(rows)
    if len(bad.after):
        text = plant_bad_lines(text, bad)
    replace_file(part.with_suffix(part.suffix + ".npz"), Evidence.of(rows, bad.kind, len(text)).to_bytes())
    replace_file(part, compress(text) if generation.gzip else text)  # last: its presence says the block is complete
    return len(rows.label)


def compress(text: bytes) -> bytes:
    """One gzip member without time or name, so that equal text gives equal bytes."""
    engine = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    return engine.compress(text) + engine.flush()


def encode(block: Block) -> bytes:
    """The block's lines.

    Every cell gets a fixed width in a matrix of bytes, with NUL where a character is not needed; the NULs then go.
    """
    n = len(block.label)
    columns: list[Bytes] = [(block.label | np.uint8(ord("0")))[:, None]]
    tab = np.full((n, 1), ord("\t"), np.uint8)
    for j in range(len(planted.INTS)):
        columns += [tab, _blank(_decimal(block.ints[j]), block.ints_missing[j])]
    for c in range(len(planted.CATEGORIES)):
        columns += [tab, _blank(_hex(block.codes[c]), block.ids[c] < 0)]
    columns.append(np.full((n, 1), ord("\n"), np.uint8))
    return np.concatenate(columns, axis=1).tobytes().translate(None, b"\0")


def _blank(cells: Bytes, missing: npt.NDArray[np.bool_]) -> Bytes:
    cells[missing] = 0
    return cells


def _decimal(values: npt.NDArray[np.int64]) -> Bytes:
    """Integers as [n, 9] characters: sign, then up to 8 digits; NUL for none."""
    size = np.abs(values)
    assert int(size.max(initial=0)) < 10**8, "integer columns are capped below 8 digits"
    high, low = np.divmod(size, 10_000)
    cells = np.zeros((len(values), 9), np.uint8)
    cells[:, 0] = np.where(values < 0, ord("-"), 0)
    cells[:, 1:5] = np.where((high > 0)[:, None], _SHORT[high], 0)
    cells[:, 5:9] = np.where((high > 0)[:, None], _FULL[low], _SHORT[low])
    return cells


def _hex(codes: npt.NDArray[np.uint32]) -> Bytes:
    """32-bit codes as [n, 8] characters."""
    return np.concatenate([_HEX[codes >> np.uint32(16)], _HEX[codes & np.uint32(0xFFFF)]], axis=1)


def _table(texts: Iterator[str]) -> Bytes:
    return np.frombuffer("".join(texts).encode(), np.uint8).reshape(-1, 4)


_FULL = _table(f"{x:04d}" for x in range(10_000))
_SHORT = _table(f"{x:\0>4d}" for x in range(10_000))
_HEX = _table(f"{x:04x}" for x in range(1 << 16))


def plant_bad_lines(text: bytes, bad: BadLines) -> bytes:
    """Insert each bad line, made from the good row it follows."""
    lines = text.split(b"\n")[:-1]
    result, done = [], 0
    for after, kind in zip(bad.after.tolist(), bad.kind.tolist(), strict=True):
        result += lines[done : after + 1]
        done = after + 1
        result.append(spoil(lines[after], BAD_KINDS[kind]))
    return b"\n".join([*result, *lines[done:], b""])


def spoil(line: bytes, kind: str) -> bytes:
    """A good line made bad in one way."""
    cells = line.split(b"\t")
    if kind == "too_few_columns":
        cells = cells[:-2]
    elif kind == "too_many_columns":
        cells.append(b"0badcafe")
    elif kind == "bad_integer":
        cells[5] = b"12x"
    elif kind == "integer_overflow":
        cells[5] = b"99999999999999999999"
    elif kind == "bad_category":
        cells[18] = b"nothex!!"
    elif kind == "bad_label":
        cells[0] = b"2"
    else:
        cells = [b""]
    return b"\t".join(cells)


def replace_file(path: Path, data: bytes) -> None:
    """Write beside and rename: the file is whole or absent."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def join_day(generation: Generation, day: int, dest: Path) -> dict[str, object]:
    """Write a day's file from its parts, streaming, and return its name, bytes and sha256."""
    target = dest / generation.day_file(day)
    temporary = target.with_name(f".{target.name}.tmp")
    digest = hashlib.sha256()
    with temporary.open("wb") as out:
        for block in generation.blocks():
            if block.day == day:
                data = (dest / PARTS_DIR / block.name).read_bytes()
                digest.update(data)
                out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, target)
    return {"name": target.name, "bytes": target.stat().st_size, "sha256": digest.hexdigest()}


def prepare(generation: Generation, dest: Path, overwrite: bool) -> bool:
    """Make `dest` ready for this generation.

    Returns:
        True where the same generation is complete there already and nothing is left to do.

    Raises:
        UserError: other settings' files, or files of unknown origin, are there and `overwrite` is not set.
    """
    settings = dest / SETTINGS_FILE
    if not overwrite and settings.exists() and _read_settings(settings) == generation.settings():
        return is_complete(generation, dest)
    others = sorted(path.name for path in dest.glob("day_*")) if dest.exists() else []
    if (others or settings.exists()) and not overwrite:
        raise UserError(
            f"{dest} holds another generation: {_difference(settings, generation)}",
            "give an empty --dest, the same settings, or --overwrite true",
        )
    _clear(dest)
    dest.mkdir(parents=True, exist_ok=True)
    replace_file(settings, json.dumps(generation.settings(), indent=2).encode())
    return False


def is_complete(generation: Generation, dest: Path) -> bool:
    """Whether truth.json and every day's file are there, each of the recorded size."""
    truth = dest / TRUTH_FILE
    if not truth.exists():
        return False
    files = json.loads(truth.read_bytes())["files"]
    sizes = {file["name"]: file["bytes"] for file in files}
    return len(files) == generation.days and all(
        (dest / name).is_file() and (dest / name).stat().st_size == size for name, size in sizes.items()
    )


def _read_settings(settings: Path) -> dict[str, object]:
    try:
        found = json.loads(settings.read_bytes())
    except ValueError as error:
        raise UserError(f"{settings} is not JSON: {error}", "give an empty --dest") from error
    return found if isinstance(found, dict) else {}


def _difference(settings: Path, generation: Generation) -> str:
    if not settings.exists():
        return f"day files without {settings.name}"
    there, here = _read_settings(settings), generation.settings()
    changed = [name for name, value in here.items() if there.get(name) != value]
    return ", ".join(f"{name} {there.get(name)!r} there, {here[name]!r} asked for" for name in changed)


def _clear(dest: Path) -> None:
    """Remove what an earlier generation wrote, and nothing else."""
    if not dest.exists():
        return
    shutil.rmtree(dest / PARTS_DIR, ignore_errors=True)
    for name in (TRUTH_FILE, SETTINGS_FILE):
        (dest / name).unlink(missing_ok=True)
    for path in dest.glob("day_*"):
        if path.name.removeprefix("day_").split(".")[0].isdigit():
            path.unlink()
