"""Lines of graphs that are not edges by id: triples by name, sparse feature rows, labels; line by line.

    triples   head TAB relation TAB tail
    features  node TAB index:value index:value ...           indices ascending, from `base`
    labels    node TAB class [TAB split]                      class or split may be empty

Nodes are ids (`[0-9]{1,19}` below 2^63) or, with `named`, any text without a tab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.ingest.edges import fields_of, parse_id
from headrace.ingest.lines import InputFile, parse_lines
from headrace.ingest.textfiles import BOM, Block, Reject, not_text, too_long

SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "none": None,
    "": None,
}
_MAX_NAME_BYTES = 1000
_MAX_INDEX = (1 << 31) - 2
_NODE = [("node", pa.int64()), ("name", pa.string())]


@dataclass(frozen=True)
class NamedFormat:
    """What a line must be.

    Args:
        kind: triples, features or labels.
        delimiter: one character, or "blanks".
        order: of a triple's columns: hrt or htr.
        named: nodes of features and labels have names rather than ids.
        base: the first feature's index, 1 or 0.
        max_line_bytes: longer lines are refused.
        raw_bytes: how much of a refused line is kept.
    """

    kind: str
    delimiter: str = "\t"
    order: str = "hrt"
    named: bool = False
    base: int = 1
    max_line_bytes: int = 1 << 20
    raw_bytes: int = 1 << 16

    @property
    def schema(self) -> pa.Schema:
        """key and the columns of the kind."""
        columns = {
            "triples": [("head", pa.string()), ("relation", pa.string()), ("tail", pa.string())],
            "features": [*_NODE, ("dim", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.binary())],
            "labels": [*_NODE, ("label", pa.int64()), ("split", pa.string())],
        }
        return pa.schema([("key", pa.int64()), *columns[self.kind]])

    def detail(self) -> dict[str, Any]:
        """This format as JSON values."""
        return {"format": dataclasses.asdict(self)}

    def parse(self, file: InputFile, block: Block) -> tuple[pa.RecordBatch, Sequence[Reject]]:
        """A block's rows, and the lines that are none."""
        return parse_lines(self, parse_line, file, block)


def parse_line(raw: bytes, fmt: NamedFormat, first: bool = False) -> tuple[Any, ...] | str:
    """One line without its newline: the values of the kind's columns, or the reason why it is refused."""
    if len(raw) > fmt.max_line_bytes:
        return too_long(fmt.max_line_bytes)
    line = raw.removesuffix(b"\r")
    line = line.removeprefix(BOM) if first else line
    if reason := not_text(line):
        return reason
    cells = fields_of(line, fmt.delimiter)
    if fmt.kind == "triples":
        return _triple(cells, fmt)
    node = _node(cells[0], fmt.named)
    if isinstance(node, str):
        return node
    found = _features(cells, fmt) if fmt.kind == "features" else _label(cells)
    return found if isinstance(found, str) else (*node, *found)


def _triple(cells: list[bytes], fmt: NamedFormat) -> tuple[Any, ...] | str:
    if len(cells) != 3:
        return f"{len(cells)} columns instead of 3"
    head, second, third = (cell.strip(b" ") for cell in cells)
    relation, tail = (second, third) if fmt.order == "hrt" else (third, second)
    for name, cell in (("head", head), ("relation", relation), ("tail", tail)):
        if reason := _not_a_name(cell, name):
            return reason
    return head.decode(), relation.decode(), tail.decode()


def _not_a_name(cell: bytes, name: str) -> str:
    if not cell:
        return f"{name} is empty"
    return f"{name} longer than {_MAX_NAME_BYTES} bytes" if len(cell) > _MAX_NAME_BYTES else ""


def _node(cell: bytes, named: bool) -> tuple[int | None, str | None] | str:
    if named:
        return _not_a_name(cell, "name") or (None, cell.decode())
    number = parse_id(cell, "node")
    return number if isinstance(number, str) else (number, None)


def _features(cells: list[bytes], fmt: NamedFormat) -> tuple[Any, ...] | str:
    """dim, indices from 0, values as float32 bytes."""
    pairs = [pair for cell in cells[1:] for pair in cell.split()]
    indices, values = [], []
    last = -1
    for pair in pairs:
        place, colon, text = pair.partition(b":")
        if not colon or not place.isdigit() or len(place) > 10:
            return "a feature is not index:value"
        index = int(place) - fmt.base
        if not 0 <= index <= _MAX_INDEX:
            return "a feature's index is out of range"
        if index <= last:
            return "indices do not ascend"
        last = index
        indices.append(index)
        values.append(_number(text))
    if any(value is None for value in values):
        return "a feature's value is not a finite number"
    return last + 1, indices, np.array(values, "<f4").tobytes()


def _number(text: bytes) -> float | None:
    """A finite decimal number that float32 holds."""
    if not text or text.strip() != text or b"_" in text:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= float(np.finfo(np.float32).max) else None


def _label(cells: list[bytes]) -> tuple[Any, ...] | str:
    if len(cells) not in (2, 3):
        return f"{len(cells)} columns instead of 2 or 3"
    split = SPLITS.get(cells[2].decode().strip().lower(), "unknown") if len(cells) == 3 else None
    if split == "unknown":
        return "split is none of train, validation, test"
    text = cells[1].strip()
    if not text:
        return None, split
    label = parse_id(text, "label")
    return label if isinstance(label, str) else (label, split)
