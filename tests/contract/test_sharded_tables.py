"""Tables dealt over ranks: who holds what, what a step exchanges and how many bytes, the whole put together again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.collective_exam import on_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headrace import models, optim
from headrace.comm import Collective, Metered
from headrace.comm.metered import TABLES
from headrace.errors import UserError
from headrace.models.embedding import FusedEmbedding
from headrace.optim.clipping import CLIPPINGS, Clipped, ClippingConfig, Shards, clip
from headrace.optim.torch_rule import torch_factory
from headrace.parallel import dealing
from headrace.parallel.dealing import Dealing, dealt_anew, put_together
from headrace.parallel.layout import layout
from headrace.parallel.sharded_tables import ShardedEmbedding, ShardedTables
from headrace.strategies.sparse import reduce_sparse
from headrace.train.export import load_model, save_model
from headrace.train.whole_model import tensors_of, weights_sha256, write_whole

pytestmark = pytest.mark.usefixtures("one_thread")
CARDS = {"c1": 50, "c2": 9, "c3": 1}
OPTIONS: dict[str, Any] = {"embedding_dim": 4, "hidden": (8,), "bottom": (8,), "seed": 2}


def made(name: str, collective: Collective | None = None, cards: dict[str, int] | None = None) -> models.ClickModel:
    """The whole model, or this rank's."""
    table: Any = FusedEmbedding
    if collective is not None:
        table = partial(ShardedEmbedding, rank=collective.rank, size=collective.size)
    return models.create(name, cards or CARDS, 3, table=table, **OPTIONS)


def batch(rank: int, rows: int = 40) -> dict[str, Tensor]:
    """Inputs of a rank, padding and ids that others have too among them."""
    generator = torch.Generator().manual_seed(rank)
    sparse = [torch.randint(0, n, (rows,), generator=generator) for n in CARDS.values()]
    return {"dense": torch.randn(rows, 3, generator=generator), "sparse": torch.stack(sparse, 1)}


class Kept:
    """Rows in memory that are read as a checkpoint's are."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.shape, self.most = rows, tuple(rows.shape), 0

    def read(self, start: int, stop: int) -> Tensor:
        self.most = max(self.most, stop - start)
        return self.rows[start:stop]


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 59])
def test_every_row_lies_with_one_rank_and_comes_back(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By enumeration: for every number of ranks before and after, in blocks of 3 rows."""
    monkeypatch.setattr(dealing, "BLOCK_BYTES", 3 * 2 * 8)
    whole = torch.arange(2 * rows, dtype=torch.float64).view(rows, 2)
    for size in range(1, 9):
        deals = [Dealing(rows, rank, size) for rank in range(size)]
        parts = [whole[rank::size] for rank in range(size)]
        assert [deal.count for deal in deals] == [len(part) for part in parts]
        assert max(len(part) for part in parts) == deals[0].most
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        keys = deals[0].keys(torch.arange(rows))
        assert keys.tolist() == [i % size * deals[0].most + i // size for i in range(rows)]
        blocks = list(deals[0].blocks(2 * 8))
        assert torch.equal(torch.cat([put_together([p[a:b] for p in parts]) for a, b in blocks]), whole)
        for after in range(1, 9):
            for rank in range(after):
                kept = [Kept(part) for part in parts if len(part)]
                assert torch.equal(dealt_anew(kept, size, Dealing(rows, rank, after)), whole[rank::after])
                assert max(each.most for each in kept) <= 3


def test_parts_of_another_table_are_refused() -> None:
    parts = [Kept(torch.zeros(3, 2)), Kept(torch.zeros(3, 2))]
    with pytest.raises(ValueError, match=r"rank 1 of 2 kept \[3, 2\], its share is \[2, 2\]"):
        dealt_anew(parts, 2, Dealing(5, 0, 3))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (37, 5), (1003, 1), (70_001, 17)], ids=str)
def test_a_rank_draws_the_rows_of_the_whole_table(shape: tuple[int, int]) -> None:
    """And leaves the generator where the whole table would: what is drawn next is the same on all."""
    cards = {"a": shape[0] // 2, "b": shape[0] - shape[0] // 2} if shape[0] > 1 else {"a": 1}
    generator = torch.Generator().manual_seed(3)
    whole = FusedEmbedding(cards, shape[1])
    whole.draw(0.1, 1, generator)
    after = torch.randn(3, generator=generator)
    for size in (1, 2, 3, 8):
        for rank in range(size):
            generator = torch.Generator().manual_seed(3)
            part = ShardedEmbedding(cards, shape[1], rank=rank, size=size)
            part.draw(0.1, 1, generator)
            assert torch.equal(part.weight, whole.weight[rank::size])
            assert torch.equal(torch.randn(3, generator=generator), after)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_logits_and_gradients_of_rows_have_the_bits_of_replicated_tables(name: str, size: int) -> None:
    """Against the replicated table and strategies.sparse; rank 1 has no rows at all."""

    def step(c: Collective) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = batch(c.rank, rows=0 if c.rank == 1 else 40)
        whole, part = made(name), made(name, c)
        expected = whole(**inputs)
        expected.sin().sum().backward()
        weight = whole.embedding.weight
        wanted = reduce_sparse({"w": weight.grad}, c)["w"].to_dense()[c.rank :: size]
        tables = layout(part, c)
        fetched = tables.fetch(inputs)
        with tables.serving(fetched):
            halves = [part(**{k: v[some] for k, v in inputs.items()}) for some in (slice(0, 20), slice(20, None))]
            again = part(**inputs)
        again.sin().sum().backward()
        (found,) = tables.exchanged(fetched).values()
        assert found.is_coalesced() and tables.gradients(fetched) == {}
        dense = {n: p.grad for n, p in whole.named_parameters() if p is not weight}
        assert all(torch.equal(p.grad, dense[n]) for n, p in part.named_parameters() if n in dense)
        assert torch.allclose(torch.cat(halves), expected)
        return expected, again, wanted, found.to_dense()

    for expected, again, wanted, found in on_ranks(size, step):
        assert torch.equal(again, expected)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_bytes_are_those_of_the_formula(size: int) -> None:
    """Counted by hand from the ids, by owner; three exchanges a step, whatever the number of columns."""

    def sent(c: Collective) -> tuple[int, int]:
        metered = Metered(c)
        model, inputs = made("deepfm", c), batch(c.rank)
        tables = layout(model, metered)
        assert isinstance(tables, ShardedTables)
        fetched = tables.fetch(inputs)
        with tables.serving(fetched):
            model(**inputs).sum().backward()
        tables.exchanged(fetched)
        assert metered.calls == {"alltoall": 3}
        assert metered.parts[TABLES] == metered.sent_bytes
        return metered.sent_bytes, len(fetched.rows) - 1

    def distinct(rank: int) -> list[int]:
        """Ids of a rank's batch by owner, padding apart."""
        starts = {"c1": 0, "c2": 50, "c3": 59}
        ids = {
            s + int(i) for s, column in zip(starts.values(), batch(rank)["sparse"].T, strict=True) for i in column if i
        }
        return [sum(i % size == owner for i in ids) for owner in range(size)]

    n, w = [distinct(rank) for rank in range(size)], 4 * 5
    for rank, (found, rows) in enumerate(on_ranks(size, sent)):
        others = [q for q in range(size) if q != rank]
        assert found == sum(n[rank][q] * (4 + w) + n[q][rank] * w for q in others)
        assert rows == sum(n[rank])


def test_more_ranks_than_rows() -> None:
    def step(c: Collective) -> Any:
        cards = {"c1": 3, "c2": 1, "c3": 1}
        model = made("fm", c, cards)
        tables = layout(model, c)
        fetched = tables.fetch({"sparse": torch.tensor([[2, 0, 0]])})
        with tables.serving(fetched):
            model.embedding(torch.tensor([[2, 0, 0]])).sum().backward()
        return tables.exchanged(fetched)["embedding.weight"].to_dense().tolist()

    found = on_ranks(8, step)
    zeros, eights = [[0.0] * 5], [[8.0] * 5]
    assert found == [zeros, zeros, eights, zeros, zeros, [], [], []]


def test_an_id_outside_its_table_is_told_by_its_rank() -> None:
    def step(c: Collective) -> None:
        inputs = batch(c.rank)
        if c.rank == 1:
            inputs["sparse"][3, 1] = 9
        layout(made("fm", c), c).fetch(inputs)

    errors = on_ranks(2, step)
    assert isinstance(errors[1], UserError) and "column c2 holds id 9, its table has 9 rows" in str(errors[1])
    assert "rank 1 failed" in str(errors[0])


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_digest_and_file_are_those_of_the_whole_model(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the bytes that safetensors writes; one block of a table is at rank 0 at a time."""
    monkeypatch.setattr(dealing, "BLOCK_BYTES", 1 << 9)
    settings = {"name": "deepfm", "cardinalities": CARDS, "num_dense": 3, **OPTIONS}
    whole = made("deepfm")
    save_file(whole.state_dict(), tmp_path / "whole")

    def write(c: Collective) -> str:
        model = made("deepfm", c)
        (table,) = [t for t in tensors_of(model, layout(model, c)) if t.shared]
        largest = max(len(block) for block in table.blocks())
        assert largest <= (1 << 9) if c.rank == 0 else largest == 0
        save_model(model, tmp_path / str(size), settings, {}, c)
        return weights_sha256(model, c)

    assert set(on_ranks(size, write)) == {weights_sha256(whole)}
    written = tmp_path / str(size) / "model" / "model.safetensors"
    assert written.read_bytes() == (tmp_path / "whole").read_bytes()
    loaded, _ = load_model(tmp_path / str(size))
    assert torch.equal(loaded(**batch(0)), whole.eval()(**batch(0)))


def test_every_type_of_number_is_written_as_safetensors_does(tmp_path: Path) -> None:
    types = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    types += [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    model = nn.Module()
    for number, dtype in enumerate(types):
        model.register_buffer(f"b{9 - number}", torch.arange(3).to(dtype))
        model.register_buffer(f"é{number}", torch.tensor(number).to(dtype))
    model.register_buffer("empty", torch.zeros(0, 3))
    save_file(model.state_dict(), tmp_path / "theirs")
    on_ranks(1, lambda c: write_whole(tmp_path / "ours", model, c))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert set(load_file(tmp_path / "ours")) == set(model.state_dict())


def test_ranks_that_differ_in_what_all_hold_are_found() -> None:
    def digest(c: Collective) -> str:
        model = made("fm", c)
        with torch.no_grad():
            model.bias += float(c.rank)
        return weights_sha256(model, c)

    assert all("ranks hold different weights" in str(error) for error in on_ranks(2, digest))


@pytest.mark.parametrize("rule", sorted(CLIPPINGS))
def test_clipping_counts_a_row_once_whoever_holds_it(rule: str) -> None:
    """Only one rank's rows are over the limit of `value` and `adaptive`: all ranks say so."""
    config = ClippingConfig(rule=rule, limit=0.7)

    def clipped(shards: Shards | None, rank: int, size: int) -> tuple[Clipped, Tensor, Tensor]:
        table, bias = nn.Parameter(torch.full((7, 2), 1.0)), nn.Parameter(torch.ones(3))
        rows = torch.tensor([0.1, 0.2, 0.0, 0.1, 5.0, 0.1, 0.3])[:, None].expand(7, 2).clone()
        table = nn.Parameter(table.detach()[rank::size].clone())
        ids = rows[rank::size, 0].nonzero()[:, 0]
        table.grad = torch.sparse_coo_tensor(ids[None], rows[rank::size][ids], table.shape, is_coalesced=True)
        bias.grad = torch.full((3,), 0.2)
        told = clip({"table": table, "bias": bias}, config, shards)
        return told, table.grad.to_dense(), bias.grad

    whole = clipped(None, 0, 1)
    found = on_ranks(3, lambda c: clipped(Shards(frozenset({"table"}), c), c.rank, c.size))
    for rank, (told, table, bias) in enumerate(found):
        assert told.clipped and told.norm == pytest.approx(whole[0].norm, rel=1e-12)
        torch.testing.assert_close(table, whole[1][rank::3])
        torch.testing.assert_close(bias, whole[2])
        assert told == found[0][0]


def sparse_adam(params: Any, **options: Any) -> optim.Optimizer:
    return torch_factory("sparse_adam", torch.optim.SparseAdam, sparse=True)(params, **options)


def test_a_rule_with_moments_of_rows_steps_alike() -> None:
    """Lazy Adam, which is none of our rules: two numbers a weight, and a count of steps that all rows share."""

    def steps(c: Collective) -> tuple[Tensor, Tensor]:
        whole, part = made("fm"), made("fm", c)
        rules = [sparse_adam([model.embedding.weight], lr=0.1) for model in (whole, part)]
        tables = layout(part, c)
        for turn in range(3):
            inputs = batch(10 * turn + c.rank)
            whole(**inputs).sin().sum().backward()
            weight = whole.embedding.weight
            weight.grad = reduce_sparse({"w": weight.grad}, c)["w"]
            fetched = tables.fetch(inputs)
            with tables.serving(fetched):
                part(**inputs).sin().sum().backward()
            part.embedding.weight.grad = tables.exchanged(fetched)["embedding.weight"]
            for rule, model in zip(rules, (whole, part), strict=True):
                rule.step()
                model.zero_grad()
        return whole.embedding.weight.detach()[c.rank :: c.size], part.embedding.weight.detach()

    for wanted, found in on_ranks(3, steps):
        assert torch.equal(found, wanted)
