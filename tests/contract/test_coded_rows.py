"""Rows by way of a codec: exact ids, the same bits on all ranks, every byte accounted for."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from contract.collective_exam import on_ranks
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.compress import COMPRESSORS, create
from headrace.compress.base import PayloadError, RandomCodec, as_bytes
from headrace.compress.spec import (
    CONTRACTION,
    EXACT,
    OWN_FEEDBACK,
    RANDOM,
    SHARED_DRAWS,
    SUMMABLE,
    UNBIASED,
    VARIABLE,
    CodecSpec,
)
from headrace.strategies.coded_rows import CodedRows, why_not
from headrace.strategies.reducers import ordered
from headrace.strategies.sparse import Tables, coalesced

pytestmark = pytest.mark.usefixtures("one_thread")
SERVING = sorted(name for name, spec in COMPRESSORS.items() if not why_not(spec))
TABLES = {"a": (50, 4), "b": (3000, 4), "wide": (70, 9)}
Grads = dict[str, Tensor]


class Coins(RandomCodec):
    """Every number up or down to a multiple of 1/8 by a coin: right in the mean, and different at every turn."""

    def encode_drawing(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return as_bytes((8 * x + torch.rand(x.shape, generator=generator)).floor().to(torch.int16))

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        return data.view(torch.int16).to(dtype) / 8

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        return 2 * n


def gradients(rank: int, step: int, touched: int = 40) -> Grads:
    """Ids repeat; rank 2 touches nothing of table b."""
    g = torch.Generator().manual_seed(100 * step + rank)
    found: Grads = {}
    for name, (rows, dim) in TABLES.items():
        n = 0 if (rank, name) == (2, "b") else touched
        ids, values = torch.randint(0, rows, (1, n), generator=g), torch.randn(n, dim, generator=g)
        found[name] = torch.sparse_coo_tensor(ids, values, (rows, dim), check_invariants=False)
    found["dense"] = torch.randn(30, generator=g)
    return found


def reducer(name: str = "") -> CodedRows:
    return CodedRows(create(name) if name else Coins(), ordered(), seed=1)


def steps(c: LocalCollective, made: CodedRows, count: int) -> list[Grads]:
    found = []
    for step in range(count):
        found.append(made.reduce(gradients(c.rank, step), c))
        made.settle(True)
    return found


@pytest.mark.parametrize("name", ["", *SERVING])
def test_ranks_hold_the_same_bits_and_all_ids(name: str) -> None:
    results = on_ranks(3, lambda c: steps(c, reducer(name), 2))
    exact = on_ranks(3, lambda c: [ordered().reduce(gradients(c.rank, step), c) for step in range(2)])[0]
    for step in range(2):
        assert list(results[0][step]) == list(exact[step])
        assert torch.equal(results[1][step]["dense"], exact[step]["dense"])
        for table in TABLES:
            first, want = results[0][step][table], exact[step][table]
            assert first.is_coalesced() and torch.equal(first._indices(), want._indices())
            assert all(torch.equal(first._values(), other[step][table]._values()) for other in results[1:])
            if name and EXACT in COMPRESSORS[name].traits:
                assert torch.equal(first._values(), want._values())
            else:
                assert not torch.equal(first._values(), want._values())


def test_a_sum_is_that_of_what_was_sent() -> None:
    """bf16 of every rank's coalesced rows, added up in rank order in float32."""
    got = on_ranks(3, lambda c: steps(c, reducer("bf16"), 1))[0][0]
    for table, shape in TABLES.items():
        want = torch.zeros(shape)
        for rank in range(3):
            part = coalesced(gradients(rank, 0)[table])
            want[part._indices()[0]] += part._values().bfloat16().float()
        assert torch.equal(got[table].to_dense(), want)


def test_is_right_in_the_mean_with_draws_of_its_own_at_every_turn() -> None:
    def fn(c: LocalCollective) -> list[Tensor]:
        made, found = reducer(), []
        for _ in range(400):
            found.append(made.reduce({"b": gradients(c.rank, 0)["b"]}, c)["b"]._values())
            made.settle(True)
        return found

    found = torch.stack(on_ranks(2, fn)[0])
    want = on_ranks(2, lambda c: ordered().reduce({"b": gradients(c.rank, 0)["b"]}, c))[0]["b"]._values()
    assert not torch.equal(found[0], found[1])
    assert float((found.mean(0) - want).abs().max()) < 5 * 0.0884 / 20  # two coins of 1/16 deviation, 400 times


@pytest.mark.parametrize("name", SERVING)
@pytest.mark.parametrize("size", [1, 3])
def test_bytes_are_those_of_the_formula(name: str, size: int) -> None:
    def fn(c: LocalCollective) -> tuple[int, int, float]:
        metered, made, codec = Metered(c), reducer(name), create(name)
        tables = {each: coalesced(g) for each, g in gradients(c.rank, 0).items() if each != "dense"}
        made.reduce(tables, metered)
        counts = {each: g._values().shape[0] for each, g in tables.items()}
        sizes = [n and codec.nbytes(n * TABLES[each][1], torch.float32) for each, n in counts.items()]
        out = int(made.figures()["bytes_after"])
        rows = out if None in sizes else sum(sizes) * (c.size > 1)  # what a varying codec sent it has counted
        return metered.sent_bytes, (c.size - 1) * (sum(16 + 8 * n for n in counts.values()) + rows), out - rows

    for sent, expected, more in on_ranks(size, fn):
        assert sent == expected and more == 0


def test_a_step_given_up_leaves_nothing_and_a_saved_state_goes_on() -> None:
    def fn(c: LocalCollective) -> tuple[Grads, Grads]:
        made = reducer()
        steps(c, made, 2)
        made.reduce(gradients(c.rank, 9), c)
        made.settle(False, 0.5)
        file = io.BytesIO()
        torch.save(made.state_dict(), file)
        file.seek(0)
        resumed = reducer()
        resumed.load_state_dict(torch.load(file, weights_only=True))
        return steps(c, reducer(), 3)[2], resumed.reduce(gradients(c.rank, 2), c)

    for whole, resumed in on_ranks(3, fn):
        assert all(torch.equal(whole[table]._values(), resumed[table]._values()) for table in TABLES)
    with pytest.raises(ValueError, match="not compressed then"):
        reducer().load_state_dict({"units": {}})


def test_which_codecs_serve() -> None:
    def spec(*traits: str) -> CodecSpec:
        bound = {t: (lambda n, o: 0.5) for t in ("omega",) if UNBIASED in traits}
        bound |= {t: (lambda n, o: 0.5) for t in ("delta",) if CONTRACTION in traits}
        return CodecSpec(
            factory=Coins, paper="", rule="", use="", bits="", traits=frozenset(traits), **bound  # type: ignore[arg-type]
        )  # fmt: skip

    for good in ((EXACT,), (SUMMABLE,), (UNBIASED, RANDOM), (UNBIASED, VARIABLE)):
        assert not why_not(spec(*good)), good
    for bad in ((), (RANDOM,), (CONTRACTION,), (VARIABLE,), (OWN_FEEDBACK,), (UNBIASED, SHARED_DRAWS, RANDOM)):
        assert why_not(spec(*bad)), bad
    assert set(SERVING) >= {"none", "fp16", "bf16"}


@pytest.mark.parametrize("cut", [0, 15, 40, -1])
def test_a_message_cut_short_is_refused(cut: int) -> None:
    table = coalesced(gradients(0, 0)["a"])
    tables, made = Tables({"a": table}), reducer()
    message = tables._message(table._indices()[0], made, 0)
    ids, _ = tables._opened(message, made)
    assert np.array_equal(ids.numpy(), table._indices()[0].numpy())
    with pytest.raises(PayloadError):
        tables._opened(message[:cut], made)


@pytest.mark.parametrize("dim", [1, 3, 4])
@pytest.mark.parametrize("made", [None, "bf16"])
def test_ranks_of_no_row_and_of_one_take_part_whatever_the_size_of_a_row(dim: int, made: str | None) -> None:
    def fn(c: LocalCollective) -> list[list[float]]:
        table = torch.sparse_coo_tensor(torch.arange(c.rank)[None], torch.ones(c.rank, dim), (4, dim))
        reducing = reducer(made) if made else ordered()
        found: list[list[float]] = reducing.reduce({"t": table}, c)["t"].to_dense().tolist()
        return found

    assert on_ranks(3, fn) == [[[2.0] * dim, [1.0] * dim, [0.0] * dim, [0.0] * dim]] * 3
