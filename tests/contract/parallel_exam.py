"""What a rank makes of a model that is spread over ranks: pipelines by every schedule, linear layers split every way.

Written so that it can be shipped to other processes by value: it uses nothing of the test framework.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from contract.parallel_ranks import batch, close, losses, perceptron, trained_plainly
from torch import Tensor, nn

from headrace.optim.clipping import ClippingConfig
from headrace.parallel import SCHEDULES, create
from headrace.parallel.pipeline_schedule import FLUSHES
from headrace.parallel.tensor_model import SPLITS

ADAM = {"name": "adam", "lr": 0.02}
BATCHES = [batch(step, 16) for step in range(3)]
PLANS = {how: {"2" if how == "block" else "0": how} for how in SPLITS}


def check_parallel(worker: Any, mailbox: Any) -> dict[str, list[Any]]:
    """By name, SHA-256 of what this rank holds after some steps, and what it was told: losses, norms of gradients.

    Args:
        worker: of the rank.
        mailbox: of the rank, not used otherwise.
    """
    with worker.alone():
        deep, wide = perceptron(), _wide()
    deepest = min(worker.size, 8)
    found = {name: pipelined(worker, mailbox, deep, name, deepest) for name in sorted(SCHEDULES)}
    if worker.size % 2 == 0 and worker.size > 2:
        found |= {f"{name}, replicas": pipelined(worker, mailbox, deep, name, 2) for name in sorted(SCHEDULES)}
    found |= {how: split(worker, wide, plan) for how, plan in PLANS.items()}
    return found | {"all splits": split(worker, wide, {"0": "column", "2": "block", "3": "row"})}


def pipelined(worker: Any, mailbox: Any, plain: nn.Sequential, schedule: str, stages: int) -> list[Any]:
    """Of a pipeline's stage; rank 0 sees that with a flush the whole is the plainly trained model."""
    made = create(
        "pipeline", plain, worker.collective, mailbox, losses=losses, optimizer=ADAM, schedule=schedule, stages=stages,
        micro_batches=4, timeout_s=60.0, name=f"{schedule}.{stages}",
    )  # fmt: skip
    told = []
    for inputs, targets in BATCHES:
        replicas = worker.size // stages
        told.append(made.step(inputs.chunk(replicas)[made.replica], targets.chunk(replicas)[made.replica]).loss)
    whole = made.whole_state_dict()
    if whole is not None and FLUSHES in SCHEDULES[schedule].traits:
        close(whole, trained_plainly(copy.deepcopy(plain), BATCHES, ADAM)[0], 1e-6)
    return [_digest(made.stage.state_dict()), told]


def split(worker: Any, plain: nn.Module, plan: Mapping[str, str]) -> list[Any]:
    """Of a model with split layers, which is the plainly trained one and the same on all ranks."""
    made = create("tensor", plain, worker.collective, plan=plan)
    optimizer, told = made.optimizer("adam", lr=0.02), []
    for inputs, targets in BATCHES:
        optimizer.zero_grad()
        (losses(made.model(inputs), targets).sum() / len(targets)).backward()
        told.append(made.clip(ClippingConfig(rule="norm", limit=0.5)).norm)
        optimizer.step()
    whole = made.whole_state_dict()
    close(whole, trained_plainly(copy.deepcopy(plain), BATCHES, ADAM, clip=0.5)[0], 1e-6)
    return [_digest(made.model.state_dict()), _digest(whole), told]


def _wide() -> nn.Sequential:
    """6 features in, 3 out; odd sizes, a block of two linear layers among them."""
    torch.manual_seed(3)
    block = nn.Sequential(nn.Linear(9, 11), nn.GELU(), nn.Linear(11, 9))
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), block, nn.Linear(9, 3))


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
