"""Linear layers spread over ranks compute what plain ones do, train alike, and come back to the bit."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from contract.parallel_ranks import batch, close, losses, on_ranks, same, trained_plainly, values_of
from torch import Tensor, nn

from headrace import optim
from headrace.comm import Metered
from headrace.errors import UserError
from headrace.models.layers import SeededDropout
from headrace.optim.clipping import ClippingConfig
from headrace.parallel import PARALLELISMS, TensorParallel, create
from headrace.parallel.dense import NEEDS_MAILBOX, TRAITS
from headrace.parallel.part_optimizer import check_elementwise, check_part
from headrace.parallel.tensor_parallel import ColumnParallelLinear, RowParallelLinear, dealt

pytestmark = pytest.mark.usefixtures("one_thread")
RANKS = (1, 2, 3, 4)
PLAN = {"0": "column", "2.blocks.?": "block", "5": "row"}
ADAM = {"name": "adam", "lr": 0.02}


class Blocks(nn.Module):
    """Two residual blocks, the second without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(9, 11, bias=bias), nn.GELU(), nn.Linear(11, 9, bias=bias)) for bias in (True, False)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def model() -> nn.Sequential:
    """6 features in, 3 out: odd sizes, which 2, 3 and 4 ranks do not divide."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), Blocks(), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 3))


def split(c: Any, plain: nn.Module, plan: dict[str, str] = PLAN, **options: Any) -> TensorParallel:
    made = create("tensor", plain, c, plan=plan, **options)
    assert isinstance(made, TensorParallel)
    return made


@pytest.mark.parametrize("size", RANKS)
def test_forward_and_gradients_are_those_of_the_plain_model(size: int) -> None:
    """Of weights, biases and inputs; what is not split has the same bits on all ranks; parts come back to the bit."""
    plain, (inputs, targets) = model(), batch(0, 10)
    wanted, x = copy.deepcopy(plain), inputs.clone().requires_grad_()
    outputs = wanted(x)
    losses(outputs, targets).sum().backward()

    def rank(c: Any, mailbox: Any) -> Any:
        made, mine = split(c, plain), inputs.clone().requires_grad_()
        assert same(made.whole_state_dict(), plain.state_dict())
        found = made.model(mine)
        losses(found, targets).sum().backward()
        torch.testing.assert_close(found, outputs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mine.grad, x.grad, rtol=1e-6, atol=1e-6)
        held = sum(p.numel() for p in made.model.parameters())
        return made.whole_gradients(), found.detach(), mine.grad, held

    results = values_of(on_ranks(size, rank))
    gradients = {name: p.grad for name, p in wanted.named_parameters() if p.grad is not None}
    close(results[0][0], gradients, 1e-6)
    for other in results[1:]:
        assert same(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1]) and torch.equal(other[2], results[0][2])
    spread, all_of_it = [result[3] for result in results], sum(p.numel() for p in plain.parameters())
    assert size == 1 or max(spread) < all_of_it / size * 1.5


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_trains_as_the_plain_model(size: int, rule: str) -> None:
    plain, batches = model(), [batch(step, 8) for step in range(4)]
    wanted, _ = trained_plainly(copy.deepcopy(plain), batches, {"name": rule, "lr": 0.02}, clip=0.5)

    def rank(c: Any, mailbox: Any) -> Any:
        made = split(c, plain)
        optimizer = made.optimizer(rule, lr=0.02)
        norms = []
        for inputs, targets in batches:
            optimizer.zero_grad()
            (losses(made.model(inputs), targets).sum() / len(targets)).backward()
            norms.append(made.clip(ClippingConfig(rule="norm", limit=0.5)))
            optimizer.step()
        return made.whole_state_dict(), norms

    results = values_of(on_ranks(size, rank))
    close(results[0][0], wanted, 1e-6)
    assert all(same(other, results[0][0]) and norms == results[0][1] for other, norms in results)
    assert any(clipped.clipped for clipped in results[0][1])


def test_groups_of_ranks_are_replicas() -> None:
    """2 x 2 ranks, each group on its half of the rows, gradients summed over groups: plain training on all rows."""
    plain, batches = model(), [batch(step, 8) for step in range(3)]
    wanted, _ = trained_plainly(copy.deepcopy(plain), batches, ADAM)

    def rank(c: Any, mailbox: Any) -> Any:
        made = split(c, plain, ranks=2)
        optimizer = made.optimizer("adam", lr=0.02)
        for inputs, targets in batches:
            optimizer.zero_grad()
            mine = slice(4 * (c.rank // 2), 4 * (c.rank // 2) + 4)
            (losses(made.model(inputs[mine]), targets[mine]).sum() / 8).backward()
            made.sum_gradients()
            optimizer.step()
        return made.whole_state_dict()

    results = values_of(on_ranks(4, rank))
    close(results[0], wanted, 1e-6)
    assert all(same(other, results[0]) for other in results[1:])


def test_replicas_that_use_other_layers_sum_each_apart() -> None:
    """Rank r uses layer r alone, and both the split one behind."""

    def rank(c: Any, mailbox: Any) -> Any:
        made = split(c, nn.Sequential(one, other, unused, behind), {"3": "column"}, ranks=1)
        used = nn.Sequential(made.model[c.rank], made.model[3])
        used(torch.full((1, 2), 1.0 + c.rank)).sum().backward()
        made.sum_gradients()
        return made.whole_gradients()

    one, other, unused, behind = (nn.Linear(2, 2) for _ in range(4))
    nn.init.ones_(behind.weight)
    for grads in values_of(on_ranks(2, rank)):
        assert {name.split(".")[0] for name in grads} == {"0", "1", "3"}
        assert (grads["0.weight"] == 2.0).all() and (grads["1.weight"] == 4.0).all()


@pytest.mark.parametrize("size", RANKS)
def test_a_block_needs_one_sum_forward_and_one_backward(size: int) -> None:
    """Bytes a rank: 2 (N - 1) / N of [rows, features] numbers each, as a ring's all-reduce."""
    plain = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 36))
    rows = 5 * size

    def rank(c: Any, mailbox: Any) -> Any:
        metered = Metered(c)
        made = split(metered, nn.Sequential(plain), {"0": "block"})
        outputs = made.model(torch.randn(rows, 12).requires_grad_())
        forward = metered.sent_bytes, sum(metered.calls.values())
        outputs.sum().backward()
        return forward, (metered.sent_bytes, sum(metered.calls.values()))

    for (forward, calls), (both, all_calls) in values_of(on_ranks(size, rank)):
        assert forward == 2 * (size - 1) * rows * 36 * 4 // size
        assert both - forward == 2 * (size - 1) * rows * 12 * 4 // size
        one = 1 if size == 2 else 2  # all to the other; or chunks to their ranks, sums to all
        assert (calls, all_calls) == (one, 2 * one)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_made_by_themselves_begin_with_the_bits_of_plain_ones(bias: bool) -> None:
    torch.manual_seed(11)
    plain = nn.Linear(7, 5, bias=bias)

    def rank(c: Any, mailbox: Any) -> Any:
        made = {}
        for cls in (ColumnParallelLinear, RowParallelLinear):
            generator = torch.Generator().manual_seed(11)
            made[cls.__name__] = cls(7, 5, c, bias=bias, generator=generator)
        return {
            name: {n: (p.detach(), layer.dims()[n]) for n, p in layer.named_parameters()}
            for name, layer in made.items()
        }

    results = values_of(on_ranks(3, rank))
    for layer in results[0]:
        for name, (_, dim) in results[0][layer].items():
            parts = [result[layer][name][0] for result in results]
            whole = parts[0] if dim is None else torch.cat(parts, dim)
            assert torch.equal(whole, plain.get_parameter(name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    """bfloat16 is summed in float32 and rounded once."""
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    x = batch(0, 4)[0].to(dtype)
    results = values_of(on_ranks(3, lambda c, _: split(c, nn.Sequential(plain), {"0": "block"}).model(x).detach()))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(results[0], plain(x), rtol=tolerance, atol=tolerance)
    assert results[0].dtype == dtype and torch.equal(results[0], results[2])


def test_a_second_derivative_is_an_error_and_no_wrong_number() -> None:
    def rank(c: Any, mailbox: Any) -> None:
        x = torch.ones(2, 6, requires_grad=True)
        outputs = split(c, plain, {"0": "column"}).model(x).pow(2).sum()
        (slope,) = torch.autograd.grad(outputs, x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()

    plain = nn.Sequential(nn.Linear(6, 4))
    values_of(on_ranks(2, rank))


def test_state_of_another_number_of_ranks() -> None:
    """A plain model's state, wherever it comes from, is what goes in; a resumed run goes on with the same bits."""
    plain, zeros = model(), model()
    for param in zeros.parameters():
        param.data.zero_()
    whole = values_of(on_ranks(3, lambda c, _: split(c, plain).whole_state_dict()))[0]

    def rank(c: Any, mailbox: Any) -> Any:
        made = split(c, zeros)
        made.load_whole_state_dict(whole)
        with pytest.raises(UserError, match="does not fit"):
            made.load_whole_state_dict({})
        with pytest.raises(UserError, match=r"0\.weight \[1, 1\], not \[9, 6\]"):
            made.load_whole_state_dict(whole | {"0.weight": torch.zeros(1, 1)})
        return made.whole_state_dict()

    assert all(same(found, plain.state_dict()) for found in values_of(on_ranks(2, rank)))


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_optimizers_are_right_on_parts_or_refused(name: str) -> None:
    """A rule that passes makes the steps on parts of a tensor that it makes on the whole of it."""
    torch.manual_seed(0)
    start, grads = torch.randn(12, 8), [torch.randn(12, 8) for _ in range(3)]

    def steps(parts: list[tuple[slice, slice]]) -> Tensor:
        params = [nn.Parameter(start[part].clone()) for part in parts]
        made = optim.create(name, [(f"w{i}", p) for i, p in enumerate(params)])
        check_elementwise(name, made)
        for grad in grads:
            for param, part in zip(params, parts, strict=True):
                param.grad = grad[part].clone()
            made.step()
        whole = torch.empty_like(start)
        for param, part in zip(params, parts, strict=True):
            whole[part] = param.detach()
        return whole

    try:
        check_part(name, {})
        whole = steps([(slice(None), slice(None))])
    except UserError:
        return
    for rows, columns in itertools.product((1, 2, 3), (1, 2, 3)):
        parts = list(itertools.product(dealt(12, rows), dealt(8, columns)))
        torch.testing.assert_close(steps(parts), whole, rtol=1e-6, atol=1e-6)


def refused(match: str, plain: nn.Module, plan: dict[str, str], size: int = 2, **options: Any) -> None:
    def rank(c: Any, mailbox: Any) -> None:
        with pytest.raises(UserError, match=match):
            split(c, plain, plan, **options)

    values_of(on_ranks(size, rank))


class Doubled(nn.Sequential):
    """Not what its layers compute one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return self[2](2.0 * self[1](self[0](x)).softmax(-1))


def test_what_cannot_be_split_is_refused() -> None:
    linear, other = nn.Linear(6, 6), nn.Linear(6, 6)
    hooked = nn.Linear(6, 6)
    hooked.register_forward_hook(lambda module, args, output: 2.0 * output)
    refused("name of no parameter", model(), {"7": "column"})
    refused("plan", model(), {"0": "columns"})
    refused("not a Tanh", model(), {"1": "row"})
    refused("got LayerNorm", model(), {"3": "block"})
    refused(
        "got Linear, SeededDropout, Linear",
        nn.Sequential(nn.Sequential(linear, SeededDropout(0.1), other)),
        {"0": "block"},
    )
    refused("got Doubled", nn.Sequential(Doubled(linear, nn.ReLU(), other)), {"0": "block"})
    refused("not a Linear with hooks", nn.Sequential(hooked), {"0": "column"})
    refused("cannot be spread over 7 ranks", model(), {"0": "row"}, size=7)
    refused("no multiple of 3", model(), {"0": "row"}, ranks=3)
    refused("draw apart", nn.Sequential(linear, nn.Dropout(0.1)), {"0": "row"})
    refused("shares a parameter", nn.Sequential(linear, nn.ReLU(), linear), {"0": "row"})


def test_rules_and_clipping_that_look_at_whole_tensors_are_refused() -> None:
    def rank(c: Any, mailbox: Any) -> None:
        made = split(c, plain)
        for name in ("lamb", "lbfgs"):
            with pytest.raises(UserError, match="looks at"):
                made.optimizer(name)
        made.optimizer("sgd", wrappers={"ema": {}})
        with pytest.raises(UserError, match="adaptive"):
            made.clip(ClippingConfig(rule="adaptive"))

    plain = model()
    values_of(on_ranks(2, rank))


@pytest.mark.parametrize("name", sorted(PARALLELISMS))
def test_the_front_door(name: str) -> None:
    spec = PARALLELISMS[name]
    assert spec.traits <= set(TRAITS) and spec.paper and spec.holds and spec.sends
    given: dict[str, Any] = dict.fromkeys(spec.required)

    def rank(c: Any, mailbox: Any) -> None:
        with pytest.raises(UserError, match=f"needs {spec.required[0]}"):
            create(name, plain, c, mailbox)
        with pytest.raises(UserError, match="no option 'splits'"):
            create(name, plain, c, mailbox, **given, splits=3)
        if NEEDS_MAILBOX in spec.traits:
            with pytest.raises(UserError, match="mailbox"):
                create(name, plain, c, **given)
        with pytest.raises(UserError, match="unknown"):
            create(f"{name}s", plain, c, mailbox, **given)

    plain = model()
    values_of(on_ranks(1, rank))
