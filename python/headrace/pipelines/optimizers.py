"""Look at the optimizers: all of them beside each other, one in full, their page in the docs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.pipelines.spec_page import SpecPage
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.optim import OptimizerSpec

POSITIONAL = ("name",)
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
    """See `SpecPage.run`."""
    return _family().run(cfg, report)


def render() -> str:
    """The page, as Markdown."""
    return _family().render()


def _family() -> SpecPage:
    from headrace.optim import OPTIMIZERS, spec_of

    columns = ("rule", "state", "bytes a parameter", "a step", "tables", "when", "reference")
    return SpecPage(
        "optimizer", OPTIMIZERS, spec_of, lambda spec: f"{spec.use} ({spec.paper})", _facts, _HEAD, columns, _cells
    )


def _cells(spec: OptimizerSpec) -> list[str]:
    return [f"`{spec.rule}`", spec.state, _bytes(spec), spec.cost, _tables(spec), spec.use, spec.paper]


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
