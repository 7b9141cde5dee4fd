"""Ranks behind links of a given speed on one machine, in network namespaces that processes hold and no file names.

    the lab's namespace   bridge `hub`, 10.77.0.254/24, and a port for each rank, limited: what the rank receives
    rank r's namespace    `wire`, 10.77.0.(r + 1)/24, the other end, limited: what the rank sends

The lab leaves the machine's namespace for one of its own, each rank for another; the kernel removes a namespace and its
links with its last process, so nothing is left behind, however these end. Without root this is done in a user
namespace, where the machine allows that.

A limit is a token bucket (tc tbf): a burst of `burst_bytes` passes at the speed of memory, so what is sent after a
pause is faster by that much; the queue behind it holds 50 ms.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from headrace.errors import UserError

HUB, LINK = "hub", "wire"
HUB_ADDRESS = "10.77.0.254"
HEADER_BYTES = 66  # of a packet: Ethernet 14, IP 20, TCP with time stamps 32
_NEW_NAME, _NEW_USER, _NEW_NET = 0x04000000, 0x10000000, 0x40000000  # of unshare
_DIE_WITH_PARENT = 1  # of prctl


def address(rank: int) -> str:
    """Of a rank."""
    return f"10.77.0.{rank + 1}"


def burst_bytes(mbit: int) -> int:
    """What passes a link at once: a millisecond's bytes, 32 KiB at least."""
    return max(32 << 10, mbit * 1_000_000 // 8 // 1000)


def enter() -> None:
    """Give this process, which has one thread, an empty network and a host name of its own.

    Raises:
        UserError: the machine does not allow it, or lacks the tools.
    """
    if missing := [tool for tool in ("ip", "tc") if not shutil.which(tool)]:
        raise UserError(f"{' and '.join(missing)} not found: links cannot be made", "install iproute2")
    uid, gid = os.getuid(), os.getgid()
    alone = os.geteuid() == 0
    if _libc().unshare(_NEW_NET | _NEW_NAME | (0 if alone else _NEW_USER)):
        raise _not_allowed(os.strerror(ctypes.get_errno()))
    if not alone:
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        except OSError as error:  # some systems let anybody make a namespace, and nobody be root in it
            raise _not_allowed(str(error)) from None
    tool("ip", "link", "set", "lo", "up")


def _not_allowed(reason: str) -> UserError:
    return UserError(
        f"network namespaces are not allowed here: {reason}",
        "run it as root, or in a container with CAP_SYS_ADMIN, or allow user namespaces",
    )


def die_with_parent() -> None:
    """SIGKILL for this process when the one that started it ends."""
    _libc().prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def make_hub() -> None:
    """The bridge, in the lab's namespace."""
    tool("ip", "link", "add", HUB, "type", "bridge")
    tool("ip", "addr", "add", f"{HUB_ADDRESS}/24", "dev", HUB)
    tool("ip", "link", "set", HUB, "up")


def attach(rank: int, pid: int, mbit: int) -> None:
    """A link from the hub into the namespace of process `pid`, which `join`s then."""
    port = f"port{rank}"
    tool("ip", "link", "add", port, "type", "veth", "peer", "name", LINK, "netns", str(pid))
    tool("ip", "link", "set", port, "master", HUB, "up")
    _limit(port, mbit)


def detach(rank: int) -> None:
    """Remove a rank's link, if it is still there."""
    subprocess.run(["ip", "link", "del", f"port{rank}"], capture_output=True, check=False)


def join(rank: int, mbit: int) -> None:
    """In the rank's namespace: its address, its limit; its host's name is its address.

    Horovod 0.28.1 looks for process sets at the address of the host's name, whatever HOROVOD_GLOO_IFACE is.
    """
    socket.sethostname(address(rank))
    tool("ip", "addr", "add", f"{address(rank)}/24", "dev", LINK)
    tool("ip", "link", "set", LINK, "up")
    _limit(LINK, mbit)


def counters() -> dict[str, int]:
    """Of this namespace's link: bytes and packets, received and sent, as the kernel counts them (headers included)."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == LINK:
            seen = [int(number) for number in numbers.split()]
            return {"rx_bytes": seen[0], "rx_packets": seen[1], "tx_bytes": seen[8], "tx_packets": seen[9]}
    raise RuntimeError(f"this namespace has no interface {LINK}")


def tool(*command: str) -> None:
    """Run ip or tc.

    Raises:
        UserError: it failed; with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip()}", "the kernel may lack veth, bridge or sch_tbf")


def _limit(interface: str, mbit: int) -> None:
    rate = ("rate", f"{mbit}mbit", "burst", str(burst_bytes(mbit)), "latency", "50ms")
    tool("tc", "qdisc", "add", "dev", interface, "root", "tbf", *rate)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
