"""What a rank's function is given, and what comes back from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from headrace.comm.alone import ALONE
from headrace.comm.base import Collective
from headrace.comm.mailbox import Mailbox


class RankFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """A rank of a launched job failed; the message names it and holds its traceback.

    Args:
        message: cause in the user's words, with the rank's traceback where there is one.
        rank: the rank that failed first.
    """

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank

    def __reduce__(self) -> tuple[type[RankFailed], tuple[str, int]]:
        return type(self), (str(self), self.rank)


@dataclass(frozen=True)
class RankResult:
    """What became of one rank: `value` (JSON-able), or `error`, its traceback or the reason it died, as text.

    `released` marks a rank that failed only because another one did.
    """

    rank: int
    value: Any = None
    error: str | None = None
    released: bool = False


@dataclass(frozen=True)
class LaunchOptions:
    """How ranks are run.

    Args:
        threads: torch intra-op threads of every rank, the same under every launcher (bits depend on it).
        stall_timeout_s: a rank that is silent this long is taken for stopped, and the job is ended.
        start_timeout_s: how long ranks may take to come up.
        stop_grace_s: how long ranks have to end by themselves after a stop request.
        use_gpu: NCCL and one GPU a rank under `torch`; None: where spark.task.resource.gpu.amount gives every task one.
        resume_hint: what to type to go on after a failure; ends the message about a dead rank.
        timeline: a file that Horovod's rank 0 writes: what it did when, for chrome://tracing; "" none.
        autotune: a file for what Horovod tried and took of its fusion and cycle time; "": it tries nothing.
    """

    threads: int = 1
    stall_timeout_s: float = 60.0
    start_timeout_s: float = 300.0
    stop_grace_s: float = 10.0
    use_gpu: bool | None = None
    resume_hint: str = ""
    timeline: str = ""
    autotune: str = ""

    @property
    def transport_timeout_s(self) -> float:
        """When a rank gives up an operation that others do not join, and bytes that nobody takes: where ranks cannot
        reach each other but the driver can reach all. Stall detection, which names the rank, must come first."""
        return 2 * self.stall_timeout_s + 60


class MailboxOnce:
    """A rank's mailbox, opened when it is first asked for.

    Args:
        open_mailbox: opens it; all ranks do so at the same time.
    """

    def __init__(self, open_mailbox: Callable[[], Mailbox]) -> None:
        self._open = open_mailbox
        self._mailbox: Mailbox | None = None

    def __call__(self) -> Mailbox:
        if self._mailbox is None:
            self._mailbox = self._open()
        return self._mailbox

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._mailbox is not None:
            self._mailbox.close()


@dataclass(frozen=True)
class Worker:
    """One rank of a launched job.

    Args:
        collective: the way to the other ranks.
        local_rank: which of the ranks on this host (which GPU to take).
        emit: send a JSON-able event to the driver's `on_event(rank, event)`; never blocks on the driver's work.
        should_stop: whether the user asked to stop. Ranks may see it at different steps: agree by a collective before
            acting on it.
        mailbox: `mailbox()` is this rank's mailbox; all ranks open theirs together, by the first call.
    """

    collective: Collective
    local_rank: int
    emit: Callable[[dict[str, Any]], None]
    should_stop: Callable[[], bool]
    mailbox: Callable[[], Mailbox]

    @property
    def rank(self) -> int:
        return self.collective.rank

    @property
    def size(self) -> int:
        return self.collective.size

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One rank of this process at a time, for torch's global generator; no collectives inside."""
        with ALONE:
            yield


def values(results: list[RankResult]) -> list[Any]:
    """The ranks' values in rank order.

    Raises:
        RankFailed: where a rank failed; names the one that failed first, not those it took along.
    """
    failed = sorted((r for r in results if r.error is not None), key=lambda r: (r.released, r.rank))
    if failed:
        raise RankFailed(f"rank {failed[0].rank} of {len(results)} failed: {failed[0].error}", failed[0].rank)
    return [r.value for r in results]
