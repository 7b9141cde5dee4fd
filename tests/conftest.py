"""Fixtures for all tests: one Spark session for the process, the real data sets, a fresh lake."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PROJECT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("HEADRACE_REAL_DATA", PROJECT.parent / "shared" / "data"))

# Short runs pay for compiling what they hardly use: the quick compiler alone, one collector for two cores, and room for
# the code: by default it would be 48 MB then, and a quarter of the CPU time went to sweeping them. Every JVM that a
# test's Spark starts gets this, also in subprocesses, and without the line that JAVA_TOOL_OPTIONS prints.
_QUICK = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m -XX:+UseSerialGC"
os.environ.setdefault("SPARK_SUBMIT_OPTS", _QUICK)

# No test asserts a time: on a busy machine an example may take as long as it takes.
hypothesis.settings.register_profile("headrace", deadline=None)
hypothesis.settings.load_profile("headrace")


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The process's only Spark session: small, with Delta; four slots, so that four ranks fit."""
    from headrace.session import build_session

    conf = {
        "spark.driver.memory": "1g",
        "spark.sql.shuffle.partitions": "4",
        # Delta reads its log by projections over 100 columns: to generate and compile them took a third of a small
        # commit. Plans are interpreted instead, but in tests that ask for `generated_code` and in verbs in processes of
        # their own, which run as users run them.
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
    }
    session = build_session("headrace-tests", master="local[4]", conf=conf)
    yield session
    session.stop()


@pytest.fixture(scope="module")
def generated_code(spark: SparkSession) -> Iterator[None]:
    """Plans are compiled, as users' are: for what we put into generated code ourselves."""
    from headrace.session import configured

    with configured(spark, {"spark.sql.codegen.factoryMode": "FALLBACK"}):
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: a second only waits on small tensors, and the size of cache blocks goes by the number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """An empty folder for tables."""
    folder = tmp_path / "lake"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def no_quality_reports() -> Iterator[None]:
    """Reports of table versions have tests of their own, and take longer than our small tables."""
    from headrace.catalog import checks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "record", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def criteo_kaggle() -> Path:
    """Folder of the real Criteo Kaggle sample: train.tsv, dev.tsv, test.tsv, 7,200 / 409 / 391 rows."""
    return _real("criteo_kaggle_8k")


@pytest.fixture(scope="session")
def criteo_short() -> Path:
    """Folder of the damaged Criteo sample: 502 whole rows of 1,000."""
    return _real("criteo_short_rows_1k")


@pytest.fixture(scope="session")
def planetoid() -> Path:
    """Folder of Cora and CiteSeer: edges, labels with splits, sparse features."""
    return _real("planetoid")


@pytest.fixture(scope="session")
def snap() -> Path:
    """Folder of WikiVote and ca-GrQc: edge lists."""
    return _real("snap")


@pytest.fixture(scope="session")
def wn18rr_folder() -> Path:
    """Folder of WN18RR: triples by name."""
    return _real("wn18rr")


@pytest.fixture(scope="session")
def ml100k() -> Path:
    """The real MovieLens 100k: u.data, 100,000 ratings by 943 users of 1,682 items."""
    return _real("ml100k") / "u.data"


@pytest.fixture(scope="session")
def a9a_folder() -> Path:
    """Folder of LIBSVM's Adult: 32,561 and 16,281 rows of 123 features, labels -1 and 1."""
    return _real("a9a")


@pytest.fixture(scope="session")
def agaricus_folder() -> Path:
    """Folder of LIBSVM's mushrooms, which are separable: 6,513 and 1,611 rows of 127 features, labels 0 and 1."""
    return _real("agaricus")


@pytest.fixture(scope="session")
def mnist_test() -> Path:
    """Folder of MNIST's 10,000 test images and their classes."""
    return _real("mnist_test")


@pytest.fixture(scope="session")
def cc_whirlwind() -> Path:
    """Folder of one Common Crawl capture as WARC, WET and WAT, plain and gzip: 4, 2 and 2 records."""
    return _real("cc_whirlwind")


@pytest.fixture(scope="session")
def warc_resiliparse() -> Path:
    """Folder of Common Crawl's warcfile.* (50 records) and of edge cases."""
    return _real("warc_resiliparse")


@pytest.fixture(scope="session")
def cc_archives() -> Path:
    """Folder of the folders of real WARC, WET, WAT and ARC files."""
    folders = ("cc_whirlwind", "cc_jwarc", "cc_dolma_warc", "warc_broken", "warc_resiliparse")
    return min(_real(name).parent for name in folders)


def _real(name: str) -> Path:
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the real data set {name} is not on this machine (licence: it may not be shipped)")
    return folder
