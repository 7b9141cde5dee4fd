"""Look at the codecs of gradients: all of them beside each other, one in full, their page in the docs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import UserError
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.compress import CodecSpec

POSITIONAL = ("name",)
PAGE = "docs/codecs.md"
_HEAD = """# Codecs of gradients

Written from the specifications in `headrace.compress.COMPRESSORS` by `headrace codecs --page docs/codecs.md`: change a
specification, run it again, and commit both (a test compares). Choose with `--compression.name`; an option is a setting
by its own name (`--compression.levels 7`). `headrace codecs NAME` shows one. How codecs are used in training, and what
goes over the wire: [exchange](exchange.md).

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
    """List, show or write.

    Raises:
        UserError: an unknown name, or, with check, a page that is not up to date.
    """
    from headrace.compress import COMPRESSORS
    from headrace.options import known

    if cfg.page:
        _page(Path(cfg.page), cfg.check)
        report.results["page"] = cfg.page
    elif cfg.name:
        known("name", cfg.name, COMPRESSORS)
        for line in _facts(COMPRESSORS[cfg.name]):
            report.say(line)
        report.results["codec"] = cfg.name
    else:
        width = max(map(len, COMPRESSORS))
        for name, spec in COMPRESSORS.items():
            report.say(f"{name:{width}}  {spec.use} ({spec.bits} bits a number)")
        report.results["codecs"] = len(COMPRESSORS)
    return report


def render() -> str:
    """The page, as Markdown."""
    from headrace.compress import COMPRESSORS

    lines = [_HEAD, "| name | what is sent | bits a number | error | when | reference |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, spec in COMPRESSORS.items():
        cells = [f"[{name}](#{name})", f"`{spec.rule}`", spec.bits, _error(spec), spec.use, spec.paper]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    for name, spec in COMPRESSORS.items():
        lines += [f"\n## {name}\n", *(f"- {line}" for line in _facts(spec))]
    return "\n".join(lines) + "\n"


def _facts(spec: CodecSpec) -> Iterator[str]:
    yield f"Sent: `{spec.rule}`"
    yield f"Use: {spec.use}"
    yield f"Reference: {spec.paper}"
    yield f"Bits a number: {spec.bits}"
    yield f"Error: {_error(spec)}"
    yield f"Traits: {', '.join(sorted(spec.traits)) or 'none'}"
    yield f"Options: {', '.join(f'`{name}={value}`' for name, value in spec.defaults.items()) or 'none'}"


def _error(spec: CodecSpec) -> str:
    from headrace.compress.spec import EXACT

    if EXACT in spec.traits:
        return "none"
    said = [f"omega {spec.omega(10**6, spec.defaults):.3g}"] if spec.omega else []
    said += [f"delta {spec.delta(10**6, spec.defaults):.3g}"] if spec.delta else []
    return ", ".join(said) or "no bound: feedback sends the rest"


def _page(path: Path, check: bool) -> None:
    text = render()
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path} is not what the specifications say", f"headrace codecs --page {path}")
