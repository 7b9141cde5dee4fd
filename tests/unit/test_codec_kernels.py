"""Compiled kernels against the torch operations that they stand for: the same bits, whatever comes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace import __version__, resources
from headrace.compress import COMPRESSORS, Payload, PayloadError, create, kernels
from headrace.compress.packing import bits_bytes, pack_bits, pack_trits, trits_bytes, unpack_bits, unpack_trits
from headrace.compress.spec import VARIABLE
from headrace.testing.codec_exam import settings
from headrace.testing.codec_exams import EXAMS

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = (1, 2, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1000, 4099, 2 * 122_880 + 777)
NAN, INF = float("nan"), float("inf")


@contextmanager
def torch_alone() -> Iterator[None]:
    """Without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "found", lambda: kernels.Found(None, "off for a test"))
        yield


def tensors(n: int) -> Iterator[tuple[str, Tensor]]:
    """float32 [n], of all that has a case of its own somewhere."""
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=draw) * 10.0 ** torch.empty(n).uniform_(-8, 2, generator=draw)
    yield "of all sizes", x
    yield "normal", torch.randn(n, generator=draw)
    yield "zeros of both signs", torch.zeros(n).copysign(x)
    yield "alike", torch.full((n,), -2.5)
    yield "huge", x.sign() * torch.linspace(1e38, 3.4e38, n)
    yield "below the normal numbers", torch.randn(n, generator=draw) * 1e-40
    yield "multiples of a level", torch.randint(-254, 255, (n,), generator=draw) * 0.5
    for bad in (NAN, -NAN, INF, -INF):
        y = x.clone()
        y[torch.rand(n, generator=draw) < 0.01] = bad
        y[-1], y[n // 2] = bad, -0.0
        yield f"with {bad}", y
    odd = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, 0x7FC00123], dtype=torch.int32).view(torch.float32)
    yield "numbers that are none, of several bits", torch.where(torch.rand(n, generator=draw) < 0.5, x, odd[n % 4])


def bits_of(x: Tensor) -> Tensor:
    """The memory of x, to be compared."""
    return x.contiguous().view(-1).view(torch.uint8)


def said(work: Callable[[], Tensor]) -> Tensor | str:
    """The bits of what comes, or the message of the refusal."""
    try:
        return bits_of(work())
    except PayloadError as error:
        return str(error)


def alike(one: Tensor | str, other: Tensor | str) -> bool:
    """The same bits, or the same words."""
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


def same(one: Any, other: Any) -> bool:
    """States, to the bit."""
    if isinstance(one, Tensor):
        return torch.equal(bits_of(one), bits_of(other))
    return one == other


def test_the_library_is_built_and_used() -> None:
    assert kernels.found().library is not None, kernels.found().said


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_every_codec_has_the_same_bits_both_ways(name: str) -> None:
    for options in settings(COMPRESSORS[name], EXAMS[name]):
        codec = create(name, **options)
        for n in SIZES if name != "qsgd_elias" else SIZES[:-1]:
            for kind, x in tensors(n):
                where = f"{name} {options} {kind} [{n}]"
                state = codec.init(x, key=n)
                payload, after = codec.compress(x, state)
                decoded = codec.decompress(payload)
                with torch_alone():
                    slow, slow_after = codec.compress(x, state)
                    slowly = codec.decompress(payload)
                assert torch.equal(payload.data, slow.data), where
                assert after.keys() == slow_after.keys() and all(same(after[k], slow_after[k]) for k in after), where
                assert torch.equal(bits_of(decoded), bits_of(slowly)), where


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_other_types_and_memory_with_gaps_have_the_same_bits_both_ways(name: str, dtype: torch.dtype) -> None:
    codec = create(name)
    every = torch.randn(2 * 1300, generator=torch.Generator().manual_seed(1)).to(dtype)
    for x in (every, every[::2], every.view(2, -1).t(), every.float()[::2], every.float()[1:]):
        payload, _ = codec.compress(x, codec.init(x, key=1))
        decoded = codec.decompress(payload)
        with torch_alone():
            slow, _ = codec.compress(x, codec.init(x, key=1))
            assert torch.equal(payload.data, slow.data)
            assert torch.equal(bits_of(decoded), bits_of(codec.decompress(payload)))


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_hostile_bytes_are_refused_or_decoded_alike(name: str) -> None:
    draw = torch.Generator().manual_seed(3)
    for options in settings(COMPRESSORS[name], EXAMS[name]):
        codec = create(name, **options)
        for n in (1, 64, 700, 5001):
            x = torch.randn(n, generator=draw)
            right, _ = codec.compress(x, codec.init(x))
            wrong = [torch.randint(0, 256, right.data.shape, generator=draw, dtype=torch.uint8) for _ in range(6)]
            for flip in range(20):
                data = right.data.clone()
                data[int(torch.randint(0, len(data), (), generator=draw))] ^= 1 << flip % 8
                wrong.append(data)
            if VARIABLE in COMPRESSORS[name].traits:
                wrong += [right.data[:-1], torch.cat([right.data, right.data[:1]]), right.data[:3]]
            for data in [*wrong, torch.full_like(right.data, 255), torch.zeros_like(right.data)]:
                given = Payload(data, right.shape, right.dtype, right.draw)
                one = said(lambda given=given, codec=codec: codec.decompress(given))  # type: ignore[misc]
                with torch_alone():
                    other = said(lambda given=given, codec=codec: codec.decompress(given))  # type: ignore[misc]
                assert alike(one, other), f"{name} {options} [{n}]: {one} {other}"


@pytest.mark.parametrize("bits", range(1, 8))
def test_packed_bits_are_the_same_both_ways(bits: int) -> None:
    draw = torch.Generator().manual_seed(bits)
    for n in [*range(1, 80), 5003]:
        values = torch.randint(0, 1 << bits, (n,), generator=draw, dtype=torch.uint8)
        fast, slow = (torch.full((bits_bytes(n, bits),), 170, dtype=torch.uint8) for _ in range(2))
        pack_bits(values, bits, fast)
        with torch_alone():
            pack_bits(values, bits, slow)
        assert torch.equal(fast, slow) and torch.equal(unpack_bits(fast, bits, n), values)
    values = torch.randint(0, 1 << bits, (3 * 160 + 77,), generator=draw, dtype=torch.uint8)
    pieces = [torch.empty(bits_bytes(557, bits), dtype=torch.uint8) for _ in range(2)]
    pack_bits(values, bits, pieces[0], 160)
    assert torch.equal(unpack_bits(pieces[0], bits, 557, 160), values)
    with torch_alone():
        pack_bits(values, bits, pieces[1], 160)
        assert torch.equal(*pieces) and torch.equal(unpack_bits(pieces[0], bits, 557, 160), values)


def test_packed_trits_are_the_same_both_ways() -> None:
    draw = torch.Generator().manual_seed(0)
    for n in [*range(1, 80), 5003]:
        values = torch.randint(0, 3, (n,), generator=draw, dtype=torch.uint8)
        fast, slow = (torch.full((trits_bytes(n),), 170, dtype=torch.uint8) for _ in range(2))
        pack_trits(values, fast)
        with torch_alone():
            pack_trits(values, slow)
        assert torch.equal(fast, slow) and torch.equal(unpack_trits(fast, n), values)
    values = torch.randint(0, 3, (557,), generator=draw, dtype=torch.uint8)
    pieces = [torch.empty(trits_bytes(557), dtype=torch.uint8) for _ in range(2)]
    pack_trits(values, pieces[0], 160)
    assert torch.equal(unpack_trits(pieces[0], 557, 160), values)
    with torch_alone():
        pack_trits(values, pieces[1], 160)
        assert torch.equal(*pieces) and torch.equal(unpack_trits(pieces[0], 557, 160), values)
    every = torch.arange(243).to(torch.uint8)
    for n in (5 * 243, 5 * 243 - 4):
        with torch_alone():
            slow = unpack_trits(every, n)
        assert torch.equal(unpack_trits(every, n), slow)


def test_all_kernels_are_called_by_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    called, run = set(), kernels.run
    monkeypatch.setattr(kernels, "run", lambda name, *arguments: called.add(name) or run(name, *arguments))
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    for name in COMPRESSORS:
        codec = create(name)
        codec.decompress(codec.compress(x, codec.init(x))[0])
    assert called == set(kernels._KERNELS)


def test_a_kernel_refuses_memory_with_gaps() -> None:
    with pytest.raises(ValueError, match="without gaps"):
        kernels.run("bucket_largest", torch.zeros(10)[::2], 5, 5, torch.zeros(1))


@pytest.fixture
def looked_for_again() -> Iterator[None]:
    """The library is looked for in the test, and again behind it."""
    kernels.found.cache_clear()
    yield
    kernels.found.cache_clear()


@pytest.mark.usefixtures("looked_for_again")
def test_the_environment_switches_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SWITCH, "off")
    assert kernels.found().library is None and "HEADRACE_KERNELS is off" in kernels.found().said
    assert not kernels.serve(torch.zeros(3))


@pytest.mark.usefixtures("looked_for_again")
def test_a_library_that_is_missing_or_of_another_kind_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, path = resources.kernels(__version__), tmp_path / "kernels.so"
    monkeypatch.setattr(resources, "kernels", lambda version: path)
    for content, why in ((None, "there is no"), (b"\x7fELF of no machine", "cannot be used")):
        if content is not None:
            path.write_bytes(content)
        kernels.found.cache_clear()
        assert kernels.found().library is None and why in kernels.found().said
    path = tmp_path / "other.so"
    shutil.copy(built, path)
    monkeypatch.setattr(kernels, "_VERSION", -1)
    kernels.found.cache_clear()
    assert kernels.found().library is None and "has version" in kernels.found().said
    assert create("int8").compress(torch.ones(5), {"key": 0, "turn": 0})[0].nbytes == 9
