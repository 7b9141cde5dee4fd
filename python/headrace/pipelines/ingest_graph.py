"""Edge lists, triples, node features and labels into bronze, every line and row accounted for in `meta/ledger`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.catalog.ledger import Ledger
from headrace.errors import UserError
from headrace.features.graph_source import check_name
from headrace.ingest.days import find_files
from headrace.ingest.graph_files import TABLES, GraphFiles
from headrace.ingest.graph_plan import FORMATS, KINDS, Reading, ogb_files
from headrace.pipelines.ingest_files import FilesConfig, forget_command, ingest
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CHOICES = {
    "kind": KINDS,
    "format": FORMATS,
    "header": ("auto", "yes", "no"),
    "order": ("hrt", "htr"),
    "ids": ("auto", "numbers", "names"),
    "split": ("auto", "all", "train", "validation", "test"),
}
_COLUMNS = ("src", "dst", "weight", "relation", "node", "features", "label", "split", "year")


@dataclass(kw_only=True)
class Config(FilesConfig):
    """Read a graph's files into the lake, each once.

    Args:
        graph: name of the graph.
        kind: edges, features or labels; auto: by the file's name.
        format: snap (comments with #, blanks or tabs), csv, triples (head, relation, tail), libsvm (node TAB
            index:value ...), tsv (node TAB class TAB split), parquet, npy, or ogb (a folder of OGB's arrays); auto: by
            name and first line.
        source_type: node type of the sources.
        relation: what the edges say, where lines do not have it.
        target_type: node type of the targets.
        node_type: node type of features and labels; folders named A___RELATION___B tell by themselves.
        types: folder names that are node types (MAG240M: paper,author,institution).
        split: split of edges: all, train, validation, test; auto: by the file's name, else all.
        columns: columns by name or number from 0, as src=from,dst=to,weight=w or relation=2.
        delimiter: of CSV; default: a comma.
        header: is the first line a header: auto, yes or no.
        order: of a triple's columns: hrt (head, relation, tail) or htr.
        ids: nodes are numbers or names; auto: names only in triples whose first line is not all numbers.
        index_base: the first feature's index in libsvm lines: 1 or 0.
    """

    graph: str = ""
    kind: str = "auto"
    format: str = "auto"
    source_type: str = "node"
    relation: str = "edge"
    target_type: str = "node"
    node_type: str = "node"
    types: str = ""
    split: str = "auto"
    columns: dict[str, str] | str = ""
    delimiter: str = ""
    header: str = "auto"
    order: str = "hrt"
    ids: str = "auto"
    index_base: int = 1


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no input file.
    """
    _reading(cfg)
    cfg.check_sizes()
    _files(cfg)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Ingest files table by table; see `ingest_files`.

    Raises:
        UserError: a setting or a file is not usable, or a file belongs to another graph already.
    """
    early(cfg)
    reading = _reading(cfg)
    groups: dict[str, dict[str, bool]] = {}
    files, others = _files(cfg)
    if others:
        report.say(f"left out, as no part of a graph that is known: {', '.join(map(os.path.basename, others))}")
    for path in files:
        table, binary = reading.table_of(path)
        groups.setdefault(table, {})[path] = binary
    totals: dict[str, Any] = {}
    for table in sorted(groups, key=TABLES.index):
        paths = groups[table]
        _refuse_other_graph(spark, cfg, table, paths)
        arrays = [path for path, binary in paths.items() if binary]
        source = GraphFiles(table, reading.plan, binary=arrays, range_bytes=cfg.range_bytes)
        settings = cfg.settings(f"headrace quarantine --source {table} says why")
        ingest(spark, settings, source, dict.fromkeys(paths), report)
        _add(totals, report.results)
    report.results |= totals | {"graph": cfg.graph}
    return report


def _files(cfg: Config) -> tuple[list[str], list[str]]:
    """What is read, and what lies beside it but is no part of a graph (a truth, a description)."""
    if cfg.format != "ogb":
        found = find_files(cfg.source)
        files = [path for path in found if not path.endswith(".json")]
        if not files:
            raise UserError(
                f"--source {cfg.source} holds JSON only, which is no format of graphs", "name the edge lists"
            )
        return files, [path for path in found if path.endswith(".json")]
    folders = [part.strip().removeprefix("file://") for part in cfg.source.split(",") if part.strip()]
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"--format ogb: {folder} is no folder", "name the folder that holds edge_index.npy")
    pairs = [ogb_files(folder) for folder in folders]
    taken, others = (sorted({path for pair in pairs for path in pair[number]}) for number in (0, 1))
    return taken, others


def _reading(cfg: Config) -> Reading:
    for name, allowed in CHOICES.items():
        if getattr(cfg, name) not in allowed:
            raise UserError(f"--{name} {getattr(cfg, name)!r} is not one of {', '.join(allowed)}")
    check_name(cfg.graph)
    names = {
        name: getattr(cfg, name) for name in ("source_type", "relation", "target_type", "node_type", "types", "split")
    }
    if len(cfg.delimiter) > 1 or not cfg.delimiter.isascii():
        raise UserError(f"--delimiter {cfg.delimiter!r} is not one ASCII character", "one character, such as ';'")
    return Reading(
        graph=cfg.graph,
        kind=cfg.kind,
        format=cfg.format,
        names=names,
        columns=by_column(cfg.columns),
        delimiter=cfg.delimiter,
        header=cfg.header,
        order=cfg.order,
        ids=cfg.ids,
        index_base=cfg.index_base,
        max_line_bytes=cfg.max_line_bytes,
        raw_bytes=cfg.raw_bytes,
    )


def by_column(value: Mapping[str, str] | str) -> dict[str, str]:
    """Read `src=from,dst=to`.

    Raises:
        UserError: not of that form.
    """
    parts = [part.partition("=") for part in value.split(",") if part] if isinstance(value, str) else []
    found = {name.strip(): column.strip() for name, _, column in parts}
    found |= {} if isinstance(value, str) else {name: str(column) for name, column in value.items()}
    for name, column in found.items():
        if name not in _COLUMNS or not column:
            raise UserError(
                f"--columns: {name}={column} is not known", f"NAME=column, NAME one of {', '.join(_COLUMNS)}"
            )
    return found


def _refuse_other_graph(spark: SparkSession, cfg: Config, table: str, paths: Iterable[str]) -> None:
    """A file is known by its path: under another graph's name it would be passed over without a word."""
    known = Ledger(spark, cfg.lake, table).state().files
    for path in paths:
        other = known[path].detail["constants"]["graph"] if path in known else cfg.graph
        if other != cfg.graph:
            raise UserError(
                f"{path} was ingested as part of graph {other}",
                f"--graph {other}; a copy of the file; or, to move it, {forget_command(path, cfg.lake)} first",
            )


def _add(totals: dict[str, Any], results: Mapping[str, Any]) -> None:
    for name, value in results.items():
        if isinstance(value, int):
            totals[name] = totals.get(name, 0) + value
