"""Settings of a run that a strategy must go with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from headrace.strategies.compression import CompressionConfig


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """See the module's docstring.

    Args:
        ranks: how many.
        precision: of FitConfig's precision.compute.
        parameters: of FitConfig's precision.parameters.
        overlap: of exchange and backward.
        aggregation: of ranks' gradients.
        compression: of gradients; checked.
        reduction: of REDUCERS.
        device: auto, cpu or cuda.
        rules: traits of optimizers and wrappers by name.
    """

    ranks: int = 1
    precision: str = "float32"
    parameters: str = "float32"
    overlap: str = "auto"
    aggregation: str = "none"
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    reduction: str = "ordered"
    device: str = "auto"
    rules: Mapping[str, Iterable[str]] = field(default_factory=dict)
