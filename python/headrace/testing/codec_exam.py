"""The exam of a codec: what every entry of COMPRESSORS must show, over its traits.

    rule        what is decoded equals an independent float64 NumPy rule, number by number
    bounds      unbiased, |C(x) - x|^2 within omega |x|^2, contracting by delta: as declared, over many draws
    bytes       a payload is as long as said, and packed: fixed, or by the exam's own formula
    edges       zeros, constants, one number, none, huge, tiny, NaN, infinite; float16, bfloat16, float64
    state       pure, resumes with the same bits, draws by key and turn alone
    sums        payloads of a summable codec add up to the sum of what they stand for
    hostile     cut, longer and arbitrary bytes: an error of ours, or numbers; never more memory than the tensor's

A new codec writes a `CodecExam` and calls `sit(name, spec, exam)`. Failures are AssertionErrors that say which part.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.compress import Codec, CodecSpec, Payload, PayloadError, State
from headrace.compress.spec import (
    CONTRACTION,
    EXACT,
    OWN_FEEDBACK,
    RANDOM,
    SHARED_DRAWS,
    SUMMABLE,
    UNBIASED,
    VARIABLE,
)

Array = npt.NDArray[np.float64]
SIZES = (1, 2, 7, 64, 513, 4099)
DRAWS = 400
_KINDS: Mapping[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(2, size=n) * 1e-3,
    "mostly zero": lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.05),
    "of one sign": lambda rng, n: np.abs(rng.normal(size=n)) + 0.1,
}


@dataclass(frozen=True, kw_only=True)
class CodecExam:
    """What is asked of one codec beyond what is asked of all.

    Args:
        rule: of a codec that does not draw: `rule(x, **options)` to what is decoded.
        neighbours: of one that draws: `neighbours(x, **options)` to the values [2, n] that each number may become,
            equal where it is certain.
        variants: options to be tried beside the defaults.
        nbytes: bytes of a payload: `nbytes(x, decoded, **options)`.
        tolerance: of decoded numbers, relative to the largest of the tensor.
        whole: further checks, each with a reference of its own; called without arguments.
    """

    nbytes: Callable[..., int]
    rule: Callable[..., Array] | None = None
    neighbours: Callable[..., Array] | None = None
    variants: Sequence[Mapping[str, Any]] = ()
    tolerance: float = 1e-6
    whole: Sequence[Callable[[], None]] = ()


def sit(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """All parts of the exam for one codec."""
    for part in PARTS:
        part(name, spec, exam)


def settings(spec: CodecSpec, exam: CodecExam) -> list[dict[str, Any]]:
    """The defaults, and each variant over them."""
    return [dict(spec.defaults), *({**spec.defaults, **variant} for variant in exam.variants)]


def samples(n: int, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """float32 tensors [n] of several distributions."""
    for place, (kind, make) in enumerate(_KINDS.items()):
        yield kind, torch.from_numpy(make(np.random.default_rng([seed, place, n]), n).astype(np.float32))


def decoded_once(codec: Codec, x: Tensor, key: int = 0, turn: int = 0) -> Tensor:
    """What is decoded of the first payload of a fresh state, at a given turn of the draws."""
    state = codec.init(x, key)
    if "turn" in state:
        state["turn"] = turn
    payload, _ = codec.compress(x, state)
    return codec.decompress(payload)


def follows_its_rule(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """Decoded numbers are the reference's, or one of its two neighbours."""
    for check in exam.whole:
        check()
    assert (exam.rule is not None) == (RANDOM not in spec.traits) or exam.whole, f"{name}: no reference"
    for options in settings(spec, exam):
        codec = spec.factory(**options)
        for n in SIZES:
            for kind, x in samples(n):
                found, where = decoded_once(codec, x).double().numpy(), f"{name} {options} {kind} [{n}]"
                slack = exam.tolerance * max(1e-30, float(x.abs().max()))
                if exam.rule is not None:
                    np.testing.assert_allclose(found, exam.rule(x.double().numpy(), **options), 0, slack, err_msg=where)
                if exam.neighbours is not None:
                    low, high = exam.neighbours(x.double().numpy(), **options)
                    off = np.minimum(np.abs(found - low), np.abs(found - high)).max()
                    assert off <= slack, f"{where}: {off:.3g} away from both values that a number may become"


def keeps_its_bounds(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """Means over draws against omega and delta; a biased codec's one result against delta."""
    if not spec.traits & {EXACT, UNBIASED, CONTRACTION}:
        return
    for place, options in enumerate(settings(spec, exam)):
        codec = spec.factory(**options)
        for n in (1, 7, 600) if place == 0 else (600,):
            for kind, x in islice(samples(n, seed=1), n):  # of one number there is one kind
                _bounds(f"{name} {options} {kind} [{n}]", spec, codec, options, x)


def _bounds(where: str, spec: CodecSpec, codec: Codec, options: Mapping[str, Any], x: Tensor) -> None:
    turns = DRAWS if RANDOM in spec.traits else 1
    every = torch.stack([decoded_once(codec, x, turn=turn) for turn in range(turns)]).double()
    whole, n = x.double(), x.numel()
    if EXACT in spec.traits:
        assert torch.equal(every[0], whole), f"{where}: not exact"
    square = float(whole.square().sum())
    errors = (every - whole).square().sum(1)
    spread = float(errors.std()) / math.sqrt(turns) if turns > 1 else 0.0
    if UNBIASED in spec.traits:
        assert spec.omega is not None
        _no_bias(where, every - whole, whole)
        bound = spec.omega(n, options) * square
        assert float(errors.mean()) <= bound + 6 * spread + 1e-9 * square, f"{where}: over omega"
    if CONTRACTION in spec.traits:
        assert spec.delta is not None
        assert 0 < spec.delta(n, options) <= 1, f"{where}: delta must be in (0, 1]"
        bound = (1 - spec.delta(n, options)) * square
        assert float(errors.mean()) <= bound + 6 * spread + 1e-6 * square, f"{where}: contracts less than delta"


def _no_bias(where: str, errors: Tensor, whole: Tensor) -> None:
    """Means of errors [draws, n]: number by number, and of all together, up and away from zero.

    Deviations are those seen, and none where all draws left a number at 0: its chance to become as much as the largest
    error is under 20 in as many draws then, or it would have (but for one in e^20). What hides below that in single
    numbers shows in their sum.
    """
    turns, rare = len(errors), 20 * errors.abs().max() / len(errors)
    together = torch.stack([errors.sum(1), (errors * whole.sign()).sum(1)], 1)
    for what, found in (("a number", errors), ("the sum", together)):
        allowed = 6 * found.std(0) / math.sqrt(turns) + rare + 1e-6 * whole.abs().max()
        over = (found.mean(0).abs() - allowed).max()
        assert float(over) <= 0, f"{where}: {what} is biased by {float(over):.3g} more than chance explains"


def has_the_bytes(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """By the exam's formula; where the size is fixed also by the codec's own."""
    for options in settings(spec, exam):
        codec = spec.factory(**options)
        for n in SIZES:
            for kind, x in samples(n):
                payload, _ = codec.compress(x, codec.init(x))
                where = f"{name} {options} {kind} [{n}]: {payload.nbytes} bytes"
                assert payload.data.dtype == torch.uint8 and payload.data.dim() == 1, where
                wanted = exam.nbytes(x.double().numpy(), codec.decompress(payload).double().numpy(), **options)
                assert payload.nbytes == wanted, f"{where}, not {wanted}"
                fixed = codec.nbytes(n, x.dtype)
                assert (fixed is None) == (VARIABLE in spec.traits) and fixed in (None, wanted), where


def survives_edges(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """Defined on everything that a gradient can be; what is not a number is seen."""
    for options in settings(spec, exam):
        codec = spec.factory(**options)
        for kind, x in _edges():
            found = decoded_once(codec, x)
            where = f"{name} {options} {kind}"
            assert found.shape == x.shape and found.dtype == x.dtype, where
            assert bool(found.isfinite().all()), f"{where}: {found.flatten()[:4]}"
            if not x.any():
                assert not found.any(), f"{where}: zeros became something"
        for bad in (math.nan, math.inf, -math.inf):
            for place in (0, 255, 699):
                x = torch.linspace(-1, 1, 700)
                x[place] = bad
                found = decoded_once(codec, x)
                assert EXACT in spec.traits or not found.isfinite().all(), f"{name} {options}: {bad} was lost"


def _edges() -> Iterator[tuple[str, Tensor]]:
    ramp = torch.linspace(-1, 1, 700)
    yield "nothing", torch.empty(0)
    yield "nothing of two dimensions", torch.empty(3, 0)
    yield "a scalar", torch.tensor(0.5)
    yield "one zero", torch.zeros(1)
    yield "zeros", torch.zeros(700)
    yield "minus zero", torch.full((700,), -0.0)
    yield "a constant", torch.full((20, 35), 0.25)
    yield "a negative constant", torch.full((700,), -3.0)
    yield "huge", ramp * 3e38
    yield "tiny", ramp * 1e-38
    yield "below the normal numbers", ramp * 1e-44
    yield "one large among small", torch.cat([ramp * 1e-6, torch.tensor([1e6])])
    yield "half precision", (ramp * 6e4).half()
    yield "bfloat16", (ramp * 1e30).bfloat16()
    yield "double", ramp.double()
    yield "double beyond float32", torch.tensor([1e300, -1e-300, 0.0], dtype=torch.float64)
    yield "not contiguous", ramp.view(20, 35).t()


def keeps_its_state(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """Neither tensor nor state is changed; a saved state goes on with the same bits; draws follow key and turn."""
    for options in settings(spec, exam):
        codec, where = spec.factory(**options), f"{name} {options}"
        state = codec.init(torch.empty(700), key=5)
        for turn in range(3):
            x = torch.randn(700, generator=torch.Generator().manual_seed(turn))
            before, kept = x.clone(), _saved(state)
            payload, after = codec.compress(x, state)
            again, _ = spec.factory(**options).compress(x, _saved(kept))
            assert torch.equal(payload.data, again.data), f"{where}: not the same from a saved state"
            assert torch.equal(x, before) and _same(state, kept), f"{where}: changed what it was given"
            assert after.keys() == state.keys(), f"{where}: the state has other names"
            state = after
        x = torch.randn(700, generator=torch.Generator().manual_seed(9))
        drawn = [decoded_once(codec, x, key, turn) for key, turn in ((1, 0), (2, 0), (1, 1))]
        for other in drawn[1:]:
            assert torch.equal(drawn[0], other) != (RANDOM in spec.traits), f"{where}: draws are not by key and turn"
        if SHARED_DRAWS in spec.traits:
            assert RANDOM in spec.traits, where


def _saved(state: State) -> State:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: State = torch.load(file, weights_only=True)
    return loaded


def _same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k] for k, v in a.items()
    )


def adds_up(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """Numbers of payloads, added up, decode to the sum of what each decodes to, within their precision."""
    if SUMMABLE not in spec.traits:
        return
    for options in settings(spec, exam):
        codec = spec.factory(**options)
        for n in SIZES:
            xs = [torch.randn(n, generator=torch.Generator().manual_seed(rank)) for rank in range(3)]
            payloads = [codec.compress(x, codec.init(x, key=3))[0] for x in xs]
            number = codec.number or xs[0].dtype
            total = sum(p.data.clone().view(number) for p in payloads)
            assert isinstance(total, Tensor)
            found = codec.decompress(replace(payloads[0], data=total.view(torch.uint8)))
            wanted = torch.stack([codec.decompress(p) for p in payloads]).sum(0)
            tolerance = 8 * torch.finfo(number).eps
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, msg=f"{name} {options} [{n}]")


def withstands_hostile_bytes(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """Whatever comes is refused, or decodes to as many numbers as were to come."""
    rng = np.random.default_rng(7)
    for options in settings(spec, exam):
        codec = spec.factory(**options)
        for n in (1, 64, 700):
            x = torch.randn(n, generator=torch.Generator().manual_seed(n))
            payload, _ = codec.compress(x, codec.init(x))
            right = payload.data
            wrong = [right[:-1], torch.cat([right, right.new_zeros(1)]), right[: len(right) // 2], right.new_zeros(0)]
            if VARIABLE not in spec.traits:
                for data in wrong:
                    _refused(f"{name} {options}", codec, replace(payload, data=data))
            noise = [torch.from_numpy(rng.integers(0, 256, len(right), dtype=np.uint8)) for _ in range(20)]
            for data in [*wrong, *noise, torch.full_like(right, 255), torch.zeros_like(right)]:
                try:
                    found = codec.decompress(replace(payload, data=data))
                except PayloadError:
                    continue
                assert found.shape == x.shape and found.dtype == x.dtype, f"{name} {options}: {len(data)} bytes"


def _refused(where: str, codec: Codec, payload: Payload) -> None:
    try:
        codec.decompress(payload)
    except PayloadError:
        return
    raise AssertionError(f"{where}: {payload.nbytes} bytes were taken for {payload.shape.numel()} numbers")


def loses_nothing(name: str, spec: CodecSpec, exam: CodecExam) -> None:
    """A codec with feedback of its own has sent, or still holds, all that it was given."""
    if OWN_FEEDBACK in spec.traits:
        assert exam.whole, f"{name}: `whole` must prove that nothing is lost"


PARTS = (
    follows_its_rule, keeps_its_bounds, has_the_bytes, survives_edges, keeps_its_state, adds_up,
    withstands_hostile_bytes, loses_nothing,
)  # fmt: skip
