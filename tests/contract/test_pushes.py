"""Pushes over the registry of codecs: what is pushed and what is remembered are the gradients; bytes are as counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace.compress import COMPRESSORS, create
from headrace.compress.feedback import Feedback
from headrace.compress.spec import EXACT, OWN_FEEDBACK, VARIABLE
from headrace.optim import create_parts
from headrace.optim.schedules import Rates, set_rates
from headrace.strategies.coded_rows import why_not
from headrace.strategies.compression import CompressionConfig
from headrace.strategies.pushes import Packed, PushCodecs, Pushes, push_codecs
from headrace.strategies.shard_layout import Part, deal
from headrace.strategies.sparse import with_rows

pytestmark = pytest.mark.usefixtures("one_thread")
TABLE, SERVERS = "table", 2
SHAPES = {TABLE: (50, 8), "a": (30, 40), "b": (1500,), "small": (5,)}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    ids = torch.randperm(50, generator=generator)[:9].sort().values
    return made | {TABLE: with_rows(ids, made[TABLE][ids], made[TABLE])}


def sent(pushes: Pushes, grads: dict[str, Tensor], parts: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], int]:
    """All servers' gradients put together again, and bytes; messages pass through JSON."""
    found: dict[str, Tensor] = {TABLE: torch.zeros(SHAPES[TABLE])}
    nbytes = 0
    for server, part in enumerate(parts):
        packed = pushes.packed(server, grads)
        nbytes += packed.body.numel()
        opened = pushes.opened(Packed(json.loads(json.dumps(packed.entries)), packed.body), part)
        if TABLE in opened:
            rows = opened.pop(TABLE)
            found[TABLE][rows._indices()[0] * SERVERS + server] = rows._values()
        assert not found.keys() & opened.keys()
        found |= opened
    return found, nbytes


def world(codecs: PushCodecs) -> tuple[Pushes, list[dict[str, Tensor]]]:
    params = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    layout = deal(params, [TABLE], SERVERS)
    return Pushes(codecs, layout, 1), [layout.part(k, params) for k in range(SERVERS)]


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_what_is_pushed_and_what_is_remembered_are_the_gradients(name: str) -> None:
    spec = COMPRESSORS[name]
    variant = "none" if spec.traits & {OWN_FEEDBACK, EXACT} else "ef"
    pushes, parts = world(PushCodecs(Feedback(create(name), variant), None, 100, 3))
    total = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
    got = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
    for step in range(4):
        grads = gradients(step)
        found, nbytes = sent(pushes, grads, parts)
        assert set(found) == set(SHAPES)
        assert torch.equal(found["small"], grads["small"]) and torch.equal(found[TABLE], grads[TABLE].to_dense())
        if VARIABLE not in spec.traits:
            coded = sum(create(name).nbytes(n, torch.float32) or 0 for n in (1200, 1500))
            assert nbytes == coded + 5 * 4 + 9 * (8 + 8 * 4)
        for n in SHAPES:
            total[n] += grads[n].to_dense().double()
            got[n] += found[n].double()
    assert pushes.numbers["in"] == 4 * 4 * 2700
    for n in ("a", "b"):
        if variant == "ef":
            held = pushes.kept(n)["memory"].double()  # type: ignore[index]
            torch.testing.assert_close(got[n] + held, total[n], rtol=0, atol=2e-4 + 1e-6 * float(held.abs().max()))
        elif EXACT in spec.traits:
            assert torch.equal(got[n], total[n])


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_what_was_not_pushed_comes_with_the_next_gradient(decay: float) -> None:
    """The tenth of x + e that is largest, with e <- decay (x + e - what was sent), over five steps."""
    options = {"ratio": 0.1}
    pushes, parts = world(push_codecs(CompressionConfig(name="topk", options=options, decay=decay, min_numel=100), 3))
    left = {n: torch.zeros(SHAPES[n]) for n in ("a", "b")}
    for step in range(5):
        grads = gradients(step)
        found, _ = sent(pushes, grads, parts)
        for n, e in left.items():
            whole = grads[n] + e
            least = whole.abs().flatten().topk(whole.numel() // 10).values[-1]
            want = torch.where(whole.abs() >= least, whole, 0.0)
            torch.testing.assert_close(found[n], want, rtol=0, atol=1e-5)
            left[n] = decay * (whole - want)


@pytest.mark.parametrize("name", sorted(n for n, spec in COMPRESSORS.items() if n != "none" and not why_not(spec)))
def test_rows_go_through_codecs_that_need_no_memory(name: str) -> None:
    """Decoded at the server as by the codec itself; nothing of a table is lost but what the codec rounds."""
    pushes, parts = world(push_codecs(CompressionConfig(sparse=name), 3))
    grads = gradients(0)
    found, _ = sent(pushes, grads, parts)
    whole = grads[TABLE].to_dense()
    assert not found[TABLE][~whole.any(1)].any(), "no row but those that have a gradient"
    assert torch.equal(found["a"], grads["a"])
    again, _ = sent(world(push_codecs(CompressionConfig(sparse=name), 3))[0], grads, parts)
    assert torch.equal(found[TABLE], again[TABLE]), "draws are of rank, name and turn"


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_memory_resumes(name: str) -> None:
    variant = "none" if COMPRESSORS[name].traits & {OWN_FEEDBACK, EXACT} else "ef"
    codecs = PushCodecs(Feedback(create(name), variant), None, 100, 3)
    pushes, parts = world(codecs)
    sent(pushes, gradients(0), parts)
    again, _ = world(codecs)
    again.load_state_dict(pushes.state_dict())
    first, second = sent(pushes, gradients(1), parts)[0], sent(again, gradients(1), parts)[0]
    assert all(torch.equal(first[n], second[n]) for n in SHAPES)


def test_half_precision_has_its_masters_at_the_server() -> None:
    """A part's optimizer is that of the whole: bf16 parameters move by less than a unit in their last place."""
    params = {"a": torch.ones(3, 4, dtype=torch.bfloat16), "b": torch.ones(2)}
    settings: dict[str, Any] = {"dense": {"name": "sgd", "lr": 1e-3}}
    plain = nn.ParameterDict({n: nn.Parameter(p.clone()) for n, p in params.items()})
    optimizer = create_parts(plain, settings)
    layout = deal(params, [], 2)
    parts = [Part(layout.part(k, params), layout) for k in range(layout.servers)]
    served = [create_parts(part, settings) for part in parts]
    for _ in range(8):
        for made in (optimizer, *served):
            for group in made.param_groups:
                for param in group["params"]:
                    param.grad_dtype = torch.float32
                    param.grad = torch.ones(param.shape)
            set_rates(made, Rates(0.5))
            made.step()
    assert len(parts) == 2 and not torch.equal(plain["a"], params["a"])
    for part in parts:
        for name, value in part.held.items():
            assert torch.equal(value, plain[name])
