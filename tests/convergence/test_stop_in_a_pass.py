"""A stop asked for while a rule goes through all rows: the step is not made, the resumed run has the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from convergence.local_rows import CARDS, ROWS, Source, run

from headrace import models, optim
from headrace.catalog.fingerprint import key_sum
from headrace.data.batch import Batch
from headrace.launch import Worker
from headrace.optim.spec import NEEDS_FULL_PASS
from headrace.strategies import REDUCERS, STRATEGIES
from headrace.train.checkpoint import CheckpointStore
from headrace.train.fit_config import FitConfig
from headrace.train.loop import Hooks, fit

NAMES = [name for name, spec in optim.OPTIMIZERS.items() if NEEDS_FULL_PASS in spec.traits]
BATCHES, AT = 60, 20  # of a pass; where the stop is asked for


@dataclass
class Job:
    """A rank's function: logistic regression, the rule for its dense part; the last rank is asked to stop."""

    rule: str
    directory: Path
    stop_in: int = 0  # number of the pass, from 1; 0: in none

    def __call__(self, worker: Worker) -> dict[str, Any]:
        model = models.create("logistic", CARDS, 13, seed=1)
        source, read = Source(worker.rank, worker.size), [0]
        asked = False

        def training() -> Iterator[Batch]:
            nonlocal asked
            (whole,) = source.whole()
            read.append(0)
            for rows in torch.arange(len(whole)).tensor_split(BATCHES):
                read[-1] += 1
                asked = asked or ((len(read) - 1, read[-1]) == (self.stop_in, AT) and worker.rank == worker.size - 1)
                yield Batch({name: tensor[rows] for name, tensor in whole.tensors.items()})

        inner = {"inner_steps": 3} if "inner_steps" in optim.OPTIMIZERS[self.rule].defaults else {}
        dense = {"name": self.rule, "lr": 0.05, **inner, "wrappers": {"ema": {}}}
        optimizer = optim.create_parts(model, {"dense": dense, "sparse": {"name": "rowwise_adagrad", "lr": 0.1}})
        before = [p.detach().clone() for p in model.parameters()]
        result = fit(
            model,
            source,
            optimizer,
            STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), worker.collective),
            worker.collective,
            FitConfig(eval_every=3),
            worker.emit,
            Hooks(
                validation=source.whole,
                training=training,
                store=CheckpointStore(self.directory),
                should_stop=lambda: asked,
                rows=ROWS,
                fingerprint=key_sum(source.data["key"]),
            ),
        )
        return {
            "sha": result.weights_sha256,
            "stopped": result.stopped,
            "step": result.cursor.global_step,
            "read": read[1:],
            "moved": any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)),
            "audits": [audit.to_dict() for audit in result.audits],
        }


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_stop_in_a_pass_is_seen_and_the_step_made_by_the_resumed_run(tmp_path: Path, name: str, ranks: int) -> None:
    events: dict[str, list[dict[str, Any]]] = {"whole": [], "cut": [], "resumed": []}
    whole = run(Job(name, tmp_path / "whole"), ranks, events["whole"])
    stop_in = len(whole["read"][:2])  # the first pass of rules that make one, the second of those that make more
    cut = run(Job(name, tmp_path / "cut", stop_in), ranks, events["cut"])
    assert cut["stopped"] == "asked"
    assert cut["read"] == [BATCHES] * (stop_in - 1) + [32]  # asked at batch 20, seen at batch 32
    assert cut["step"] == 3 * (stop_in - 1)
    assert cut["moved"] == (stop_in > 1)
    resumed = run(Job(name, tmp_path / "cut"), ranks, events["resumed"])
    assert {key: resumed[key] for key in ("sha", "stopped", "audits")} == {
        key: whole[key] for key in ("sha", "stopped", "audits")
    }
    evaluated = {kind: [e["step"] for e in made if e["type"] == "eval"] for kind, made in events.items()}
    assert evaluated["cut"] + evaluated["resumed"] == evaluated["whole"]  # none twice
