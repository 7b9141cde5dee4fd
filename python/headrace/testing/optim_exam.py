"""The exam of an optimizer: what every entry of OPTIMIZERS must show, over its traits.

    rule          50 steps equal an independent float64 NumPy rule: one tensor, many tensors, row-sparse gradients
    reductions    settings that reduce to one of torch.optim's are equal to it
    convergence   Rosenbrock's valley and an ill-conditioned logistic regression are minimized
    resume        a run from saved state goes on with the same bits
    ranks         three ranks hold the same bits, and what one alone gets
    manners       dtype and device stay, unused parameters are left alone, zero and huge gradients do no harm
    state         no more bytes than declared; traits are what the optimizer does

A new optimizer writes an `Exam` and calls `sit(name, spec, exam)`. Failures are AssertionErrors that say which part.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headrace.comm import LocalGroup
from headrace.errors import UserError
from headrace.optim import Optimizer, OptimizerSpec, StepContext
from headrace.optim.schedules import Schedule, ScheduleConfig
from headrace.optim.spec import (
    ACCEPTS_SPARSE,
    NEEDS_CLOSURE,
    NEEDS_FULL_PASS,
    NEEDS_KEYS,
    NEEDS_MODEL,
    NEEDS_OUTPUTS,
    OWN_GRADIENT,
    STATEFUL,
)  # fmt: skip
from headrace.testing.gradients import Array as Array
from headrace.testing.gradients import bent_bowl, in_halves, laid_out
from headrace.testing.problems import Problem, logistic, perceptron, rosenbrock

Rule = Callable[[Array, Array], Array]
STEPS = 50
SHAPES: tuple[tuple[int, ...], ...] = ((6, 3), (7,), (1, 1), (2, 3, 4), (5, 5))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run to the minimum.

    Args:
        options: of the optimizer.
        steps: to be made.
        gap: at most so far above the minimum at the end, in the mean loss.
        batch: rows of a batch; 0: all.
        schedule: of the learning rate; steps of a fixed size (signs) come to rest as it falls.
    """

    options: Mapping[str, Any]
    steps: int
    gap: float
    batch: int = 0
    schedule: str = "constant"


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What is asked of one optimizer beyond what is asked of all.

    Args:
        options: every option, at values that are not the defaults: the rule is followed with these.
        rule: `rule(**options)` gives a function of (weights, gradient), both float64, to the next weights; one for
            every tensor. None: the rule is not one of a tensor alone, and `whole` holds its references.
        whole: further checks, each with a reference of its own; called without arguments.
        reductions: (options of ours, factory of torch's optimizer from parameters).
        variants: changes of `options`, for options that the rule has branches for: followed, resumed and weighed alike.
        steps_together: steps in which three ranks must be as one; few for rules that magnify rounding (truncated CG).
        rosenbrock: a run in Rosenbrock's valley.
        logistic: a run on the ill-conditioned logistic regression.
    """

    options: Mapping[str, Any]
    rosenbrock: Run | None
    logistic: Run
    steps_together: int = 5
    rule: Callable[..., Rule] | None = None
    whole: Sequence[Callable[[], None]] = ()
    reductions: Sequence[tuple[Mapping[str, Any], Callable[[Any], torch.optim.Optimizer]]] = field(
        default_factory=tuple
    )
    variants: Sequence[Mapping[str, Any]] = ()

    @property
    def settings(self) -> list[dict[str, Any]]:
        """`options`, and each variant as a whole."""
        return [dict(self.options), *({**self.options, **variant} for variant in self.variants)]


def sit(name: str, spec: OptimizerSpec, exam: Exam) -> None:
    """All parts of the exam for one optimizer."""
    for part in PARTS:
        part(name, spec, exam)


def make(spec: OptimizerSpec, model_or_params: Any, **options: Any) -> Optimizer:
    """The optimizer with defaults where no option is given."""
    chosen = {**spec.defaults, **options}
    if isinstance(model_or_params, nn.Module):
        more = {"model": model_or_params} if NEEDS_MODEL in spec.traits else {}
        return spec.factory(list(model_or_params.named_parameters()), **more, **chosen)
    return spec.factory(model_or_params, **chosen)


def follows_its_rule(name: str, spec: OptimizerSpec, exam: Exam) -> None:
    """50 steps on one tensor, many tensors and, where declared, row-sparse gradients equal the reference."""
    for check in exam.whole:
        check()
    assert exam.rule is not None or exam.whole, f"{name}: neither a rule nor another reference"
    assert set(exam.options) == set(spec.defaults), f"{name}: the exam must set every option"
    if exam.rule is None:
        return
    for options in exam.settings:
        _follow(f"{name} {options}, one tensor", spec, exam, SHAPES[:1], options, rows_only=False)
        _follow(f"{name} {options}, many tensors", spec, exam, SHAPES, options, rows_only=False)
    if ACCEPTS_SPARSE in spec.traits:
        no_decay = {k: 0.0 if k == "weight_decay" else v for k, v in exam.options.items()}
        _follow(f"{name}, row-sparse", spec, exam, SHAPES[:1], no_decay, rows_only=True)


def _follow(
    what: str, spec: OptimizerSpec, exam: Exam, shapes: Sequence[tuple[int, ...]], options: Mapping[str, Any],
    *, rows_only: bool,
) -> None:  # fmt: skip
    assert exam.rule is not None
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in shapes]
    params = [nn.Parameter(laid_out(w)) for w in weights]
    slower = {**options, "lr": 0.5 * options["lr"]}
    optimizer = make(spec, [{"params": params[:1]}, {"params": params[1:], "lr": slower["lr"]}], **options)
    rules = [exam.rule(**(slower if i else options)) for i in range(len(shapes))]
    for step in range(STEPS):
        for i, (w, param, rule) in enumerate(zip(weights, params, rules, strict=True)):
            rows = np.unique(np.random.default_rng(step).integers(0, w.shape[0], 3)) if rows_only else None
            grad = bent_bowl(w, 100 * i + step, rows)
            param.grad = laid_out(grad) if rows is None else in_halves(grad, rows)
            weights[i] = rule(w, grad)
        before = [param.grad.clone() for param in params if param.grad is not None]
        optimizer.step()
        for w, param, grad_before in zip(weights, params, before, strict=True):
            assert rows_only or torch.equal(param.grad, grad_before), f"{what}: changed a gradient"  # type: ignore[arg-type]
            np.testing.assert_allclose(
                param.detach().numpy(), w, rtol=1e-8, atol=1e-10, err_msg=f"{what}: step {step} is not the rule's"
            )


def reduces_to_torch(name: str, spec: OptimizerSpec, exam: Exam) -> None:
    """20 steps of float64 are those of torch.optim where a setting reduces to it."""
    for options, other in exam.reductions:
        ours, theirs = perceptron(), perceptron()
        a, b = make(spec, ours.model, **options), other(theirs.model.parameters())
        for ids in ours.batches(16, 20):
            ours.step(a, ids)
            theirs.step(_Plain(b), ids)
        for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-11), f"{name} with {dict(options)} is not torch's"


class _Plain(Optimizer):
    """torch's optimizer where a step is given a context."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        torch.optim.Optimizer.__init__(self, inner.param_groups, {})
        self.inner = inner

    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        self.inner.step()


def reaches_minima(name: str, spec: OptimizerSpec, exam: Exam) -> None:
    """Rosenbrock's valley and the ill-conditioned logistic regression."""
    for problem, run, what in (
        (rosenbrock(), exam.rosenbrock, "Rosenbrock"),
        (logistic(condition=100.0), exam.logistic, "logistic regression"),
    ):
        if run is None:
            continue
        assert problem.minimum is not None
        optimizer = make(spec, problem.model, **run.options)
        bases, schedule = [group["lr"] for group in optimizer.param_groups], Schedule(ScheduleConfig(name=run.schedule))
        for step, ids in enumerate(problem.batches(run.batch or problem.rows, run.steps)):
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * schedule.rates(step, 1, run.steps).factor
            problem.step(optimizer, ids)
        gap = problem.value() - problem.minimum
        assert gap <= run.gap, f"{name}, {what}: {gap:.3g} above the minimum after {run.steps} steps, not {run.gap:.3g}"


def resumes(name: str, spec: OptimizerSpec, exam: Exam) -> None:
    """Six steps in one go and in two with saved state between them: the same bits."""
    for options in exam.settings:
        whole, half = perceptron(dtype=torch.float32), perceptron(dtype=torch.float32)
        a, b = make(spec, whole.model, **options), make(spec, half.model, **options)
        for step, ids in enumerate(whole.batches(16, 6)):
            if step == 3:
                saved = copy.deepcopy(b.state_dict())
                b = make(spec, half.model, **{**options, "lr": 0.7 * options["lr"]})
                b.load_state_dict(saved)
            whole.step(a, ids)
            half.step(b, ids)
        for p, q in zip(whole.model.parameters(), half.model.parameters(), strict=True):
            assert torch.equal(p, q), f"{name} {options}: other bits after saving and loading"


def agrees_over_ranks(name: str, spec: OptimizerSpec, exam: Exam) -> None:
    """Three ranks, each with its rows of every batch, hold the same bits, and what one rank alone gets to rounding."""
    group = LocalGroup(3, 60.0)

    def trained(rank: int | None) -> list[Tensor]:
        problem = perceptron()
        try:
            collective = None if rank is None else group.collective(rank)
            problem.train(
                make(spec, problem.model, **exam.options), batch=16, steps=exam.steps_together, collective=collective
            )
        except BaseException as error:
            group.abort(f"rank {rank}: {error!r}")
            raise
        return [param.detach() for param in problem.model.parameters()]

    with ThreadPoolExecutor(3) as pool:
        ranks = list(pool.map(trained, range(3)))
    for alone, *params in zip(trained(None), *ranks, strict=True):
        assert all(torch.equal(params[0], param) for param in params), f"{name}: ranks have drifted apart"
        assert torch.allclose(params[0], alone, rtol=1e-6, atol=1e-9), f"{name}: three ranks are not as one"


def keeps_manners(name: str, spec: OptimizerSpec, exam: Exam) -> None:
    """dtype stays, a parameter without gradient is left alone, zero and huge gradients make no NaN."""
    for variant in ({}, *exam.variants):
        for dtype, scale in itertools.product((torch.float32, torch.float64), (0.0, 1e18, 1e30)):
            problem = perceptron(dtype=dtype)
            unused = nn.Parameter(torch.full((3,), 2.0, dtype=dtype))
            problem.model.register_parameter("unused", unused)
            optimizer = make(spec, problem.model, **variant)
            first, second = problem.batches(16, 2)
            problem.step(optimizer, first)
            replace(problem, losses=_scaled(problem, scale)).step(optimizer, second)
            for param_name, param in problem.model.named_parameters():
                assert param.dtype == dtype, f"{name}: {param_name} became {param.dtype}"
                assert not bool(param.isnan().any()), f"{name}: NaN in {param_name} after gradients times {scale}"
            assert bool((unused == 2.0).all()), f"{name}: moved a parameter that has no gradient"


def _scaled(problem: Problem, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, y: scale * problem.losses(outputs, y)


def declares_itself(name: str, spec: OptimizerSpec, exam: Exam) -> None:
    """State is at most what is declared, and traits are what the optimizer does."""
    used: set[str] = set()
    for options in exam.settings:
        problem = perceptron()
        optimizer = make(spec, problem.model, **options)
        for ids in problem.batches(16, 6):
            problem.step(_Watched(optimizer, used), ids)
        allowed = sum(spec.state_bytes(p, options) for p in problem.model.parameters())
        held = optimizer.state_bytes()
        assert held <= allowed, f"{name} {options}: holds {held} bytes of state, declares {allowed}"
        assert (held > 0) == (STATEFUL in spec.traits), f"{name}: trait {STATEFUL} and {held} bytes of state"
    for trait in (NEEDS_CLOSURE, NEEDS_OUTPUTS, NEEDS_KEYS, NEEDS_FULL_PASS):
        assert (trait in used) == (trait in spec.traits), f"{name}: trait {trait} is declared or done, not both"
    own = OWN_GRADIENT in spec.traits
    assert _steps_without_gradients(spec, exam) == own, f"{name}: trait {OWN_GRADIENT} is declared or done, not both"
    assert optimizer.with_own_gradient() == [name] * own, f"{name}: with_own_gradient does not say what the trait says"
    if ACCEPTS_SPARSE not in spec.traits:
        _refuses_rows(name, spec)


def _steps_without_gradients(spec: OptimizerSpec, exam: Exam) -> bool:
    """Whether it moves, without decay, though every gradient that it is given is zero."""
    problem = perceptron()
    before = [param.detach().clone() for param in problem.model.parameters()]
    optimizer = make(spec, problem.model, **{k: 0.0 if k == "weight_decay" else v for k, v in exam.options.items()})
    for ids in problem.batches(16, 12):
        problem.step(_Zeroed(optimizer), ids)
    return not all(torch.equal(p, old) for p, old in zip(problem.model.parameters(), before, strict=True))


class _Around(Optimizer):
    """Changes what the optimizer inside is given."""

    def __init__(self, inner: Optimizer) -> None:
        torch.optim.Optimizer.__init__(self, [{"params": g["params"]} for g in inner.param_groups], {})
        self.inner = inner


class _Zeroed(_Around):
    """Gradients."""

    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.zero_()
        self.inner.step(ctx)


class _Watched(_Around):
    """Notes what a step takes from its context."""

    def __init__(self, inner: Optimizer, used: set[str]) -> None:
        super().__init__(inner)
        self.used = used

    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        assert ctx is not None
        self.inner.step(_watched(ctx, self.used))


def _watched(ctx: StepContext, used: set[str]) -> StepContext:
    class Watched(StepContext):
        def __getattribute__(self, attribute: str) -> Any:
            trait = {
                "outputs_at": NEEDS_CLOSURE, "outputs": NEEDS_OUTPUTS, "keys": NEEDS_KEYS, "full_pass": NEEDS_FULL_PASS,
            }.get(attribute)  # fmt: skip
            if trait is not None:
                used.add(trait)
            return super().__getattribute__(attribute)

    return Watched(**{f.name: getattr(ctx, f.name) for f in fields(ctx)})


def _refuses_rows(name: str, spec: OptimizerSpec) -> None:
    """A row-sparse gradient is refused with the remedy, and nothing moves."""
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = make(spec, table)
    before = table.weight.detach().clone()
    table(torch.tensor([1, 3])).sum().backward()
    refusal = ""
    try:
        optimizer.step()
    except UserError as error:
        refusal = str(error)
    assert "rowwise_adagrad" in refusal, f"{name}: row-sparse gradients are not refused with a remedy: {refusal!r}"
    assert torch.equal(table.weight, before), f"{name}: moved a table that it refused"


PARTS: tuple[Callable[[str, OptimizerSpec, Exam], None], ...] = (
    follows_its_rule, reduces_to_torch, reaches_minima, resumes, agrees_over_ranks, keeps_manners,
    declares_itself,
)  # fmt: skip
