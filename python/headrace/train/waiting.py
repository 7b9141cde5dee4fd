"""Time in operations between ranks, told apart: sending, and waiting for ranks that come later.

    send = sum over steps of min over ranks of s,   wait of rank r = sum over steps of s_r - min over ranks of s

with s_r the seconds that rank r spent in operations in a step. The rank that comes last waits for nobody, so what it
takes is what sending takes. Where several operations of a step wait for different ranks, some of the waiting counts as
sending. What passes beside backward counts as well.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from headrace.comm.base import Collective
from headrace.comm.metered import Metered


class Spent(NamedTuple):
    """Seconds: of sending, the same on every rank, and of this rank's waiting."""

    send: float
    wait: float


class Waiting:
    """Seconds in a rank's operations by step, where a `Metered` takes them; else none are known, and all are 0.

    Args:
        collective: of the steps.
    """

    def __init__(self, collective: Collective) -> None:
        self._metered = collective if isinstance(collective, Metered) else None
        self._steps = array("d")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Surrounds a step."""
        before = self._metered.seconds if self._metered else 0.0
        yield
        self._steps.append(self._metered.seconds - before if self._metered else 0.0)

    def spent(self) -> Spent:
        """Of the steps that all ranks made so far; all ranks call it together. Its own bytes are not counted."""
        if self._metered is None:
            return Spent(0.0, 0.0)
        own = torch.tensor(self._steps, dtype=torch.float64)
        every = self._metered.inner.allgather(own)
        common = min(len(each) for each in every)  # ranks that do not wait for each other may stop at different steps
        least = torch.stack([each[:common] for each in every]).amin(0)
        return Spent(float(least.sum()), float((own[:common] - least).sum()))
