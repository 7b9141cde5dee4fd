"""The channel between driver and ranks: what is forged, replayed, too large or unexpected gets nowhere."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from headrace.comm.frames import MAX_FRAME, ChannelError
from headrace.launch.channel import Driver, RankLink
from headrace.launch.frames import JsonSocket

KEY = b"k" * 32


def pair(driver_key: bytes = KEY, rank_key: bytes = KEY) -> tuple[JsonSocket, JsonSocket, socket.socket, socket.socket]:
    """Two ends over a socket pair, and the sockets underneath."""
    a, b = socket.socketpair()
    a.settimeout(10)
    b.settimeout(10)
    ends: list[JsonSocket] = []
    other = threading.Thread(target=lambda: ends.append(JsonSocket(b, rank_key, driver=False)))
    other.start()
    driver = JsonSocket(a, driver_key, driver=True)
    other.join()
    return driver, ends[0], a, b


def recorded(sender: JsonSocket, raw: socket.socket, message: dict[str, int]) -> bytes:
    """The bytes of a frame, taken off the wire."""
    sender.send(message)
    return raw.recv(1 << 16)


@pytest.fixture
def driver() -> Iterator[Driver]:
    end = Driver(2, bind="127.0.0.1", host="127.0.0.1", stall_timeout_s=6)
    yield end
    end.close()


def test_both_directions() -> None:
    driver, rank, _, _ = pair()
    for i in range(3):
        driver.send({"n": i})
        rank.send({"text": "é" * 1000 * i})
    assert [rank.receive()["n"] for _ in range(3)] == [0, 1, 2]
    assert [len(driver.receive()["text"]) for _ in range(3)] == [0, 1000, 2000]


def test_another_key_is_refused() -> None:
    driver, rank, _, _ = pair(rank_key=b"x" * 32)
    rank.send({"type": "hello"})
    with pytest.raises(ChannelError, match="wrong signature"):
        driver.receive()


@pytest.mark.parametrize("place", [0, 3, 4, 20, 36, -1])
def test_a_flipped_bit_is_refused(place: int) -> None:
    driver, rank, a, b = pair()
    frame = bytearray(recorded(rank, a, {"value": 12345}))
    frame[place] ^= 1
    b.sendall(bytes(frame))
    b.close()
    with pytest.raises(ChannelError):
        driver.receive()


def test_replay_reflection_and_reordering_are_refused() -> None:
    driver, rank, a, b = pair()
    first, second = recorded(rank, a, {"n": 0}), recorded(rank, a, {"n": 1})
    b.sendall(first + first)
    assert driver.receive() == {"n": 0}
    with pytest.raises(ChannelError, match="wrong signature"):
        driver.receive()
    a.sendall(second)
    with pytest.raises(ChannelError, match="wrong signature"):
        rank.receive()
    driver, rank, a, b = pair()
    first, second = recorded(rank, a, {"n": 0}), recorded(rank, a, {"n": 1})
    b.sendall(second + first)
    with pytest.raises(ChannelError, match="wrong signature"):
        driver.receive()


def test_a_frame_of_another_connection_is_refused() -> None:
    _, rank, a, _ = pair()
    frame = recorded(rank, a, {"type": "hello"})
    driver, _, _, b = pair()
    b.sendall(frame)
    with pytest.raises(ChannelError, match="wrong signature"):
        driver.receive()


def test_large_frames_are_refused_before_memory_is_taken() -> None:
    driver, rank, _, b = pair()
    with pytest.raises(ValueError, match="keep large results on disk"):
        rank.send({"value": "x" * MAX_FRAME})
    b.sendall(struct.pack("!I32s", 5000, b""))
    with pytest.raises(ChannelError, match="5,000 bytes is refused"):
        driver.receive()  # nothing genuine came yet: the cap is small
    driver, rank, _, b = pair()
    rank.send({})
    driver.receive()
    b.sendall(struct.pack("!I32s", MAX_FRAME + 1, b""))
    with pytest.raises(ChannelError, match="is refused"):
        driver.receive()


def test_the_key_is_not_shown(driver: Driver) -> None:
    assert driver.address.key.hex() not in repr(driver.address) and repr(driver.address.key) not in repr(driver.address)


def test_strangers_are_dropped_and_ranks_still_heard(driver: Driver) -> None:
    stranger = socket.create_connection((driver.address.host, driver.address.port), timeout=10)
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 100)
    stranger.settimeout(20)
    with contextlib.suppress(ConnectionResetError):
        while stranger.recv(100):
            pass  # its nonce, then the end
    link = RankLink(driver.address, 1, grace_s=1, silent_s=60)
    link.emit({"loss": 0.5})
    link.result([1, None])
    got = [driver.inbox.get(timeout=10) for _ in range(3)]
    assert got == [
        (1, {"type": "hello"}),
        (1, {"type": "event", "event": {"loss": 0.5}}),
        (1, {"type": "result", "value": [1, None]}),
    ]
    link.close()
    rank, message = driver.inbox.get(timeout=10)
    assert (rank, message["type"]) == (1, "lost")


def test_stop_and_bye_reach_the_rank(driver: Driver) -> None:
    link = RankLink(driver.address, 0, grace_s=1, silent_s=60)
    driver.inbox.get(timeout=10)
    assert not link.should_stop()
    driver.tell("stop")
    driver.tell("bye")
    link.wait_for_others(10)
    assert link.should_stop()
    link.close()


def test_a_long_traceback_keeps_both_ends(driver: Driver) -> None:
    link = RankLink(driver.address, 0, grace_s=1, silent_s=60)
    link.error("begin" + "x" * 200_000 + "end", collective=False)
    driver.inbox.get(timeout=10)
    text = driver.inbox.get(timeout=10)[1]["error"]
    assert text.startswith("begin") and text.endswith("end") and len(text) < 70_000
    link.close()


RANK = """
import json, sys, time
from headrace.launch.channel import Address, RankLink
host, port, key, rank = json.loads(sys.argv[1])
link = RankLink(Address(host, port, bytes.fromhex(key), 0.1), rank, grace_s=0.5, silent_s=60)
print("up", flush=True)
time.sleep(60)
"""


def start_rank(driver: Driver, rank: int) -> subprocess.Popen[str]:
    """A rank that sleeps in a process of its own."""
    place = json.dumps([driver.address.host, driver.address.port, driver.address.key.hex(), rank])
    return subprocess.Popen(
        [sys.executable, "-c", RANK, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_rank_whose_driver_goes_ends_itself(driver: Driver, end: str) -> None:
    process = start_rank(driver, 0)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    assert driver.inbox.get(timeout=60)[1] == {"type": "hello"}
    driver.close() if end == "close" else driver.tell("abort")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 70
    assert ("its driver is gone" if end == "close" else "its driver asked it to") in errors


@pytest.mark.parametrize("rank", [0, 2, -1])
def test_a_rank_that_is_not_expected_is_ended(driver: Driver, rank: int) -> None:
    first = RankLink(driver.address, 0, grace_s=1, silent_s=60)
    try:
        driver.inbox.get(timeout=10)
        # 0 is there already (Spark tries a failed task again), 2 and -1 never will be
        process = start_rank(driver, rank)
        process.communicate(timeout=120)
        assert process.returncode == 70
        with pytest.raises(queue.Empty):
            driver.inbox.get_nowait()
    finally:
        first.close()
