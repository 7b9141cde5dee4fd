"""The rules of the session builder that need no Spark."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace import session
from headrace.errors import UserError


@pytest.mark.parametrize(
    ("master", "slots", "expected"),
    [
        ("local", 0, "local"),
        ("local", 2, "local[2]"),
        ("local[2]", 2, "local[2]"),
        ("local[2]", 4, "local[4]"),
        ("local[2,3]", 4, "local[4,3]"),
        ("local[*]", 10_000, "local[10000]"),
        ("local[*]", 1, "local[*]"),
        ("local-cluster[2,1,2048]", 4, "local-cluster[2,1,2048]"),
        ("yarn", 4, "yarn"),
        ("spark://host:7077", 4, "spark://host:7077"),
    ],
)
def test_a_local_master_gets_as_many_slots_as_are_asked(master: str, slots: int, expected: str) -> None:
    assert session._widen(master, slots) == expected


@pytest.mark.parametrize(
    "setting",
    ["spark.sql.files.ignoreCorruptFiles", "spark.sql.files.ignoreMissingFiles"],
)
def test_a_setting_that_would_lose_rows_is_refused_by_name(setting: str) -> None:
    with pytest.raises(UserError, match=f"{setting} = true is refused"):
        session.build_session(conf={setting: "true"})


def test_other_time_zones_and_silent_casts_are_refused() -> None:
    with pytest.raises(UserError, match="needs UTC"):
        session.build_session(conf={"spark.sql.session.timeZone": "Europe/Berlin"})
    with pytest.raises(UserError, match="ansi"):
        session.build_session(conf={"spark.sql.ansi.enabled": "false"})


def test_settings_at_start_name_the_log_store_only_with_the_jar_that_holds_it() -> None:
    with_jar = session.start_options(Path("/somewhere/headrace-assembly.jar"))
    assert with_jar["spark.delta.logStore.file.impl"] == session.LOG_STORE
    assert with_jar["spark.jars"] == "/somewhere/headrace-assembly.jar"
    without = session.start_options()
    assert not {"spark.delta.logStore.file.impl", "spark.jars"} & set(without)
    assert without["spark.sql.extensions"] == session.DELTA_EXTENSION


def test_driver_memory_is_between_one_and_eight_gibibytes() -> None:
    assert session.driver_memory() in {f"{size}g" for size in range(1, 9)}
