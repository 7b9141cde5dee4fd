"""Look at the optimizers: all of them beside each other, one in full, their page in the docs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import UserError
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.optim import OptimizerSpec

POSITIONAL = ("name",)
PAGE = "docs/optimizers.md"
_HEAD = """# Optimizers

Written from the specifications in `headrace.optim.OPTIMIZERS` by `headrace optimizers --page docs/optimizers.md`:
change a specification, run it again, and commit both (a test compares). Choose with `--optimizer.dense.name` (all
parameters but embedding tables) and `--optimizer.sparse.name` (embedding tables, whose gradients are row-sparse);
`headrace optimizers NAME` shows one. How to add one: [adding an optimizer](adding_an_optimizer.md).

g is the gradient of the mean loss of the global batch, w the parameters. Bytes are of float32 parameters, of a matrix
of 1,000 x 1,000.
"""


@dataclass(kw_only=True)
class Config:
    """Look at the optimizers.

    Args:
        name: one of them, in full; none lists all.
        page: write the page of all optimizers to this file.
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
    from headrace.optim import OPTIMIZERS, spec_of

    if cfg.page:
        _page(Path(cfg.page), cfg.check)
        report.results["page"] = cfg.page
    elif cfg.name:
        for line in _facts(spec_of(cfg.name)):
            report.say(line)
        report.results["optimizer"] = cfg.name
    else:
        width = max(map(len, OPTIMIZERS))
        for name, spec in OPTIMIZERS.items():
            report.say(f"{name:{width}}  {spec.use} ({spec.paper})")
        report.results["optimizers"] = len(OPTIMIZERS)
    return report


def render() -> str:
    """The page, as Markdown."""
    from headrace.optim import OPTIMIZERS

    lines = [_HEAD, "| name | rule | state | bytes a parameter | a step | tables | when | reference |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, spec in OPTIMIZERS.items():
        cells = [f"[{name}](#{name})", f"`{spec.rule}`", spec.state, _bytes(spec), spec.cost, _tables(spec), spec.use]
        lines.append(f"| {' | '.join(map(_cell, [*cells, spec.paper]))} |")
    for name, spec in OPTIMIZERS.items():
        lines += [f"\n## {name}\n", *(f"- {line}" for line in _facts(spec))]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _facts(spec: OptimizerSpec) -> Iterator[str]:
    from headrace.optim.spec import OWN_GRADIENT

    yield f"Rule: `{spec.rule}`"
    yield f"Use: {spec.use}"
    yield f"Reference: {spec.paper}"
    yield f"State: {spec.state}; {_bytes(spec)} bytes a parameter"
    yield f"A step: {spec.cost}"
    yield f"Embedding tables: {_tables(spec)}"
    needs = [trait.removeprefix("needs_").replace("_", " ") for trait in sorted(spec.traits) if "needs" in trait]
    if needs:
        yield f"Needs: {', '.join(needs)}"
    if OWN_GRADIENT in spec.traits:
        yield "Gradients of its own: without clipping, and without sam around it"
    yield f"Options: {', '.join(f'`{name}={value}`' for name, value in spec.defaults.items())}"


def _tables(spec: OptimizerSpec) -> str:
    from headrace.optim.spec import ACCEPTS_SPARSE

    return "touched rows only" if ACCEPTS_SPARSE in spec.traits else "dense only"


def _bytes(spec: OptimizerSpec) -> str:
    import torch

    like: Any = torch.empty(1000, 1000, device="meta")
    per_parameter = spec.state_bytes(like, spec.defaults) / like.numel()
    return f"{per_parameter:.3g}" if per_parameter < 1000 else "see state"


def _page(path: Path, check: bool) -> None:
    text = render()
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path} is not what the specifications say", f"headrace optimizers --page {path}")
