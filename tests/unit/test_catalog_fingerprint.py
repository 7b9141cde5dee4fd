"""splitmix64 against Python's unbounded integers and the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.catalog import fingerprint

GOLDEN = Path(__file__).parents[1] / "golden" / "splitmix64.json"
INT64 = st.integers(-(2**63), 2**63 - 1)


def reference(key: int) -> int:
    """Straight from the formula, with Python's integers."""
    mask = 2**64 - 1
    z = (key + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_golden_vectors() -> None:
    vectors = json.loads(GOLDEN.read_text())["vectors"]
    keys = np.array([int(v["key"]) for v in vectors], np.int64)
    assert len(vectors) >= 30
    assert [str(int(v)) for v in fingerprint.splitmix64(keys)] == [v["splitmix64"] for v in vectors]


def test_first_published_outputs() -> None:
    """The generator of the paper, seeded with 0, gives these; its n-th state is n * gamma."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([0, gamma, 2 * gamma % 2**64], np.uint64)
    assert [hex(int(v)) for v in fingerprint.splitmix64(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@given(st.lists(INT64, max_size=50))
def test_equals_the_formula(keys: list[int]) -> None:
    mixed = fingerprint.splitmix64(np.array(keys, np.int64))
    assert [int(v) for v in mixed] == [reference(key) for key in keys]
    assert fingerprint.key_sum(np.array(keys, np.int64)) == sum(reference(key) for key in keys) % 2**64


def test_sum_adds_up_over_blocks_and_notices_a_row_read_twice() -> None:
    keys = np.arange(200_000, dtype=np.int64)
    whole = fingerprint.key_sum(keys)
    split = fingerprint.key_sum(keys[:77_777]) + fingerprint.key_sum(keys[77_777:])
    assert whole == split % fingerprint.MODULUS
    assert whole != fingerprint.key_sum(np.concatenate([keys[:-1], keys[:1]]))


def test_input_is_left_alone_and_other_types_are_refused() -> None:
    keys = np.arange(5, dtype=np.uint64)
    fingerprint.splitmix64(keys)
    assert keys.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(TypeError, match="int64"):
        fingerprint.splitmix64(np.arange(5, dtype=np.int32))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_combine_puts_the_thirds_together(values: list[int]) -> None:
    low22 = (1 << 22) - 1
    parts = [sum((v >> shift) & low22 for v in values) for shift in (0, 22, 44)]
    assert fingerprint.combine(*parts) == sum(values) % 2**64
    assert fingerprint.combine(None, None, None) == 0
