"""Files of blocks against plain lists: every array where it was put, whatever attempts and parts there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from hypothesis import given
from hypothesis import strategies as st

from headrace.features.graph_exchange import BlockWriter, Exchange, Written, written_batch

BLOCKS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-2, 2), st.integers(0, 5)), max_size=12), min_size=1, max_size=4
)


def exchange(written: list[Written]) -> Exchange:
    import pyarrow as pa

    return Exchange.of(pa.Table.from_batches([written_batch(one) for one in written]))


def arrays(type_: int, number: int, length: int) -> tuple[Any, ...]:
    """Of type 0 edges without weights, of 1 and 2 with weights, of others ids alone."""
    ids = np.arange(length) + 100 * number
    return (ids, -ids, ids / 4, ids * 3) if type_ > 0 else (ids, -ids) if type_ == 0 else (ids,)


@given(BLOCKS)
def test_a_part_gets_its_blocks_in_order(tmp_path_factory: pytest.TempPathFactory, tasks: Any) -> None:
    folder = str(tmp_path_factory.mktemp("step"))
    written, expected, number = [], {}, 0
    for blocks in tasks:
        out = BlockWriter(folder)
        for part, type_, length in blocks:
            number += 1
            out.add(part, type_, arrays(type_, number, length))
            expected.setdefault((part, type_), []).append((out._path, arrays(type_, number, length)))
        written.append(out.close())
    files = exchange(written)
    for part in range(-1, 11):
        found = files.read(part)
        assert set(found) == {type_ for where, type_ in expected if where == part}
        for type_, columns in found.items():
            mine = [block for _, block in sorted(expected[part, type_], key=lambda pair: pair[0])]
            for place, column in enumerate(columns):
                if place >= len(mine[0]):
                    assert column is None
                else:
                    assert column.tolist() == np.concatenate([block[place] for block in mine]).tolist()
        assert set(files.read(part, (0, 1))) == set(found) & {0, 1}


def test_what_a_lost_attempt_wrote_is_never_read(tmp_path: Path) -> None:
    attempts = [BlockWriter(str(tmp_path / "step")) for _ in range(3)]
    for number, out in enumerate(attempts):
        out.add(7, 0, (np.full(2, number), np.full(2, number)))
    attempts[0].close()  # ended, but its result was lost; the last one still writes
    found = exchange([attempts[1].close()]).read(7)
    assert found[0][0].tolist() == [1, 1]
    assert len(list((tmp_path / "step").iterdir())) == 3


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    out = BlockWriter(str(tmp_path / "step"))
    out.add(0, 0, (np.arange(1000), np.arange(1000)))
    written = out.close()
    Path(written.path).write_bytes(Path(written.path).read_bytes()[: written.starts - 4])
    with pytest.raises(OSError, match="ends early"):
        exchange([written]).read(0)


def test_a_folder_that_does_not_lie_on_this_machine() -> None:
    out = BlockWriter("memory://step")
    out.add(3, 1, (np.arange(5), np.arange(5), np.arange(5) / 2, np.arange(5)))
    assert [column.tolist() for column in exchange([out.close()]).read(3)[1]] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [0, 0.5, 1, 1.5, 2],
        [0, 1, 2, 3, 4],
    ]


class _Bucket(MemoryFileSystem):
    """Files that are read by ranges over a network, as fsspec reads s3."""

    protocol = "bucket"
    cachable = False
    fetched = 0

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **settings)
        return _Remote(self, path, mode, cache_type=settings.get("cache_type", "readahead"))


class _Remote(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        found: bytes = self.fs.cat_file(self.path, start, end)
        _Bucket.fetched += len(found)
        return found


def test_a_part_fetches_its_own_bytes_and_no_others() -> None:
    """fsspec reads megabytes ahead: so every part would have fetched nearly all of every file."""
    fsspec.register_implementation("bucket", _Bucket, clobber=True)
    out, parts, length = BlockWriter("bucket://step"), 20, 5_000
    for part in range(parts):
        out.add(part, 0, (np.full(length, part), np.arange(length)))
    files = exchange([out.close()])
    for part in range(parts):
        found = files.read(part)[0]
        assert found[0].tolist() == [part] * length and found[1].tolist() == list(range(length))
    assert 16 * parts * length < _Bucket.fetched < 1.01 * 16 * parts * length
