"""Criteo lines for tests: good, odd, and damaged in every way we can think of."""

from __future__ import annotations

from hypothesis import strategies as st


def line(label: str = "1", ints: tuple[str, ...] = ("",) * 13, cats: tuple[str, ...] = ("",) * 26) -> bytes:
    return "\t".join([label, *ints, *cats]).encode()


integers = st.one_of(
    st.just(""),
    st.integers(-(10**20), 10**20).map(str),
    st.integers(-3, 12).map(str),
    st.sampled_from(["-", "--1", "+1", "1.0", " 1", "1e3", "007", "-0", "9" * 19, "-" + "9" * 18, "0" * 25, "²", "1-"]),
)
categories = st.one_of(
    st.just(""),
    st.integers(0, 2**32 - 1).map(lambda value: f"{value:08x}"),
    st.text("0123456789abcdefABCDEF", max_size=10),
    st.sampled_from(["0x1f", "g1234567", "1234567 ", '"abc"', "-1", "\x00", "\x7f", "\ufeff", "deadbeef0"]),
)
good_lines = st.builds(
    line,
    st.sampled_from(["0", "1"]),
    st.tuples(*[st.one_of(st.just(""), st.integers(-(2**63), 2**63 - 1).map(str))] * 13),
    st.tuples(*[st.one_of(st.just(""), st.integers(0, 2**32 - 1).map("{:x}".format))] * 26),
)
odd_lines = st.builds(
    line, st.sampled_from(["0", "1", "2", "", "01"]), st.tuples(*[integers] * 13), st.tuples(*[categories] * 26)
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A line with bytes put in, taken out or overwritten anywhere."""
    raw = bytearray(draw(st.one_of(good_lines, odd_lines)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        junk = draw(st.sampled_from([b"\t", b"\r", b"\0", b'"', b"\xff", b"\xef\xbb\xbf", b" ", b"-", b"a", b"9"]))
        raw[at : at + draw(st.integers(0, 2))] = junk
    return bytes(raw).replace(b"\n", b"")


hostile = st.one_of(good_lines, odd_lines, damaged(), st.binary(max_size=200).map(lambda raw: raw.replace(b"\n", b"")))
