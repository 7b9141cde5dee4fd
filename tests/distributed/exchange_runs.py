"""Small training runs of every strategy, of codecs that have every trait between them, of sums within hosts, coded rows
and aggregation: what ranks of the launch tests train, and what must be true of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.collective_exam import robust_rules
from distributed.ctr_lake import small_config, small_job
from distributed.launch_ranks import PAUSE_S

from headrace.compress import COMPRESSORS
from headrace.options import choose
from headrace.pipelines import train_ctr
from headrace.pipelines.train_config import (
    CompressionConfig,
    DenseRuleConfig,
    LoopSettings,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    StrategyConfig,
)
from headrace.strategies import STRATEGIES
from headrace.strategies.aggregation import AGGREGATIONS, AggregationConfig
from headrace.strategies.compression import AUTO, POWERSGD
from headrace.train.job import TrainJob

DECIDED = {"budget": 0.5, "interval": 2, "switch": False}  # not by time: the same in every run
HALT_AT, STEPS = 5, 11  # ranks compare the first three batches, so that all wait there
PLAIN = "none"
SHARDED = "sharded tables"
HOSTS, ROWS = "within hosts", "coded rows"
COMPRESSION: dict[str, dict[str, Any]] = {  # of names that are no codec's
    SHARDED: {}, HOSTS: {"name": "qsgd", "hierarchical": True}, ROWS: {"sparse": "qsgd"},
    AUTO: {"name": AUTO, "options": DECIDED},
}  # fmt: skip


def covering() -> list[str]:
    """The fewest codecs, by a greedy choice, that have all traits between them; PowerSGD, which is none, and the choice
    by tensor."""
    left = {trait for spec in COMPRESSORS.values() for trait in spec.traits}
    chosen = []
    while left:
        best = max(COMPRESSORS, key=lambda name: len(COMPRESSORS[name].traits & left))
        chosen.append(best)
        left -= COMPRESSORS[best].traits
    return [*(name for name in chosen if name != PLAIN), POWERSGD, AUTO]


def options_of(strategy: str) -> dict[str, Any]:
    """A server that is stopped would stop all: where there are servers, rank 0 is the only one."""
    return {"servers": 1} if STRATEGIES[strategy].remote else {}


def exchange_runs(lake: Path, directory: Path, ranks: int) -> dict[str, TrainJob]:
    """By `strategy/codec`: every strategy as it is, synchronous ones with the codecs, with sharded tables, sums within
    hosts, coded rows, and the rules of aggregation that the ranks are enough for; others whose runs repeat with one
    codec."""
    codecs = [*covering(), SHARDED, HOSTS, ROWS, *robust_rules(ranks)]
    names = [(name, PLAIN) for name in STRATEGIES]
    names += [(name, codec) for name, spec in STRATEGIES.items() if spec.synchronous for codec in codecs]
    names += [(name, "topk") for name, spec in STRATEGIES.items() if spec.repeatable and not spec.synchronous]
    directory.mkdir()
    return {
        f"{strategy}/{codec}": _job(lake, directory / f"{strategy}-{codec}", ranks, strategy, codec)
        for strategy, codec in names
    }


def _job(lake: Path, directory: Path, ranks: int, strategy: str, codec: str) -> TrainJob:
    sgd = OptimizerConfig(dense=DenseRuleConfig(name="sgd", options={"lr": 0.05}))  # dgc has momentum of its own
    rules = robust_rules(ranks)
    compression = {} if codec in rules else COMPRESSION.get(codec, {"name": codec})
    cfg = small_config(
        lake,
        ranks=ranks,
        optimizer=sgd,
        strategy=StrategyConfig(name=strategy, options=options_of(strategy)),
        model=ModelConfig(embedding_dim=4, hidden=[16], categories=has_tables(codec)),
        compression=CompressionConfig(min_numel=64, **compression),
        aggregation=AggregationConfig(name=codec, options=rules[codec]) if codec in rules else AggregationConfig(),
        parallel=ParallelConfig(tables="sharded" if codec == SHARDED else "replicated"),
        train=LoopSettings(batch_size=128, epochs=1, log_every=1),
    )
    train_ctr.check(cfg)
    return small_job(cfg, directory)


def has_tables(codec: str) -> bool:
    """Whether a run's model has: not all rules of aggregation are defined for rows."""
    return codec not in AGGREGATIONS or AGGREGATIONS[codec].rows


def compare(got: list[dict[str, Any]], expected: list[dict[str, Any]], *, alone: bool, tables: bool) -> None:
    """One run under a launcher and by threads, where runs repeat: the same curve, bits and bytes."""
    for key in ("curve", "weights_sha256", "bytes_sent", "bytes_of_tables", "steps"):
        assert [rank[key] for rank in got] == [rank[key] for rank in expected], key
    assert got[0]["steps"] == STEPS and len(got[0]["curve"]) == STEPS
    assert alone or got[0]["bytes_of_tables"] < got[0]["bytes_sent"]
    assert (got[0]["bytes_of_tables"] > 0) == (tables and not alone)


def check_halted(strategy: str, ranks: list[dict[str, Any]]) -> None:
    """Rank 1 was stopped for some seconds after an update: how far the others went meanwhile."""
    spec = STRATEGIES[strategy]
    began, back = ranks[1]["halted"]
    assert back - began >= PAUSE_S - 0.1 and len(ranks[1]["updates"]) == STEPS
    assert len({rank["weights_sha256"] for rank in ranks}) == 1
    leads = [sum(end < began + PAUSE_S for end in rank["updates"]) - HALT_AT for rank in ranks if rank is not ranks[1]]
    if spec.synchronous:
        assert max(leads) <= 0, "they waited"
        return
    assert spec.lead is not None, "a strategy that is not synchronous says how far ahead a rank may be"
    most = spec.lead(choose(strategy, spec.defaults, options_of(strategy)))
    least, most = (1, STEPS) if most is None else (min(1, most), most)
    assert all(least <= lead <= most for lead in leads), (strategy, leads)
