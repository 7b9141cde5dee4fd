"""Variance reduction: explicit tables and iterates in NumPy, and estimates enumerated over all rows from one state.

The references work on least squares, where row i's gradient is x_i (x_i w - y_i) + weight_decay w.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from headrace import optim
from headrace.optim.variance_reduced import number_drawn
from headrace.testing.optim_exam import STEPS, Array, Exam, Run, make
from headrace.testing.problems import Problem, least_squares

ROWS, BATCH = 20, 4
Batches = Sequence[Array]
Follow = Callable[..., list[Array]]


class Rows:
    """Gradients of single rows in NumPy."""

    def __init__(self, problem: Problem, weight_decay: float) -> None:
        self.x, self.y, self.weight_decay = problem.x.numpy(), problem.y.numpy(), weight_decay

    def data(self, w: Array, ids: Any = slice(None)) -> Array:
        """Gradients of rows `ids` at w without decay [B, d]."""
        return np.asarray(self.x[ids] * (self.x[ids] @ w - self.y[ids])[:, None])

    def mean(self, w: Array, ids: Any = slice(None)) -> Array:
        """Mean gradient of rows `ids` with decay [d]."""
        return np.asarray(self.data(w, ids).mean(0) + self.weight_decay * w)


def saga(rows: Rows, batches: Batches, lr: float, **_: Any) -> list[Array]:
    """Defazio, Bach, Lacoste-Julien 2014, eq. 1: the table in full, its mean taken anew."""
    ws, table = [np.zeros(rows.x.shape[1])], rows.data(np.zeros(rows.x.shape[1]))
    for ids in batches:
        w, new = ws[-1], rows.data(ws[-1], ids)
        ws.append(w - lr * ((new - table[ids]).mean(0) + table.mean(0) + rows.weight_decay * w))
        table[ids] = new
    return ws


def sag(rows: Rows, batches: Batches, lr: float, **_: Any) -> list[Array]:
    """Schmidt, Le Roux, Bach 2017, algorithm 1 with batches: the table in full, its mean taken anew."""
    ws, table = [np.zeros(rows.x.shape[1])], rows.data(np.zeros(rows.x.shape[1]))
    for ids in batches:
        table[ids] = rows.data(ws[-1], ids)
        ws.append(ws[-1] - lr * (table.mean(0) + rows.weight_decay * ws[-1]))
    return ws


def svrg(rows: Rows, batches: Batches, lr: float, pick: str, seed: int, length: int, **_: Any) -> list[Array]:
    """Johnson and Zhang 2013, figure 1, decay inside every row's loss."""
    ws, queue = [np.zeros(rows.x.shape[1])], list(batches)
    for outer in range(len(batches) // length):
        anchor = ws[-1]
        inner = [anchor]
        for ids in queue[outer * length : (outer + 1) * length]:
            v = rows.mean(inner[-1], ids) - rows.mean(anchor, ids) + rows.mean(anchor)
            inner.append(inner[-1] - lr * v)
        chosen = int(number_drawn(seed, outer) * length) if pick == "random" else length
        ws += [*inner[1:-1], inner[chosen]]
    return ws


def sarah(
    rows: Rows, batches: Batches, lr: float, pick: str, seed: int, length: int, gamma: float, **_: Any
) -> list[Array]:
    """Nguyen et al. 2017, algorithms 1 and 2: v as the sum over the loop's history, decay inside every row's loss."""
    ws, queue, outer = [np.zeros(rows.x.shape[1])], list(batches), 0
    while queue:
        inner, seen, v = [ws[-1]], [], rows.mean(ws[-1])
        first = v
        while queue and len(inner) <= length and (v @ v > gamma * (first @ first)):
            seen.append(queue.pop(0))
            pairs = zip(seen[1:], inner[1:], inner, strict=False)
            v = first + sum((rows.mean(w, ids) - rows.mean(before, ids) for ids, w, before in pairs), np.zeros(1))
            inner.append(inner[-1] - lr * v)
        whole = len(inner) > length
        chosen = int(number_drawn(seed, outer) * (length + 1)) if pick == "random" and whole else len(inner) - 1
        ws += [*inner[1:-1], inner[chosen]]
        outer += 1
    return ws


def scsg(rows: Rows, batches: Batches, lr: float, anchor_batches: int, seed: int, **_: Any) -> list[Array]:
    """Lei and Jordan 2017, algorithm 1, the anchor's rows side by side, N counted out from its distribution."""
    ws, queue, outer = [np.zeros(rows.x.shape[1])], list(batches), 0
    while queue:
        anchor, gathered = ws[-1], np.concatenate(queue[:anchor_batches])
        ws += [anchor] * min(len(queue), anchor_batches)
        queue = queue[anchor_batches:]
        left, share = 0, anchor_batches / (anchor_batches + 1)
        while 1.0 - number_drawn(seed, outer) <= share ** (left + 1):
            left += 1
        if left and len(gathered) == anchor_batches * BATCH:
            ws[-1] = anchor - lr * rows.mean(anchor, gathered)
        for ids in queue[: max(0, left - 1)]:
            v = rows.mean(ws[-1], ids) - rows.mean(anchor, ids) + rows.mean(anchor, gathered)
            ws.append(ws[-1] - lr * v)
        queue, outer = queue[max(0, left - 1) :], outer + 1
    return ws


def weights(problem: Problem) -> Array:
    """The model's, at present."""
    return next(problem.model.parameters()).detach().numpy().copy()


def same_iterates(name: str, reference: Follow, options: Mapping[str, Any], length: int = 0) -> None:
    """50 steps in batches are the reference's, one by one."""
    problem = least_squares(ROWS, 3, noise=1.0)
    optimizer = make(optim.OPTIMIZERS[name], problem.model, **options)
    batches = list(problem.batches(BATCH, STEPS))
    arguments = {**optim.OPTIMIZERS[name].defaults, **options, "length": length}
    rows = Rows(problem, arguments["weight_decay"])
    ws = reference(rows, [ids.numpy() for ids in batches], **arguments)
    for step, (ids, w) in enumerate(zip(batches, ws[1:], strict=True)):
        problem.step(optimizer, ids)
        np.testing.assert_allclose(weights(problem), w, rtol=1e-9, atol=1e-11, err_msg=f"{name} {options}: step {step}")


def enumerated(name: str, options: Mapping[str, Any], before: int, expected: Callable[..., Array]) -> None:
    """After `before` steps, the mean over rows i of the estimate from batch {i} is what the paper says.

    Args:
        name: of the optimizer.
        options: of it.
        before: steps to the state.
        expected: of (rows, iterates so far, batches so far, options).
    """
    problem = least_squares(ROWS, 3, noise=1.0)
    spec, chosen = optim.OPTIMIZERS[name], {**optim.OPTIMIZERS[name].defaults, **options}
    optimizer = make(spec, problem.model, **options)
    batches = list(problem.batches(BATCH, before))
    ws = [np.zeros(3)]
    for ids in batches:
        problem.step(optimizer, ids)
        ws.append(weights(problem))
    steps = []
    for row in range(ROWS):
        fork = copy.deepcopy(problem)
        again = make(spec, fork.model, **options)
        again.load_state_dict(optimizer.state_dict())
        fork.step(again, torch.tensor([row]))
        steps.append((ws[-1] - weights(fork)) / chosen["lr"])
    want = expected(Rows(problem, chosen["weight_decay"]), ws, [ids.numpy() for ids in batches], chosen)
    np.testing.assert_allclose(np.mean(steps, axis=0), want, rtol=1e-9, atol=1e-11, err_msg=f"{name}: mean estimate")
    assert np.ptp(steps, axis=0).max() > 1e-3, f"{name}: the estimates do not depend on the row"


def unbiased(rows: Rows, ws: list[Array], batches: Batches, options: Mapping[str, Any]) -> Array:
    """SVRG, SAGA: the full gradient."""
    return rows.mean(ws[-1])


def averaged(rows: Rows, ws: list[Array], batches: Batches, options: Mapping[str, Any]) -> Array:
    """SAG: 1 / n of the full gradient, the rest the mean of the table."""
    table = rows.data(ws[0])
    for w, ids in zip(ws, batches, strict=False):
        table[ids] = rows.data(w, ids)
    share, decay = 1 / ROWS, rows.weight_decay * ws[-1]
    return np.asarray(share * rows.data(ws[-1]).mean(0) + (1 - share) * table.mean(0) + decay)


def recursive(rows: Rows, ws: list[Array], batches: Batches, options: Mapping[str, Any]) -> Array:
    """SARAH: the full gradients' difference and the step before."""
    return rows.mean(ws[-1]) - rows.mean(ws[-2]) + (ws[-2] - ws[-1]) / options["lr"]


def anchored(rows: Rows, ws: list[Array], batches: Batches, options: Mapping[str, Any]) -> Array:
    """SCSG in its first loop: the full gradients' difference and the anchor batch's gradient."""
    gathered = np.concatenate(batches[: options["anchor_batches"]])
    return rows.mean(ws[-1]) - rows.mean(ws[0]) + rows.mean(ws[0], gathered)


def _options(**more: Any) -> dict[str, Any]:
    return {"lr": 0.05, "weight_decay": 0.1} | more


_LOOP = _options(inner_epochs=0.8, inner_steps=5, pick="random", seed=3)  # 5 batches an epoch, 10 loops in 50 steps
_EPOCHS = _options(inner_epochs=0.9)  # ceil(0.9 * 20 / 4) = 5 steps
_TABLE = _options(table="auto", table_bytes=1 << 20)
_FULL = _options(table="full")
_SCSG = _options(anchor_batches=2, seed=1)


def _exam(checks: Sequence[Callable[[], None]], options: Mapping[str, Any]) -> Exam:
    return Exam(
        whole=checks,
        options=options,
        rosenbrock=Run(options={"lr": 4e-3}, steps=1_000, gap=0.12),
        logistic=Run(options={"lr": 8.0}, steps=400, gap=1e-5, batch=100),
    )


EXAMS: dict[str, Exam] = {
    "sag": _exam(
        [
            partial(same_iterates, "sag", sag, _TABLE),
            partial(same_iterates, "sag", sag, _FULL),
            partial(enumerated, "sag", _TABLE, 7, averaged),
        ],
        _TABLE,
    ),
    "saga": _exam(
        [
            partial(same_iterates, "saga", saga, _TABLE),
            partial(same_iterates, "saga", saga, _FULL),
            partial(enumerated, "saga", _TABLE, 7, unbiased),
        ],
        _TABLE,
    ),
    "svrg": _exam(
        [
            partial(same_iterates, "svrg", svrg, _LOOP, 5),
            partial(same_iterates, "svrg", svrg, _EPOCHS, 5),
            partial(enumerated, "svrg", _LOOP, 7, unbiased),
        ],
        _LOOP,
    ),
    "sarah": _exam(
        [
            partial(same_iterates, "sarah", sarah, _LOOP, 5),
            partial(same_iterates, "sarah", sarah, _EPOCHS, 5),
            partial(same_iterates, "sarah", sarah, _options(gamma=0.3, inner_steps=10), 10),
            partial(enumerated, "sarah", _EPOCHS, 8, recursive),
        ],
        _LOOP | {"gamma": 0.0},
    ),
    "scsg": Exam(
        whole=[partial(same_iterates, "scsg", scsg, _SCSG), partial(enumerated, "scsg", _SCSG, 3, anchored)],
        options=_SCSG,
        rosenbrock=Run(options={"lr": 4e-3, "anchor_batches": 1}, steps=1_500, gap=0.3),
        logistic=Run(options={"lr": 4.0, "anchor_batches": 1}, steps=1_200, gap=1e-5, batch=400),
    ),
}
