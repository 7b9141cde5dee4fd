"""Codecs of buckets beyond their exam: pieces, the worst inputs of their bounds, options, hostile bits, other types."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from headrace.compress import COMPRESSORS, Payload, PayloadError, buckets, create, qsgd_elias
from headrace.compress.buckets import Scratch
from headrace.compress.dynamic_tree import BLOCK, dequantize, quantize, scales_like, tree_values
from headrace.compress.levels import norms, omega_of_largest
from headrace.errors import UserError
from headrace.testing.codec_exam import decoded_once
from headrace.testing.codec_exams import EXAMS

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = (
    "int8", "int8_dynamic", "int8_nearest", "natural", "qsgd", "qsgd_elias", "terngrad", "terngrad_clipped",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name != "int8_dynamic"])
def test_rules_are_followed_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(buckets, "PIECE", 1)
    monkeypatch.setattr(qsgd_elias, "_PIECE", 1)
    monkeypatch.setattr(qsgd_elias, "_ABREAST", 3)
    monkeypatch.setattr(qsgd_elias, "_FEW", 3)
    codec = create(name, bucket=8)
    whole = [x for n in (319, 320, 321, 1001) for x in (torch.randn(n), torch.zeros(n))]
    for x in whole:
        found = decoded_once(codec, x).double().numpy()
        options = {**COMPRESSORS[name].defaults, "bucket": 8}
        exam = EXAMS[name]
        near = exam.neighbours(x.double().numpy(), **options) if exam.neighbours else None
        if near is None:
            assert exam.rule is not None
            near = exam.rule(x.double().numpy(), **options)[None]
        assert np.abs(near - found).min(0).max() <= 1e-5


@pytest.mark.parametrize("n", [2048 * 64 * 2 + 5, 2048])
def test_dynamic_codes_of_many_blocks(n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    whole = decoded_once(create("int8_dynamic"), x)
    for start in range(0, n, 2048):
        assert torch.equal(whole[start : start + 2048], decoded_once(create("int8_dynamic"), x[start : start + 2048]))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dynamic_codes_about_every_middle(dtype: torch.dtype, signed: bool) -> None:
    """The middle itself, and the floats next to it: a code is how many middles are less."""
    values = tree_values(signed)
    middles = torch.tensor((values[:-1] + values[1:]) / 2).to(dtype)
    if not signed:
        middles[0] = 0.0
    whole = torch.int64 if dtype == torch.float64 else torch.int32
    near = [(middles.view(whole) + step).view(dtype) for step in (-1, 0, 1)]
    x = torch.cat([*near, torch.tensor([1.0, 0.0, -0.0, 1e-30], dtype=dtype)])
    x = x[x.isfinite() & ((x >= 0) | signed)]
    codes, scales = torch.empty(len(x), dtype=torch.uint8), scales_like(x)
    quantize(x, codes, scales, signed=signed)
    assert len(x) > 3 * 254 and scales.tolist() == [1.0]
    assert codes.tolist() == torch.searchsorted(middles, x).tolist()


def test_dynamic_values_are_the_same_wherever_codes_lie() -> None:
    """Two at a time or one: of an even or odd number, from an even or odd place on, into memory that is given."""
    generator = torch.Generator().manual_seed(3)
    held = torch.randint(0, 256, (2 * BLOCK + 2,), generator=generator, dtype=torch.uint8)
    for first, n in ((0, BLOCK + 7), (1, BLOCK + 7), (1, BLOCK + 8), (0, 1), (2, 0)):
        codes, scales = held[first : first + n], torch.tensor([0.5, 3.0])[: -(-n // BLOCK)]
        own = torch.tensor(tree_values(True), dtype=torch.float32)[codes.long()]
        wanted = own * scales.repeat_interleave(BLOCK)[:n]
        assert torch.equal(dequantize(codes, scales, torch.float32, signed=True), wanted)
        for room in (torch.empty(n), torch.empty(n + 1)[1:], torch.empty(n, dtype=torch.float16)):
            assert dequantize(codes, scales, room.dtype, signed=True, out=room) is room
            assert torch.equal(room, wanted.to(room.dtype))


def expected_share(name: str, x: torch.Tensor, **options: object) -> float:
    """E |C(x) - x|^2 / |x|^2 by the exam's neighbours: (x - low) (high - x) each."""
    exam = EXAMS[name]
    assert exam.neighbours is not None
    values = x.double().numpy()
    low, high = exam.neighbours(values, **{**COMPRESSORS[name].defaults, **options})
    return float(((values - low) * (high - values)).sum() / (values @ values))


@pytest.mark.parametrize("n", [2, 50, 512])
@pytest.mark.parametrize("s", [1, 7, 127])
def test_variance_of_multiples_of_the_largest_reaches_its_bound_and_no_more(n: int, s: int) -> None:
    others = 1 / (s + (s * s + n - 1) ** 0.5)
    bound = omega_of_largest(n, s)
    shares = [
        expected_share("qsgd", torch.cat([torch.ones(1), torch.full((n - 1,), f * others)]), levels=s, norm="max")
        for f in (0.9, 1.0, 1.1)
    ]
    assert shares[1] == pytest.approx(bound, rel=1e-5) and max(shares) <= bound * (1 + 1e-5)
    assert min(shares) < 0.999 * bound


def test_variance_of_powers_of_two_reaches_its_bound() -> None:
    x = torch.full((600,), 4 / 3)
    bound = COMPRESSORS["natural"].omega
    assert bound is not None
    assert expected_share("natural", x) == pytest.approx(bound(600, {"bucket": 512}), rel=1e-5)
    found = torch.stack([decoded_once(create("natural"), x, turn=turn) for turn in range(50)])
    assert float((found - x).square().mean() / x[0] ** 2) == pytest.approx(1 / 8, rel=0.03)


def test_contraction_of_nearest_is_as_bad_as_said() -> None:
    values = tree_values(signed=True)[128:]
    middles = (values[:-1] + values[1:]) / 2 * (1 - 1e-6)
    for name, places in (("int8_nearest", [0.49999 / 127]), ("int8_dynamic", middles.tolist())):
        n, spec = 512, COMPRESSORS[name]
        assert spec.delta is not None
        delta = spec.delta(n, spec.defaults)
        shares = []
        for each in places:
            x = torch.cat([torch.tensor([-1.0]), torch.full((n - 1,), each)])
            shares.append(float((decoded_once(create(name), x) - x).square().sum() / x.square().sum()))
        assert 0.99 * (1 - delta) <= max(shares) <= (1 - delta) * (1 + 1e-6), name


def test_draws_are_uniform_and_few_bits_are_shared() -> None:
    scratch = Scratch(100_000, torch.float32, torch.device("cpu"))
    scratch.generator = torch.Generator().manual_seed(1)
    drawn = scratch.draws(torch.Size([99_999]), torch.float32).numpy().copy()
    for low in (drawn // 256, drawn % 256):
        counts = np.bincount(low.astype(int), minlength=256)
        assert len(counts) == 256 and ((counts - 99_999 / 256) ** 2).sum() / (99_999 / 256) < 255 + 6 * (2 * 255) ** 0.5
    half = 50_000
    assert (drawn[: half - 1].astype(int) // 256 == drawn[half:].astype(int) % 256).all()  # as the docstring says
    assert abs(np.corrcoef(drawn[: half - 1], drawn[half:])[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("name", ["int8", "int8_nearest", "qsgd", "terngrad", "natural"])
def test_a_number_that_is_none_stays_in_its_bucket(name: str) -> None:
    x = torch.randn(4 * 512, generator=torch.Generator().manual_seed(2))
    for bad in (float("nan"), float("inf"), -float("inf")):
        x[600] = bad
        found = decoded_once(create(name), x).view(4, 512)
        assert found.isfinite().all(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_other_types_are_those_of_float32_rounded(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(700, generator=torch.Generator().manual_seed(3)).to(dtype)
    codec = create(name)
    found, single = decoded_once(codec, x), decoded_once(codec, x.float())
    near = torch.isclose(found.float(), single, rtol=float(torch.finfo(dtype).eps) + 1e-6, atol=0.0)
    assert found.dtype == dtype and float(near.float().mean()) > 0.99  # float64's ratios may round to another code


def test_norms_beyond_squares() -> None:
    rows = torch.tensor([[3e30, 4e30], [3e-30, 4e-30], [3.0, 4.0], [0.0, 0.0], [3e38, 3e38], [float("inf"), 1.0]])
    found = norms(rows)
    assert found[:4].tolist() == pytest.approx([5e30, 5e-30, 5.0, 0.0], rel=1e-6)
    assert found[4] == torch.finfo(torch.float32).max and not found[5].isfinite()
    assert norms(rows[2:3]).item() == 5.0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("int8", {"bucket": 7}, "bucket"), ("natural", {"bucket": 1 << 17}, "bucket"),
        ("qsgd", {"levels": 0}, "levels"), ("qsgd", {"levels": 128}, "levels"), ("qsgd", {"norm": "l1"}, "norm"),
        ("qsgd_elias", {"bucket": 1024}, "1023"),
        ("terngrad", {"bucket": 0}, "bucket"), ("terngrad_clipped", {"clip": 0.5}, "clip"),
        ("terngrad_clipped", {"clip": float("nan")}, "clip"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        create(name, **options)
    assert refused.value.remedy


def elias_payload(few: int, monkeypatch: pytest.MonkeyPatch) -> tuple[object, torch.Tensor, Payload]:
    monkeypatch.setattr(qsgd_elias, "_FEW", few)
    codec = create("qsgd_elias", bucket=64)
    x = torch.randn(640, generator=torch.Generator().manual_seed(4))
    return codec, x, codec.compress(x, codec.init(x))[0]


@pytest.mark.parametrize("few", [0, 64])
def test_elias_decoders_refuse_every_bit_that_changes_a_size(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage is refused, or other numbers of the same count; both decoders agree."""
    codec, x, payload = elias_payload(few, monkeypatch)
    refused, streams = 0, payload.data[60:].numel()
    for bit in range(8 * 40, 8 * payload.nbytes, 17):
        data = payload.data.clone()
        data[bit // 8] ^= 1 << (bit % 8)
        try:
            found = codec.decompress(Payload(data, x.shape, x.dtype))  # type: ignore[attr-defined]
        except PayloadError:
            refused += 1
        else:
            assert found.shape == x.shape
    assert refused > streams // 17


def test_elias_decoders_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for few in (0, 64):
        codec, _, payload = elias_payload(few, monkeypatch)
        found.append(codec.decompress(payload))  # type: ignore[attr-defined]
    assert torch.equal(*found) and bool(found[0].any())


def test_elias_is_shorter_than_codes_of_a_fixed_size() -> None:
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(5))
    size: Callable[[str, int], float] = lambda name, levels: (  # noqa: E731
        8 * (codec := create(name, levels=levels)).compress(x, codec.init(x))[0].nbytes / x.numel()
    )
    assert size("qsgd_elias", 1) < 0.6 < 2 < size("qsgd", 1)
    assert size("qsgd_elias", 7) < 2.5 < 4 < size("qsgd", 7)


def test_memory_that_is_kept_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other shapes, types and codecs in between, on this thread and others; no more views than are wanted."""
    monkeypatch.setattr(buckets, "_KEPT", threading.local())
    x = torch.randn(5000, generator=torch.Generator().manual_seed(6))
    names = ("int8", "natural", "qsgd", "terngrad")
    first = {name: decoded_once(create(name), x) for name in names}
    for n in range(1, 200):
        decoded_once(create(names[n % 4], bucket=100), x[:n].to(torch.float64 if n % 50 == 0 else torch.float32))
        assert buckets._KEPT.scratch.shapes <= buckets._SHAPES + 6
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda name: decoded_once(create(name), x), names))
            assert all(torch.equal(one, first[name]) for one, name in zip(found, names, strict=True))
    assert torch.equal(decoded_once(create("int8"), x), first["int8"])
