"""A model in stages learns what the whole one learns, or from weights that are stale as they should be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from contract.mailbox_exam import tcp_mailbox
from contract.parallel_ranks import batch, close, losses, on_ranks, perceptron, same, trained_plainly, values_of
from torch import Tensor, nn

from headrace import optim
from headrace.comm import CollectiveError, LocalGroup, Metered
from headrace.errors import UserError
from headrace.models.layers import SeededDropout
from headrace.optim.clipping import ClippingConfig
from headrace.parallel import SCHEDULES, create, schedule
from headrace.parallel.boundary import Boundary
from headrace.parallel.pipeline import Pipeline
from headrace.parallel.pipeline_schedule import BOUNDED, FLUSHES, held
from headrace.train.checkpoint import Checkpoint, CheckpointStore, load

pytestmark = pytest.mark.usefixtures("one_thread")
FLUSHING = sorted(name for name, spec in SCHEDULES.items() if FLUSHES in spec.traits)
STALE = sorted(set(SCHEDULES) - set(FLUSHING))
ADAM = {"name": "adam", "lr": 0.02}
SGD = {"name": "sgd", "lr": 0.3}


def pipeline(c: Any, mailbox: Any, model: nn.Sequential, **options: Any) -> Pipeline:
    given = {"losses": losses, "optimizer": SGD, "timeout_s": 30.0} | options
    made = create("pipeline", model, c, mailbox, **given)
    assert isinstance(made, Pipeline)
    return made


def trained(
    size: int, batches: list[tuple[Tensor, Tensor]], model: nn.Sequential | None = None, **options: Any
) -> tuple[dict[str, Tensor], list[Any], list[Pipeline]]:
    """The whole model's weights, rank 0's outcomes, and the pipelines; replica r takes its part of the rows."""
    plain = perceptron() if model is None else model

    def rank(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, plain, **options)
        replicas = size // made.stages
        outcomes = []
        for inputs, targets in batches:
            mine = inputs.tensor_split(replicas)[made.replica], targets.tensor_split(replicas)[made.replica]
            outcomes.append(made.step(*mine))
        return made.whole_state_dict(), outcomes, made

    results = values_of(on_ranks(size, rank))
    assert all(result[0] is None for result in results[1:])
    assert all([o.loss for o in result[1]] == [o.loss for o in results[0][1]] for result in results)
    return results[0][0], results[0][1], [result[2] for result in results]


@pytest.mark.parametrize("name", FLUSHING)
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 1), (1, 3), (2, 2), (3, 5), (4, 8), (8, 3)])
def test_flushing_is_plain_training(name: str, stages: int, micro_batches: int) -> None:
    batches = [batch(step, 16 + step) for step in range(4)]  # rows that micro-batches do not divide
    wanted, means = trained_plainly(perceptron(), batches, ADAM)
    found, outcomes, made = trained(stages, batches, schedule=name, micro_batches=micro_batches, optimizer=ADAM)
    close(found, wanted, 1e-6)
    assert [o.loss for o in outcomes] == pytest.approx(means, abs=1e-6)
    assert [(o.rows, o.updates) for o in outcomes] == [(16 + step, 1) for step in range(4)]
    if (stages, micro_batches) == (1, 1):
        assert same(found, wanted)
    plan = schedule(name, stages, micro_batches)
    assert [p.passes.most for p in made] == [held(done) for done in plan]


def test_flushing_schedules_have_the_same_bits() -> None:
    batches = [batch(step, 16) for step in range(3)]
    found = [trained(4, batches, schedule=name, micro_batches=8, optimizer=ADAM)[0] for name in FLUSHING]
    assert all(same(each, found[0]) for each in found[1:])


def delayed(
    plain: nn.Sequential, cuts: list[list[str]], pieces: list[Any], rule: dict[str, Any], group: int = 1,
    vertical: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """The slow reference: all versions of all weights are kept; micro-batch t is differentiated as a whole at version
    max(0, t - delay) div group of every stage; an update takes the mean gradient over the rows of a group."""
    live, options = copy.deepcopy(plain), dict(rule)
    optimizer = optim.create(options.pop("name"), live, **options)
    history = [{name: p.detach().clone() for name, p in live.named_parameters()}]
    rows = 0
    for t, (inputs, targets) in enumerate(pieces):
        mixed = {}
        for stage, names in enumerate(cuts):
            delay = len(cuts) - 1 - (0 if vertical else stage)
            mixed |= {name: history[max(0, t - delay) // group][name].clone().requires_grad_() for name in names}
        losses(torch.func.functional_call(plain, mixed, (inputs,)), targets).sum().backward()
        for name, param in live.named_parameters():
            param.grad = mixed[name].grad if param.grad is None else param.grad + mixed[name].grad
        rows += len(targets)
        if (t + 1) % group == 0:
            for param in live.parameters():
                param.grad /= rows
            optimizer.step()
            optimizer.zero_grad()
            history.append({name: p.detach().clone() for name, p in live.named_parameters()})
            rows = 0
    return history[-1]


def micro_batches(batches: list[tuple[Tensor, Tensor]], count: int) -> list[Any]:
    return [piece for x, y in batches for piece in zip(x.tensor_split(count), y.tensor_split(count), strict=True)]


@pytest.mark.parametrize("name", STALE)
@pytest.mark.parametrize(("stages", "group", "vertical"), [(1, 1, False), (2, 1, False), (4, 1, False), (4, 2, False),
                                                         (3, 3, False), (4, 1, True), (3, 2, True)])  # fmt: skip
@pytest.mark.parametrize("recompute", [False, True])
def test_stale_gradients_are_those_of_the_delayed_rule(
    name: str, stages: int, group: int, vertical: bool, recompute: bool
) -> None:
    """And updates of one call's micro-batches go on in the next: two calls without a flush between them."""
    plain = perceptron(dtype=torch.float64)
    first, second = batch(0, 13, torch.float64), batch(1, 12, torch.float64)

    def rank(c: Any, mailbox: Any) -> Any:
        made = pipeline(
            c, mailbox, plain, schedule=name, micro_batches=6, group=group, vertical_sync=vertical, recompute=recompute,
        )  # fmt: skip
        begun = made.step(*first, drain=False)
        assert begun.loss is None and made.passes.under_way == min(stages - 1 - c.rank, 6)
        if stages > 1 and made.passes.under_way:
            with pytest.raises(UserError, match="under way"):
                made.state_dict()
        done = made.step(*second)
        assert begun.updates + done.updates == 12 // group
        versions = made.passes.versions
        assert versions is not None and versions.most <= stages - (0 if vertical else c.rank)
        return made.whole_state_dict(), list(made.stage.trained), done.loss

    results = values_of(on_ranks(stages, rank))
    pieces = micro_batches([first, second], 6)
    wanted = delayed(plain, [names for _, names, _ in results], pieces, SGD, group, vertical)
    close(results[0][0], wanted, 1e-12)
    assert len({loss for *_, loss in results}) == 1
    if stages > 1:  # the delay is not nothing
        undelayed = delayed(plain, [list(wanted)], pieces, SGD, group)
        assert max(float((wanted[n] - undelayed[n]).abs().max()) for n in wanted) > 1e-4


@pytest.mark.parametrize("name", STALE)
@pytest.mark.parametrize("rule", ["momentum", "adam", "lamb", "muon"])
def test_stale_gradients_under_rules_that_keep_state(name: str, rule: str) -> None:
    """Updates work in place: versions that are under way keep their numbers."""
    plain, batches = perceptron(dtype=torch.float64), [batch(0, 24, torch.float64)]
    optimizer = {"name": rule, "lr": 0.05}
    found, _, made = trained(3, batches, plain, schedule=name, micro_batches=12, optimizer=optimizer)
    cuts = [list(each.stage.trained) for each in made]
    close(found, delayed(plain, cuts, micro_batches(batches, 12), optimizer), 1e-12)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("recompute", [False, True])
def test_four_ranks_eight_micro_batches_learn(name: str, recompute: bool) -> None:
    inputs, targets = batch(0, 64)
    options = {"schedule": name, "micro_batches": 8, "recompute": recompute, "optimizer": ADAM}
    _, outcomes, made = trained(4, [(inputs, targets)] * 15, **options)
    assert outcomes[-1].loss < 0.8 * outcomes[0].loss
    for stage, each in enumerate(made):
        assert each.passes.most == min(8, 4 - stage if BOUNDED in SCHEDULES[name].traits else 8)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_replicas_are_more_micro_batches(name: str) -> None:
    """2 stages x 2 replicas on halves of the rows: what one pipeline makes of all; replicas stay alike."""
    batches = [batch(step, 16) for step in range(3)]
    options: dict[str, Any] = {"schedule": name, "stages": 2, "optimizer": ADAM}
    if name in FLUSHING:
        wanted, *_ = trained(2, batches, micro_batches=8, **options)
        found, outcomes, made = trained(4, batches, micro_batches=4, **options)
    else:  # micro-batch t of both replicas is update t
        mixed = [tuple(torch.cat([x.chunk(8)[i] for t in range(4) for i in (t, t + 4)]) for x in b) for b in batches]
        wanted, *_ = trained(2, mixed, micro_batches=4, **options)  # type: ignore[arg-type]
        found, outcomes, made = trained(4, batches, micro_batches=4, **options)
    close(found, wanted, 1e-6)
    assert [o.rows for o in outcomes] == [16] * 3
    for stage in range(2):
        assert same(made[stage].stage.state_dict(), made[stage + 2].stage.state_dict())


@pytest.mark.parametrize("name", FLUSHING)
def test_clipping_is_by_the_norm_over_all_stages(name: str) -> None:
    """Also over replicas, and with stages that have no parameters."""
    batches = [batch(step, 12) for step in range(3)]
    clipping = ClippingConfig(rule="norm", limit=0.05)
    wanted, _ = trained_plainly(perceptron(), batches, SGD, clip=0.05)
    for size, stages in ((3, 3), (6, 3), (8, 8)):
        options: dict[str, Any] = {"stages": stages, "micro_batches": 2, "schedule": name, "clipping": clipping}
        found, outcomes, _ = trained(size, batches, **options)
        close(found, wanted, 1e-6)
        assert all(o.clipped.clipped and o.clipped.norm > 0.05 for o in outcomes)


class Noisy(nn.Module):
    """Dropout of three kinds, and statistics of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.linear(x)).unsqueeze(1)
        return self.dropout((y + self.attention(y, y, y)[0]).squeeze(1))


def noisy() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        Noisy(), SeededDropout(0.2), nn.ReLU(inplace=True), Noisy(), nn.ReLU(inplace=True), nn.Linear(6, 3)
    )


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_what_layers_draw_depends_on_step_micro_batch_and_layer_alone(name: str) -> None:
    """The same bits with recomputation, in another run, and, with a flush, however the model is cut."""
    batches = [batch(step, 16) for step in range(3)]
    options: dict[str, Any] = {"schedule": name, "micro_batches": 4}
    found, *_ = trained(3, batches, noisy(), **options)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same(trained(3, batches, noisy(), **options, recompute=True)[0], found)
    assert not same(trained(3, batches, noisy(), **options, seed=1)[0], found)
    if name in FLUSHING:
        for stages in (1, 2, 6):
            assert same(trained(stages, batches, noisy(), **options)[0], found)
    noisy()
    torch.manual_seed(99)
    assert torch.equal(torch.get_rng_state(), before)


class Watched(nn.Module):
    """Ones through dropout of torch and of ours, remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.ModuleList([nn.Dropout(0.5), SeededDropout(0.5), nn.Dropout(0.5)])
        self.linear = nn.Linear(6, 3)
        self.seen: list[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append([kind(torch.ones(64)) for kind in self.kinds])
        return self.linear(x)


def test_masks_differ_by_layer_micro_batch_step_and_replica() -> None:
    """And replica r of R has those of micro-batches r M ... of one pipeline with R M of them."""
    model, batches = nn.Sequential(Watched()), [batch(step, 16) for step in range(2)]

    def seen(size: int, count: int) -> list[list[Tensor]]:
        *_, made = trained(size, batches, model, stages=1, micro_batches=count)
        watched = [next(iter(each.stage.children())) for each in made]
        order = [(step, w, m) for step in range(2) for w in watched for m in range(count)]
        return [w.seen[step * count + m] for step, w, m in order]  # type: ignore[union-attr, operator, misc]

    alone, halves = seen(1, 4), seen(2, 2)
    assert all(torch.equal(a, b) for one, two in zip(alone, halves, strict=True) for a, b in zip(one, two, strict=True))
    masks = {tuple(mask.tolist()) for each in alone for mask in each}
    assert len(masks) == 2 * 4 * 3


def test_statistics_of_a_batch_are_of_micro_batches_and_move_once_each() -> None:
    inputs, targets = batch(0, 16)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    wanted = copy.deepcopy(model[0])
    for piece in inputs.chunk(4):
        wanted(piece)
    for recompute in (False, True):
        found, *_ = trained(2, [(inputs, targets)], copy.deepcopy(model), micro_batches=4, recompute=recompute)
        assert torch.equal(found["0.running_mean"], wanted.running_mean) and int(found["0.num_batches_tracked"]) == 4


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_bad_number_is_left_out(name: str) -> None:
    """With a flush by all stages alike; without one the stages that see it leave it out."""
    good, (inputs, targets) = batch(0, 8), batch(1, 8)
    inputs[5] = float("nan")
    plain = perceptron()

    def rank(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, plain, schedule=name, micro_batches=4)
        first = made.step(*good)
        before = copy.deepcopy(made.stage.state_dict())
        bad = made.step(inputs, targets)
        kept = same(made.stage.state_dict(), before)
        return first, bad, kept, made.step(*good)

    for first, bad, kept, after in values_of(on_ranks(3, rank)):
        updates = 1 if name in FLUSHING else 4
        assert (first.left_out, bad.left_out, bad.updates) == (0, 1, updates - 1) and after.updates == updates
        assert kept == (name in FLUSHING)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_stage_that_fails_releases_the_others_by_its_name(name: str) -> None:
    class Fails(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise ZeroDivisionError("on purpose")
            return x

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), Fails(), nn.Linear(6, 3))

    def rank(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, model, schedule=name, micro_batches=8)
        wanted = ZeroDivisionError if c.rank == 2 else CollectiveError
        with pytest.raises(wanted) as caught:
            made.step(*batch(0, 16))
        with pytest.raises(CollectiveError, match="failed before"):
            made.step(*batch(0, 16))
        return str(caught.value)

    texts = values_of(on_ranks(4, rank))
    assert all("stage 2 (rank 2) failed: ZeroDivisionError: on purpose" in texts[r] for r in (0, 1, 3))


def test_a_rank_that_is_gone_or_slow_is_an_error() -> None:
    plain = perceptron()

    def rank(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, plain, timeout_s=0.2)
        if c.rank == 1:
            return None
        with pytest.raises(CollectiveError, match="no gradients of micro-batch 0 from stage 1 .rank 1. within 0.2 s"):
            made.step(*batch(0, 8))
        return None

    values_of(on_ranks(2, rank))

    def dies(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, plain)
        if c.rank == 1:
            raise MemoryError("on purpose")
        return made.step(*batch(0, 8))

    survivor, _ = on_ranks(2, dies)
    assert isinstance(survivor, CollectiveError) and "rank 1 failed" in str(survivor)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_resumes_to_the_bit(name: str, tmp_path: Any) -> None:
    """Through the store of checkpoints of the training loop."""
    batches = [batch(step, 12) for step in range(6)]
    options: dict[str, Any] = {"schedule": name, "micro_batches": 4, "optimizer": ADAM}
    wanted, outcomes, _ = trained(3, batches, noisy(), **options)

    plain, zeros = noisy(), noisy()
    for param in zeros.parameters():
        param.data.zero_()

    def first(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, plain, **options)
        for each in batches[:3]:
            made.step(*each)
        whole = made.whole_state_dict()
        CheckpointStore(tmp_path).save(Checkpoint(whole or {}, {}, made.state_dict(), {}), 3, c)

    def second(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, zeros, **options)
        made.load_state_dict(load(tmp_path / "step-000000003", c.rank).rank)
        return [made.step(*each).loss for each in batches[3:]], made.whole_state_dict()

    values_of(on_ranks(3, first))
    results = values_of(on_ranks(3, second))
    assert same(results[0][1], wanted)
    assert results[0][0] == [o.loss for o in outcomes[3:]]


def test_the_whole_model_comes_out_and_goes_in() -> None:
    plain, other = perceptron(), perceptron(seed=7)
    inputs, targets = batch(0, 11)

    def rank(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, other, micro_batches=3)
        made.load_whole_state_dict(plain.state_dict())
        outputs = made.predict(inputs)
        assert (outputs is None) == (c.rank < 3)
        made.step(inputs, targets)
        with pytest.raises(UserError, match="does not fit stage"):
            made.load_whole_state_dict({})
        return outputs, made.whole_state_dict()

    results = values_of(on_ranks(4, rank))
    torch.testing.assert_close(results[3][0], plain(inputs), rtol=1e-6, atol=1e-6)
    assert not same(results[0][1], plain.state_dict())
    plain.load_state_dict(results[0][1])


class Pair(nn.Module):
    """Two tensors to two: one of floats, one of ids that needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.tanh(x[0] + self.table(x[1])), x[1]


class First(nn.Module):
    """The first of a tuple."""

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0]


@pytest.mark.parametrize("recompute", [False, True])
def test_tuples_go_between_stages(recompute: bool) -> None:
    torch.manual_seed(1)
    plain = nn.Sequential(Pair(), Pair(), First(), nn.Linear(6, 3))
    inputs, targets = batch(0, 10)
    ids = torch.arange(10) % 7
    found, *_ = trained_on(plain, (inputs, ids), targets, recompute)
    wanted = copy.deepcopy(plain)
    (losses(wanted((inputs, ids)), targets).sum() / 10).backward()
    for name, param in wanted.named_parameters():
        torch.testing.assert_close(found[name], param.detach() - 0.3 * param.grad, rtol=1e-6, atol=1e-6)  # type: ignore[operator]


def trained_on(
    plain: nn.Sequential, inputs: tuple[Tensor, ...], targets: Tensor, recompute: bool
) -> list[dict[str, Tensor]]:
    def rank(c: Any, mailbox: Any) -> Any:
        made = pipeline(c, mailbox, plain, micro_batches=4, recompute=recompute)
        given = inputs if c.rank == 0 else None, targets if c.rank == c.size - 1 else None
        made.step(*given)
        return made.whole_state_dict()

    return values_of(on_ranks(4, rank))


def test_frozen_layers_stay_and_take_no_gradients() -> None:
    plain = perceptron()
    for layer in (0, 2):
        plain[layer].requires_grad_(False)
    found, *_ = trained(4, [batch(0, 8)], plain, optimizer=ADAM)
    same_before = {name: torch.equal(found[name], p) for name, p in plain.named_parameters()}
    assert same_before == {name: not p.requires_grad for name, p in plain.named_parameters()}


def test_bytes_are_those_of_activations_and_their_gradients() -> None:
    """Between stages by messages; of all ranks together only words of 24 bytes a step."""

    plain = perceptron()

    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner, self.bytes = inner, 0
            self.rank, self.size, self.receive = inner.rank, inner.size, inner.receive

        def send(self, to: int, box: str, kind: str, head: Any = None, body: Tensor | None = None) -> None:
            self.bytes += 0 if body is None else body.numel()
            self.inner.send(to, box, kind, head, body)

    def rank(c: Any, mailbox: Any) -> Any:
        metered, counting = Metered(c), Counting(mailbox)
        made = pipeline(metered, counting, plain, costs=(1,) * 8, micro_batches=3)
        metered.sent.clear()
        made.step(*batch(0, 10))
        return counting.bytes, metered.sent_bytes

    results = values_of(on_ranks(4, rank))
    out, back = [10, 9, 7, 0], [0, 10, 9, 7]  # numbers a row after and before every stage
    assert results == [(4 * 10 * (out[r] + back[r]), 3 * 8 * 3) for r in range(4)]


def test_messages_over_tcp_carry_the_same_bits() -> None:
    plain, batches = noisy(), [batch(step, 8) for step in range(2)]
    wanted, *_ = trained(2, batches, plain, schedule="1f1b", optimizer=ADAM)

    def rank(c: Any, mailbox: Any) -> Any:
        tcp = tcp_mailbox(c)
        made = pipeline(c, tcp, plain, schedule="1f1b", optimizer=ADAM)
        for each in batches:
            made.step(*each)
        whole = made.whole_state_dict()
        c.barrier()
        tcp.close()
        return whole

    assert same(values_of(on_ranks(2, rank))[0], wanted)


@pytest.mark.parametrize(
    ("head", "size"),
    [
        ({"rows": 2, "grad": [True], "tensors": [["float32", 2, 6]]}, 47),
        ({"rows": 2, "grad": [True], "tensors": [["float32", 2, 6]]}, 0),
        ({"rows": 2, "grad": [True], "tensors": [["float32", 1 << 60, 1 << 60]]}, 48),
        ({"rows": 2, "grad": [True], "tensors": [["float32", -2, -6]]}, 48),
        ({"rows": 2, "grad": [True], "tensors": [["float32", True, 12]]}, 48),
        ({"rows": 2, "grad": [True], "tensors": [["object", 2, 6]]}, 48),
        ({"rows": 2, "grad": [True], "tensors": [[["float32"], 2, 6]]}, 48),
        ({"rows": 2, "grad": [True], "tensors": [["float32", *[1] * 30]]}, 4),
        ({"rows": 2, "grad": [True], "tensors": [["uint8", 1]] * 1000}, 1000),
        ({"rows": 2, "grad": [True], "tensors": []}, 0),
        ({"rows": 2, "grad": [True, True], "tensors": [["float32", 2, 6], None]}, 48),
        ({"rows": "2", "grad": [True], "tensors": [["float32", 2, 6]]}, 48),
        ({"rows": 2, "grad": None, "tensors": [["float32", 2, 6]]}, 48),
        ({"rows": 2, "grad": [True], "tensors": [["float32", 2, 6]], "micro_batch": 1}, 48),
        ({"rows": 2, "grad": [True], "tensors": [["uint8", 300]]}, 300),
        ([], 48),
        (None, 0),
    ],
)
def test_messages_that_are_none_are_refused(head: Any, size: int) -> None:
    """Whatever comes is an error of the stage that waits, before memory is asked for."""
    group = LocalGroup(2)
    there = Boundary(group.mailbox(1), [0, 1], "p", max_bytes=256, timeout_s=5.0)
    given = {"micro_batch": 0, "tuple": False} | head if isinstance(head, dict) else head
    group.mailbox(0).send(1, "p.activations", "activations", given, torch.zeros(size, dtype=torch.uint8))
    with pytest.raises(CollectiveError, match="stage 1 waited for activations of micro-batch 0 and got"):
        there.receive_activations(0, torch.device("cpu"))
    group.mailbox(1).send(0, "p.gradients", "gradients", given, torch.zeros(size, dtype=torch.uint8))
    with pytest.raises(CollectiveError, match="stage 0 waited for gradients of micro-batch 0 and got"):
        Boundary(group.mailbox(0), [0, 1], "p", 256, 5.0).receive_gradients(0, [torch.zeros(3, 3)])


@pytest.mark.parametrize("dtype", sorted(map(str, (torch.float64, torch.bfloat16, torch.int64, torch.bool))))
def test_tensors_of_every_kind_arrive(dtype: str) -> None:
    group, g = LocalGroup(2), torch.Generator().manual_seed(0)
    of = getattr(torch, dtype.removeprefix("torch."))
    sent = (torch.randint(0, 2, (3, 5), generator=g).to(of).t(), torch.zeros(0, 2).to(of), torch.ones(3, 1).bool())
    Boundary(group.mailbox(0), [0, 1], "p", 1000, 5.0).send_activations(0, 3, sent, [True, False, True])
    rows, found = Boundary(group.mailbox(1), [0, 1], "p", 1000, 5.0).receive_activations(0, torch.device("cpu"))
    assert rows == 3 and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(sent, found, strict=True))
    assert [t.requires_grad for t in found] == [of.is_floating_point, False, False]


def refused(size: int, match: str, **options: Any) -> None:
    model = options.pop("model", None) or perceptron()

    def rank(c: Any, mailbox: Any) -> None:
        with pytest.raises(UserError, match=match):
            pipeline(c, mailbox, model, **options).step(*batch(0, 8))

    values_of(on_ranks(size, rank))


def test_what_makes_no_sense_is_refused() -> None:
    refused(2, "no multiple of 3 stages", stages=3)
    refused(1, "updates once a step", schedule="gpipe", group=2)
    refused(1, "not known when a stage updates", schedule="1f1b", clipping=ClippingConfig(rule="norm"))
    refused(1, "looks at the whole model", optimizer={"name": "lbfgs"})
    refused(1, "looks at the whole model", optimizer={"name": "sgd", "wrappers": {"sam": {}}})
    refused(1, "counts the layers", optimizer={"name": "adam", "layer_decay": 0.5})
    refused(1, "there is no optimizer", optimizer={"name": "adamm"})
    refused(1, "row-sparse", model=nn.Sequential(nn.Embedding(3, 3, sparse=True)))
    refused(1, "cannot be cut", model=Noisy())
    refused(1, "cannot be cut into 9 micro-batches", micro_batches=9)
    refused(1, "multiple of groups", schedule="1f1b", micro_batches=3, group=2)
    refused(1, "one number a row", losses=nn.functional.cross_entropy)
    refused(1, "both at least 1", micro_batches=0)
    refused(1, "schedule", schedule="2f2b")
    refused(1, "no option", microbatches=4)
    tied = nn.Linear(6, 6)
    refused(2, "share a parameter", model=nn.Sequential(tied, tied))


def test_ranks_must_be_alike() -> None:
    def other_options(c: Any, mailbox: Any) -> None:
        with pytest.raises(UserError, match="rank 1 has other options"):
            pipeline(c, mailbox, models[0], micro_batches=2 + c.rank)

    def other_weights(c: Any, mailbox: Any) -> None:
        with pytest.raises(UserError, match="begins with other weights"):
            pipeline(c, mailbox, models[c.rank], stages=1)

    models = [perceptron(seed) for seed in range(2)]
    values_of(on_ranks(2, other_options))
    values_of(on_ranks(2, other_weights))


def test_missing_tensors_are_named_and_others_released() -> None:
    plain = perceptron()

    def rank(c: Any, mailbox: Any) -> str:
        made = pipeline(c, mailbox, plain)
        with pytest.raises((UserError, CollectiveError)) as caught:
            made.step(None, batch(0, 8)[1])
        return str(caught.value)

    first, second = values_of(on_ranks(2, rank))
    assert "the first stage has no inputs" in first and "stage 0 (rank 0) failed: UserError" in second
