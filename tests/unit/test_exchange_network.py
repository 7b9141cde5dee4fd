"""Namespaces that a machine does not allow: the laboratory says so, in words that tell what to do, and ends."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import exchange_lab, exchange_network
from headrace.errors import UserError

REMEDY = "-> run it as root, or in a container with CAP_SYS_ADMIN, or allow user namespaces"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The machine has the tools, and refuses every namespace; flags of those that were asked for."""
    flags: list[int] = []

    def unshare(asked_for: int) -> int:
        flags.append(asked_for)
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(exchange_network, "_libc", lambda: SimpleNamespace(unshare=unshare))
    monkeypatch.setattr(exchange_network.shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(exchange_network, "tool", lambda *command: pytest.fail(f"{command} in the machine's network"))
    return flags


@pytest.mark.parametrize(("uid", "user"), [(0, False), (1000, True)])
def test_a_refused_namespace_is_told_with_the_reason(
    asked: list[int], uid: int, user: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(UserError) as caught:
        exchange_network.enter()
    assert str(caught.value) == f"network namespaces are not allowed here: Operation not permitted\n  {REMEDY}"
    assert [bool(flags & 0x10000000) for flags in asked] == [user], "a user namespace where it is not root's"


def test_a_namespace_in_which_nobody_may_be_root_is_told_as_well(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, text: str) -> int:
        if path.name == "uid_map":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        return len(text)

    monkeypatch.setattr(exchange_network, "_libc", lambda: SimpleNamespace(unshare=lambda flags: 0))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Path, "write_text", refused)
    with pytest.raises(UserError, match=r"namespaces are not allowed here: .*not permitted: '/proc/self/uid_map'"):
        exchange_network.enter()


def test_the_laboratory_ends_with_what_was_refused(
    asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a line of results, and without a trace."""
    results = tmp_path / "exchange.jsonl"
    monkeypatch.setattr(sys, "argv", ["exchange_lab.py", "--results", str(results)])
    with pytest.raises(SystemExit) as caught:
        exchange_lab.main()
    refused = "network namespaces are not allowed here: Operation not permitted"
    assert caught.value.code == f"row f was not measured: {refused}\n  {REMEDY}", "text: the exit status is 1"
    assert len(asked) == 1 and not results.exists()


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    monkeypatch.setattr(exchange_network.shutil, "which", lambda tool: None if tool == "tc" else f"/sbin/{tool}")
    with pytest.raises(UserError, match=r"^tc not found: links cannot be made\n  -> install iproute2$"):
        exchange_network.enter()
    assert not asked
