"""Horovod's timeline and autotune: from the command line to its environment, their files kept, refused elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.config import parse, to_yaml
from headrace.errors import UserError
from headrace.launch import LAUNCHERS, LaunchOptions, launch
from headrace.launch.channel import Address
from headrace.launch.horovod_spark import HorovodBackend
from headrace.pipelines import train_ctr
from headrace.pipelines.train_config import HorovodConfig, resumed
from headrace.pipelines.train_monitor import Monitor

BOTH = ["--horovod.timeline", "true", "--horovod.autotune", "true"]
OTHERS = [name for name in LAUNCHERS if name != "horovod"]


def load(*argv: str) -> train_ctr.Config:
    config: train_ctr.Config = parse({"": train_ctr.Config}, ["--lake", "x", *argv], "headrace train-ctr")[""]
    return config


@pytest.mark.parametrize("setting", ["timeline", "autotune"])
@pytest.mark.parametrize("launcher", OTHERS)
def test_what_only_horovod_does_is_refused_elsewhere(launcher: str, setting: str) -> None:
    asked = [f"--horovod.{setting}", "true"]
    train_ctr.check(load(*asked))
    with pytest.raises(UserError, match=rf"--horovod\.{setting} with --launcher {launcher}: no Horovod"):
        train_ctr.check(load(*asked, "--launcher", launcher))
    with pytest.raises(UserError, match=f"launcher {launcher} has no timeline and no autotune"):
        launch(print, 1, launcher=launcher, options=LaunchOptions(**{setting: "file"}))


def test_horovods_environment_has_what_was_asked_for() -> None:
    def environment(**options: str) -> dict[str, str]:
        address = Address("127.0.0.1", 1, b"", 1.0)
        return HorovodBackend(print, 1, None, address, LaunchOptions(**options))._environment()  # type: ignore[arg-type]

    plain = environment()
    assert environment(timeline="t", autotune="a").items() - plain.items() == {
        ("HOROVOD_TIMELINE", "t"), ("HOROVOD_AUTOTUNE", "1"), ("HOROVOD_AUTOTUNE_LOG", "a"),
    }  # fmt: skip
    assert not [name for name in plain if "TIMELINE" in name or "AUTOTUNE" in name]


def test_a_resumed_run_asks_anew_and_keeps_earlier_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load(*BOTH)))
    assert not resumed(load(), tmp_path).horovod.files(tmp_path)
    asked = resumed(load(*BOTH), tmp_path).horovod
    names = []
    for _ in range(3):
        files = asked.files(tmp_path)
        names += [path.name for path in files.values()]
        for path in files.values():
            path.touch()
    assert names == [
        "horovod_timeline.json", "horovod_autotune.csv", "horovod_timeline_2.json", "horovod_autotune_2.csv",
        "horovod_timeline_3.json", "horovod_autotune_3.csv",
    ]  # fmt: skip
    assert HorovodConfig().files(tmp_path) == {}


def test_files_go_to_the_store_and_a_missing_one_is_said(tmp_path: Path) -> None:
    kept: list[tuple[Path, str]] = []
    said: list[str] = []
    report: Any = SimpleNamespace(warn=said.append, paths={})
    files = HorovodConfig(timeline=True, autotune=True).files(tmp_path)
    files["timeline"].write_text("[")
    tracker = SimpleNamespace(artifact=lambda path, folder: kept.append((path, folder)))
    Monitor._keep_of_horovod(SimpleNamespace(of_horovod=files, tracker=tracker, report=report))  # type: ignore[arg-type]
    assert kept == [(files["timeline"], "horovod")] and report.paths == {"horovod_timeline": str(files["timeline"])}
    assert len(said) == 1 and said[0].startswith("--horovod.autotune: rank 0 wrote no ")
