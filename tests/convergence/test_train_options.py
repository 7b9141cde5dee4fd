"""The loop with clipping, accumulation, wrappers, schedules and precision: on one rank and on two, stopped and resumed,
with bad numbers; and a full pass beside an epoch."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from convergence.local_rows import BATCH, CARDS, ROWS, Source, run

from headrace import models, optim
from headrace.catalog.fingerprint import key_sum
from headrace.comm.local import LocalGroup
from headrace.data.batch import Batch
from headrace.errors import UserError
from headrace.launch import RankFailed, Worker
from headrace.models.layers import SeededDropout
from headrace.optim.clipping import ClippingConfig
from headrace.optim.context import value_and_gradient
from headrace.optim.schedules import ScheduleConfig
from headrace.optim.spec import OWN_GRADIENT
from headrace.strategies import REDUCERS, STRATEGIES, Overlap
from headrace.train.checkpoint import CheckpointStore
from headrace.train.fit_config import FitConfig
from headrace.train.loop import Hooks, fit
from headrace.train.precision import PrecisionConfig, cast_parameters
from headrace.train.replica import Replica, split
from headrace.train.report_html import figures
from headrace.train.tracking import metrics_of

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = FitConfig(log_every=1)
OWN = [name for name, spec in optim.OPTIMIZERS.items() if OWN_GRADIENT in spec.traits]
EVERYTHING = FitConfig(
    epochs=2, checkpoint_every=4, eval_every=3, log_every=1, accumulate=3,
    schedule=ScheduleConfig(name="plateau", warmup=5, options={"patience": 0, "threshold": 0.5, "factor": 0.5}),
    clipping=ClippingConfig(rule="norm", limit=0.05),
    precision=PrecisionConfig(compute="fp16", growth_every=4, initial_scale=2.0**24),
)  # fmt: skip
WRAPPERS = {"sam": {"rho": 0.05}, "lookahead": {"k": 3}, "ema": {"decay": 0.8}}


@dataclass
class Job:
    """A rank's function: DeepFM on the source of test_train_local."""

    cfg: FitConfig = ONE
    directory: Path | None = None
    wrappers: dict[str, Any] = field(default_factory=dict)
    dense: str = "adam"
    dropout: float = 0.0
    overlap: bool = False
    stop_at: int | None = None
    full_passes: bool = False
    source: dict[str, Any] = field(default_factory=dict)

    def __call__(self, worker: Worker) -> dict[str, Any]:
        with worker.alone():
            model = models.create("deepfm", CARDS, 13, embedding_dim=4, hidden=(16,), dropout=self.dropout, seed=1)
        cast_parameters(model.dense_parameters(), self.cfg.precision)
        dense = {"name": self.dense, "lr": 0.02, "wrappers": self.wrappers}
        optimizer = optim.create_parts(model, {"dense": dense, "sparse": {"name": "rowwise_adagrad", "lr": 0.1}})
        source = Source(worker.rank, worker.size, **self.source)
        passes: list[list[int]] = []
        result = fit(
            model, source, Passes(optimizer, passes) if self.full_passes else optimizer, self._strategy(worker, model),
            worker.collective, self.cfg, worker.emit, self._hooks(source, worker),
        )  # fmt: skip
        with optim.averaged(optimizer):
            evaluated = float(sum(p.detach().double().sum() for p in model.parameters()))
        return {
            "sha": result.weights_sha256, "stopped": result.stopped, "evaluated": evaluated, "passes": passes,
            "logloss": result.evaluation.metrics.logloss if result.evaluation else None,
            "auc": result.evaluation.metrics.auc if result.evaluation else None,
            "cursor": [result.cursor.skipped, result.cursor.overflows, result.cursor.clipped],
            "audits": [a.to_dict() for a in result.audits],
            "weights": [p.detach().double().flatten()[:50].tolist() for p in model.parameters()],
        }  # fmt: skip

    def _strategy(self, worker: Worker, model: Any) -> Any:
        reducer: Any = REDUCERS["ordered"].factory(bucket_bytes=256)
        if self.overlap:
            dense = {id(p) for p in model.dense_parameters()}
            named = {name: p for name, p in model.named_parameters() if id(p) in dense}
            reducer = Overlap(reducer, worker.collective, named)
        return STRATEGIES["allreduce"].factory(reducer, worker.collective)

    def _hooks(self, source: Source, worker: Worker) -> Hooks:
        asked = iter(range(1_000_000))
        return Hooks(
            validation=source.whole,
            training=source.whole if self.full_passes else None,
            store=CheckpointStore(self.directory, 20) if self.directory else None,
            should_stop=lambda: self.stop_at is not None and next(asked) >= self.stop_at,
            rows=ROWS,
            fingerprint=key_sum(source.data["key"]),
        )


class Passes(optim.Optimizer):
    """Goes through all rows at every fourth step and notes what it saw: rows, key sum, contexts."""

    def __init__(self, inner: optim.Optimizer, seen: list[list[int]]) -> None:
        torch.optim.Optimizer.__init__(self, [dict(group) for group in inner.param_groups], {})
        self.inner, self.seen, self.steps = inner, seen, 0
        self.param_groups = inner.param_groups

    def step(self, ctx: optim.StepContext | None = None) -> None:
        assert ctx is not None
        assert ctx.full_pass is not None
        if self.steps % 4 == 0:
            parts = list(ctx.full_pass())
            keys = torch.cat([part.keys for part in parts])
            assert all(part.losses(part.outputs_at(None)).shape == part.keys.shape for part in parts)
            mine = [sum(part.rows for part in parts), key_sum(keys.numpy()), keys.unique().numel()]
            everyone = ctx.collective.allgather_object([str(n) for n in mine])
            self.seen.append([sum(int(rank[i]) for rank in everyone) for i in range(3)])
        self.steps += 1
        self.inner.step(ctx)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_pass_sees_every_row_once_and_leaves_the_epoch_alone(ranks: int) -> None:
    with_passes = run(Job(full_passes=True), ranks)
    keys = key_sum(Source(0, 1).data["key"])
    assert len(with_passes["passes"]) == 3  # steps 0, 4, 8 of 10
    for rows, summed, distinct in with_passes["passes"]:
        assert (rows, summed % 2**64, distinct) == (ROWS, keys, ROWS)
    plain = run(Job(), ranks)
    assert with_passes["audits"] == plain["audits"]
    assert with_passes["sha"] == plain["sha"]
    assert [a["rows"] + a["dropped"] for a in plain["audits"]] == [ROWS]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_accumulated_parts_make_the_step_of_the_whole_batch(ranks: int, overlap: bool) -> None:
    whole = run(Job(dense="sgd", overlap=overlap), ranks)
    parts = run(Job(dataclasses.replace(ONE, accumulate=5), dense="sgd", overlap=overlap), ranks)
    assert whole["sha"] != parts["sha"]  # sums are rounded in another order
    for x, y in zip(whole["weights"], parts["weights"], strict=True):
        assert x == pytest.approx(y, rel=1e-4, abs=2e-6)
    assert whole["audits"] == parts["audits"]


def test_every_part_of_every_step_has_a_dropout_mask_of_its_own() -> None:
    model, alone = models.create("deepfm", CARDS, 13, hidden=(16,), dropout=0.1), LocalGroup(1).collective(0)
    (layer,) = (m for m in model.modules() if isinstance(m, SeededDropout))
    seeds: list[int] = []
    layer.register_forward_pre_hook(lambda module, args: seeds.append(module.seed))
    strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone)
    parts = {"dense": {"name": "sgd"}, "sparse": {"name": "sgd"}}
    fit(model, Source(0, 1), optim.create_parts(model, parts), strategy, alone, FitConfig(accumulate=3))
    assert len(set(seeds)) == len(seeds) == 3 * (ROWS // BATCH)


def test_a_batch_is_cut_into_rows_that_follow_each_other_padding_and_all() -> None:
    batch = Batch({"key": torch.arange(7), "x": torch.arange(14).view(7, 2)}, torch.arange(7) < 6)
    parts = split(batch, 3)
    assert torch.cat([p["key"] for p in parts]).tolist() == list(range(7))
    assert [p.rows for p in parts] == [3, 2, 1]
    assert len(split(batch, 100)) == 7
    assert len(split(Batch({"key": torch.arange(0)}), 4)) == 1


@pytest.mark.parametrize("stop_at", [3, 8, 13])
def test_everything_together_resumes_to_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    job = Job(EVERYTHING, tmp_path / "whole", WRAPPERS, dropout=0.1)
    events: list[dict[str, Any]] = []
    whole = run(job, 2, events)
    assert run(dataclasses.replace(job, directory=tmp_path / "cut", stop_at=stop_at), 2)["stopped"] == "asked"
    resumed: list[dict[str, Any]] = []
    second = run(dataclasses.replace(job, directory=tmp_path / "cut"), 2, resumed)
    assert resumed[0]["type"] == "resume"
    assert second == whole
    steps = [{k: v for k, v in e.items() if k != "rows_per_second"} for e in events if e["type"] == "step"]
    again = [{k: v for k, v in e.items() if k != "rows_per_second"} for e in resumed if e["type"] == "step"]
    assert again == steps[-len(again) :]
    assert whole["cursor"][1] > 0  # fp16 overflowed from the first scale, and the scale came down
    assert len({e["loss_scale"] for e in events if e["type"] == "step"}) > 2


@pytest.mark.parametrize("wrapper", ["lookahead", "ema", "swa"])
def test_wrappers_around_a_rule_that_moves_parameters_between_its_groups_resume(tmp_path: Path, wrapper: str) -> None:
    """K-FAC hands layers that are never called (DeepFM's vectors of dense columns) to its fallback in step 0."""
    job = Job(FitConfig(epochs=2, checkpoint_every=4), tmp_path / "whole", {wrapper: {}}, dense="kfac")
    whole = run(job)
    assert run(dataclasses.replace(job, directory=tmp_path / "cut", stop_at=6))["stopped"] == "asked"
    assert run(dataclasses.replace(job, directory=tmp_path / "cut")) == whole


def test_how_often_it_clipped_is_told() -> None:
    events: list[dict[str, Any]] = []
    run(Job(dataclasses.replace(ONE, clipping=ClippingConfig(rule="norm", limit=1e9))), 1, events)
    norms = [e["gradient_norm"] for e in events if e["type"] == "step"]
    assert all(norm > 0 for norm in norms)
    limit = sorted(norms)[4]
    events.clear()
    result = run(Job(dataclasses.replace(ONE, clipping=ClippingConfig(rule="norm", limit=limit))), 2, events)
    steps = [e for e in events if e["type"] == "step"]
    assert result["cursor"][2] == steps[-1]["clipped_steps"] == sum(e["gradient_norm"] > limit for e in steps) > 0


@pytest.mark.parametrize("rule", ["value", "norm", "adaptive"])
def test_ranks_clip_alike(rule: str) -> None:
    job = Job(dataclasses.replace(ONE, clipping=ClippingConfig(rule=rule, limit=0.01)), dense="sgd")
    one, two = run(job), run(job, 2)
    assert one["cursor"] == two["cursor"]
    assert one["cursor"][2] > 0
    assert one["logloss"] == pytest.approx(two["logloss"], rel=1e-5)
    assert one["logloss"] != pytest.approx(run(Job(dense="sgd"))["logloss"], rel=1e-4)


def test_evaluation_uses_averages_and_training_does_not() -> None:
    cfg = FitConfig(epochs=2, eval_every=3)
    plain, ema = run(Job(cfg)), run(Job(cfg, wrappers={"ema": {"decay": 0.9}}), 2)
    assert run(Job(cfg), 2)["sha"] == ema["sha"]
    assert ema["logloss"] != pytest.approx(plain["logloss"], rel=1e-3)
    assert ema["evaluated"] != pytest.approx(plain["evaluated"], rel=1e-3)


@pytest.mark.parametrize("wrappers", [{}, {"sam": {}, "ema": {}}], ids=["plain", "wrapped"])
@pytest.mark.parametrize("compute", ["float32", "fp16"])
def test_a_bad_row_on_one_rank_is_skipped_by_all(compute: str, wrappers: dict[str, Any]) -> None:
    cfg = FitConfig(
        epochs=1, on_nonfinite="skip", accumulate=2, precision=PrecisionConfig(compute=compute, initial_scale=2.0**8)
    )
    events: list[dict[str, Any]] = []
    result = run(Job(cfg, wrappers=wrappers, source={"spoil": (3, 1)}), 2, events)
    assert [e["ranks"] for e in events if e["type"] == "nonfinite"] == [[1]]
    assert result["cursor"] == [1, 0, 0]  # the loss itself is bad: no matter of the scale


def test_a_bad_second_gradient_of_sam_stops_all_with_a_clean_checkpoint(tmp_path: Path) -> None:
    job = Job(ONE, tmp_path, {"sam": {"rho": 1e30}})
    with pytest.raises(RankFailed, match="not a finite number in step 0 on rank 0, 1"):
        run(job, 2)
    healed: list[dict[str, Any]] = []
    run(dataclasses.replace(job, wrappers={"sam": {"rho": 0.01}}), 2, healed)
    assert (healed[0]["type"], healed[0]["step"]) == ("resume", 0)


@pytest.mark.parametrize("parameters", ["float32", "half"])
@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_half_precision_learns(compute: str, parameters: str) -> None:
    precision = PrecisionConfig(compute=compute, parameters=compute if parameters == "half" else "float32")
    result = run(Job(FitConfig(epochs=3, precision=precision)), 2)
    assert result["auc"] > 0.75
    assert result["cursor"][0] == 0


class Overflowing(torch.nn.Module):
    """A layer whose gradient of the input is beyond fp16 unless the scale of the loss is small."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1, 13), 0.01))

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(dense, self.weight)[:, 0]


def test_an_overflow_on_one_rank_lowers_the_scale_on_all() -> None:
    """Rank 1 alone scales a row's gradient beyond fp16: both leave the step out, and go on with half the scale."""
    group, found = LocalGroup(2), {}

    def rank(r: int) -> None:
        model = Overflowing()
        source = Source(r, 2)
        if r == 1:
            source.data["dense"][:, 0] *= 3000.0
        cfg = FitConfig(max_steps=9, precision=PrecisionConfig(compute="fp16", initial_scale=2.0**14, growth_every=99))
        strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), group.collective(r))
        events: list[dict[str, Any]] = []
        result = fit(model, source, optim.create("sgd", model, lr=1e-9), strategy, group.collective(r), cfg,
                     events.append)  # fmt: skip
        found[r] = (result.cursor.overflows, result.cursor.skipped, result.weights_sha256, events)

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0][:3] == found[1][:3]
    assert 0 < found[0][0] < 9
    scales = [e["loss_scale"] for e in found[0][3] if e["type"] == "overflow"]
    assert scales == [2.0**14 / 128 / 2 ** (n + 1) for n in range(found[0][0])]


def test_scaling_by_powers_of_two_leaves_float32_bits_alone() -> None:
    made = []
    for scale in (1.0, 2.0**10):
        source = Source(0, 1)
        model = models.create("deepfm", CARDS, 13, embedding_dim=4, hidden=(16,), seed=1)
        alone = LocalGroup(1).collective(0)
        strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone)
        replica = Replica(model, optim.create("sgd", model.parameters()), strategy, alone)
        replica.backward(next(source.epoch(0)), PrecisionConfig(), scale=scale)
        replica.exchange(0, BATCH, scale)
        made.append([p.grad.to_dense() for p in model.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*made, strict=True))


def test_rules_with_gradients_of_their_own_are_given_the_loops_clipping() -> None:
    model, alone = models.create("logistic", CARDS, 13), LocalGroup(1).collective(0)
    strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone)
    replica = Replica(model, optim.create("sgd", model), strategy, alone)
    batch = next(Source(0, 1).epoch(0))
    ctx = replica.context(batch, BATCH, clipping=ClippingConfig(rule="value", limit=0.5))
    grads = {name: torch.full(p.shape, 2.0) for name, p in model.named_parameters()}
    assert ctx.clip is not None
    ctx.clip(grads)
    assert all(bool((g == 0.5).all()) for g in grads.values())


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_what_rules_evaluate_is_float32_also_where_parameters_are_half(compute: str) -> None:
    """The mean over a large batch has gradients far below fp16's least number, and nothing scales them here."""
    rows, made = 2**24, []
    batch, alone = next(Source(0, 1).epoch(0)), LocalGroup(1).collective(0)
    for half in (True, False):
        model = models.create("deepfm", CARDS, 13, embedding_dim=4, hidden=(16,), seed=1)
        cast_parameters(model.dense_parameters(), PrecisionConfig(compute=compute, parameters=compute))
        if not half:
            for param in model.dense_parameters():
                param.data = param.data.float()
        strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone)
        ctx = Replica(model, optim.create("sgd", model.parameters()), strategy, alone).context(batch, rows)
        given = {name: p.detach().float() for name, p in model.named_parameters() if name.startswith("deep.0")}
        loss, grads = value_and_gradient(ctx, given)
        made.append((loss, *grads.values(), ctx.outputs_at(None)))
    assert all(torch.equal(x, y) for x, y in zip(made[0][1:], made[1][1:], strict=True))
    assert made[0][0] == made[1][0]
    assert all(t.dtype == torch.float32 and bool((t != 0).any()) for t in made[0][1:])


def test_a_step_that_was_left_out_has_neither_loss_nor_norm() -> None:
    clipping = ClippingConfig(rule="norm", limit=1e9)
    cfg = dataclasses.replace(ONE, on_nonfinite="skip", clipping=clipping)
    events: list[dict[str, Any]] = []
    run(Job(cfg, source={"spoil": (3, 0)}), 1, events)
    steps = {e["step"]: e for e in events if e["type"] == "step"}
    assert {number for number, e in steps.items() if "loss" not in e} == {4}
    assert "gradient_norm" not in steps[4]
    assert steps[4]["clipped_steps"] == 0
    assert all(e["loss"] > 0 and e["gradient_norm"] > 0 for number, e in steps.items() if number != 4)
    (line,) = figures(events)["loss"].axes[0].lines
    assert 4.0 not in line.get_xdata()
    assert len(line.get_xdata()) == len(steps) - 1
    assert "train/loss" not in metrics_of(steps[4])
    overflown: list[dict[str, Any]] = []
    precision = PrecisionConfig(compute="fp16", initial_scale=2.0**40)
    run(Job(dataclasses.replace(ONE, precision=precision)), 1, overflown)
    left_out = {e["step"] + 1 for e in overflown if e["type"] == "overflow"}
    assert left_out == {e["step"] for e in overflown if e["type"] == "step" and "loss" not in e} != set()


def test_one_cycle_moves_the_momentum_of_rules_that_have_one() -> None:
    class Watched(optim.Optimizer):
        def __init__(self, inner: optim.Optimizer) -> None:
            torch.optim.Optimizer.__init__(self, [dict(group) for group in inner.param_groups], {})
            self.inner, self.param_groups, self.seen = inner, inner.param_groups, []

        def step(self, ctx: optim.StepContext | None = None) -> None:
            self.seen.append([g.get("momentum") or g.get("betas", (None,))[0] for g in self.param_groups])
            self.inner.step(ctx)

    source, alone = Source(0, 1), LocalGroup(1).collective(0)
    model = models.create("deepfm", CARDS, 13, embedding_dim=4, hidden=(16,), seed=1)
    optimizer = Watched(optim.create_parts(model, {"dense": {"name": "adam"}, "sparse": {"name": "rowwise_adagrad"}}))
    cfg = FitConfig(schedule=ScheduleConfig(name="one_cycle", options={"rise": 0.4}))
    fit(model, source, optimizer, STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone), alone, cfg)
    dense = [step[0] for step in optimizer.seen]
    assert dense[0] == pytest.approx(0.95)
    assert min(dense) == pytest.approx(0.85)
    assert dense[-1] == pytest.approx(0.95)
    assert {step[1] for step in optimizer.seen} == {None}


def test_one_cycle_leaves_a_momentum_of_0_alone(tmp_path: Path) -> None:
    """Tables under SGD get no buffer, which could not be saved and would move rows without gradient."""
    source, alone = Source(0, 1), LocalGroup(1).collective(0)
    model = models.create("deepfm", CARDS, 13, embedding_dim=4, hidden=(16,), seed=1)
    optimizer = optim.create_parts(model, {"dense": {"name": "momentum"}, "sparse": {"name": "sgd"}})
    cfg = FitConfig(schedule=ScheduleConfig(name="one_cycle"))
    strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone)
    hooks = Hooks(store=CheckpointStore(tmp_path, 2))
    fit(model, source, optimizer, strategy, alone, cfg, hooks=hooks)
    dense, sparse = optimizer.param_groups
    assert dense["momentum"] == pytest.approx(0.95)
    assert sparse["momentum"] == 0.0
    assert optimizer.parts["sparse"].state_bytes() == 0


class Scales(optim.Optimizer):
    """Notes the scale that steps are told."""

    def __init__(self, inner: optim.Optimizer) -> None:
        torch.optim.Optimizer.__init__(self, [dict(group) for group in inner.param_groups], {})
        self.inner, self.seen = inner, []

    def step(self, ctx: optim.StepContext | None = None) -> None:
        assert ctx is not None
        self.seen.append(ctx.scale)
        self.inner.step(ctx)


def test_rules_are_told_the_scale_of_the_loss() -> None:
    alone = LocalGroup(1).collective(0)
    model = models.create("deepfm", CARDS, 13, embedding_dim=4, hidden=(16,), seed=1)
    optimizer = Scales(optim.create_parts(model, {"dense": {"name": "sgd"}, "sparse": {"name": "sgd"}}))
    cfg = FitConfig(max_steps=6, precision=PrecisionConfig(compute="fp16", initial_scale=2.0**10, growth_every=2))
    fit(
        model,
        Source(0, 1),
        optimizer,
        STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone),
        alone,
        cfg,
    )
    assert optimizer.seen == [8.0, 8.0, 16.0, 16.0, 32.0, 32.0]  # the first: of the mean of 96 rows


@pytest.mark.parametrize("name", OWN)
def test_clipping_is_refused_for_rules_with_gradients_of_their_own(name: str) -> None:
    alone = LocalGroup(1).collective(0)
    model = models.create("deepfm", CARDS, 13, embedding_dim=4, hidden=(16,), seed=1)
    dense = {"name": name, "wrappers": {"ema": {}}}
    optimizer = optim.create_parts(model, {"dense": dense, "sparse": {"name": "sgd"}})
    strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone)
    cfg = FitConfig(clipping=ClippingConfig(rule="value"))
    with pytest.raises(UserError, match=rf"{name} .*\n  -> --train\.clipping\.rule none"):
        fit(model, Source(0, 1), optimizer, strategy, alone, cfg)


def test_plateau_without_validation_is_refused() -> None:
    model, alone = models.create("logistic", CARDS, 13), LocalGroup(1).collective(0)
    optimizer = optim.create("sgd", model)
    strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), alone)
    with pytest.raises(UserError, match="follows the validation loss"):
        fit(model, Source(0, 1), optimizer, strategy, alone, FitConfig(schedule=ScheduleConfig(name="plateau")))
