"""Look at the codecs of gradients: all of them beside each other, one in full, their page in the docs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.pipelines.spec_page import SpecPage
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.compress import CodecSpec

POSITIONAL = ("name",)
_HEAD = """# Codecs of gradients

Written from the specifications in `headrace.compress.COMPRESSORS` by `headrace codecs --page docs/codecs.md`: change a
specification, run it again, and commit both (a test compares). Choose with `--compression.name`; an option is a setting
by its own name (`--compression.levels 7`). `headrace codecs NAME` shows one. How codecs are used in training, and what
goes over the wire: [exchange](exchange.md), where `powersgd` and `auto` are, which have exchanges of their own.

x is a tensor of n numbers, a bucket a stretch of it. Omega and delta are those of 1,000,000 numbers with the default
options: `E |C(x) - x|^2 <= omega |x|^2` where C is unbiased, `<= (1 - delta) |x|^2` where it contracts.
"""


@dataclass(kw_only=True)
class Config:
    """Look at the codecs of gradients.

    Args:
        name: one of them, in full; none lists all.
        page: write the page of all codecs to this file.
        check: with page, write nothing, and fail where the file is not what would be written.
    """

    name: str = ""
    page: str = ""
    check: bool = False


def run(spark: SparkSession | None, cfg: Config, report: Report) -> Report:
    """See `SpecPage.run`."""
    return _family().run(cfg, report)


def render() -> str:
    """The page, as Markdown."""
    return _family().render()


def _family() -> SpecPage:
    from headrace.compress import COMPRESSORS

    columns = ("what is sent", "bits a number", "error", "when", "reference")
    return SpecPage(
        "codec", COMPRESSORS, _spec_of, lambda spec: f"{spec.use} (bits a number: {spec.bits})", _facts, _HEAD, columns,
        _cells,
    )  # fmt: skip


def _spec_of(name: str) -> CodecSpec:
    from headrace.compress import COMPRESSORS
    from headrace.errors import UserError
    from headrace.options import known
    from headrace.strategies.compression import AUTO, POWERSGD

    if name in (AUTO, POWERSGD):
        raise UserError(
            f"--compression.name {name} is no codec of one tensor: it has an exchange of its own",
            "docs/exchange.md tells what it does, headrace train-ctr --help its options",
        )
    known("name", name, COMPRESSORS)
    return COMPRESSORS[name]


def _cells(spec: CodecSpec) -> list[str]:
    return [f"`{spec.rule}`", spec.bits, _error(spec), spec.use, spec.paper]


def _facts(spec: CodecSpec) -> Iterator[str]:
    yield f"Sent: `{spec.rule}`"
    yield f"Use: {spec.use}"
    yield f"Reference: {spec.paper}"
    yield f"Bits a number: {spec.bits}"
    yield f"Error: {_error(spec)}"
    yield f"Traits: {', '.join(sorted(spec.traits)) or 'none'}"
    yield f"Options: {', '.join(f'`{name}={value}`' for name, value in spec.defaults.items()) or 'none'}"


def _error(spec: CodecSpec) -> str:
    from headrace.compress.spec import EXACT, NO_SIZES

    if EXACT in spec.traits:
        return "none"
    if NO_SIZES in spec.traits:
        return "no bound: sizes are not sent"
    said = [f"omega {spec.omega(10**6, spec.defaults):.3g}"] if spec.omega else []
    said += [f"delta {spec.delta(10**6, spec.defaults):.3g}"] if spec.delta else []
    return ", ".join(said) or "no bound: feedback sends the rest"
