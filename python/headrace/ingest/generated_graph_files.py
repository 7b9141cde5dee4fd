"""A generated graph as files: SNAP text, Parquet, or OGB's numpy arrays, and `truth.json` beside them.

    snap     edges-00000.txt[.gz] (comments, then source TAB target), labels-00000.tsv, features-00000.tsv (libsvm)
    parquet  edges-00000.parquet (src, dst), nodes-00000.parquet (id, label, split, features)
    npy      edge_index.npy [2, E], node_feat.npy [N, D], node_label.npy [N], split/{train,valid,test}.npy

Work is cut into units of so many edges or nodes, the same whatever the number of tasks; a unit is a file, or a range of
an array file that was laid out before. A unit's record (bytes, digest, counts) is written when it is complete, so a
killed run goes on with the units it lacks. A process holds one block of `BLOCK` edges or nodes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.errors import UserError
from headrace.ingest.generated_graph import FORMAT_VERSION, FORMATS, SPLITS, GraphModel
from headrace.ingest.generated_graph_folder import OGB_SPLITS, RECORDS_DIR, replace_file

BLOCK = 1 << 17
DTYPES = ("float32", "float16")
BAD_KINDS = ("one_column", "bad_id", "id_overflow")
"""Kinds of planted bad lines of SNAP text; bad line k is of kind k modulo their number."""
_BAD_LINES = (b"17\n", b"12x\t5\n", b"99999999999999999999\t5\n")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the graph is written.

    Args:
        format: one of FORMATS.
        edges_a_file: edges of a file (of a range of the array, with npy).
        nodes_a_file: nodes likewise.
        feature_dtype: float32 or float16, of Parquet and npy.
        gzip: compress SNAP text.
        bad_lines: lines of SNAP text to plant that an ingest must refuse.
    """

    format: str
    edges_a_file: int = 1 << 22
    nodes_a_file: int = 1 << 20
    feature_dtype: str = "float32"
    gzip: bool = False
    bad_lines: int = 0

    def check(self, model: GraphModel) -> None:
        """Raise UserError where the settings make no sense."""
        for name, allowed in (("format", FORMATS), ("feature_dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.edges_a_file < 1 or self.nodes_a_file < 1:
            raise UserError("--edges_a_file or --nodes_a_file is under 1", "leave them out")
        if self.format != "snap" and (self.gzip or self.bad_lines):
            raise UserError(f"--gzip and --bad_lines belong to SNAP text, not to {self.format}", "--format snap")
        if self.format == "npy" and model.sparse_ids:
            raise UserError("--sparse_ids true with --format npy: OGB's ids are row numbers", "--format parquet")
        if not 0 <= self.bad_lines <= model.num_edges:
            raise UserError(f"--bad_lines {self.bad_lines} is not within 0 and the number of edges", "plant fewer")

    def units(self, model: GraphModel) -> list[Unit]:
        """All units in order: edges, then nodes."""
        parts = (("edges", model.num_edges, self.edges_a_file), ("nodes", model.num_nodes, self.nodes_a_file))
        return [
            Unit(kind, number, start, min(start + size, total))
            for kind, total, size in parts
            for number, start in enumerate(range(0, total, size))
        ]


class Unit(NamedTuple):
    """Edges or nodes start..stop-1."""

    kind: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.kind}-{self.number:05d}"

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Cut into blocks of at most BLOCK."""
        for start in range(self.start, self.stop, BLOCK):
            yield start, min(start + BLOCK, self.stop)


@dataclass(frozen=True)
class Writer:
    """Writes the units of one graph into `dest`: picklable, so that any worker can write any unit."""

    model: GraphModel
    layout: Layout
    dest: Path

    def write(self, unit: Unit) -> int:
        """Make a unit unless its record is there; returns the edges or nodes made."""
        record = self.dest / RECORDS_DIR / f"{unit.name}.json"
        if record.exists():
            return 0
        facts = self._edges(unit) if unit.kind == "edges" else self._nodes(unit)
        replace_file(record, json.dumps(facts).encode())  # last: it says that the unit is complete
        return unit.stop - unit.start

    def prepare(self) -> None:
        """Lay out what units write into."""
        (self.dest / RECORDS_DIR).mkdir(parents=True, exist_ok=True)
        if self.layout.format != "npy":
            return
        (self.dest / "split").mkdir(exist_ok=True)
        for name, (shape, dtype) in self._arrays().items():
            path = self.dest / name
            size = len(header := _npy_header(shape, dtype)) + int(np.prod(shape)) * dtype.itemsize
            if not (path.exists() and path.stat().st_size == size):
                with path.open("wb") as file:
                    file.write(header)
                    file.truncate(size)

    def finish(self) -> dict[str, Any]:
        """The figures of all units' records, and what a whole file needs; digests are those of whole files."""
        records = [
            json.loads((self.dest / RECORDS_DIR / f"{unit.name}.json").read_bytes())
            for unit in self.layout.units(self.model)
        ]
        counts = {
            name: sum(record.get(name, 0) for record in records)
            for name in ("self_loops", "within", "bad_lines", *SPLITS)
        }
        files = [file for record in records for file in record["files"]]
        if self.layout.format == "npy":
            self._write_splits()
            files = [_described(self.dest, name) for name in [*self._arrays(), *self._split_files()]]
        return {"files": files, "counts": counts}

    def _edges(self, unit: Unit) -> dict[str, Any]:
        low = np.uint64(self.model.communities - 1)
        loops = within = 0
        for start, stop in unit.blocks():
            source, target = self.model.drawn_edges(start, stop)
            loops += int((source == target).sum())
            within += int((source & low == target & low).sum())
        planted = 0
        if self.layout.format == "snap":
            planted = len(self._bad_places(unit))
            files = [self._write_file(f"edges-{unit.number:05d}.txt", self._edge_text(unit), self.layout.gzip)]
        elif self.layout.format == "parquet":
            files = [self._write_parquet(f"edges-{unit.number:05d}.parquet", map(self._edge_batch, unit.blocks()))]
        else:
            files = []
            for start, stop in unit.blocks():
                for row, ids in enumerate(self.model.edges(start, stop)):
                    self._put("edge_index.npy", row * self.model.num_edges + start, ids)
        return {"files": files, "self_loops": loops, "within": within, "bad_lines": planted}

    def _nodes(self, unit: Unit) -> dict[str, Any]:
        counts = np.zeros(len(SPLITS), np.int64)
        for start, stop in unit.blocks():
            counts += np.bincount(self.model.splits(start, stop), minlength=len(SPLITS))
        if self.layout.format == "snap":
            files = [self._write_file(f"labels-{unit.number:05d}.tsv", self._label_text(unit))]
            if self.model.feature_dim:
                files.append(self._write_file(f"features-{unit.number:05d}.tsv", self._feature_text(unit)))
        elif self.layout.format == "parquet":
            files = [self._write_parquet(f"nodes-{unit.number:05d}.parquet", map(self._node_batch, _small(unit)))]
        else:
            files = []
            for start, stop in _small(unit):
                self._put("node_label.npy", start, self.model.labels(start, stop))
                if self.model.feature_dim:
                    features = self.model.features(start, stop).astype(self.layout.feature_dtype)
                    self._put("node_feat.npy", start * self.model.feature_dim, features.reshape(-1))
        return {"files": files, **dict(zip(SPLITS, counts.tolist(), strict=True))}

    def _edge_text(self, unit: Unit) -> Iterator[bytes]:
        if unit.number == 0:
            yield f"# Generated graph\n# Nodes: {self.model.num_nodes} Edges: {self.model.num_edges}\n".encode()
            yield b"# FromNodeId\tToNodeId\n"
        bad = self._bad_places(unit)
        for start, stop in unit.blocks():
            text = _csv(self.model.edges(start, stop))
            here = bad[(bad[:, 0] >= start) & (bad[:, 0] < stop)]
            yield _plant(text, here[:, 0] - start, here[:, 1]) if len(here) else text

    def _bad_places(self, unit: Unit) -> npt.NDArray[np.int64]:
        """[k, 2]: the edge each bad line of the unit follows, ascending, and its kind."""
        lines = np.arange(self.layout.bad_lines, dtype=np.int64)
        if not len(lines):
            return np.empty((0, 2), np.int64)
        after = (lines * self.model.num_edges + self.model.num_edges // 2) // len(lines)
        places = np.stack([after, lines % len(BAD_KINDS)], axis=1)
        return places[(after >= unit.start) & (after < unit.stop)]

    def _label_text(self, unit: Unit) -> Iterator[bytes]:
        for start, stop in unit.blocks():
            split = np.array(SPLITS)[self.model.splits(start, stop)]
            ids = self.model.ids(np.arange(start, stop, dtype=np.uint64))
            yield _csv([ids, self.model.labels(start, stop), split])

    def _feature_text(self, unit: Unit) -> Iterator[bytes]:
        places = [f"{j}:" for j in range(1, self.model.feature_dim + 1)]
        for start, stop in _small(unit):
            ids = self.model.ids(np.arange(start, stop, dtype=np.uint64)).tolist()
            lines = []
            for node, row in zip(ids, self.model.features(start, stop).tolist(), strict=True):
                lines.append(f"{node}\t" + " ".join(f"{j}{x:.9g}" for j, x in zip(places, row, strict=True)))
            yield ("\n".join(lines) + "\n").encode()

    def _edge_batch(self, block: tuple[int, int]) -> Any:
        import pyarrow as pa

        source, target = self.model.edges(*block)
        return pa.RecordBatch.from_arrays([pa.array(source), pa.array(target)], ["src", "dst"])

    def _node_batch(self, block: tuple[int, int]) -> Any:
        import pyarrow as pa

        ids = self.model.ids(np.arange(*block, dtype=np.uint64))
        columns: dict[str, Any] = {"id": pa.array(ids), "label": pa.array(self.model.labels(*block).astype(np.int32))}
        columns["split"] = pa.array(np.array(SPLITS)[self.model.splits(*block)])
        if self.model.feature_dim:
            flat = self.model.features(*block).astype(self.layout.feature_dtype).reshape(-1)
            if self.layout.feature_dtype == "float16":  # Parquet of our pyarrow has no half floats: rounded, kept wide
                flat = flat.astype(np.float32)
            offsets = np.arange(len(ids) + 1, dtype=np.int32) * self.model.feature_dim
            columns["features"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
        return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))

    def _write_parquet(self, name: str, batches: Iterator[Any]) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        temporary = self._temporary(name)
        first = next(batches)
        with pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer:
            for batch in itertools.chain([first], batches):
                writer.write_table(pa.Table.from_batches([batch]))
        os.replace(temporary, self.dest / name)
        return _described(self.dest, name)

    def _write_file(self, name: str, parts: Iterator[bytes], compress: bool = False) -> dict[str, Any]:
        name = f"{name}.gz" if compress else name
        temporary = self._temporary(name)
        with temporary.open("wb") as raw:
            # Without name or time, so that equal text gives equal bytes.
            out: Any = gzip.GzipFile("", "wb", 1, raw, 0) if compress else raw
            for part in parts:
                out.write(part)
            if compress:
                out.close()
        os.replace(temporary, self.dest / name)
        return _described(self.dest, name)

    def _temporary(self, name: str) -> Path:
        return self.dest / RECORDS_DIR / f"{name}.{os.getpid()}.tmp"

    def _put(self, name: str, at: int, values: npt.NDArray[Any]) -> None:
        """Write values at an element of an array file: equal content however often it is done."""
        shape, dtype = self._arrays()[name]
        assert values.dtype == dtype, f"{name} holds {dtype}, not {values.dtype}"
        with (self.dest / name).open("r+b") as file:
            file.seek(len(_npy_header(shape, dtype)) + at * dtype.itemsize)
            file.write(values.tobytes())

    def _arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        integer = np.dtype(np.int64)
        arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
        arrays = {"edge_index.npy": ((2, self.model.num_edges), integer)}
        arrays["node_label.npy"] = ((self.model.num_nodes,), integer)
        if self.model.feature_dim:
            shape = (self.model.num_nodes, self.model.feature_dim)
            arrays["node_feat.npy"] = (shape, np.dtype(self.layout.feature_dtype))
        return arrays

    def _split_files(self) -> list[str]:
        return [f"split/{name}.npy" for name in OGB_SPLITS.values()]

    def _write_splits(self) -> None:
        """Node numbers by split: block by block, appended behind a header that is written when the count is known."""
        for number, name in enumerate(self._split_files()):
            parts = []
            for start in range(0, self.model.num_nodes, BLOCK):
                stop = min(start + BLOCK, self.model.num_nodes)
                parts.append(start + np.flatnonzero(self.model.splits(start, stop) == number))
            out = io.BytesIO()
            np.save(out, np.concatenate(parts).astype(np.int64))
            replace_file(self.dest / name, out.getvalue())


def generate(writer: Writer) -> int:
    """Write every unit in this process, without Spark; returns the edges and nodes made."""
    writer.prepare()
    return sum(writer.write(unit) for unit in writer.layout.units(writer.model))


def settings_of(model: GraphModel, layout: Layout) -> dict[str, object]:
    """As kept in SETTINGS_FILE."""
    return {"format_version": FORMAT_VERSION, **model.settings(), **layout.__dict__}


def _described(dest: Path, name: str) -> dict[str, Any]:
    digest, path = hashlib.sha256(), dest / name
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _csv(columns: Sequence[npt.NDArray[Any]]) -> bytes:
    """Columns side by side as tab separated text, LF, no quotes."""
    import pyarrow as pa
    from pyarrow import csv

    out = io.BytesIO()
    table = pa.Table.from_arrays([pa.array(values) for values in columns], [f"c{i}" for i in range(len(columns))])
    csv.write_csv(table, out, csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none"))
    return out.getvalue()


def _plant(text: bytes, after: npt.NDArray[np.int64], kinds: npt.NDArray[np.int64]) -> bytes:
    lines = text.splitlines(keepends=True)
    for place, kind in zip(after[::-1].tolist(), kinds[::-1].tolist(), strict=True):
        lines.insert(place + 1, _BAD_LINES[kind])
    return b"".join(lines)


def _small(unit: Unit) -> Iterator[tuple[int, int]]:
    """Blocks for rows of features: an eighth, since a row is some hundred numbers."""
    size = BLOCK // 8
    for start in range(unit.start, unit.stop, size):
        yield start, min(start + size, unit.stop)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    out = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, described)
    return out.getvalue()
