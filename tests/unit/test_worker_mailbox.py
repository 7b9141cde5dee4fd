"""`worker.mailbox()` of ranks as threads; the other launchers sit its exam in tests/distributed/test_launch.py."""

from __future__ import annotations

import pytest
from contract.mailbox_exam import check_mailbox

from headrace.comm import Mailbox, Message
from headrace.launch import RankFailed, Worker, launch, values
from headrace.launch.worker import MailboxOnce


def test_it_sits_the_exam_and_is_one() -> None:
    def fn(worker: Worker) -> list[object]:
        return [check_mailbox(worker.mailbox(), worker.collective), worker.mailbox() is worker.mailbox()]

    assert values(launch(fn, 3, launcher="local")) == [[6, True]] * 3


@pytest.mark.parametrize("end", ["fails", "ends"])
def test_who_waits_for_a_message_is_released(end: str) -> None:
    def fn(worker: Worker) -> None:
        if worker.rank == 1 and end == "fails":
            raise KeyError("boom")
        if worker.rank != 1:
            worker.mailbox().receive("never")

    results = launch(fn, 3, launcher="local", timeout_s=60)
    assert [r.error is None for r in results] == [False, end == "ends", False]
    with pytest.raises(RankFailed, match="KeyError" if end == "fails" else "rank 1 ended"):
        values(results)


def test_it_is_opened_when_asked_for_and_closed_once() -> None:
    calls: list[str] = []

    class Box:
        def close(self) -> None:
            calls.append("close")

    def opening() -> Mailbox:
        calls.append("open")
        return Box()  # type: ignore[return-value]

    MailboxOnce(opening).close()
    once = MailboxOnce(opening)
    assert not calls and once() is once()
    once.close()
    assert calls == ["open", "close"]


def test_a_service_that_fails_says_where() -> None:
    def handler(message: Message) -> None:
        raise KeyError("boom")

    def fn(worker: Worker) -> None:
        box = worker.mailbox()
        if worker.rank == 1:
            box.serve("bad", handler)
        box.send(1, "bad", "x")
        box.receive("answers")

    with pytest.raises(RankFailed, match=r"rank 1 failed in serving box 'bad': KeyError\('boom'\)(.|\n)*, in handler"):
        values(launch(fn, 2, launcher="local", timeout_s=60))
