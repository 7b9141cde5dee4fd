"""What runs in every process of a launched job, under any launcher."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import torch

from headrace.comm.base import Collective, CollectiveError
from headrace.comm.frames import ChannelError
from headrace.comm.tcp_mailbox import MailboxLimits, open_mailbox
from headrace.launch.channel import Address, RankLink
from headrace.launch.worker import LaunchOptions, MailboxOnce, Worker

# How long a rank that is done keeps its connections open for those still in the last operation.
_LINGER_S = 5.0
# Longest time between a failure being reported and the process being gone.
_EXIT_S = 5.0


class Closable(Collective, Protocol):
    """A collective that can be left."""

    def close(self) -> None: ...


def run_rank(
    fn: Callable[[Worker], Any],
    address: Address,
    options: LaunchOptions,
    rank: int,
    local_rank: int,
    connect: Callable[[], Closable],
) -> None:
    """Report to the driver, join the others, run `fn`, send its value or its traceback.

    A rank that failed ends its process: that is what releases the others from their collectives.
    """
    silent_s = options.transport_timeout_s
    link = RankLink(address, rank, grace_s=options.stop_grace_s, silent_s=silent_s)
    if threading.current_thread() is threading.main_thread():
        # Spark and Horovod end processes by SIGTERM: take it as a request to stop in good order.
        signal.signal(signal.SIGTERM, lambda signum, frame: link.request_stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(options.threads)
    try:
        collective = connect()
        limits = MailboxLimits(silent_s=silent_s)
        mailbox = MailboxOnce(lambda: open_mailbox(collective, address.key, host=link.host, limits=limits))
        value = fn(Worker(collective, local_rank, link.emit, link.should_stop, mailbox))
        link.result(value)
    except BaseException as error:
        _report(link, error)
        leave(1)
    link.wait_for_others(_LINGER_S)
    mailbox.close()
    collective.close()
    link.close()


def _report(link: RankLink, error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))
    try:
        link.error(text, collective=isinstance(error, CollectiveError))
        link.wait_for_others(0.2)
    except ChannelError:
        print(text, file=sys.stderr)


def leave(code: int) -> None:
    """End the process now: threads that hang in a collective must not keep it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
