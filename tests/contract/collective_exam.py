"""What every Collective must do, run by each rank of a group; also what a reducer makes of real gradients.

Written so that it can be shipped to other processes by value: it uses nothing of the test framework.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from headrace.comm import Collective, LocalCollective, LocalGroup, Metered
from headrace.comm.base import CollectiveError
from headrace.strategies import REDUCERS, STRATEGIES, Overlap

DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bfloat16, torch.bool)


def check_collective(c: Collective) -> int:
    """Run all checks on this rank; the number of checks, or AssertionError."""
    checks = (_moves, _sums, _ragged, _alltoall, _empty, _large, _strided, _fresh, _objects, _refuses)
    for check in checks:
        check(c)
        c.barrier()
    return len(checks)


def on_ranks(size: int, fn: Callable[[LocalCollective], Any], timeout_s: float | None = 60.0) -> list[Any]:
    """Run `fn` on `size` threads; values or exceptions in rank order."""
    group = LocalGroup(size, timeout_s)

    def one(rank: int) -> Any:
        try:
            return fn(group.collective(rank))
        except Exception as error:
            group.abort(f"rank {rank} failed: {error!r}")
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def good(results: list[Any]) -> list[Any]:
    """The ranks' values, or the error that another did not cause."""
    failed = [r for r in results if isinstance(r, Exception)]
    for error in sorted(failed, key=lambda e: isinstance(e, CollectiveError)):
        raise error
    return results


def _of(rank: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(1000 + rank)
    return torch.randint(0, 50, shape, generator=g).to(dtype)


def _same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b), (a, b)


def _moves(c: Collective) -> None:
    for dtype in DTYPES:
        for shape in ((3, 2), (1,), ()):
            for rank, part in enumerate(c.allgather(_of(c.rank, *shape, dtype=dtype))):
                _same(part, _of(rank, *shape, dtype=dtype))
            for root in range(c.size):
                _same(c.broadcast(_of(c.rank, *shape, dtype=dtype), root), _of(root, *shape, dtype=dtype))


def _sums(c: Collective) -> None:
    for dtype in (d for d in DTYPES if d != torch.bool):
        for shape in ((3, 2), (1,), (), (10_001,)):
            want = sum(_of(rank, *shape, dtype=torch.int64) for rank in range(c.size))
            assert isinstance(want, torch.Tensor)
            _same(c.allreduce(_of(c.rank, *shape, dtype=dtype)), want.to(dtype))
    # More digits than a float holds: integers must not pass through floating point.
    big = (1 << 62) // c.size - 1
    _same(c.allreduce(torch.tensor([big, -big])), torch.tensor([big * c.size, -big * c.size]))


def _ragged(c: Collective) -> None:
    rows = [(3 * r + 1) % 5 for r in range(c.size)]
    for known in (None, rows):
        parts = c.allgather(_of(c.rank, rows[c.rank], 3, dtype=torch.float64), known)
        for rank, part in enumerate(parts):
            _same(part, _of(rank, rows[rank], 3, dtype=torch.float64))


def _alltoall(c: Collective) -> None:
    def chunk(source: int, target: int) -> torch.Tensor:
        return torch.full(((source + 2 * target) % 3, 2), 10 * source + target, dtype=torch.int32)

    expected = [chunk(r, c.rank) for r in range(c.size)]
    for known in (None, [e.shape[0] for e in expected]):
        got = c.alltoall([chunk(c.rank, t) for t in range(c.size)], known)
        for part, want in zip(got, expected, strict=True):
            _same(part, want)


def _empty(c: Collective) -> None:
    for shape in ((0,), (0, 4), (3, 0)):
        _same(c.allreduce(torch.zeros(shape)), torch.zeros(shape))
        _same(c.broadcast(torch.zeros(shape)), torch.zeros(shape))
        for part in c.allgather(torch.zeros(shape)):
            _same(part, torch.zeros(shape))
        for part in c.alltoall([torch.zeros(shape)] * c.size):
            _same(part, torch.zeros(shape))
    only_last = [5 if r == c.size - 1 else 0 for r in range(c.size)]
    assert [p.shape[0] for p in c.allgather(torch.ones(only_last[c.rank], 2))] == only_last


def _large(c: Collective) -> None:
    """Memory for 4 MiB and more may be got in another way."""
    rows = [655_361 + r for r in range(c.size)]
    parts = c.allgather(_of(c.rank, rows[c.rank], dtype=torch.float64), rows)
    parts += c.alltoall([_of(c.rank, rows[c.rank], dtype=torch.float64)] * c.size)
    for part, rank in zip(parts, [*range(c.size)] * 2, strict=True):
        _same(part, _of(rank, rows[rank], dtype=torch.float64))


def _strided(c: Collective) -> None:
    def strided(rank: int) -> torch.Tensor:
        return _of(rank, 6, 8).t()[::2, 1:5]

    want = sum((strided(r) for r in range(c.size)), torch.zeros(4, 4))
    _same(c.allreduce(strided(c.rank)), want)
    _same(c.broadcast(strided(c.rank), c.size - 1), strided(c.size - 1).contiguous())
    for rank, part in enumerate(c.allgather(strided(c.rank))):
        _same(part, strided(rank).contiguous())
    for rank, part in enumerate(c.alltoall([strided(c.rank)] * c.size)):
        _same(part, strided(rank).contiguous())


def _fresh(c: Collective) -> None:
    """Results are the caller's own: changing them changes nobody's input, and inputs stay as they were."""
    x = _of(c.rank, 4)
    for got in (c.allreduce(x), c.broadcast(x), *c.allgather(x), *c.alltoall([x] * c.size)):
        got.add_(1)
    c.barrier()
    _same(x, _of(c.rank, 4))


def _objects(c: Collective) -> None:
    value = {"rank": c.rank, "text": "é" * (c.rank + 1), "list": [None, True, 1.5]}
    assert [v["rank"] for v in c.allgather_object(value)] == list(range(c.size))
    assert c.allgather_object(value)[c.rank] == value


def _refuses(c: Collective) -> None:
    for call in (
        lambda: c.allreduce(torch.tensor([True])),
        lambda: c.broadcast(torch.zeros(1), root=c.size),
        lambda: c.alltoall([torch.zeros(1)] * (c.size + 1)),
    ):
        try:
            call()
        except (TypeError, ValueError):
            continue
        raise AssertionError("an impossible request was accepted")


class Clicks(torch.nn.Module):
    """Two embedding tables with row-sparse gradients and a dense part, as the real models have."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(rows, 5, sparse=True) for rows in (40, 3000))
        self.hidden = torch.nn.Linear(10, 33)
        self.out = torch.nn.Linear(33, 1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)

    def forward(self, sparse: torch.Tensor) -> torch.Tensor:
        rows = [table(sparse[:, i]) for i, table in enumerate(self.tables)]
        return self.out(torch.tanh(self.hidden(torch.cat(rows, 1)))).squeeze(1)


def gradients(model: Clicks, rank: int, step: int, rows: int = 64) -> dict[str, torch.Tensor]:
    """This rank's gradients on its own batch: many ids occur more than once, on one rank and on several."""
    g = torch.Generator().manual_seed(7919 * step + rank)
    sparse = torch.stack([torch.randint(0, t.num_embeddings, (rows,), generator=g) for t in model.tables], 1)
    label = torch.randint(0, 2, (rows,), generator=g).float()
    model.zero_grad()
    torch.nn.functional.binary_cross_entropy_with_logits(model(sparse), label, reduction="sum").backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def train(c: Collective, reducer: str, bucket_bytes: int = 500, steps: int = 5, overlap: bool = False) -> str:
    """A few steps of SGD on all ranks; SHA-256 of the weights."""
    model = Clicks(torch.Generator().manual_seed(3))
    summing = REDUCERS[reducer].factory(bucket_bytes=bucket_bytes)
    if overlap:
        dense = {name: p for name, p in model.named_parameters() if not name.startswith("tables")}
        summing = Overlap(summing, c, dense)
    strategy = STRATEGIES["allreduce"].factory(summing, c)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        with strategy.backward():
            own = gradients(model, c.rank, step)
        grads = strategy.on_gradients(own, step)
        for name, p in model.named_parameters():
            p.grad = grads[name]
        optimizer.step()
        strategy.on_parameters(dict(model.named_parameters()), step, True)
    strategy.close()
    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()


def compressed_sums(c: Collective) -> dict[str, str]:
    """SHA-256 of three steps' sums by every codec and exchange, PowerSGD and the vote."""
    from headrace.compress import COMPRESSORS
    from headrace.compress.spec import SUMMABLE
    from headrace.strategies.compression import CompressionConfig, compressed

    cases = [(name, exchange) for name in COMPRESSORS for exchange in ("allgather", "reduce_scatter")]
    cases += [(name, "allreduce") for name, spec in COMPRESSORS.items() if SUMMABLE in spec.traits]
    cases += [("powersgd", "auto"), ("signsgd", "vote")]
    found = {}
    for name, exchange in cases:
        cfg = CompressionConfig(name=name, exchange=exchange if name != "none" else "auto", min_numel=64)
        found[f"{name} {exchange}"] = _three_sums(compressed(cfg, REDUCERS["ordered"].factory(), seed=1), c)
    return found


def hosts_sums(c: Collective) -> dict[str, str]:
    """SHA-256 of three steps' sums within hosts and between them, for every way that the ranks may lie on hosts."""
    from headrace.strategies.compression import CompressionConfig, compressed

    found = {}
    for hosts in (count for count in range(1, c.size + 1) if c.size % count == 0):
        for name in ("none", "topk", "qsgd"):
            cfg = CompressionConfig(name=name, hierarchical=True, min_numel=64)
            host = f"host {c.rank % hosts}"
            reducer = compressed(cfg, REDUCERS["ordered"].factory(), 1, c, host)
            found[f"{name} between {hosts}"] = _three_sums(reducer, c)
    return found


def coded_rows_sums(c: Collective) -> dict[str, str]:
    """SHA-256 of three steps' sums with a table whose rows go through a codec, for every codec that serves."""
    from headrace.compress import COMPRESSORS
    from headrace.strategies.coded_rows import why_not
    from headrace.strategies.compression import CompressionConfig, compressed

    served = [name for name, spec in COMPRESSORS.items() if name != "none" and not why_not(spec)]
    made = {name: compressed(CompressionConfig(sparse=name), REDUCERS["ordered"].factory(), 1) for name in served}
    return {name: _three_sums(reducer, c, table=True) for name, reducer in made.items()}


def robust_rules(size: int) -> dict[str, dict[str, Any]]:
    """Options by name, of the rules of aggregation that so many ranks are enough for."""
    from headrace.strategies.aggregation import AGGREGATIONS

    options = {name: dict(spec.defaults) for name, spec in AGGREGATIONS.items()}
    options["krum"]["faulty"] = 0  # three ranks will do
    return {name: given for name, given in options.items() if not AGGREGATIONS[name].why_not(size, given)}


def robust_sums(c: Collective) -> dict[str, str]:
    """SHA-256 of three steps' gradients as the rules of aggregation make them, with a table where that is defined."""
    from headrace.strategies.aggregation import AGGREGATIONS, AggregationConfig, aggregated

    found = {}
    for name, options in robust_rules(c.size).items():
        reducer = aggregated(AggregationConfig(name=name, options=options), REDUCERS["ordered"].factory())
        found[name] = _three_sums(reducer, c, table=AGGREGATIONS[name].rows)
    return found


def _three_sums(reducer: Any, c: Collective, table: bool = False) -> str:
    """SHA-256 of what three steps' gradients of all ranks become."""
    digest = hashlib.sha256()
    for step in range(3):
        generator = torch.Generator().manual_seed(100 * step + c.rank)
        own = {"a": torch.randn(60, 40, generator=generator), "b": torch.randn(1000, generator=generator)}
        if table:
            ids, rows = torch.randint(0, 50, (1, 20), generator=generator), torch.randn(20, 8, generator=generator)
            own["t"] = torch.sparse_coo_tensor(ids, rows, (50, 8), check_invariants=False)
        for total in reducer.reduce(own, c).values():
            digest.update((total.to_dense() if total.is_sparse else total).numpy().tobytes())
        reducer.settle(True)
    return digest.hexdigest()


def exam(worker: Any) -> dict[str, Any]:
    """All of it on one rank of a launched job."""
    worker.emit({"kind": "begun", "rank": worker.rank})
    metered, coded = Metered(worker.collective), Metered(worker.collective)
    result = {
        "rank": worker.rank,
        "size": worker.size,
        "threads": torch.get_num_threads(),
        "checks": check_collective(worker.collective),
        "ordered": train(metered, "ordered"),
        "sent": dict(metered.sent),
        "overlapped": train(worker.collective, "ordered", overlap=True),
        "ring": train(worker.collective, "ring"),
        "compressed": compressed_sums(coded),
        "hosts": hosts_sums(coded),
        "coded_rows": coded_rows_sums(coded),
        "robust": robust_sums(coded),
        "sent_coded": dict(coded.sent),
        "stop": worker.should_stop(),
    }
    worker.emit({"kind": "done", "rank": worker.rank})
    return result
