"""A rank of hogwild as a process of its own, under gloo: python hogwild_rank.py RANK SIZE MEETING_FILE"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn

from headrace.strategies import REDUCERS, create

ROWS, UPDATES = 12, 300


def write_rows(c: Any, **options: Any) -> list[list[float]]:
    """Rank r adds r + 1 to its own rows of a table UPDATES times, by a row-sparse rule; the table that it sees then."""
    table = nn.Parameter(torch.zeros(ROWS, 2))
    strategy = create("hogwild", REDUCERS["ordered"].factory(), c, **options)
    strategy.begin({"t": table})
    rule = torch.optim.SGD([table], lr=1.0)
    ids = torch.arange(c.rank, ROWS, c.size)[None]
    for step in range(UPDATES):
        table.grad = torch.sparse_coo_tensor(ids, torch.full((ids.numel(), 2), -1.0 - c.rank), table.shape)
        strategy.before_update({"t": table.data}, {"t": table.grad})
        rule.step()
        strategy.on_parameters({"t": table.data}, step, strategy.meets(step, False))
    strategy.finish({"t": table.data})
    strategy.close()
    c.barrier()
    seen: list[list[float]] = table.tolist()
    return seen


def train(c: Any) -> dict[str, Any]:
    """A small run of the training loop; what it ends with."""
    from convergence.test_train_local import Job

    from headrace.launch import Worker
    from headrace.train.fit_config import FitConfig

    cfg = FitConfig(epochs=2, eval_every=4)
    worker = Worker(c, c.rank, lambda event: None, lambda: False, mailbox=_none)
    return Job(cfg=cfg, strategy={"name": "hogwild"})(worker)


def _none() -> Any:
    raise AssertionError("hogwild sends no messages")


if __name__ == "__main__":
    from headrace.comm.torch_dist import TorchCollective

    torch.set_num_threads(1)
    rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    collective = TorchCollective(60.0, init_method=f"file://{meeting}", rank=rank, size=size)
    print(json.dumps({"rows": write_rows(collective), "trained": train(collective)}))
    collective.close()
