"""The tests that mutants meet: run once unharmed, to see which lines each runs, and then for every mutant in a fork.

A fork comes of a process that has imported torch and pytest and nothing of ours, so that each imports headrace.optim
anew, with the mutant in its module's place.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil
import pytest
import torch
from mutation import Mutant

PROJECT = Path(__file__).resolve().parents[1]
OPTIM = PROJECT / "python" / "headrace" / "optim"
EXAM = "tests/unit/test_optim_exam.py"


@dataclass(frozen=True)
class Test:
    """One test, unharmed: how long it takes, and which lines of which modules it runs."""

    id: str
    seconds: float
    lines: dict[str, list[int]]

    def runs(self, mutant: Mutant) -> bool:
        """Whether it comes by what is changed; for what importing runs, whether it uses the module at all."""
        first, last = mutant.span
        mine = self.lines.get(mutant.file, ())
        return any(first <= line <= last for line in mine) if last else bool(mine)


@dataclass
class Baseline:
    """All tests, unharmed, and the modules they import that are not ours."""

    fingerprint: str
    tests: list[Test] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

    def of(self, mutant: Mutant) -> list[Test]:
        """Tests that a mutant meets, in order."""
        met = [test for test in self.tests if test.runs(mutant)]
        if not met and not mutant.span[1]:  # a declaration: tests of that name
            met = [test for test in self.tests if f"[{Path(mutant.file).stem}-" in test.id]
        return sorted(met, key=lambda test: (not test.id.startswith(EXAM), test.seconds))


class Recorder:
    """A pytest plugin that fills a baseline."""

    def __init__(self) -> None:
        self.tests: list[Test] = []
        self.broken: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Trace what the test runs of headrace.optim, in all threads; caches are emptied: it is to run all it needs."""
        _forget()
        seen: set[tuple[str, int]] = set()
        folder, begun = str(OPTIM), time.perf_counter()

        def enter(frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
            return note if frame.f_code.co_filename.startswith(folder) else None

        def note(frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            return note

        threading.settrace(enter)
        sys.settrace(enter)
        yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        lines: dict[str, list[int]] = {}
        for path, line in sorted(seen):
            lines.setdefault(Path(path).name, []).append(line)
        self.tests.append(Test(item.nodeid, round(time.perf_counter() - begun, 3), lines))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note failures: nothing can be said about mutants then."""
        if report.failed:
            self.broken.append(f"{report.nodeid}: {report.longreprtext[-2000:]}")


class Reporter:
    """A pytest plugin that says down a pipe which test begins, and which failed."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def say(self, *words: str) -> None:
        """One line."""
        os.write(self.pipe, (json.dumps(words) + "\n").encode())

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.say("begins", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test failed."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.say("failed", report.nodeid, (crash.message if crash else report.longreprtext)[:100].split("\n")[0])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test file could not be imported."""
        if report.failed:
            self.say("failed", report.nodeid, "is not to be imported")


class Broken(importlib.abc.MetaPathFinder):
    """Gives out a mutant where its module is asked for."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.source = f"headrace.optim.{Path(mutant.file).stem}", mutant.source
        self.path = str(OPTIM / mutant.file)

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> Any:
        """See `MetaPathFinder`."""
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=_Loader(name, self.path, self.source))


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)


def _forget() -> None:
    """Empty the caches of headrace.optim."""
    for name, module in list(sys.modules.items()):
        if name.startswith("headrace.optim."):
            for value in vars(module).values():
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()


def run_tests(ids: Sequence[str], plugin: object) -> int:
    """pytest in this process."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    quiet = ["-o", "addopts=", "-p", "no:cacheprovider", "--import-mode=importlib"]
    return int(pytest.main([*quiet, "-q", "-x", "--tb=line", *ids], plugins=[plugin]))


def forked(work: Callable[[int], object], output: str = os.devnull) -> tuple[int, int]:
    """`work(pipe)` in a fork with bounded memory; its process id and the pipe's end to read."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(written, stream)
        most = psutil.Process().memory_info().vms + 6 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        work(write)
        status = 0
    finally:
        os._exit(status)


def baseline(ids: Sequence[str]) -> Baseline:
    """All tests unharmed, in a fork; kept in .build until a source changes. What they import of others is imported."""
    torch.set_num_threads(1)
    made = Baseline(_fingerprint(ids))
    kept = PROJECT / ".build" / "mutants" / f"{made.fingerprint}.json"
    if not kept.exists():
        print(f"running {len(ids)} files of tests unharmed: which lines does each run?", flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        log = kept.with_suffix(".log")
        pid, pipe = forked(lambda _: _write_baseline(ids, kept), str(log))
        os.close(pipe)
        os.waitpid(pid, 0)
    if not kept.exists():
        sys.exit(f"the tests did not run to their end: see {kept.with_suffix('.log')}")
    found = json.loads(kept.read_text())
    if found["broken"]:
        kept.unlink()
        sys.exit("tests fail on unharmed code:\n" + "\n".join(found["broken"]))
    made.tests, made.modules = [Test(**test) for test in found["tests"]], found["modules"]
    for name in made.modules:  # once for all forks
        try:
            importlib.import_module(name)
        except Exception:  # made by another module, not by a file
            continue
    return made


def _write_baseline(ids: Sequence[str], kept: Path) -> None:
    recorder = Recorder()
    run_tests(ids, recorder)
    ours = ("headrace", "tests", "unit", "convergence", "conftest", "mutation", "mutation_tests", "mutants", "__main__")
    modules = [name for name in sys.modules if name.partition(".")[0] not in ours]
    tests = [asdict(test) for test in recorder.tests]
    part = kept.with_suffix(".part")
    part.write_text(json.dumps({"tests": tests, "modules": modules, "broken": recorder.broken}))
    part.rename(kept)


def _fingerprint(ids: Sequence[str]) -> str:
    """Of the tests, what they are made of, and what they test."""
    package = PROJECT / "python" / "headrace"
    files = [*OPTIM.glob("*.py"), *(package / "testing").rglob("*.py"), *(package / "comm").glob("*.py")]
    files += [PROJECT / name.partition("::")[0] for name in ids]
    made = hashlib.sha256("\n".join(ids).encode())
    for file in sorted(set(files)):
        made.update(file.read_bytes())
    return made.hexdigest()[:16]


def try_mutant(mutant: Mutant, tests: list[Test]) -> str:
    """Which test failed and how; "" where none did."""
    exam = [test.id for test in tests if test.id.startswith(EXAM)]
    others = [test.id for test in tests if not test.id.startswith(EXAM)]

    def work(pipe: int) -> None:
        sys.meta_path.insert(0, Broken(mutant))
        reporter = Reporter(pipe)
        for ids in (exam, others):
            if ids and (status := run_tests(ids, reporter)):
                reporter.say("failed", "pytest", f"exit status {status}")
                return
        reporter.say("done")

    pid, pipe = forked(work)
    limits = {test.id: 30.0 + 10.0 * test.seconds for test in tests}
    begun, at = 0, "importing"
    try:
        for said in _said(pipe, pid, lambda: limits.get(at, 60.0)):
            match said:
                case ["begins", at]:
                    begun += 1
                case ["failed", where, how]:
                    return f"{where}: {how}"
                case ["done"]:
                    assert begun == len(tests), f"{begun} of {len(tests)} tests ran: {mutant.place}"
                    return ""
                case None:
                    return f"{at}: hangs"
        return f"{at}: dies"
    finally:
        os.close(pipe)
        os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _said(pipe: int, pid: int, limit: Callable[[], float]) -> Iterator[list[str] | None]:
    """Lines from a pipe until its end; None, and an end, when the next takes too long.

    Seconds that process `pid` computes or sleeps count, not those that it waits for a core or is stopped.
    """
    process, rest, spent = psutil.Process(pid), b"", 0.0
    while True:
        before = sum(process.cpu_times()[:2])
        if select.select([pipe], [], [], 1.0)[0]:
            if not (more := os.read(pipe, 65536)):
                return
            spent = 0.0
            *lines, rest = (rest + more).split(b"\n")
            for line in lines:
                yield json.loads(line)
            continue
        computed = sum(process.cpu_times()[:2]) - before
        asleep = not computed and process.status() == psutil.STATUS_SLEEPING
        spent += 1.0 if asleep else computed
        if spent > limit():
            yield None
            return
