"""`headrace doctor`: is this machine ready? One line a check, and what to type where it is not."""

from __future__ import annotations

import importlib.metadata
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace import __version__, java, resources
from headrace.errors import UserError
from headrace.report import Report
from headrace.session import build_session, check_jar

OK, WARN, FAIL = "ok", "warn", "FAIL"
_COLOURS = {OK: "\033[32m", WARN: "\033[33m", FAIL: "\033[31m"}
_IMPORT_TIMEOUT_S = 180


@dataclass(kw_only=True)
class Config:
    """What to look at.

    Args:
        deep: also start Spark and commit to a Delta table in a temporary folder (about 20 s).
        lake: folder whose disk is looked at; the current one by default.
    """

    deep: bool = False
    lake: str = "."


@dataclass(frozen=True)
class Finding:
    """What one check found; `remedy` is what to type, empty where all is well."""

    level: str
    detail: str
    remedy: str = ""


def run(spark: Any, cfg: Config, report: Report) -> Report:
    """Run every check, print a line for each; `exit_status` in the results is 1 if one failed."""
    findings = examine(checks(cfg), lambda name, finding: _say(report, name, finding))
    worst = [finding.level for finding in findings.values()]
    report.results["checks"] = {name: asdict(finding) for name, finding in findings.items()}
    report.results["exit_status"] = 1 if FAIL in worst else 0
    verdict = "not ready: see the lines marked FAIL" if FAIL in worst else "ready"
    report.say(f"this machine is {verdict}" + (f", {worst.count(WARN)} warnings" if WARN in worst else ""))
    return report


def checks(cfg: Config) -> dict[str, Callable[[], Finding]]:
    """Checks by name, in the order in which they are worth mending."""
    table: dict[str, Callable[[], Finding]] = {
        "python": check_python,
        "packages": check_packages,
        "java": check_java,
        "jar": check_own_jar,
        "spark-submit": check_submit,
        "torch": check_torch,
        "kernels": check_kernels,
        "horovod": check_horovod,
        "petastorm": lambda: _imported("petastorm", "from petastorm.reader import Reader"),
        "mlflow": lambda: _imported("mlflow", "import mlflow.pyfunc"),
        "machine": check_machine,
        "disk": lambda: check_disk(Path(cfg.lake)),
        "host name": check_host_name,
        "network": check_network,
    }
    return table | ({"spark": check_spark} if cfg.deep else {})


def examine(
    table: Mapping[str, Callable[[], Finding]], on_finding: Callable[[str, Finding], None]
) -> dict[str, Finding]:
    """Run the checks one by one; a check that raises is itself a failed check."""
    findings = {}
    for name, check in table.items():
        try:
            findings[name] = check()
        except UserError as error:
            findings[name] = Finding(FAIL, error.problem, error.remedy)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            findings[name] = Finding(FAIL, f"{type(error).__name__}: {first}", "make setup")
        on_finding(name, findings[name])
    return findings


def check_python() -> Finding:
    """The versions every dependency has wheels for."""
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding(FAIL, text, "use Python 3.11 or 3.12")
    return Finding(OK, text)


def check_packages() -> Finding:
    """What is installed against what the package asks for."""
    from packaging.requirements import Requirement

    wrong = []
    for line in importlib.metadata.requires("headrace") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found} (wanted {wanted.specifier or 'any'})")
    return Finding(FAIL, "; ".join(wrong), "make setup") if wrong else Finding(OK, f"headrace {__version__}, pins met")


def check_java() -> Finding:
    """A Java that Spark 4.0 starts on."""
    found = java.find()
    return Finding(OK, f"{found.version} at {found.home}")


def check_own_jar() -> Finding:
    """The assembly is there and is of the package's version."""
    jar = resources.jar(__version__)
    check_jar(jar)
    return Finding(OK, str(jar))


def check_submit() -> Finding:
    """A bare spark-submit takes the jar from $SPARK_HOME/conf, not from the session's builder."""
    import pyspark

    home = Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent)
    defaults = home / "conf" / "spark-defaults.conf"
    if not defaults.is_file() or str(resources.jar(__version__)) not in defaults.read_text():
        remedy = f"make setup, or spark-submit --jars {resources.jar(__version__)} ..."
        return Finding(WARN, f"{defaults} does not name the jar", remedy)
    return Finding(OK, f"settings in {defaults.parent}")


def check_torch() -> Finding:
    """torch, and whether it sees a GPU."""
    code = (
        "import torch; n = torch.cuda.device_count(); print(torch.cuda.get_device_name(0) if n else 'no GPU: CPU', n)"
    )
    said = _run_python(code)
    return Finding(OK, f"{importlib.metadata.version('torch')}, {said}")


def check_kernels() -> Finding:
    """Codecs of gradients and optimizers' states in 8 bits have compiled kernels; without them they are slower."""
    code = "from headrace.compress import kernels as k; print(int(k.found().library is not None), k.found().said)"
    used, said = _run_python(code).split(" ", 1)
    return Finding(OK, said) if used == "1" else Finding(WARN, said, "make setup, without HEADRACE_KERNELS=off")


def check_horovod() -> Finding:
    """Horovod's extension loads, talks gloo, and NCCL where there is a GPU."""
    code = (
        "import torch, horovod.torch as hvd; "
        "print(int(bool(hvd.gloo_built())), int(bool(hvd.nccl_built())), int(torch.cuda.is_available()))"
    )
    gloo, nccl, gpu = (word == "1" for word in _run_python(code).split()[-3:])
    version = importlib.metadata.version("horovod")
    if not gloo:
        return Finding(FAIL, f"{version} was built without gloo", "rm -rf .build/stamps/environment; make setup")
    if gpu and not nccl:
        return Finding(WARN, f"{version} is built for CPU, this machine has a GPU", "docs/gpu.md: build it with NCCL")
    return Finding(OK, f"{version}, gloo" + (" and NCCL" if nccl else ""))


def check_machine() -> Finding:
    """Cores and memory this process may use."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total, free = (size / 2**30 for size in (psutil.virtual_memory().total, psutil.virtual_memory().available))
    text = f"{cores} cores, {total:.0f} GiB of memory, {free:.0f} GiB free"
    if free < 3:
        return Finding(WARN, text, "end other programs, or set --session.driver_memory 1g and --ranks 1")
    return Finding(OK, text)


def check_disk(folder: Path) -> Finding:
    """Room for a table and its shuffle files."""
    probe = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(probe).free / 1e9
    text = f"{free:.0f} GB free at {probe}"
    return Finding(OK, text) if free >= 2 else Finding(WARN, text, "make room, or put --lake on another disk")


def check_host_name() -> Finding:
    """Spark binds to the address its host's own name resolves to."""
    name = socket.gethostname()
    remedy = f"echo '127.0.1.1 {name}' | sudo tee -a /etc/hosts, or export SPARK_LOCAL_IP=127.0.0.1"
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Finding(WARN, f"{name} does not resolve: only local masters will start", remedy)
    try:
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError:
        return Finding(WARN, f"{name} resolves to {address}, which is not an address of this machine", remedy)
    return Finding(OK, f"{name} is {address}")


def check_network() -> Finding:
    """Horovod's rendezvous server has no authentication and workers unpickle what it serves."""
    import psutil

    public = [
        f"{name} ({entry.address})"
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6) and _is_global(entry.address)
    ]
    if public and not os.environ.get("HOROVOD_GLOO_IFACE"):
        detail = f"public addresses: {', '.join(public)}; Horovod's rendezvous is open to whoever reaches it"
        return Finding(WARN, detail, "export HOROVOD_GLOO_IFACE=<a private interface>, or use --launcher torch")
    return Finding(OK, "no public address" if not public else f"Horovod on {os.environ['HOROVOD_GLOO_IFACE']}")


def check_spark() -> Finding:
    """Spark starts and a Delta version is committed and read back."""
    with tempfile.TemporaryDirectory(prefix="headrace-doctor-") as folder:
        spark = build_session("headrace doctor", master="local[1]", conf={"spark.driver.memory": "1g"})
        try:
            table = f"{folder}/table"
            spark.range(10).write.format("delta").save(table)
            # Through Python workers as well: they must find this interpreter and this package.
            rows = spark.read.format("delta").load(table).mapInPandas(_as_they_are, "id long").count()
            store = spark.sparkContext.getConf().get("spark.delta.logStore.file.impl") or "Delta's own log store"
            version = spark.version
        finally:
            spark.stop()
    if rows != 10:
        return Finding(FAIL, f"10 rows were committed and {rows} read", "make scala")
    return Finding(OK, f"{version} starts, Delta commits through {store.rpartition('.')[2]}, Python workers answer")


def _as_they_are(frames: Iterable[Any]) -> Iterable[Any]:
    yield from frames


def _imported(package: str, code: str) -> Finding:
    _run_python(code)
    return Finding(OK, importlib.metadata.version(package))


def _run_python(code: str) -> str:
    """Run code in a process of its own: a library that crashes at import must not take the doctor with it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=_IMPORT_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(last, "make setup")
    return done.stdout.strip()


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_global
    except ValueError:
        return False


def _say(report: Report, name: str, finding: Finding) -> None:
    colour, plain = (_COLOURS[finding.level], "\033[0m") if report.out.isatty() else ("", "")
    report.say(f"{colour}{finding.level:<5}{plain} {name:<13} {finding.detail}")
    if finding.remedy:
        report.say(f"      {'':<13} -> {finding.remedy}")
