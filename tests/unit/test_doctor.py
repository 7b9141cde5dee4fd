"""The doctor names what is wrong and what to type; it does not fall ill itself."""

from __future__ import annotations

import io
import json
import socket
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from headrace import __version__, java, resources
from headrace.errors import UserError
from headrace.pipelines import doctor
from headrace.pipelines.doctor import FAIL, OK, WARN, Config, Finding
from headrace.report import Report


def diagnose(monkeypatch: pytest.MonkeyPatch, table: dict[str, object]) -> tuple[Report, str]:
    monkeypatch.setattr(doctor, "checks", lambda cfg: table)
    screen = io.StringIO()
    return doctor.run(None, Config(), Report("doctor", out=screen)), screen.getvalue()


def test_all_well_is_status_zero_and_says_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    report, screen = diagnose(monkeypatch, {"java": lambda: Finding(OK, "17")})
    assert report.results["exit_status"] == 0
    assert screen.splitlines()[-1] == "this machine is ready"
    assert json.loads(report.to_json())["results"]["checks"]["java"]["detail"] == "17"


def test_one_failure_is_status_one_shows_its_remedy_and_the_rest_is_still_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Finding:
        raise UserError("no Java", "sudo apt-get install it")

    def surprising() -> Finding:
        raise OSError("disk on fire\nsecond line")

    table = {"java": broken, "disk": surprising, "torch": lambda: Finding(WARN, "slow", "wait")}
    report, screen = diagnose(monkeypatch, table)
    assert report.results["exit_status"] == 1
    assert "-> sudo apt-get install it" in screen
    assert "OSError: disk on fire" in screen
    assert "second line" not in screen
    assert screen.splitlines()[-1] == "this machine is not ready: see the lines marked FAIL, 1 warnings"
    assert [check["level"] for check in report.results["checks"].values()] == [FAIL, FAIL, WARN]


def test_spark_is_started_only_when_asked() -> None:
    assert "spark" not in doctor.checks(Config())
    assert list(doctor.checks(Config(deep=True)))[-1] == "spark"


def test_a_host_name_that_does_not_resolve_is_a_warning_with_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def unresolved(name: str) -> str:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unresolved)
    monkeypatch.setattr(socket, "gethostname", lambda: "odd-name")
    finding = doctor.check_host_name()
    assert finding.level == WARN
    assert "127.0.1.1 odd-name" in finding.remedy
    assert "SPARK_LOCAL_IP" in finding.remedy


def test_a_host_name_of_another_machine_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.1")  # reserved for documentation
    finding = doctor.check_host_name()
    assert finding.level == WARN
    assert "192.0.2.1" in finding.detail


def test_a_public_address_warns_of_horovods_open_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    addresses = {
        "lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")],
        "eth0": [
            SimpleNamespace(family=socket.AF_INET, address="8.8.8.8"),
            SimpleNamespace(family=socket.AF_INET6, address="fe80::1%eth0"),
        ],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.delenv("HOROVOD_GLOO_IFACE", raising=False)
    finding = doctor.check_network()
    assert finding.level == WARN
    assert "eth0 (8.8.8.8)" in finding.detail
    assert "fe80" not in finding.detail
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "lo")
    assert doctor.check_network() == Finding(OK, "Horovod on lo")


def test_a_library_that_kills_its_process_is_a_failed_check_not_a_dead_doctor() -> None:
    with pytest.raises(UserError, match="status -9"):
        doctor._run_python("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match="ModuleNotFoundError: No module named 'no_such_library'"):
        doctor._run_python("import no_such_library")
    assert doctor._run_python("print('1 0 0')") == "1 0 0"


def test_packages_of_another_version_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    wanted = ["pyarrow==14.0.2", "torch==2.11.0", "absent-thing", "never; python_version < '3'"]
    have = {"pyarrow": "15.0.0", "torch": "2.11.0"}

    def version(name: str) -> str:
        if name not in have:
            raise importlib.metadata.PackageNotFoundError(name)
        return have[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = doctor.check_packages()
    assert finding.level == FAIL
    assert finding.detail == "pyarrow 15.0.0 (wanted ==14.0.2); absent-thing none (wanted any)"


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path / "not" / "there").detail.endswith(f"free at {tmp_path}")


def make_jar(path: Path, manifest: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", manifest)
    return path


@pytest.mark.parametrize(
    ("manifest", "said"),
    [("Manifest-Version: 1.0\r\nImplementation-Version: 9.9.9\r\n", "version 9.9.9"), ("", "version unknown")],
)
def test_a_jar_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str, said: str
) -> None:
    jar = make_jar(tmp_path / "headrace-assembly.jar", manifest)
    monkeypatch.setattr(resources, "jar", lambda version: jar)
    with pytest.raises(UserError, match=f"{said}, the Python package is {__version__}") as caught:
        doctor.check_own_jar()
    assert caught.value.remedy == "make scala"


def test_a_jar_that_is_missing_or_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "jar", lambda version: tmp_path / "headrace-assembly.jar")
    with pytest.raises(UserError, match="is missing"):
        doctor.check_own_jar()
    (tmp_path / "headrace-assembly.jar").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="cannot be read as a jar"):
        doctor.check_own_jar()


def make_java(folder: Path, version: str, modules: str) -> str:
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "java"
    script.write_text(
        f'#!/bin/sh\ncase "$1" in -version) echo \'openjdk version "{version}"\' >&2 ;; *) echo "{modules}" ;; esac\n'
    )
    script.chmod(0o755)
    return str(folder)


def test_javas_that_will_not_do_are_listed_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_java(tmp_path / "old", "11.0.2", "jdk.incubator.vector@11")
    new = make_java(tmp_path / "new", "25", "jdk.incubator.vector@25")
    bare = make_java(tmp_path / "bare", "17.0.9", "java.base@17.0.9")
    good = make_java(tmp_path / "good", "17.0.9", "jdk.incubator.vector@17.0.9")
    monkeypatch.setattr(java, "candidates", lambda: [old, new, bare])
    with pytest.raises(UserError) as caught:
        doctor.check_java()
    for part in (f"{old}: version 11", f"{new}: version 25", f"{bare}: it lacks the module jdk.incubator.vector"):
        assert part in caught.value.problem
    assert caught.value.remedy == "sudo apt-get install openjdk-17-jre-headless"
    monkeypatch.setattr(java, "candidates", lambda: [old, good])
    assert doctor.check_java() == Finding(OK, f"17 at {good}")


def test_no_java_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "candidates", list)
    with pytest.raises(UserError, match="no java on PATH"):
        doctor.check_java()


def test_java_home_is_tried_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_java(tmp_path / "mine", "17.0.9", "jdk.incubator.vector")
    monkeypatch.setenv("JAVA_HOME", home)
    assert java.candidates()[0] == home
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nothing"))
    assert str(tmp_path / "nothing") not in java.candidates()


def test_codecs_without_kernels_are_a_warning_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KERNELS", "off")
    found = doctor.check_kernels()
    assert found.level == WARN and "HEADRACE_KERNELS is off" in found.detail and "make setup" in found.remedy
    monkeypatch.delenv("HEADRACE_KERNELS")
    found = doctor.check_kernels()
    assert found.level == OK and "compiled kernels" in found.detail
