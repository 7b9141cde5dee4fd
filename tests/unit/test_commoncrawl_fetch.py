"""Downloads from a server that fails in every way it can, and names that come from outside."""

from __future__ import annotations

import errno
import fcntl
import gzip
import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crawl_server import Server, serving
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.ingest.claim import claim_folder
from headrace.ingest.commoncrawl_fetch import BeyondEndError, Fetcher, FetchError, FetchSettings, Rate
from headrace.ingest.commoncrawl_index import Capture
from headrace.ingest.commoncrawl_paths import (
    NO_CRAWL,
    Origin,
    bounded_lines,
    crawl_of,
    resolve,
    safe_name,
    under,
    web_address,
)
from headrace.ingest.commoncrawl_singles import land_selection, selection_of, selections

DATA = random.Random(1).randbytes(300_000)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "a.warc.gz").write_bytes(DATA)
    (folder / "empty").write_bytes(b"")
    with serving(folder) as server:
        yield server


def fetcher(waits: list[float] | None = None, **settings: Any) -> Fetcher:
    """One that notes waits instead of waiting."""
    noted = waits if waits is not None else []
    options = {"requests_per_second": 0.0, "attempts": 4, "timeout_s": 10.0}
    return Fetcher(FetchSettings(**(options | settings)), sleep=lambda s: noted.append(s) if s else None)


def test_whole_and_empty_files(web: Server, tmp_path: Path) -> None:
    get = fetcher()
    assert get.to_file(f"{web.url}/a.warc.gz", tmp_path / "l/a").read_bytes() == DATA
    assert get.to_file(f"{web.url}/a.warc.gz", tmp_path / "l/a").read_bytes() == DATA
    assert get.to_file(f"{web.url}/empty", tmp_path / "l/e").read_bytes() == b""
    assert sorted(path.name for path in (tmp_path / "l").iterdir()) == ["a", "e"]
    assert [name for name, _ in web.requests] == ["a.warc.gz", "empty"]


def test_a_broken_connection_goes_on_where_it_stopped(web: Server, tmp_path: Path) -> None:
    """Five breaks at two attempts: tries that bring bytes do not count."""
    web.faults["a.warc.gz"] = [f"cut {n}" for n in (50_000, 20_000, 1, 70_000, 0, 30_000)]
    assert fetcher(attempts=2).to_file(f"{web.url}/a.warc.gz", tmp_path / "a").read_bytes() == DATA
    asked = [given for _, given in web.requests]
    assert asked[:3] == [None, "bytes=50000-", "bytes=70000-"]
    assert asked[4:] == ["bytes=140001-", "bytes=140001-", "bytes=170001-"]


def test_a_run_that_ended_is_gone_on_with(web: Server, tmp_path: Path) -> None:
    web.faults["a.warc.gz"] = ["cut 100000", *["503"] * 4]
    with pytest.raises(FetchError, match=r"answered 503 .* \(4 tries in a row\)"):
        fetcher().to_file(f"{web.url}/a.warc.gz", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert fetcher().to_file(f"{web.url}/a.warc.gz", tmp_path / "a").read_bytes() == DATA
    assert web.requests[-1] == ("a.warc.gz", "bytes=100000-")


def test_a_file_that_changed_meanwhile_starts_over(web: Server, tmp_path: Path) -> None:
    web.faults["a.warc.gz"] = ["cut 100000", "404"]
    with pytest.raises(FetchError, match="answered 404"):
        fetcher().to_file(f"{web.url}/a.warc.gz", tmp_path / "a")
    (web.folder / "a.warc.gz").write_bytes(DATA[::-1])
    assert fetcher().to_file(f"{web.url}/a.warc.gz", tmp_path / "a").read_bytes() == DATA[::-1]


def test_waits_grow_and_retry_after_is_honoured(web: Server, tmp_path: Path) -> None:
    web.faults["a.warc.gz"] = ["503", "503", "503", "429 17"]
    waits: list[float] = []
    fetcher(waits, attempts=9, backoff_s=1.0).to_file(f"{web.url}/a.warc.gz", tmp_path / "a")
    assert len(waits) == 4
    for wait, longest in zip(waits[:3], (1, 2, 4), strict=True):
        assert longest / 2 <= wait <= longest
    assert waits[3] == 17
    waits.clear()
    web.faults["a.warc.gz"] = ["503 Fri, 31 Dec 2100 23:59:59 GMT", "503 nonsense", "503 -5"]
    web.faults["a.warc.gz"] += ["503 Fri, 31 Dec 2100 23:59:59 +99999999999999999"]
    fetcher(waits, attempts=9).to_file(f"{web.url}/a.warc.gz", tmp_path / "b")
    assert waits[0] == 600 and len(waits) == 4
    assert max(waits[1:]) <= 8


def test_what_no_try_can_mend_fails_at_once(web: Server, tmp_path: Path) -> None:
    web.faults["a.warc.gz"] = ["403", "gzip", "away"]
    for words in ("answered 403", "encodes", "not of the web"):
        with pytest.raises(FetchError, match=words):
            fetcher().to_file(f"{web.url}/a.warc.gz", tmp_path / "a")
    assert len(web.requests) == 3
    with pytest.raises(FetchError, match="more than --max_file_bytes"):
        fetcher(max_file_bytes=1000).to_file(f"{web.url}/a.warc.gz", tmp_path / "a")
    with pytest.raises(FetchError, match=r"Connection refused.* \(4 tries"):
        fetcher().to_file("http://127.0.0.1:9/a", tmp_path / "a")


def test_a_stated_length_is_believed_only_if_it_fits(web: Server, tmp_path: Path) -> None:
    """No more than stated is read: what is cut off shows as a damaged member. A part that is too long starts over."""
    web.faults["a.warc.gz"] = ["long"]
    assert fetcher().to_file(f"{web.url}/a.warc.gz", tmp_path / "a").read_bytes() == DATA[:-5]
    web.faults["a.warc.gz"] = ["cut 1000", "503", "503", "503", "503"]
    with pytest.raises(FetchError):
        fetcher().to_file(f"{web.url}/a.warc.gz", tmp_path / "b")
    (tmp_path / "b.part").write_bytes(bytes(len(DATA) + 1))
    assert fetcher().to_file(f"{web.url}/a.warc.gz", tmp_path / "b").read_bytes() == DATA


def test_single_ranges(web: Server) -> None:
    url = f"{web.url}/a.warc.gz"
    web.faults["a.warc.gz"] = ["cut 10", "503", ""]
    assert fetcher().bytes_at(url, 1000, 500) == DATA[1000:1500]
    for fault, words in (("plain", "does not serve single ranges"), ("shifted", "does not hold bytes")):
        web.faults["a.warc.gz"] = [fault]
        with pytest.raises(FetchError, match=words) as error:
            fetcher().bytes_at(url, 1000, 500)
        assert not isinstance(error.value, BeyondEndError)
    for offset in (len(DATA) - 5, len(DATA), len(DATA) + 10**12):
        with pytest.raises(BeyondEndError, match="does not hold bytes"):
            fetcher().bytes_at(url, offset, 500)


@pytest.mark.parametrize("remote", [True, False])
def test_records_beyond_their_files_end_are_left_out_of_a_selection(web: Server, tmp_path: Path, remote: bool) -> None:
    """What lands says where each record stands, also when it is found again; a begun batch needs all of its records."""
    offsets = [0, 2000, len(DATA) - 499, len(DATA), 1 << 62, len(DATA) - 500]
    captures = [Capture(f"http://x/{at}", "2024", "a.warc.gz", at, 500) for at in offsets]
    (chosen,) = selections(captures, web.url if remote else str(web.folder))
    path = tmp_path / "landing/file"
    landed = land_selection(chosen, path, fetcher())
    assert path.read_bytes() == DATA[:500] + DATA[2000:2500] + DATA[-500:]
    assert [(place.at, place.offset) for place in landed.places] == [(0, 0), (500, 2000), (1000, len(DATA) - 500)]
    assert landed.name == chosen.name and len(landed.urls) == len(landed.lengths) == 3
    for at, said in zip(offsets[2:5], landed.beyond, strict=True):
        assert said.startswith(f"'http://x/{at}' at {at:,}, 500 bytes, of '")
    assert land_selection(chosen, path, fetcher()) == landed == selection_of(path)

    path.unlink()
    assert land_selection(selection_of(path), path, fetcher(), begun=True) == landed
    path.unlink()
    (web.folder / "a.warc.gz").write_bytes(DATA[:2400])
    with pytest.raises(UserError, match="no longer to be had: 'http://x/"):
        land_selection(selection_of(path), path, fetcher(), begun=True)
    assert selection_of(path) == landed and not path.exists()

    (nothing,) = selections(captures[2:5], web.url if remote else str(web.folder))
    other = tmp_path / "landing/other"
    assert land_selection(nothing, other, fetcher()).places == () and not list(other.parent.glob("other*"))


CLAIMS = """
import sys
from pathlib import Path
from headrace.ingest.claim import claim_folder
from headrace.ingest.commoncrawl_fetch import Fetcher

url, landing = sys.argv[1], Path(sys.argv[2])
with claim_folder(landing, "lands files", print):
    Fetcher().to_file(url, landing / "a")
"""


def test_a_claim_is_waited_for_and_gone_with_its_process(web: Server, tmp_path: Path) -> None:
    """Who is killed while a file arrives leaves what has arrived, and no lock."""
    web.faults["a.warc.gz"] = ["stall 100000"]
    landing, url = tmp_path / "l", f"{web.url}/a.warc.gz"
    rival = subprocess.Popen([sys.executable, "-c", CLAIMS, url, str(landing)])
    said: list[str] = []

    def kill(words: str) -> None:
        said.append(words)
        rival.kill()

    try:
        assert web.stalled.wait(60)
        while not (landing / "a.part").exists() or (landing / "a.part").stat().st_size < 100_000:
            assert rival.poll() is None
        with claim_folder(landing, "lands files", kill) as alone:
            assert alone and rival.wait(60) == -9
            assert fetcher().to_file(url, landing / "a").read_bytes() == DATA
    finally:
        rival.kill()
        rival.wait()
        web.go.set()
    assert said == [f"another ingest lands files (process {rival.pid}): waiting for it"]
    assert [asked for _, asked in web.requests] == [None, "bytes=100000-"]


def test_without_locks_every_run_has_names_of_its_own(
    web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with claim_folder(tmp_path, "lands files", print) as alone:
        assert not alone
    (tmp_path / "a.part").write_bytes(b"another run's")
    (tmp_path / "a.etag").write_bytes(b'"its tag"')
    get = fetcher()
    get.mark = ".mine"
    assert get.to_file(f"{web.url}/a.warc.gz", tmp_path / "a").read_bytes() == DATA
    assert (tmp_path / "a.part").read_bytes() == b"another run's" and (tmp_path / "a.etag").exists()
    assert web.requests == [("a.warc.gz", None)]


def test_throttle_by_a_clock_of_ours(web: Server, tmp_path: Path) -> None:
    now = itertools.count(0, 0)
    rate = Rate(4.0, lambda: next(now))
    assert [rate.wait_s(1) for _ in range(4)] == [0, 0.25, 0.5, 0.75]
    assert Rate(0).wait_s(10**9) == 0
    waits: list[float] = []
    fetcher(waits, bytes_per_second=1e5).to_file(f"{web.url}/a.warc.gz", tmp_path / "a")
    assert sum(waits) > 0


HOSTILE = ["../../etc/passwd", "a/../../b", "/etc/passwd", "a\0b", "..\\..\\x", "", "a//b", "./a", "x" * 5000]


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("base", ["https://data.example/", "/tmp/somewhere"])
def test_a_list_cannot_leave_its_base(path: str, base: str) -> None:
    with pytest.raises(UserError, match="no path under|leads out of"):
        under(base, path)


def test_odd_names_stay_below_the_base() -> None:
    assert under("/data", "a b/%2e%2e/;rm -rf").name == "/data/a b/%2e%2e/;rm -rf"
    assert under("https://d.example/x/", "a b/'q'\r\nX: y").url == "https://d.example/x/a%20b/'q'%0D%0AX:%20y"
    with pytest.raises(UserError, match="is not"):
        under("/data", "http://169.254.169.254/latest")


@given(st.text(max_size=300) | st.sampled_from(HOSTILE))
def test_landed_names_are_ours(origin: str) -> None:
    name = safe_name(origin)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert len(name) < 120 and name[0] not in "._-"
    landed = Origin(origin, "https://x").landed(Path("/landing"))
    assert landed.parent == Path("/landing")
    assert safe_name(origin + "x") != name


def test_addresses() -> None:
    assert web_address("s3://commoncrawl/crawl-data/a b") == "https://data.commoncrawl.org/crawl-data/a%20b"
    assert web_address("s3a://my-bucket/k") == "https://my-bucket.s3.amazonaws.com/k"
    assert web_address("s3://my-bucket/k", "http://minio:9000/") == "http://minio:9000/my-bucket/k"
    for bad in ("http://", "https:///x", "http://[::1", "s3://x", "s3://UPPER/k", "s3://../k"):
        with pytest.raises(UserError):
            web_address(bad)


def test_crawls_by_name() -> None:
    assert crawl_of("https://x/crawl-data/CC-MAIN-2024-22/segments/1/warc/CC-MAIN-20240517233122-1.warc.gz") == (
        "CC-MAIN-2024-22"
    )
    assert crawl_of("/d/crawl-data/CC-NEWS/2024/05/a.warc.gz") == "CC-NEWS"
    assert crawl_of("/d/CC-MAIN-2020-34.warc.gz") == "CC-MAIN-2020-34"
    for none in ("/d/CC-MAIN-20240517233122-00000.warc.gz", "/crawl-data/..%2f/x", "whirlwind.warc"):
        assert crawl_of(none) == NO_CRAWL


def test_lists_local_and_on_the_web(web: Server, tmp_path: Path) -> None:
    lines = "crawl-data/X/a.warc.gz\ncrawl-data/X/b.warc.gz\n\n"
    folder = tmp_path / "web/crawl-data/X"
    folder.mkdir(parents=True)
    for name in ("a.warc.gz", "b.warc.gz"):
        (folder / name).write_bytes(b"x")
    (folder / "warc.paths.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "lost.paths").write_text(lines)
    landing = tmp_path / "landing"
    local = resolve(str(folder / "warc.paths.gz"), "", fetcher(), landing)
    assert [each.name for each in local] == [str(folder / "a.warc.gz"), str(folder / "b.warc.gz")]
    remote = resolve(f"{web.url}/crawl-data/X/warc.paths.gz", "", fetcher(), landing)
    assert [each.url for each in remote] == [f"{web.url}/crawl-data/X/{n}.warc.gz" for n in "ab"]
    mixed = resolve(str(tmp_path / "lost.paths"), "https://data.commoncrawl.org/", fetcher(), landing)
    assert mixed[0].name == "https://data.commoncrawl.org/crawl-data/X/a.warc.gz"
    with pytest.raises(UserError, match="relative to"):
        resolve(str(tmp_path / "lost.paths"), "", fetcher(), landing)
    with pytest.raises(UserError, match="is not there"):
        resolve(str(tmp_path / "lost.paths"), str(tmp_path), fetcher(), landing)


def test_lists_that_are_none(tmp_path: Path) -> None:
    for content, words in (
        (gzip.compress(b"a" * 10_000), "a line of more than"),
        (gzip.compress(b"a\n" * 10_000)[:-9], "truncated"),
        (b"a\n" * 200_000, "inflates to more than"),
    ):
        path = tmp_path / "x.paths.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            list(bounded_lines(str(path), 4096, 100_000))
