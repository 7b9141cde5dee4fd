"""Three processes with mailboxes over TCP: one is stopped and goes on, then it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RANK = """
import json, sys, time
from headrace.comm import CollectiveError, open_mailbox
from headrace.comm.torch_dist import TorchCollective
import torch

where, rank, size = json.loads(sys.argv[1])
box = open_mailbox(TorchCollective(60, init_method=where, rank=rank, size=size), bytes(32))
own = torch.full((1000,), box.rank, dtype=torch.uint8)
box.serve("questions", lambda m: box.send(m.source, f"answers of {box.rank}", "answer", m.head, own))
print(json.dumps("up"), flush=True)
try:
    for line in sys.stdin:
        to, number, wait_s = json.loads(line)
        if number is not None:
            box.send(to, "questions", "question", number)
        found = box.receive(f"answers of {to}", wait_s)
        if found is not None:
            assert found.source == to and found.body.numel() == 1000 and bool((found.body == to).all())
        print(json.dumps(found and found.head), flush=True)
except CollectiveError as error:
    print(json.dumps(str(error)), flush=True)
    sys.stdin.read()  # stays: who goes now would be named by the others
"""


class Process:
    def __init__(self, where: str, rank: int, size: int) -> None:
        command = [sys.executable, "-c", RANK, json.dumps([where, rank, size])]
        env, pipe = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, subprocess.PIPE
        self.popen = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)

    def hear(self) -> Any:
        assert self.popen.stdout is not None
        return json.loads(self.popen.stdout.readline())

    def ask(self, to: int, number: int | None, wait_s: float) -> Any:
        """What another rank answers this one in time; without a number, what it still owes."""
        assert self.popen.stdin is not None
        print(json.dumps([to, number, wait_s]), file=self.popen.stdin, flush=True)
        return self.hear()


def test_a_stopped_rank_is_waited_for_and_a_dead_one_is_named(tmp_path: Path) -> None:
    ranks = [Process(f"file://{tmp_path / 'meet'}", rank, 3) for rank in range(3)]
    try:
        assert [rank.hear() for rank in ranks] == ["up"] * 3
        assert [ranks[a].ask(b, 3 * a + b, 60) for a in range(3) for b in range(3)] == list(range(9))
        ranks[2].popen.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, ranks[2].popen.pid, os.WSTOPPED)  # a busy machine stops it later than it is told to
        until = time.monotonic() + 1.0
        asked = 0
        while time.monotonic() < until or asked < 5:  # the others go on; the stopped one owes its answers
            assert ranks[0].ask(2, asked, 0.05) is None
            assert ranks[0].ask(1, asked, 60) == asked == ranks[1].ask(0, asked, 60)
            asked += 1
        ranks[2].popen.send_signal(signal.SIGCONT)
        assert [ranks[0].ask(2, None, 60) for _ in range(asked)] == list(range(asked))
        ranks[2].popen.kill()
        for rank in ranks[:2]:
            assert str(rank.ask(2, None, 60)).startswith("rank 2 is gone: ")
    finally:
        for rank in ranks:
            rank.popen.kill()
            rank.popen.wait()
