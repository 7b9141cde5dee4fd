"""Sending and waiting told apart, on a simulated cluster whose times are known."""

from __future__ import annotations

import torch

from headrace.comm import LocalGroup, Metered, SimulatedCluster
from headrace.train.waiting import Spent, Waiting

LATE = [(0.0, 1.0), (0.5, 0.0), (0.25, 0.25)]  # seconds that each rank comes late to a step's operation
OPERATION = 2 / 64  # of two ranks: there and back


def test_who_comes_last_waits_for_nobody() -> None:
    cluster = SimulatedCluster(2, latency_s=1 / 64)

    def rank_main(rank: int) -> tuple[Spent, int]:
        metered = Metered(cluster.collective(rank))
        metered.clock = cluster.clock(rank)
        waiting = Waiting(metered)
        for late in LATE:
            with waiting.step():
                cluster.clock(rank).spend(late[rank])
                metered.allreduce(torch.ones(2))
            metered.barrier()  # no part of a step
        if rank == 0:
            with waiting.step():  # one that no other rank made, as where ranks stop on their own
                pass
        before = metered.sent_bytes
        return waiting.spent(), metered.sent_bytes - before

    first, second = cluster.run(rank_main)
    assert first == (Spent(send=3 * OPERATION, wait=1.0), 0)
    assert second == (Spent(send=3 * OPERATION, wait=0.5), 0)


def test_nothing_is_known_of_what_was_not_measured() -> None:
    bare = LocalGroup(1).collective(0)
    for collective in (bare, Metered(bare)):
        assert Waiting(collective).spent() == Spent(0.0, 0.0)
