"""The one place that starts Spark: the same settings under spark-submit, in plain Python, in tests and on platforms.

Settings come in three kinds. What correctness needs (time zone, ANSI, never passing over damaged files) is always set.
What is only sensible (codec, partitions, quiet) gives way to anything the user or the platform set. What must be known
before Spark starts (jars, Delta's extension, memory) is set here in plain Python, and by `spark-defaults.conf` under
spark-submit, where `spark.jars` from a builder comes too late.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import __version__, java, resources
from headrace.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOG_STORE = "io.headrace.storage.HardLinkLogStore"
DELTA_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
DELTA_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
FUNCTIONS = "headrace_functions"
"""The catalog of the jar's functions of a cell: `headrace_functions.signed_log(x)`."""
_EXTENSIONS, _CATALOG = "spark.sql.extensions", "spark.sql.catalog.spark_catalog"

REQUIRED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    f"spark.sql.catalog.{FUNCTIONS}": "io.headrace.functions.Functions",
}
SENSIBLE = {
    "spark.sql.parquet.compression.codec": "zstd",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    # HotSpot never compiles a method of more than 8,000 bytes: over 40 columns, Spark's one method for a stage ran
    # interpreted, at under half the speed. Larger ones are cut up instead.
    "spark.sql.codegen.hugeMethodLimit": "8000",
}


def build_session(
    app: str = "headrace", *, master: str | None = None, conf: Mapping[str, str] | None = None, slots: int = 0
) -> SparkSession:
    """Start Spark with Delta, or take the session that is already there.

    Args:
        app: name shown in Spark's UI and history.
        master: `local[4]`, `spark://...`, `yarn`; None leaves it to spark-submit, and is `local[*]` elsewhere.
        conf: Spark settings that win over ours (but not over what correctness needs).
        slots: tasks that must be able to run at the same time (ranks of a barrier stage); a local master is given as
            many, whatever the number of cores.

    Raises:
        UserError: no usable Java, no jar or one of another version, Delta missing, too few slots, a setting refused.
    """
    asked = {key: str(value) for key, value in (conf or {}).items()}
    _refuse_unsafe(asked)
    session = _active()
    if session is None:
        session = _start(app, master, asked, slots)
    _apply(session, asked)
    _check_slots(session, slots)
    return session


def start_options(jar: Path | None = None) -> dict[str, str]:
    """Settings Spark must have when it starts; set-up writes the same ones to spark-defaults.conf."""
    options = {
        _EXTENSIONS: DELTA_EXTENSION,
        _CATALOG: DELTA_CATALOG,
        "spark.driver.memory": driver_memory(),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(Path(tempfile.gettempdir()) / f"headrace-warehouse-{os.getuid()}"),
    }
    if jar is not None:
        options |= {"spark.jars": str(jar), "spark.delta.logStore.file.impl": LOG_STORE}
    return options


@contextmanager
def configured(session: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of the session inside the `with`, put back behind it: what Delta's writer is told by no other way."""
    before = {key: session.conf.get(key, None) for key in settings}
    try:
        for key, value in settings.items():
            session.conf.set(key, value)
        yield
    finally:
        for key, old in before.items():
            if old is None:
                session.conf.unset(key)
            else:
                session.conf.set(key, old)


def driver_memory() -> str:
    """A quarter of this machine's memory, 1 to 8 GiB: in local mode the executors live in the driver."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{max(1, min(8, pages * size // 4 // 2**30))}g"


def jar_version(path: Path) -> str:
    """Implementation-Version in a jar's manifest, empty if it states none.

    Raises:
        UserError: it is no readable jar.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read("META-INF/MANIFEST.MF").decode("utf-8", "replace")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a jar: {error}", "make scala") from error
    found = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Implementation-Version")]
    return found[0] if found else ""


def check_jar(path: Path) -> None:
    """Refuse a jar that is missing or was built for another version of the package.

    Raises:
        UserError: with `make scala` as the remedy.
    """
    if not path.is_file():
        raise UserError(f"the jar {path} is missing", "make scala")
    version = jar_version(path)
    if version != __version__:
        raise UserError(f"{path} is version {version or 'unknown'}, the Python package is {__version__}", "make scala")


def _active() -> SparkSession | None:
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    # A stopped context leaves its session behind: it has no application any more.
    return session if session is not None and session.sparkContext.applicationId is not None else None


def _start(app: str, master: str | None, asked: dict[str, str], slots: int) -> SparkSession:
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    options = dict(asked) if submitted else _plain_options(asked)
    master = master or options.get("spark.master") or (None if submitted else "local[*]")
    if not submitted:
        _prepare_environment(master or "")
    if master is not None:
        options["spark.master"] = _widen(master, slots)
    session = _create(app, options)
    repaired = _repair(session, slots)
    if repaired:
        session.stop()
        session = _create(app, options | repaired)
    _check_running(session)
    return session


def _plain_options(asked: dict[str, str]) -> dict[str, str]:
    """Start options for a Python that launches its own JVM: ours, then what was asked for."""
    if {"spark.jars", "spark.jars.packages"} & set(asked):
        options = start_options() | asked
        own = [Path(name) for name in asked.get("spark.jars", "").split(",") if Path(name).name.startswith("headrace")]
        for jar in own:
            check_jar(jar)
        return ({"spark.delta.logStore.file.impl": LOG_STORE} if own else {}) | options
    jar = resources.jar(__version__)
    check_jar(jar)
    return start_options(jar) | asked


def _prepare_environment(master: str) -> None:
    """What the JVM and its Python workers read from the environment; the user's own values stay where they will do."""
    os.environ["JAVA_HOME"] = java.find().home  # the user's own, if Spark can use it
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    if master.startswith("local"):
        # Where the host's own name does not resolve Spark would not start, and nobody outside need reach it.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")


def _create(app: str, options: dict[str, str]) -> SparkSession:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName(app)
    for key, value in options.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def _repair(session: SparkSession, slots: int) -> dict[str, str]:
    """Settings that spark-submit left out and that only a restarted context takes."""
    running = session.sparkContext.getConf()
    repaired = {}
    extensions = running.get(_EXTENSIONS, "") or ""
    if DELTA_EXTENSION not in extensions:
        repaired[_EXTENSIONS] = ",".join(filter(None, [extensions, DELTA_EXTENSION]))
        repaired[_CATALOG] = DELTA_CATALOG
    if _own_jars(session) and not running.contains("spark.delta.logStore.file.impl"):
        repaired["spark.delta.logStore.file.impl"] = LOG_STORE
    master = _master(session)
    if _widen(master, slots) != master:
        repaired["spark.master"] = _widen(master, slots)
    return repaired


def _check_running(session: SparkSession) -> None:
    """Under spark-submit jars come from outside: check what came.

    Raises:
        UserError: Delta is not on the class path, or our jar is of another version.
    """
    own = _own_jars(session)
    for jar in own:
        if jar.is_file():
            check_jar(jar)
    if own:
        return
    try:
        session.sql("SHOW TABLES").collect()
    except Exception as error:
        if DELTA_CATALOG not in str(error):
            raise
        remedy = f"make setup, or spark-submit --jars {resources.jar(__version__)} ..."
        raise UserError("Spark has no Delta Lake on its class path", remedy) from error


def _own_jars(session: SparkSession) -> list[Path]:
    names = (session.sparkContext.getConf().get("spark.jars", "") or "").split(",")
    paths = [Path(name.removeprefix("file://").removeprefix("file:")) for name in names]
    return [path for path in paths if path.name.startswith("headrace")]


def _apply(session: SparkSession, asked: dict[str, str]) -> None:
    """Set what can be set on a running session; what others set already stays, unless correctness needs it."""
    known = session.sparkContext.getConf()
    local = _master(session).startswith("local")
    for key, value in (SENSIBLE | (_local_sensible(session) if local else {})).items():
        if not known.contains(key) and key not in asked:
            session.conf.set(key, value)
    for key, value in REQUIRED.items():
        session.conf.set(key, value)


def _local_sensible(session: SparkSession) -> dict[str, str]:
    """Spark's 200 and Delta's 50 partitions are for clusters."""
    cores = session.sparkContext.defaultParallelism
    return {
        "spark.sql.shuffle.partitions": str(max(8, 2 * cores)),
        "spark.databricks.delta.snapshotPartitions": "2",
    }


def _master(session: SparkSession) -> str:
    return session.sparkContext.master or ""


def _widen(master: str, slots: int) -> str:
    """`local[N]` with N at least `slots`; any other master as it is."""
    if not master.startswith("local") or master.startswith("local-cluster"):
        return master
    inside = master.partition("[")[2].rstrip("]")
    threads, comma, failures = inside.partition(",")
    if threads == "*":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    else:
        cores = int(threads) if threads.isdigit() else 1
    return master if cores >= slots else f"local[{slots}{comma}{failures}]"


def _check_slots(session: SparkSession, slots: int) -> None:
    running = session.sparkContext.defaultParallelism
    if _master(session).startswith("local[") and running < slots:
        raise UserError(
            f"{slots} tasks must run at the same time, this session has {running}",
            f"stop the session first, or start it with build_session(slots={slots})",
        )


def _refuse_unsafe(asked: Mapping[str, str]) -> None:
    """A setting that would lose rows without a word is an error, not a preference."""
    for key, value in REQUIRED.items():
        if key in asked and asked[key].lower() != value.lower():
            raise UserError(f"{key} = {asked[key]} is refused: Headrace needs {value}", f"leave {key} out")
