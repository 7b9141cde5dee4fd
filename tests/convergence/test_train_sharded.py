"""Sharded tables in the loop: the curve, weights and figures of replicated ones to the bit; resume, also with more or
fewer ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from convergence.local_rows import run
from convergence.test_train_local import Job
from torch import Tensor

from headrace import models
from headrace.compress import COMPRESSORS
from headrace.compress.spec import SUMMABLE, VARIABLE
from headrace.launch import RankFailed
from headrace.optim import OPTIMIZERS, WRAPPERS
from headrace.optim.clipping import CLIPPINGS, ClippingConfig
from headrace.optim.spec import ACCEPTS_SPARSE, DENSE_ONLY, NEEDS_CLOSURE, NEEDS_MODEL, OWN_GRADIENT
from headrace.strategies.compression import CompressionConfig
from headrace.train.checkpoint import CheckpointStore, load, parts_of_ranks
from headrace.train.fit_config import FitConfig
from headrace.train.precision import PrecisionConfig
from headrace.train.sharded_state import SHARDS

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCH = FitConfig(epochs=1, log_every=1)
TABLE_RULES = sorted(name for name, spec in OPTIMIZERS.items() if ACCEPTS_SPARSE in spec.traits)
CLOSURES = sorted(
    name
    for name, spec in OPTIMIZERS.items()
    if {DENSE_ONLY, NEEDS_CLOSURE} <= spec.traits and not {NEEDS_MODEL, OWN_GRADIENT} <= spec.traits
)
CODECS = [next(n for n, s in COMPRESSORS.items() if t in s.traits) for t in (SUMMABLE, VARIABLE)]


def trained(ranks: int = 2, **settings: Any) -> dict[str, Any]:
    """A run's figures, and the loss of every step."""
    events: list[dict[str, Any]] = []
    found = run(Job(**{"cfg": EPOCH, **settings}), ranks, events)
    keys = ("loss", "gradient_norm", "clipped_steps", "loss_scale", "overflow_steps")
    return found | {"steps": [{k: e[k] for k in keys if k in e} for e in events if e["type"] == "step"]}


def same_as_replicated(ranks: int = 2, **settings: Any) -> dict[str, Any]:
    whole = trained(ranks, **settings)
    assert trained(ranks, sharded=True, **settings) == whole
    return whole


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("model", sorted(models.MODELS))
def test_every_model_has_the_bits_of_replicated_tables(model: str, ranks: int) -> None:
    assert len(same_as_replicated(ranks, model=model)["steps"]) == 10


@pytest.mark.parametrize("rule", TABLE_RULES)
def test_every_rule_of_tables(rule: str) -> None:
    assert same_as_replicated(3, sparse=rule)["metrics"]["auc"] > 0.6


@pytest.mark.parametrize("rule", CLOSURES)
def test_rules_that_evaluate_the_batch_again(rule: str) -> None:
    """At other dense parameters, on rows that were fetched once."""
    cfg = FitConfig(epochs=1, max_steps=3, log_every=1)
    assert len(same_as_replicated(2, cfg=cfg, dense=rule, lrs=(OPTIMIZERS[rule].defaults["lr"], 0.1))["steps"]) == 3


@pytest.mark.parametrize("rule", sorted(CLIPPINGS))
def test_clipping_is_of_the_whole_gradient(rule: str) -> None:
    """The norm is put together of the ranks' norms: rounded otherwise in the last digits of float64."""
    cfg = FitConfig(epochs=1, log_every=1, clipping=ClippingConfig(rule=rule, limit=0.02))
    whole, parts = (trained(3, cfg=cfg, sharded=sharded) for sharded in (False, True))
    assert [s["clipped_steps"] for s in parts["steps"]] == [s["clipped_steps"] for s in whole["steps"]]
    assert whole["steps"][-1]["clipped_steps"] > 3
    for name in ("loss", "gradient_norm"):
        found, wanted = ([step[name] for step in of["steps"]] for of in (parts, whole))
        assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_mixed_precision_and_parts_of_a_batch(compute: str) -> None:
    precision = PrecisionConfig(compute=compute, initial_scale=2.0**40)
    cfg = FitConfig(epochs=1, log_every=1, accumulate=5, precision=precision)
    found = same_as_replicated(3, cfg=cfg)["steps"]
    assert compute == "bf16" or found[-1]["overflow_steps"] > 0


@pytest.mark.parametrize("codec", CODECS)
def test_dense_gradients_keep_their_codec(codec: str) -> None:
    same_as_replicated(3, compression=CompressionConfig(name=codec, min_numel=64))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_bad_number_is_left_out_by_all_ranks(sharded: bool) -> None:
    events: list[dict[str, Any]] = []
    cfg = FitConfig(epochs=1, on_nonfinite="skip")
    found = run(Job(cfg=cfg, source={"spoil": (3, 1)}, sharded=sharded), 2, events)
    assert [e["ranks"] for e in events if e["type"] == "nonfinite"] == [[1]]
    assert found["skipped"] == 1
    assert found["sha"] == run(Job(cfg=cfg, source={"spoil": (3, 1)}), 2)["sha"]


def test_a_sum_that_overflows_at_its_owner_is_left_out_by_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite on each rank; only the row's owner sees that it is too large together."""
    from headrace.parallel.sharded_tables import Fetched, ShardedTables

    honest = ShardedTables.exchanged

    def large(self: ShardedTables, fetched: Fetched) -> dict[str, Tensor]:
        found = honest(self, fetched)
        if self.collective.rank == 1 and self.table.counted["steps"] == 4:
            next(iter(found.values()))._values()[0] = torch.inf
        self.table.counted["steps"] += 1
        return found

    monkeypatch.setattr(ShardedTables, "exchanged", large)
    events: list[dict[str, Any]] = []
    found = run(Job(cfg=FitConfig(epochs=1, on_nonfinite="skip"), sharded=True), 3, events)
    assert [e["ranks"] for e in events if e["type"] == "nonfinite"] == [[1]]
    assert found["skipped"] == 1


def test_bad_number_stops_with_a_clean_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"not a finite number in step 3 on rank 1"):
        run(Job(tmp_path, source={"spoil": (3, 1)}, sharded=True), 2)
    assert run(Job(tmp_path, sharded=True), 2)["sha"] == run(Job(), 2)["sha"]


@pytest.mark.parametrize("rule", TABLE_RULES)
def test_stopped_and_resumed_gives_the_same_bits(tmp_path: Path, rule: str) -> None:
    cfg = FitConfig(epochs=2, checkpoint_every=5, eval_every=7)
    whole = run(Job(sparse=rule, cfg=cfg), 2)
    assert run(Job(tmp_path, stop_at=6, sparse=rule, cfg=cfg, sharded=True), 2)["stopped"] == "asked"
    found = run(Job(tmp_path, sparse=rule, cfg=cfg, sharded=True), 2)
    assert {k: found[k] for k in ("sha", "metrics", "audits")} == {k: whole[k] for k in ("sha", "metrics", "audits")}


def test_wrappers_of_the_dense_part_keep_their_averages(tmp_path: Path) -> None:
    """Every wrapper at once, in a run that is resumed: evaluation is of averages, tables as they are."""
    around = {name: {} for name in WRAPPERS}
    cfg = FitConfig(epochs=1, eval_every=4)
    whole = run(Job(wrappers=around, cfg=cfg), 2)
    assert run(Job(tmp_path, stop_at=5, wrappers=around, cfg=cfg, sharded=True), 2)["stopped"] == "asked"
    found = run(Job(tmp_path, wrappers=around, cfg=cfg, sharded=True), 2)
    assert (found["sha"], found["metrics"]) == (whole["sha"], whole["metrics"])


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [(rule, 2, 3) for rule in TABLE_RULES] + [(TABLE_RULES[0], *of) for of in [(4, 2), (3, 1), (1, 4), (8, 6)]],
)
def test_another_number_of_ranks_deals_rows_and_state_anew(tmp_path: Path, rule: str, before: int, after: int) -> None:
    """A run of replicated tables that is stopped and goes on with as many ranks is the reference."""
    settings: dict[str, Any] = {"sparse": rule, "cfg": FitConfig(epochs=1)}
    found = {}
    for sharded in (False, True):
        run(Job(tmp_path / f"{sharded}", stop_at=4, sharded=sharded, **settings), before)
        events: list[dict[str, Any]] = []
        found[sharded] = run(Job(tmp_path / f"{sharded}", sharded=sharded, **settings), after, events)
        assert ("reset" in {e["type"] for e in events}) == (before != after)
    assert found[True] == found[False]


def test_a_rank_keeps_its_rows_alone(tmp_path: Path) -> None:
    """Rows and their state lie in the ranks' files, each once, and nowhere else."""
    run(Job(tmp_path, sharded=True, cfg=FitConfig(epochs=1)), 3)
    store = CheckpointStore(tmp_path)
    (path,) = [store.directory / name for name in store.names()]
    saved = load(path, 0)
    assert "embedding.weight" not in saved.model and set(saved.optimizer["parts"]) == {"dense"}
    with parts_of_ranks(path) as parts:
        shapes = [part[SHARDS]["model"]["embedding.weight"].shape for part in parts]
        states = [next(iter(part[SHARDS]["optimizer"]["sparse"]["state"].values()))["v"].shape for part in parts]
    assert shapes == [(16, 5), (16, 5), (15, 5)] and states == [(16,), (16,), (15,)]


def another_rate(layout: Any) -> Any:
    text = json.dumps(layout)
    assert '["lr", 0.1]' in text
    return json.loads(text.replace('["lr", 0.1]', '["lr", 0.2]'))


def with_more(layout: Any) -> Any:
    return json.loads(json.dumps(layout).replace('["lr", 0.1]', '["lr", 0.1], ["more", 1]'))


def pointed(layout: Any) -> Any:
    """Its accumulators are said to be its random state, which has another number of rows."""
    text = json.dumps(layout)
    (key,) = set(re.findall(r'"\$tensor": "([^"]*/v)"', text))
    return json.loads(text.replace(key, "t/random"))


HOSTILE = {
    "rank 1 has no shards": lambda state: state["ranks"].__setitem__("1", {"$items": []}),
    "rank 1 points to nothing": lambda state: state["ranks"].__setitem__("1", {"$tensor": "nothing"}),
    "rank 1 has another rate": lambda state: state["ranks"].__setitem__("1", another_rate(state["ranks"]["1"])),
    "rank 1 has the state of no rows": lambda state: state["ranks"].__setitem__("1", pointed(state["ranks"]["1"])),
    "rank 1 keeps more than rank 0": lambda state: state["ranks"].__setitem__("1", with_more(state["ranks"]["1"])),
    "a rank too many": lambda state: state["ranks"].__setitem__("2", state["ranks"]["1"]),
    "names of ranks": lambda state: state["ranks"].__setitem__("../../x", state["ranks"].pop("1")),
    "lists of other lengths": lambda state: state["ranks"].__setitem__("1", [1]),
    "ranks are a list": lambda state: state.__setitem__("ranks", [1, 2]),
}


@pytest.mark.parametrize("damage", sorted(HOSTILE))
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, damage: str) -> None:
    from headrace.train import checkpoint

    run(Job(tmp_path, sharded=True, cfg=FitConfig(epochs=1)), 2)
    store = CheckpointStore(tmp_path)
    path = store.directory / store.names()[0]
    state = json.loads((path / "state.json").read_text())
    HOSTILE[damage](state)
    (path / "state.json").write_text(json.dumps(state))
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": checkpoint._sha256(p)}
        for p in path.iterdir()
        if p.name != "manifest.json"
    }
    (path / "manifest.json").write_text(json.dumps({"format": checkpoint.FORMAT, "files": files}))
    with pytest.raises(
        RankFailed, match=r"(?s)CheckpointError.*checkpoint .*(is not one of this format|is of another)"
    ):
        run(Job(tmp_path, sharded=True, cfg=FitConfig(epochs=2)), 3)


def test_replicated_and_sharded_checkpoints_are_told_apart(tmp_path: Path) -> None:
    run(Job(tmp_path, cfg=FitConfig(epochs=1)), 2)
    for ranks in (2, 3):
        with pytest.raises(RankFailed, match=r"CheckpointError"):
            run(Job(tmp_path, sharded=True, cfg=FitConfig(epochs=2)), ranks)
    run(Job(tmp_path / "sharded", sharded=True, cfg=FitConfig(epochs=1)), 2)
    with pytest.raises(RankFailed, match=r"CheckpointError(.|\n)*is of another model"):
        run(Job(tmp_path / "sharded", cfg=FitConfig(epochs=2)), 2)
