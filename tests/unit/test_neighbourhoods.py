"""Rows of neighbourhoods from their slots, without Spark: cut and assembled against a plain Python reference."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.neighbourhoods import NONE, Plan, assemble_rows, shaped, whole_seeds

Found = list[tuple[int, dict[tuple[int, int], int]]]
PLAN = Plan((2, 3), dim=2)
seeds = st.lists(
    st.tuples(st.integers(-1, 5), st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 5)), st.integers(0, 99))),
    min_size=1,
    max_size=8,
)


def rows_of(found: Found) -> list[dict[str, object]]:
    """Slots, sorted as they come to be assembled: the label, the seed itself, then hops."""
    rows = []
    for seed, (label, slots) in enumerate(found):
        base = {"seed": seed, "split": 1}
        rows.append(base | {"hop": -1, "slot": 0, "node": label, "x": None})
        kept = {place: node for place, node in slots.items() if place[0] and place[1] < PLAN.widths[place[0] - 1]}
        for (hop, slot), node in sorted({(0, 0): seed, **kept}.items()):
            rows.append(base | {"hop": hop, "slot": slot, "node": node, "x": [float(node), 1.0]})
    return rows


@given(found=seeds, size=st.integers(1, 7))
def test_slots_become_rows_however_batches_are_cut(found: Found, size: int) -> None:
    schema = pa.schema(
        [
            *(("seed", pa.int64()), ("split", pa.int32()), ("hop", pa.int32())),
            *(("slot", pa.int32()), ("node", pa.int64()), ("x", pa.list_(pa.float32()))),
        ]
    )
    rows = rows_of(found)
    batches = [pa.RecordBatch.from_pylist(rows[at : at + size], schema) for at in range(0, len(rows), size)]
    tables = list(whole_seeds([*batches, pa.RecordBatch.from_pylist([], schema)]))
    made = [row for table in tables for row in assemble_rows(table, PLAN, True).to_pylist()]
    assert [row["key"] for row in made] == list(range(len(found)))
    for row, (label, slots) in zip(made, found, strict=True):
        assert row["label"] == label
        assert row["x0"] == [float(row["key"]), 1.0]
        for hop in (1, 2):
            ids = [slots.get((hop, slot), NONE) for slot in range(PLAN.widths[hop - 1])]
            there = [node for node in ids if node != NONE]
            assert row[f"n{hop}"] == ids
            assert row[f"x{hop}"][0] == pytest.approx(float(np.mean(there)) if there else 0.0, rel=1e-6)
            assert row[f"x{hop}"][1] == float(bool(there))


def test_tensors_have_the_widths_that_were_written() -> None:
    spec = shaped(load("gold/graph_neighbourhoods"), {"n1": 15, "x0": 8})
    assert {t.name: (t.columns, t.dtype) for t in spec.tensors} == {
        "key": (("key",), "int64"), "label": (("label",), "int64"), "n1": (("n1",), "int64"), "x0": (("x0",), "float32")
    }  # fmt: skip
    assert (spec.column("n1").shape, spec.column("x0").shape, spec.column("n2").shape) == ((15,), (8,), ())


@pytest.mark.parametrize(
    ("fanouts", "match"), [((1,) * 5, "5 hops"), ((-1,), "fixed width"), ((100, 100, 100), "slots")]
)
def test_plans_that_make_no_sense_are_refused(fanouts: tuple[int, ...], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Plan(fanouts).check()
