"""Which of a graph's tables a file belongs to, and how its lines or rows are read: from options, names, first lines.

Names that tell: OGB's and MAG240M's layout (`edge_index.npy`, `author___writes___paper/edge_index.npy`,
`paper/node_feat.npy`, `node_label.npy`, `node_year.npy`, `split/.../train.npy`), WikiKG90Mv2's (`train_hrt.npy`,
`entity_feat.npy`), and train, valid, test in a name.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from headrace.errors import UserError
from headrace.ingest.edges import BLANKS, EdgeFormat, fields_of
from headrace.ingest.graph_arrays import RowFormat, triple_columns
from headrace.ingest.graph_files import FilePlan
from headrace.ingest.named_lines import SPLITS, NamedFormat
from headrace.ingest.npy import open_array
from headrace.ingest.textfiles import FileScan

KINDS = ("auto", "edges", "features", "labels")
FORMATS = ("auto", "snap", "csv", "triples", "libsvm", "tsv", "parquet", "npy", "ogb")
BINARY = ("parquet", "npy", "ogb")
_WORD = re.compile(r"[a-z]+")
_TYPED = re.compile(r"([A-Za-z0-9_.-]+?)___([A-Za-z0-9_.-]+?)___([A-Za-z0-9_.-]+)")
_PLAIN_FOLDERS = ("processed", "raw", "split")
_ARRAYS = {"node_feat": "features", "node_label": "labels", "node_year": "labels", "edge_index": "edges"}
_ARRAYS |= {"entity_feat": "features"}
_TRIPLES = re.compile(r"(?:.*_)?hrt")
_QUESTIONS = re.compile(r"(?:train|val|test)[a-z-]*_(?:hr|t)(?:_.*)?")
_NUMBER = re.compile(rb"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?|nan|inf", re.IGNORECASE)
_HEAD_BYTES = 1 << 20
_COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "edges": {"src": ("src", "source", "from", "head"), "dst": ("dst", "target", "to", "tail")},
    "features": {"node": ("id", "node"), "features": ("features", "feat", "x")},
    "labels": {"node": ("id", "node")},
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "edges": ("weight", "relation"),
    "features": (),
    "labels": ("label", "split", "year"),
}


@dataclass(frozen=True)
class Reading:
    """How files are to be read, as the user has it.

    Args:
        graph: the graph's name.
        kind: one of KINDS.
        format: one of FORMATS.
        names: source_type, relation, target_type, node_type, split (auto: by the file's name).
        columns: what a row tells -> column's name or number.
        delimiter: of CSV; empty: a comma.
        header: auto, yes or no.
        order: of triples: hrt or htr.
        ids: auto, numbers or names.
        index_base: the first feature's index.
        max_line_bytes: longer lines are refused.
        raw_bytes: how much of a refused line is kept.
    """

    graph: str
    kind: str = "auto"
    format: str = "auto"
    names: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ""
    header: str = "auto"
    order: str = "hrt"
    ids: str = "auto"
    index_base: int = 1
    max_line_bytes: int = 1 << 20
    raw_bytes: int = 1 << 16

    def table_of(self, path: str) -> tuple[str, bool]:
        """The table a file goes to (without layer), and whether it is an array or Parquet.

        Raises:
            UserError: its name and the options do not tell.
        """
        suffix = Path(path).suffix
        binary = self.format in BINARY or (self.format == "auto" and suffix in (".npy", ".parquet"))
        kind = self.kind if self.kind != "auto" else self._kind_of(path, binary)
        if kind == "edges" and not binary:
            return ("triples" if self._has_names(path) else "edges"), False
        return {"edges": "edges", "features": "node_features", "labels": "node_labels"}[kind], binary

    def _kind_of(self, path: str, binary: bool) -> str:
        if self.format in ("snap", "triples"):
            return "edges"
        if self.format in ("libsvm", "tsv"):
            return {"libsvm": "features", "tsv": "labels"}[self.format]
        name = Path(path).name
        if binary and Path(path).suffix == ".npy":
            stem = Path(path).stem
            if _TRIPLES.fullmatch(stem):
                return "edges"
            if stem not in _ARRAYS and _QUESTIONS.fullmatch(stem):
                raise UserError(
                    f"{path}: questions (head, relation) or their answers, not triples",
                    "lay them side by side: np.save('val_hrt.npy', np.column_stack([val_hr, val_t]))",
                )
            if stem in _ARRAYS or _split_of(name):
                return _ARRAYS.get(stem, "labels")
            raise UserError(f"{path}: is it edges, features or labels?", "--kind edges, features or labels")
        for word, kind in (("label", "labels"), ("feature", "features"), ("feat", "features")):
            if word in name.lower():
                return kind
        return "edges"

    def _has_names(self, path: str) -> bool:
        """Are the triples of a file by name? By ids only if all cells of the first line are plain numbers."""
        if self.format == "auto":
            lines = _head(path)[_comments(path) :][:20]
            rows = [line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r").split(b"\t") for line in lines]
            # A header looks like a triple by name, and so does a number with an exponent: one line does not tell.
            triples = bool(rows) and all(len(cells) == 3 and not _NUMBER.fullmatch(cells[1].strip()) for cells in rows)
            return triples and "src" not in self.columns and self.ids != "numbers"
        if self.format != "triples" or self.ids != "auto":
            return self.format == "triples" and self.ids == "names"
        cells = _first_line(path, 0).rstrip(b"\r").split(b"\t")
        return not all(cell.isdigit() and (cell == b"0" or cell[:1] != b"0") for cell in cells)

    def plan(self, scan: FileScan) -> FilePlan:
        """How a scanned file is read.

        Raises:
            UserError: a column that is not there.
        """
        table, binary = self.table_of(scan.path)
        constants = self._constants(scan.path, table)
        if binary:
            made = self._rows(scan, table)
            if "relation" in dict(made.columns):
                constants.pop("relation")
            return FilePlan(made, constants)
        if table == "edges":
            return self._edges(scan, constants)
        kind = table.removeprefix("node_")
        limits = (self.max_line_bytes, self.raw_bytes)
        named = self.ids == "names"
        delimiter = self.delimiter or "\t"
        header = self._named_header(scan, delimiter) if kind != "triples" else _comments(scan.path)
        lines = NamedFormat(kind, delimiter, self.order, named, self.index_base, *limits)
        if kind == "triples":
            constants.pop("relation")
        return FilePlan(lines, constants, header)

    def _constants(self, path: str, table: str) -> dict[str, str]:
        """What all rows of a file are called."""
        names = {"source_type": "node", "relation": "edge", "target_type": "node", "node_type": "node", "split": "auto"}
        names |= {key: value for key, value in self.names.items() if value}
        folder = Path(path).parent.name
        if typed := _TYPED.fullmatch(folder):
            names |= dict(zip(("source_type", "relation", "target_type"), typed.groups(), strict=True))
        elif Path(path).stem in _ARRAYS and folder in self.names.get("types", "").split(","):
            names["node_type"] = folder
        if table in ("node_features", "node_labels"):
            return {"graph": self.graph, "node_type": names["node_type"]}
        split = names["split"] if names["split"] != "auto" else _split_of(Path(path).name) or "all"
        kept = ("source_type", "relation", "target_type")
        return {"graph": self.graph} | {name: names[name] for name in kept} | {"split": split}

    def _rows(self, scan: FileScan, table: str) -> RowFormat:
        kind = table.removeprefix("node_")
        if scan.head == b"PAR1":
            return RowFormat(kind, self._parquet_columns(scan.path, kind), self.ids == "names")
        stem = Path(scan.path).stem
        if kind == "edges":
            columns = triple_columns(open_array(scan.path), self.order)
            if not columns and _TRIPLES.fullmatch(stem):
                raise UserError(
                    f"{scan.path} is no array [n, 3] of triples (two would be [2, 3])", "--kind or a new name"
                )
            return RowFormat(kind, columns)
        if kind != "labels":
            return RowFormat(kind)
        what = {"node_label": "label", "node_year": "year"}.get(stem) or _split_of(stem) or "label"
        return RowFormat(kind, ((what, ""),))

    def _parquet_columns(self, path: str, kind: str) -> tuple[tuple[str, str], ...]:
        have = pq.read_schema(path).names
        found = []
        for name, guesses in _COLUMNS[kind].items():
            found.append((name, _pick(path, have, self.columns.get(name), guesses, name)))
        for name in _OPTIONAL[kind]:
            if name in self.columns or (kind == "labels" and name in have):
                found.append((name, _pick(path, have, self.columns.get(name), (name,), name)))
        return tuple(found)

    def _edges(self, scan: FileScan, constants: dict[str, str]) -> FilePlan:
        comments = _comments(scan.path)
        is_csv = self.format == "csv" or (self.format == "auto" and b"," in _first_line(scan.path, comments))
        delimiter = self.delimiter or ("," if is_csv else "\t" if self.format == "triples" else BLANKS)
        first = fields_of(_first_line(scan.path, comments).rstrip(b"\r"), delimiter)
        named = [value for value in self.columns.values() if not value.isdecimal()]
        is_header = self.header == "yes" or (self.header == "auto" and (bool(named) or _is_names(first)))
        data = fields_of(_first_line(scan.path, comments + 1).rstrip(b"\r"), delimiter) if is_header else first
        names = [cell.decode("utf-8", "replace").strip() for cell in first] if is_header else []
        defaults = {"src": "0", "dst": "1"}
        if self.format == "triples":
            defaults = (
                {"src": "0", "relation": "1", "dst": "2"}
                if self.order == "hrt"
                else {"src": "0", "dst": "1", "relation": "2"}
            )
        places = {k: _place(scan.path, names, v) for k, v in (defaults | dict(self.columns)).items()}
        fields = max(len(data), *(place + 1 for place in places.values()))
        made = EdgeFormat(
            fields,
            delimiter,
            places["src"],
            places["dst"],
            places.get("weight"),
            places.get("relation"),
            self.max_line_bytes,
            self.raw_bytes,
        )
        if made.relation is not None:
            constants.pop("relation")
        return FilePlan(made, constants, comments + int(is_header))

    def _named_header(self, scan: FileScan, delimiter: str) -> int:
        comments = _comments(scan.path)
        first = fields_of(_first_line(scan.path, comments).rstrip(b"\r"), delimiter)
        is_names = self.header == "yes" or (self.header == "auto" and self.ids != "names" and _is_names(first))
        return comments + int(is_names)


def ogb_files(folder: str) -> tuple[list[str], list[str]]:
    """The arrays of OGB's layout under a folder, and other arrays that lie there.

    Raises:
        UserError: there are none.
    """
    found: list[str] = []
    others: list[str] = []
    for root, _, names in os.walk(folder):
        for name in names:
            stem, suffix = os.path.splitext(name)
            in_split = "split" in Path(root).relative_to(folder).parts and _split_of(name) is not None
            if suffix == ".npy":
                known = stem in _ARRAYS or _TRIPLES.fullmatch(stem) or in_split
                (found if known else others).append(os.path.abspath(os.path.join(root, name)))
    if not found:
        raise UserError(f"{folder} holds none of OGB's arrays", "edge_index.npy, node_feat.npy, node_label.npy, split/")
    return sorted(found), sorted(others)


def _split_of(name: str) -> str | None:
    """train, validation or test, if a file's name says so."""
    found = {SPLITS[word] for word in _WORD.findall(name.lower()) if word not in ("none",) and SPLITS.get(word)}
    return found.pop() if len(found) == 1 else None


def _comments(path: str) -> int:
    """How many lines at the beginning of a file are comments, of its first megabyte."""
    count = 0
    for line in _head(path):
        if line.lstrip(b"\xef\xbb\xbf \t")[:1] not in (b"#", b"%"):
            break
        count += 1
    return count


def _first_line(path: str, skip: int) -> bytes:
    lines = _head(path)
    return lines[skip].removeprefix(b"\xef\xbb\xbf") if skip < len(lines) else b""


def _head(path: str) -> list[bytes]:
    """The lines that begin in the first megabyte (the last may be cut)."""
    with open(path, "rb") as file:
        magic = file.read(2)
    try:
        with gzip.open(path, "rb") if magic == b"\x1f\x8b" else open(path, "rb") as stream:
            data = stream.read(_HEAD_BYTES)
    except (OSError, EOFError):
        return []  # the scan says what is wrong with it
    return data.removesuffix(b"\n").split(b"\n") if data else []


def _is_names(cells: Sequence[bytes]) -> bool:
    """A line of names: no cell is a number, and each looks like a column's name."""
    return bool(cells) and all(re.fullmatch(rb"[A-Za-z_][\w .:-]*", cell.strip()) for cell in cells)


def _place(path: str, names: Sequence[str], column: str) -> int:
    if column in names:
        return names.index(column)
    if column.isdecimal():
        return int(column)
    have = ", ".join(names[:20]) or "no names"
    raise UserError(f"{path} has no column {column!r}", f"its first line holds: {have}; columns may be given by number")


def _pick(path: str, have: Sequence[str], wanted: str | None, guesses: Sequence[str], name: str) -> str:
    if wanted is not None and wanted.isdecimal() and wanted not in have and int(wanted) < len(have):
        return have[int(wanted)]
    for guess in [wanted] if wanted is not None else guesses:
        if guess in have:
            return str(guess)
    asked = wanted or " or ".join(guesses)
    raise UserError(f"{path} has no column {asked!r}", f"--columns {name}=NAME; it has {', '.join(have[:20])}")
