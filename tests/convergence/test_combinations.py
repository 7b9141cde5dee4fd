"""Settings of an exchange two by two: what `check` accepts makes steps and sends what it says, all else is refused.

Every pair of values that are not the defaults is checked; of those that are accepted `make test` runs a tenth, by a
seed, and `make campaign` all.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from typing import Any

import pytest
from convergence.local_rows import run
from convergence.test_train_local import Job

from headrace.compress import COMPRESSORS
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS
from headrace.optim.spec import OWN_GRADIENT
from headrace.pipelines import train_ctr
from headrace.strategies import STRATEGIES
from headrace.strategies.compression import AUTO, POWERSGD
from headrace.train.fit_config import FitConfig

CODECS = [name for name in (*COMPRESSORS, POWERSGD, AUTO) if name != "none"]
SETTINGS: dict[str, list[Any]] = {
    "compression.name": CODECS,
    "compression.feedback": ["ef", "ef21", "none"],
    "compression.exchange": ["allreduce", "allgather", "reduce_scatter", "vote"],
    "compression.decay": [0.5],
    "compression.hierarchical": [True],
    "compression.sparse": ["bf16", "int8"],
    "strategy.name": [name for name in STRATEGIES if name not in ("allreduce", "hogwild")],  # that one wants processes
    "aggregation.name": ["krum", "norm_clip"],  # others take no row-sparse gradients
    "optimizer.dense.name": ["sgd", "lamb", "kfac", "lbfgs", "natural_gradient"],
    "optimizer.dense.wrappers": [["sam"], ["ema"]],
}
PAIRS = [
    {first: one, second: other}
    for (first, ones), (second, others) in itertools.combinations(SETTINGS.items(), 2)
    for one, other in itertools.product(ones, others)
]
TENTH = random.Random(6).sample(PAIRS, len(PAIRS) // 10)


def settings(pair: dict[str, Any]) -> train_ctr.Config:
    """Of a pair; min_numel is for a small model, and five ranks are what Krum wants."""
    cfg = train_ctr.Config(lake="x", ranks=5 if "krum" in pair.values() else 2)
    for name, value in ({"compression.min_numel": 64, "optimizer.dense.name": "adam"} | pair).items():
        *path, last = name.split(".")
        setattr(functools.reduce(getattr, path, cfg), last, value)
    return cfg


def refused(pair: dict[str, Any]) -> bool:
    """A refusal says what to do instead."""
    try:
        train_ctr.check(settings(pair))
    except UserError as error:
        if not error.remedy:
            raise
        return True
    return False


def steps(pair: dict[str, Any]) -> dict[str, Any]:
    """Two steps of a pair that is accepted; all ranks answer the same."""
    cfg = settings(pair)
    job = Job(
        cfg=FitConfig(epochs=1, max_steps=2), dense=cfg.optimizer.dense.name, compression=cfg.compression,
        strategy={"name": cfg.strategy.name, **cfg.strategy.options}, aggregation=cfg.aggregation,
        wrappers={name: {} for name in cfg.optimizer.dense.wrappers},
    )  # fmt: skip
    return run(job, cfg.ranks)


def makes_steps(pair: dict[str, Any]) -> None:
    found = steps(pair)
    assert found["step"] == 2 and math.isfinite(found["metrics"]["logloss"]), pair
    assert found["compressed"] == bool({"compression.name", "compression.sparse"} & pair.keys()), pair


@pytest.mark.parametrize(
    "pair", [p for p in TENTH if not refused(p)], ids=lambda pair: " ".join(map(str, pair.values()))
)
def test_a_tenth_of_what_is_accepted_makes_steps(pair: dict[str, Any]) -> None:
    makes_steps(pair)


@pytest.mark.campaign
def test_all_that_is_accepted_makes_steps() -> None:
    accepted = [pair for pair in PAIRS if not refused(pair)]
    assert len(PAIRS) / 4 < len(accepted) < len(PAIRS)
    for pair in accepted:
        makes_steps(pair)


@pytest.mark.parametrize("codec", ["topk", POWERSGD, AUTO])
@pytest.mark.parametrize("rule", sorted(OPTIMIZERS))
def test_what_is_compressed_is_what_a_rule_steps_along(rule: str, codec: str) -> None:
    """Rules with gradients of their own sum these as they are: compressing the others would save nothing."""
    pair = {"optimizer.dense.name": rule, "compression.name": codec}
    if OWN_GRADIENT in OPTIMIZERS[rule].traits:
        with pytest.raises(UserError, match=f"{rule} steps along"):
            train_ctr.check(settings(pair))
    else:
        assert not refused(pair)
