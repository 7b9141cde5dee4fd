"""What settings send is known beforehand: the formulas against what Metered counts, over all codecs and exchanges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.collective_exam import on_ranks
from contract.test_compressed import exchanges
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.comm.metered import TABLES
from headrace.compress import COMPRESSORS
from headrace.compress.spec import VARIABLE
from headrace.strategies.coded_rows import why_not
from headrace.strategies.compression import POWERSGD, VOTE, CompressionConfig, check, compressed
from headrace.strategies.reducers import ordered
from headrace.strategies.sparse import with_rows
from headrace.strategies.traffic import traffic

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"matrix": (64, 48), "vector": (4096,), "small": (7, 5)}
CASES = [
    *[(name, exchange) for name in COMPRESSORS for exchange in (exchanges(name) if name != "none" else ["auto"])],
    (POWERSGD, "auto"),
    ("signsgd", VOTE),
]
ROWS = ["none", *(name for name, spec in COMPRESSORS.items() if name != "none" and not why_not(spec))]


def gradients(rank: int, *, table: bool = False) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rank)
    found = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    if table:
        ids = torch.randperm(200, generator=draw)[:40].sort().values
        found["table"] = with_rows(ids, torch.randn(40, 6, generator=draw), torch.empty(200, 6))
    return found


def sent(cfg: CompressionConfig, size: int, *, table: bool = False) -> tuple[float, float, Any]:
    """Means over ranks of the bytes of dense gradients and of tables, and what was foretold."""

    def fn(c: LocalCollective) -> tuple[int, int]:
        metered = Metered(c)
        compressed(cfg, ordered(), seed=1).reduce(gradients(c.rank, table=table), metered)
        return metered.sent_bytes - metered.parts[TABLES], metered.parts[TABLES]

    counted = on_ranks(size, fn)
    dense, tables = (sum(each) / size for each in zip(*counted, strict=True))
    return dense, tables, traffic(cfg, gradients(0, table=table), size)


@pytest.mark.parametrize(("name", "exchange"), CASES)
def test_dense_gradients_send_what_was_foretold(name: str, exchange: str) -> None:
    cfg = CompressionConfig(name=name, exchange=exchange, min_numel=64)
    check(cfg)
    dense, tables, told = sent(cfg, 3)
    varies = name != POWERSGD and VARIABLE in COMPRESSORS[name].traits
    assert tables == told.tables == 0
    # Payloads that vary: other ranks' and those of sums are not this rank's. Others: the mean over ranks, exactly.
    assert told.dense == pytest.approx(dense, rel=0.4 if varies else 1e-9)
    whole = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    assert name != "none" or told.dense == pytest.approx(2 * 2 / 3 * 4 * whole)


@pytest.mark.parametrize("name", ROWS)
def test_tables_send_what_was_foretold(name: str) -> None:
    dense, tables, told = sent(CompressionConfig(sparse=name), 3, table=True)
    assert told.dense == pytest.approx(dense)
    assert told.tables == pytest.approx(tables, rel=0.1 if VARIABLE in COMPRESSORS[name].traits else 1e-9)


def test_one_rank_sends_nothing() -> None:
    assert traffic(CompressionConfig(name="topk"), gradients(0, table=True), 1) == (0, 0)
