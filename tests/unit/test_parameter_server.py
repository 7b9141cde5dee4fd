"""Where ranks of servers meet: the fast ones wait for the slow one as long as it takes."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from contract.collective_exam import good, on_ranks
from torch import nn

from headrace.optim import create_parts
from headrace.optim.schedules import Rates
from headrace.strategies import Equipment
from headrace.strategies.parameter_server import ParameterServer
from headrace.strategies.server_options import ServerOptions

OPERATION_S = 0.5


def test_a_rank_that_is_late_by_more_than_an_operation_may_take_is_waited_for() -> None:
    """Transports give an operation up after minutes; without a bound ranks may be an epoch apart."""
    pushed = threading.Event()

    def fn(c: Any) -> list[float]:
        params = {"w": nn.Parameter(torch.zeros(3))}
        make = lambda part: create_parts(part, {"dense": {"name": "sgd", "lr": 1.0}})  # noqa: E731
        strategy = ParameterServer(c, Equipment(mailbox=c.mailbox(), optimizer=make), ServerOptions())
        strategy.begin(params)
        if c.rank == 1:
            pushed.wait(60)
            time.sleep(3 * OPERATION_S)
        strategy.push({"w": torch.full((3,), 1.0 + c.rank)}, Rates(1.0), 0.0)
        pushed.set()
        values = {"w": params["w"].data}
        strategy.on_parameters(values, 0, True)
        found: list[float] = values["w"].tolist()
        return found

    assert good(on_ranks(2, fn, OPERATION_S)) == [[-3.0] * 3] * 2
