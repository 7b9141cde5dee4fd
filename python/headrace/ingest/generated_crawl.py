"""Crawl files of any size in Common Crawl's layout - WARC, WET, WAT, path lists, URL index - and the truth on them.

A file holds `pages_per_file` pages and is made by one task, member by member, renamed into place when complete. Pages
are functions of their number, so the bytes do not depend on partitions or cores, and a run that was killed goes on with
the files it lacks.

    DEST/crawl-data/CRAWL/warc.paths.gz, wet.paths.gz, wat.paths.gz       paths relative to DEST
    DEST/crawl-data/CRAWL/segments/0/{warc,wet,wat}/CRAWL-00000.warc.gz   (.warc.wet.gz, .warc.wat.gz)
    DEST/cc-index/collections/CRAWL/indexes/cdx-00000.gz                  sorted by key within a file
    DEST/truth/CRAWL-00000.parquet, DEST/truth.json                       what is in them
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import UserError
from headrace.ingest import generated_crawl_records as records
from headrace.ingest.commoncrawl_index import Capture, index_line
from headrace.ingest.generated_crawl_pages import Mix, Page, page
from headrace.ingest.generated_crawl_records import BAD_KINDS, BOMB, FORMATS, Member
from headrace.ingest.generated_crawl_words import Draw

FORMAT_VERSION = 1
"""Raised whenever the same settings would give other bytes."""
SETTINGS_FILE = "generation.json"
TRUTH_FILE = "truth.json"
TRUTH_DIR = "truth"
_ENDINGS = {"warc": "warc.gz", "wet": "warc.wet.gz", "wat": "warc.wat.gz"}
_CRAWL = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
TRUTH_SCHEMA = pa.schema(
    [
        ("format", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("type", pa.string()),
        ("record_id", pa.string()),
        ("bad", pa.string()),
        ("page", pa.int64()),
        ("kind", pa.string()),
        ("uri", pa.string()),
        ("language", pa.string()),
        ("original", pa.int64()),
        ("jaccard", pa.float64()),
        ("same_payload", pa.bool_()),
        ("rule", pa.string()),
        ("fate", pa.string()),
        ("emails", pa.int32()),
        ("public_ips", pa.int32()),
        ("text", pa.string()),
    ]
)
"""One row a record; the columns from `page` on are null for warcinfo, and for WARC's requests and metadata."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the bytes depend on.

    Args:
        mix: what pages there are.
        pages: how many.
        pages_per_file: how many a file.
        first_page: number of the first page; a later crawl goes on where an earlier one ended.
        crawl: name of the crawl.
        formats: which of FORMATS.
        bad: share of pages whose main record is damaged, the kinds in turn.
        bomb_bytes: if not 0, bombs that inflate to so much are one of the kinds.
        text: keep the main texts in the truth.
    """

    mix: Mix
    pages: int
    pages_per_file: int
    first_page: int
    crawl: str
    formats: tuple[str, ...]
    bad: float
    bomb_bytes: int
    text: bool

    def check(self) -> None:
        """Raise UserError where the settings make no sense."""
        self.mix.check()
        for name, least in (("pages", 1), ("pages_per_file", 1), ("first_page", 0), ("bomb_bytes", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)} is less than {least}", f"give at least {least}")
        if not self.formats or set(self.formats) - set(FORMATS):
            raise UserError(f"--formats {','.join(self.formats)}", f"give some of {','.join(FORMATS)}")
        if not 0 <= self.bad <= 1:
            raise UserError(f"--bad {self.bad} is not a share", "give a number from 0 to 1")
        if not _CRAWL.fullmatch(self.crawl):
            raise UserError(f"--crawl {self.crawl!r} is no crawl's name", "letters, digits and -, as CC-MAIN-2024-22")

    @property
    def files(self) -> int:
        """Number of files of each format."""
        return -(-self.pages // self.pages_per_file)

    def numbers(self, file: int) -> range:
        """The pages of a file."""
        start = self.first_page + file * self.pages_per_file
        return range(start, min(start + self.pages_per_file, self.first_page + self.pages))

    def name(self, form: str, file: int) -> str:
        """A file's path under the destination."""
        return f"crawl-data/{self.crawl}/segments/0/{form}/{self.crawl}-{file:05d}.{_ENDINGS[form]}"

    def index_name(self, file: int) -> str:
        """The path of a file's index under the destination."""
        return f"cc-index/collections/{self.crawl}/indexes/cdx-{file:05d}.gz"

    def truth_name(self, file: int) -> str:
        """The path of a file's truth under the destination."""
        return f"{TRUTH_DIR}/{self.crawl}-{file:05d}.parquet"

    def settings(self) -> dict[str, Any]:
        """As kept in SETTINGS_FILE."""
        values = {"format_version": FORMAT_VERSION, **asdict(self.mix), **asdict(self)}
        del values["mix"]
        return json.loads(json.dumps(values))


def bad_kind(generation: Generation, number: int) -> str | None:
    """How the page's main record is damaged, if it is."""
    if Draw(generation.mix.seed, number, "bad").unit() >= generation.bad:
        return None
    kinds = (*BAD_KINDS, BOMB) if generation.bomb_bytes else BAD_KINDS
    return kinds[number % len(kinds)]


def write_file(generation: Generation, file: int, dest: Path) -> int:
    """Make one file of each format, its index and its truth, unless they are there.

    Returns:
        Pages made (0 where all was there).
    """
    truth = dest / generation.truth_name(file)
    if truth.exists():
        return 0
    rows: list[dict[str, Any]] = []
    captures: list[Capture] = []
    outputs = {form: _Output(dest, generation.name(form, file)) for form in generation.formats}
    for form, output in outputs.items():
        output.add(records.warcinfo(generation.mix, Path(output.name).name, generation.crawl), form, None, rows)
    for number in generation.numbers(file):
        _write_page(generation, number, outputs, rows, captures)
    for output in outputs.values():
        output.close()
    if "warc" in generation.formats:
        lines = sorted(index_line(capture) for capture in captures)
        _replace(dest / generation.index_name(file), records.gzip_member("".join(lines).encode()))
    _write_truth(truth, sorted(rows, key=lambda row: (row["file"], row["offset"])))
    return len(generation.numbers(file))


def _write_page(
    generation: Generation,
    number: int,
    outputs: dict[str, _Output],
    rows: list[dict[str, Any]],
    captures: list[Capture],
) -> None:
    made, bad = page(generation.mix, number), bad_kind(generation, number)
    name = outputs["warc"].name if "warc" in outputs else ""
    every = records.members(made, generation.mix, name, bad, generation.bomb_bytes)
    for form, output in outputs.items():
        for member in every[form]:
            main = form != "warc" or member.kind == "response"
            offset = output.add(member, form, _truth(generation, made) if main else None, rows)
            if member.kind == "response":
                captures.append(_capture(generation, made, output.name, offset, len(member.data)))


def _capture(generation: Generation, made: Page, name: str, offset: int, length: int) -> Capture:
    answer = records.response(made, generation.mix)
    return Capture(
        uri=made.uri,
        timestamp=records.timestamp(made.number),
        filename=name,
        offset=offset,
        length=length,
        status=200,
        mime=answer.mime,
        digest=records.digest(answer.body).removeprefix("sha1:"),
        languages=records.LANGUAGE_CODES[made.language] if made.kind != "other" else "",
        charset=(answer.charset or "").upper(),
    )


def _truth(generation: Generation, made: Page) -> dict[str, Any]:
    fates = {"page": "kept", "spam": "removed", "other": "no_text"}
    return {
        "page": made.number,
        "kind": made.kind,
        "uri": made.uri,
        "language": made.language,
        "original": made.original,
        "jaccard": made.jaccard,
        "same_payload": made.same_payload,
        "rule": made.rule,
        "fate": fates.get(made.kind, made.kind),
        "emails": made.emails,
        "public_ips": made.public_ips,
        "text": made.text if generation.text else None,
    }


class _Output:
    """A file being written: members appended, renamed at the end."""

    def __init__(self, dest: Path, name: str) -> None:
        self.name = name
        self._path = dest / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self._file: BinaryIO = self._temporary.open("wb")
        self._offset = 0

    def add(self, member: Member, form: str, truth: dict[str, Any] | None, rows: list[dict[str, Any]]) -> int:
        """Append a member and its row of truth; its offset."""
        offset = self._offset
        self._file.write(member.data)
        self._offset += len(member.data)
        row = {"format": form, "file": self.name, "offset": offset, "length": len(member.data), "type": member.kind}
        row |= {"record_id": member.record_id, "bad": member.bad} | (truth or {})
        rows.append(row | ({"fate": "quarantined"} if member.bad else {}))
        return offset

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)


def _write_truth(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Last of a file's parts: its presence says that they are complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(pa.Table.from_pylist(list(rows), TRUTH_SCHEMA), temporary, compression="zstd")
    os.replace(temporary, path)


def finish(generation: Generation, dest: Path) -> dict[str, Any]:
    """Write the path lists and truth.json; its body."""
    for form in generation.formats:
        lines = "".join(f"{generation.name(form, file)}\n" for file in range(generation.files))
        _replace(dest / f"crawl-data/{generation.crawl}/{form}.paths.gz", records.gzip_member(lines.encode()))
    counts: dict[str, Counter[str]] = {}
    for row in truth_rows(generation, dest):
        form = row["format"]
        for name in ("type", "bad", "kind", "language", "rule", "fate"):
            if row[name] is not None:
                counts.setdefault(f"{form}_{name}", Counter())[row[name]] += 1
    sizes = {generation.name(form, n): (dest / generation.name(form, n)).stat().st_size for form, n in _all(generation)}
    body = {
        "settings": generation.settings(),
        "files": sizes,
        "counts": {name: dict(sorted(count.items())) for name, count in sorted(counts.items())},
    }
    _replace(dest / TRUTH_FILE, json.dumps(body, indent=1).encode())
    return body


def size(generation: Generation, dest: Path) -> int:
    """Bytes of all crawl files."""
    return sum((dest / generation.name(form, file)).stat().st_size for form, file in _all(generation))


def truth_rows(generation: Generation, dest: Path) -> Iterator[dict[str, Any]]:
    """The truth of all records, without the texts, a file at a time."""
    columns = [name for name in TRUTH_SCHEMA.names if name != "text"]
    for file in range(generation.files):
        yield from pq.read_table(dest / generation.truth_name(file), columns=columns).to_pylist()


def _all(generation: Generation) -> list[tuple[str, int]]:
    return [(form, file) for form in generation.formats for file in range(generation.files)]


def prepare(generation: Generation, dest: Path, overwrite: bool) -> bool:
    """Make `dest` ready for this generation; True where it is complete there already.

    Raises:
        UserError: another generation, or files of unknown origin, are there and `overwrite` is not set.
    """
    settings = dest / SETTINGS_FILE
    there = json.loads(settings.read_bytes()) if settings.exists() else None
    if there == generation.settings() and not overwrite:
        return _is_complete(generation, dest)
    ours = [dest / name for name in ("crawl-data", "cc-index", TRUTH_DIR, TRUTH_FILE, SETTINGS_FILE)]
    if any(path.exists() for path in ours):
        if not overwrite:
            raise UserError(
                f"{dest} holds another generation: {_difference(there, generation)}",
                "give an empty --dest, the same settings, or --overwrite true",
            )
        for path in ours:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    dest.mkdir(parents=True, exist_ok=True)
    _replace(settings, json.dumps(generation.settings(), indent=1).encode())
    return False


def _is_complete(generation: Generation, dest: Path) -> bool:
    truth = dest / TRUTH_FILE
    if not truth.exists():
        return False
    sizes = json.loads(truth.read_bytes())["files"]
    paths = {name: dest / name for name in sizes}
    return all(path.is_file() and path.stat().st_size == sizes[name] for name, path in paths.items())


def _difference(there: dict[str, Any] | None, generation: Generation) -> str:
    if there is None:
        return f"crawl files without {SETTINGS_FILE}"
    here = generation.settings()
    changed = [name for name, value in here.items() if there.get(name) != value]
    return ", ".join(f"{name} {there.get(name)!r} there, {here[name]!r} asked for" for name in changed)


def _replace(path: Path, data: bytes) -> None:
    """Write beside and rename: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
