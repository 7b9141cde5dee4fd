"""The simulated cluster: times worked out by hand, runs that repeat exactly, bits of a LocalGroup, 1,000 ranks."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.collective_exam import check_collective, on_ranks, train

from headrace.comm import Clock, Collective, CollectiveError, Mailbox, Message, SimulatedCluster
from headrace.comm.virtual_time import Deadlock, Scheduler


def body(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.uint8)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_sits_the_exam_of_collectives(size: int) -> None:
    cluster = SimulatedCluster(size, latency_s=1e-3, bandwidth=1e6, jitter=0.3)
    assert cluster.run(lambda rank: check_collective(cluster.collective(rank))) == [10] * size
    assert isinstance(cluster.collective(0), Collective) and cluster.collective(0).name == "simulated"


def test_sums_have_the_bits_of_threads() -> None:
    def sums(c: Collective) -> list[bytes]:
        g = torch.Generator().manual_seed(c.rank)
        xs = [torch.randn(1001, generator=g, dtype=d) for d in (torch.float32, torch.float64)]
        found = [c.allreduce(x) for x in [*xs, xs[0].bfloat16()]]
        return [x.view(torch.uint8).numpy().tobytes() for x in found]

    def both(c: Collective) -> Any:
        return sums(c), [train(c, reducer) for reducer in ("ordered", "ring")]

    cluster = SimulatedCluster(4, speeds=[1, 2, 3, 4], latency_s=1e-3, bandwidth=1e6)
    assert cluster.run(lambda rank: both(cluster.collective(rank))) == on_ranks(4, both)


def times(cluster: SimulatedCluster, fn: Callable[[int, Mailbox, Clock], Any]) -> list[Any]:
    return cluster.run(lambda rank: fn(rank, cluster.mailbox(rank), cluster.clock(rank)))


def arrivals(cluster: SimulatedCluster, sent: dict[int, list[tuple[int, int]]]) -> dict[int, list[tuple[int, float]]]:
    """When what each rank sends at time 0, as (to, bytes), is there, by receiver: (from, time)."""

    def fn(rank: int, box: Mailbox, clock: Clock) -> list[tuple[int, float]]:
        for to, nbytes in sent.get(rank, []):
            box.send(to, "a", "x", None, body(nbytes))
        due = sum(to == rank for each in sent.values() for to, _ in each)
        found = [(box.receive("a").source, clock.now()) for _ in range(due)]  # type: ignore[union-attr]
        cluster.collective(rank).barrier()
        return found

    return {rank: found for rank, found in enumerate(times(cluster, fn)) if found}


def test_a_message_takes_its_bytes_and_the_latency() -> None:
    assert arrivals(SimulatedCluster(2, latency_s=0.5, bandwidth=8), {0: [(1, 16), (1, 8)]}) == {
        1: [(0, 2.5), (0, 3.5)]
    }
    assert arrivals(SimulatedCluster(2, latency_s=0.5), {0: [(1, 16)]}) == {1: [(0, 0.5)]}
    assert arrivals(SimulatedCluster(2, bandwidth=8), {0: [(0, 16)]}) == {0: [(0, 0.0)]}  # to oneself


def test_heads_are_bytes_too() -> None:
    cluster = SimulatedCluster(2, bandwidth=1)

    def fn(rank: int, box: Mailbox, clock: Clock) -> float:
        if rank == 0:
            box.send(1, "a", "x", [1, 2], body(10))
        else:
            box.receive("a")
        cluster.collective(rank).barrier()
        return clock.now()

    assert times(cluster, fn) == [10 + len("[1, 2]")] * 2


def test_a_line_out_is_shared_by_all_it_goes_to() -> None:
    assert arrivals(SimulatedCluster(3, bandwidth=8), {0: [(1, 16), (2, 16)]}) == {1: [(0, 2.0)], 2: [(0, 4.0)]}


def test_a_line_in_is_shared_by_all_that_come() -> None:
    """Three send 8 bytes at once to rank 0; its line takes a second for each, in the order in which they reach it."""
    sent = {rank: [(0, 8)] for rank in (1, 2, 3)}
    assert arrivals(SimulatedCluster(4, bandwidth=8), sent) == {0: [(1, 1.0), (2, 2.0), (3, 3.0)]}
    # with a line four times as fast as theirs, all come at once
    assert arrivals(SimulatedCluster(4, bandwidth=[32, 8, 8, 8]), sent) == {0: [(1, 1.0), (2, 1.0), (3, 1.0)]}


def test_what_waits_at_its_sender_keeps_no_line_at_its_receiver() -> None:
    """Rank 1's second message reaches the line into 0 at 2 s: rank 2's, sent at 0 and there at .5 s, goes before it."""
    sent = {1: [(2, 16), (0, 8)], 2: [(0, 4)]}
    assert arrivals(SimulatedCluster(3, bandwidth=8), sent) == {0: [(2, 0.5), (1, 3.0)], 2: [(1, 2.0)]}


def test_pairs_have_lines_of_their_own() -> None:
    cluster = SimulatedCluster(3, bandwidth=lambda a, b: 4.0 + a + b, latency_s=lambda a, b: float(a))
    assert arrivals(cluster, {1: [(0, 10), (2, 14)], 2: [(0, 6)]}) == {0: [(1, 3.0), (2, 3.0)], 2: [(1, 3.0)]}


def test_computing_takes_time_by_speed() -> None:
    def fn(rank: int, box: Mailbox, clock: Clock) -> list[float]:
        found = []
        for _ in range(2):
            clock.spend(3.0)
            found.append(clock.now())
        return found

    assert times(SimulatedCluster(3, speeds=[1, 2, 0.25]), fn) == [[3, 6], [1.5, 3], [12, 24]]

    def asks_between(rank: int, box: Mailbox, clock: Clock) -> list[float]:
        assert box.receive("a", 0.0) is None  # no computing: the next is still the thread's first
        return fn(rank, box, clock)

    for each in (fn, asks_between):
        by_step = SimulatedCluster(2, speeds=lambda rank, n: 1.0 if (rank, n) != (1, 1) else 0.1)
        assert times(by_step, each) == [[3, 6], [3, 33]]
    with pytest.raises(ValueError, match="time goes forward"):
        times(SimulatedCluster(1), lambda rank, box, clock: clock.spend(-1.0))
    drawn = times(SimulatedCluster(2, jitter=0.5, seed=1), fn)
    assert drawn == times(SimulatedCluster(2, jitter=0.5, seed=1), fn)
    assert drawn != times(SimulatedCluster(2, jitter=0.5, seed=2), fn)
    assert len({round(t, 9) for each in drawn for t in (each[0], each[1] - each[0])}) == 4


def test_jitter_has_the_deviation_that_was_asked_for() -> None:
    logs = []

    def fn(rank: int, box: Mailbox, clock: Clock) -> None:
        for _ in range(1000):
            before = clock.now()
            clock.spend(1.0)
            logs.append(torch.log(torch.tensor(clock.now() - before, dtype=torch.float64)))

    times(SimulatedCluster(2, jitter=0.25), fn)
    found = torch.stack(logs)
    assert abs(found.mean()) < 4 * 0.25 / 2000**0.5 and abs(found.std() - 0.25) < 4 * 0.25 / (2 * 2000) ** 0.5


def test_threads_of_a_rank_have_jitter_of_their_own() -> None:
    cluster, seen = SimulatedCluster(1, jitter=0.5), []

    def more() -> None:
        cluster.clock(0).spend(1.0)
        seen.append(cluster.clock(0).now())

    def fn(rank: int) -> None:
        for _ in range(3):
            cluster.spawn(0, more)
        cluster.mailbox(0).receive("never", 100.0)

    cluster.run(fn)
    assert len(set(seen)) == 3


OPERATIONS: dict[str, tuple[Callable[[Collective], Any], float]] = {
    # 4 ranks, latency 1/2 s, 8 bytes/s
    "allreduce": (lambda c: c.allreduce(torch.zeros(8)), 2 * 3 * 0.5 + 2 * 3 / 4 * 32 / 8),
    "allreduce of bfloat16": (lambda c: c.allreduce(torch.zeros(8).bfloat16()), 2 * 3 * 0.5 + 2 * 3 / 4 * 32 / 8),
    "allgather": (lambda c: c.allgather(torch.zeros(2 * (c.rank + 1))), 3 * 0.5 + 3 * 32 / 8),
    "alltoall": (lambda c: c.alltoall([torch.zeros(c.rank)] * 4), 3 * 0.5 + 3 * 12 / 8),  # rank 3 sends most
    "alltoall to one": (lambda c: c.alltoall([torch.zeros(2 * (j == 0)) for j in range(4)]), 3 * 0.5 + 3 * 8 / 8),
    "broadcast": (lambda c: c.broadcast(torch.zeros(4), 2), 2 * (0.5 + 16 / 8)),
    "barrier": (lambda c: c.barrier(), 2 * 0.5),
    "object": (lambda c: c.allgather_object("x" * (6 + 2 * c.rank)), 3 * 0.5 + 3 * 14 / 8),
}


@pytest.mark.parametrize(("call", "seconds"), OPERATIONS.values(), ids=OPERATIONS)
def test_operations_wait_for_the_slowest_and_take_what_the_model_says(
    call: Callable[[Collective], Any], seconds: float
) -> None:
    cluster = SimulatedCluster(4, latency_s=0.5, bandwidth=8, speeds=[1, 4, 1 / 4, 1])

    def fn(rank: int) -> tuple[float, float]:
        cluster.clock(rank).spend(2.0)
        call(cluster.collective(rank))
        first = cluster.clock(rank).now()
        call(cluster.collective(rank))
        return first, cluster.clock(rank).now()

    assert cluster.run(fn) == [(8 + seconds, 8 + 2 * seconds)] * 4
    assert cluster.seconds == 8 + 2 * seconds and cluster.clock(2).now() == cluster.seconds


def test_the_slowest_line_holds_up_the_ring() -> None:
    for bandwidth in ([8, 8, 2, 8], lambda a, b: 2.0 if (a, b) == (1, 2) else 8.0):
        cluster = SimulatedCluster(4, bandwidth=bandwidth)
        cluster.run(lambda rank, c=cluster: c.collective(rank).allreduce(torch.zeros(8)))
        assert cluster.seconds == 2 * 3 / 4 * 32 / 2


def asynchronous_sgd(cluster: SimulatedCluster, steps: int = 20) -> Callable[[int], Any]:
    """A parameter server on rank 0 beside its worker: what every worker reads depends on who came before."""
    parameters = torch.zeros(50)

    def serve(message: Message) -> None:
        nonlocal parameters
        cluster.clock(0).spend(1e-3)
        if message.kind == "push":
            parameters = parameters - 0.1 * (parameters + message.body.view(torch.float32))
        else:
            cluster.mailbox(0).send(message.source, "answers", "parameters", None, parameters.view(torch.uint8).clone())

    def fn(rank: int) -> tuple[float, bytes]:
        box, clock, c = cluster.mailbox(rank), cluster.clock(rank), cluster.collective(rank)
        if rank == 0:
            box.serve("server", serve)
        for step in range(steps):
            box.send(0, "server", "pull")
            answer = box.receive("answers")
            assert answer is not None
            own = answer.body.view(torch.float32).sin() + torch.arange(50) * (rank + step)
            clock.spend(0.05)
            box.send(0, "server", "push", step, own.view(torch.uint8))
        c.barrier()
        return clock.now(), parameters.numpy().tobytes()

    return fn


def test_asynchronous_runs_are_repeated_exactly() -> None:
    def once(**options: Any) -> tuple[str, list[Any]]:
        cluster = SimulatedCluster(6, **{"latency_s": 1e-3, "bandwidth": 1e6, "jitter": 0.2, "seed": 3, **options})
        results = cluster.run(asynchronous_sgd(cluster))
        return cluster.digest, results

    digest, results = once()
    for _ in range(2):
        busy = threading.Thread(target=lambda: sum(random.random() for _ in range(300_000)))
        busy.start()  # what else the machine does changes nothing
        assert once() == (digest, results)
        busy.join()
    for changed in ({"seed": 4}, {"speeds": [1, 1, 1, 1, 1, 0.9]}, {"bandwidth": 2e6}):
        other, found = once(**changed)
        assert other != digest and found != results


def test_one_slow_rank_of_four_holds_up_operations_and_not_messages() -> None:
    """20 steps of 1 s, one rank four times as slow: together 80 s; apart the fast ones are done after 20 s."""
    together = SimulatedCluster(4, speeds=[1, 1, 1, 0.25])

    def in_step(rank: int) -> float:
        for _ in range(20):
            together.clock(rank).spend(1.0)
            together.collective(rank).allreduce(torch.ones(3))
        return together.clock(rank).now()

    assert together.run(in_step) == [80.0] * 4
    apart = SimulatedCluster(4, speeds=[1, 1, 1, 0.25], latency_s=0.1)

    def alone(rank: int) -> float:
        for step in range(20):
            apart.clock(rank).spend(1.0)
            apart.mailbox(rank).send((rank + 1) % 4, "a", "x", step)
            while apart.mailbox(rank).receive("a", 0.0) is not None:
                pass
        done = apart.clock(rank).now()
        apart.collective(rank).barrier()
        return done

    assert apart.run(alone) == [20.0, 20.0, 20.0, 80.0]


def test_timeouts_are_of_virtual_time() -> None:
    def fn(rank: int, box: Mailbox, clock: Clock) -> list[Any]:
        if rank == 1:
            clock.spend(1000.0)
            box.send(0, "a", "late")
            clock.spend(1000.0)
            return []
        found = [(box.receive("a", 400.0), clock.now()) for _ in range(2)]
        message = box.receive("a", 400.0)
        return [*found, (message and message.kind, clock.now()), (box.receive("a", 0.0), clock.now())]

    found = times(SimulatedCluster(2, latency_s=0.5), fn)[0]
    assert found == [(None, 400.0), (None, 800.0), ("late", 1000.5), (None, 1000.5)]


def test_further_threads_have_times_of_their_own() -> None:
    cluster = SimulatedCluster(2, speeds=[1, 2])
    seen: list[tuple[str, float]] = []

    def more(name: str, seconds: float) -> None:
        cluster.clock(1).spend(seconds)
        seen.append((name, cluster.clock(1).now()))

    def fn(rank: int) -> float:
        if rank == 1:
            cluster.clock(1).spend(2.0)
            cluster.spawn(1, lambda: more("short", 1.0))
            cluster.spawn(1, lambda: more("long", 6.0))
            cluster.spawn(1, lambda: more("never", 100.0))
        cluster.clock(rank).spend(10.0)
        return cluster.clock(rank).now()

    assert cluster.run(fn) == [10.0, 6.0]
    assert seen == [("short", 1.5), ("long", 4.0)]


def test_a_deadlock_says_who_waits_for_what() -> None:
    cluster = SimulatedCluster(4)

    def fn(rank: int) -> None:
        cluster.mailbox(rank).serve("idle", lambda message: None)
        cluster.clock(rank).spend(0.5)
        cluster.collective(rank).barrier() if rank < 2 else cluster.mailbox(rank).receive("never")

    with pytest.raises(Deadlock) as caught:
        cluster.run(fn)
    assert "rank 0 waits for rank 2, 3 in barrier since 0.5 s" in str(caught.value)
    assert "rank 3 waits for a message in box 'never' since 0.5 s" in str(caught.value)
    assert "rank 3 (box idle) waits for a message in box 'idle' since 0.0 s" in str(caught.value)


def test_an_error_is_raised_with_its_place_and_releases_the_others() -> None:
    cluster, told = SimulatedCluster(3), {}

    def fn(rank: int) -> None:
        cluster.clock(rank).spend(1.0 + rank)
        if rank == 1:
            raise KeyError("boom")
        try:
            cluster.collective(rank).barrier() if rank == 0 else cluster.clock(rank).spend(100.0)
        except CollectiveError as error:
            told[rank] = str(error)
            raise

    with pytest.raises(KeyError, match="boom") as caught:
        cluster.run(fn)
    assert caught.value.__notes__ == ["in rank 1 of the simulated cluster, at 2.0 s"]
    assert told[0] == "rank 1 failed: KeyError('boom')"


def test_different_operations_and_early_ends_are_named_as_by_threads() -> None:
    cluster = SimulatedCluster(2)
    with pytest.raises(CollectiveError, match=r"different operations: allreduce torch.float32 \[2\], barrier"):
        cluster.run(lambda r: cluster.collective(r).barrier() if r else cluster.collective(r).allreduce(torch.ones(2)))
    for late in (0, 1):
        ended = SimulatedCluster(2)
        with pytest.raises(CollectiveError, match="rank 1 ended while others wait for it"):
            ended.run(lambda r, c=ended, late=late: r or (c.clock(r).spend(late), c.collective(r).barrier()))


def test_a_rank_that_ended_is_news_after_what_it_sent() -> None:
    cluster = SimulatedCluster(2, latency_s=1.0, bandwidth=1.0)

    def fn(rank: int) -> Any:
        box = cluster.mailbox(rank)
        if rank == 1:
            return box.send(0, "a", "last", None, body(50))
        assert box.receive("a").kind == "last"  # type: ignore[union-attr]
        with pytest.raises(CollectiveError, match="rank 1 ended"):
            box.receive("a")
        return cluster.clock(0).now()

    assert cluster.run(fn)[0] == 51.0


def test_who_sends_to_a_closed_mailbox_is_told_whose_it_is() -> None:
    def fn(rank: int, box: Mailbox, clock: Clock) -> str:
        if rank == 1:
            box.close()
            clock.spend(10.0)
            return ""
        clock.spend(0.5)  # before the news comes
        with pytest.raises(CollectiveError) as told:
            box.send(1, "a", "x")
        return str(told.value)

    assert times(SimulatedCluster(2, latency_s=1.0), fn)[0] == "rank 1 is gone"


def test_asking_for_ever_at_one_time_is_an_error() -> None:
    cluster = SimulatedCluster(2)

    def fn(rank: int) -> None:
        while rank == 0 and cluster.mailbox(0).receive("a", 0.0) is None:
            pass
        cluster.clock(rank).spend(1.0)

    with pytest.raises(RuntimeError, match="rank 0 asks again and again at 0.0 s and spends no time"):
        cluster.run(fn)


def test_a_lock_held_over_the_baton_is_reported_with_its_place() -> None:
    scheduler = Scheduler(stall_s=0.0)
    lock = threading.Lock()

    def held() -> None:
        with lock:
            scheduler.spend(1.0)

    scheduler.spawn(0, "main", held, main=True)
    scheduler.spawn(1, "main", held, main=True)
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 has run for .* s without a word.*with lock:"):
        scheduler.run()


def test_other_threads_and_other_ranks_are_refused() -> None:
    cluster = SimulatedCluster(2)
    with pytest.raises(RuntimeError, match="only threads of the simulated cluster"):
        cluster.collective(0).barrier()
    with pytest.raises(AssertionError, match="belongs to the threads of its rank"):
        cluster.run(lambda rank: cluster.clock(1 - rank).spend(1.0))
    for options in (
        {"size": 0},
        {"size": 2, "speeds": [1]},
        {"size": 2, "speeds": [1, 0]},
        {"size": 2, "bandwidth": 0},
    ):
        with pytest.raises(ValueError, match="at least one rank|over 0"):
            SimulatedCluster(**options)  # type: ignore[arg-type]


def test_a_thousand_ranks_in_one_process() -> None:
    """Gossip with a neighbour 1, 10, 100 places away: the numbers are those of a loop, the mean stays."""
    size = 1000
    cluster = SimulatedCluster(size, latency_s=1e-3, bandwidth=1e8, jitter=0.2)

    def fn(rank: int) -> float:
        box, clock, x = cluster.mailbox(rank), cluster.clock(rank), float(rank)
        for step in range(3):
            clock.spend(1.0)
            box.send((rank + 10**step) % size, f"step {step}", "x", x)
            got = box.receive(f"step {step}")
            assert got is not None and got.source == (rank - 10**step) % size
            x = (x + got.head) / 2
        cluster.collective(rank).barrier()
        return x

    found = cluster.run(fn)
    plain = [float(rank) for rank in range(size)]
    for step in range(3):
        plain = [(plain[rank] + plain[rank - 10**step]) / 2 for rank in range(size)]
    assert found == plain and sum(found) / size == (size - 1) / 2
    assert threading.active_count() < 50
