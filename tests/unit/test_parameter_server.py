"""Where ranks of servers meet, the fast ones wait for the slow one as long as it takes; bytes of tables are told
apart."""

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
from headrace.strategies.sparse import with_rows

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


def test_bytes_of_tables_are_told_apart() -> None:
    """In lockstep: a rank sends the other one its rows of it, and those of its own that anyone changed; once."""
    touched = {0: [0, 1, 3], 1: [1, 2]}  # even rows lie with rank 0

    def fn(c: Any) -> tuple[int, int]:
        params = {"w": nn.Parameter(torch.zeros(3)), "t": nn.Parameter(torch.zeros(6, 2))}
        rules = {"dense": {"name": "sgd", "lr": 1.0}, "sparse": {"name": "sgd", "lr": 1.0}}
        given = Equipment(mailbox=c.mailbox(), optimizer=lambda p: create_parts(p, rules), tables=frozenset({"t"}))
        strategy = ParameterServer(c, given, ServerOptions(bound=0))
        strategy.begin(params)
        ids = torch.tensor(touched[c.rank])
        strategy.push({"w": torch.ones(3), "t": with_rows(ids, torch.ones(len(ids), 2), params["t"])}, Rates(1.0), 0.0)
        strategy.on_parameters({name: p.data for name, p in params.items()}, 0, True)
        found = strategy.figures()
        return int(found["mailed_bytes_of_tables"]), int(found["mailed_bytes"])

    row = 8 + 2 * 4
    found = good(on_ranks(2, fn))
    assert [tables for tables, _ in found] == [(2 + 2) * row, (1 + 2) * row]
    assert all(every > tables for tables, every in found)
