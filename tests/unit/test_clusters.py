"""A large cluster taken apart: whoever goes is like one that stays, no two that stay are alike, in order of ingest."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headrace.features.clusters import _split

PAIRS = st.sets(st.tuples(st.integers(0, 14), st.integers(0, 14)).filter(lambda pair: pair[0] < pair[1]), max_size=40)


def split(pairs: list[tuple[int, int]], known: set[int]) -> dict[int, int]:
    columns = {"a": [a for a, _ in pairs], "b": [b for _, b in pairs]}
    columns |= {f"{end}_fresh": [key not in known for key in columns[end]] for end in "ab"}
    rows = _split(pa.table(columns)).to_pylist()
    return {row["key"]: row["survivor"] for row in rows}


@given(PAIRS, st.sets(st.integers(0, 14), max_size=5))
def test_a_cluster_is_split_in_order_of_ingest(pairs: set[tuple[int, int]], known: set[int]) -> None:
    pairs = {pair for pair in pairs if not known.issuperset(pair)}
    gone = split(sorted(pairs), known)
    assert gone == split(sorted(pairs, reverse=True), known), "the order of pairs does not matter"
    alike = {frozenset(pair) for pair in pairs}
    nodes = {node for pair in pairs for node in pair}
    expected: dict[int, int] = {}
    for node in sorted(nodes, key=lambda key: (key not in known, key)):
        before = [k for k in nodes if (k not in known, k) < (node not in known, node)]
        likes = [k for k in before if k not in expected and frozenset((k, node)) in alike]
        if node not in known and likes:
            expected[node] = min(likes, key=lambda key: (key not in known, key))
    assert gone == expected and not known & set(gone)
