"""Mixed precision: in what type forward and backward compute, and the scale that keeps fp16 gradients from vanishing.

    backward of s * loss,   gradients / s after the exchange;   Inf or NaN in a gradient on any rank: the step is left
    out and s <- backoff s on all;   growth_every steps without: s <- growth s

References: P. Micikevicius et al., "Mixed precision training", ICLR 2018, section 3; the dynamic scale with these
numbers is torch.amp.GradScaler's. Its scale is one of the mean loss; losses are summed over rows here, so the first
scale is divided by the rows of the first global batch, to a power of two: gradients are scaled and unscaled exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from headrace.errors import UserError
from headrace.options import known

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Types of numbers.

    Args:
        compute: float32, bf16 or fp16: of forward and backward (autocast); fp16 scales the loss.
        parameters: float32, or the type of compute: of the dense parameters; float32 masters of them are updated.
        initial_scale: first scale of the mean loss under fp16.
        growth: of the scale after `growth_every` steps without an overflow.
        backoff: of the scale at an overflow.
        growth_every: steps.

    Raises:
        UserError: an unknown type, or numbers that make no sense.
    """

    compute: str = "float32"
    parameters: str = "float32"
    initial_scale: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    growth_every: int = 2000

    def __post_init__(self) -> None:
        known("train.precision.compute", self.compute, DTYPES)
        known("train.precision.parameters", self.parameters, DTYPES)
        if self.parameters not in ("float32", self.compute):
            raise UserError(
                f"parameters of {self.parameters} with forward and backward in {self.compute}",
                f"--train.precision.compute {self.parameters}",
            )
        scales = (self.initial_scale, self.growth, self.backoff)
        if any(not s > 0 or math.frexp(s)[0] != 0.5 for s in scales) or not self.backoff < 1.0 <= self.growth:
            raise UserError(
                f"scale {self.initial_scale}, growth {self.growth}, backoff {self.backoff}",
                "powers of two, backoff below 1, growth at least 1: so that scaling is exact",
            )
        if self.growth_every < 1:
            raise UserError(f"--train.precision.growth_every {self.growth_every}", "1 or more")

    def autocast(self, device_type: str) -> torch.autocast:
        """Surrounds a forward pass."""
        return torch.autocast(device_type, DTYPES[self.compute], enabled=self.compute != "float32")


def cast_parameters(params: Iterable[torch.nn.Parameter], config: PrecisionConfig) -> None:
    """Keep parameters in the type of `config.parameters`; their gradients are added up and exchanged as float32."""
    if config.parameters == "float32":
        return
    for param in params:
        param.data = param.data.to(DTYPES[config.parameters])
        param.grad_dtype = torch.float32


class LossScaler:
    """The scale of the loss; 1 and unmoved but under fp16. The same on every rank, since all are told the same.

    Args:
        config: see PrecisionConfig.
    """

    def __init__(self, config: PrecisionConfig) -> None:
        self.config = config
        self.active = config.compute == "fp16"
        self.scale, self.good, self._least = 1.0, 0, 0.0

    @property
    def begun(self) -> bool:
        """Whether the first global batch's rows are known, where they are needed."""
        return not self.active or self._least > 0.0

    def begin(self, rows: int) -> None:
        """Set the first scale from the rows of the first global batch."""
        self._least = 2.0 ** -math.ceil(math.log2(max(1, rows)))
        self.scale = self.config.initial_scale * self._least

    def overflow(self) -> bool:
        """A gradient is not finite: lower the scale. False where scaling is not to blame: it is off, or the mean loss
        is not scaled up any more."""
        if not self.active or self.scale <= self._least:
            return False
        self.scale, self.good = max(self._least, self.scale * self.config.backoff), 0
        return True

    def passed(self) -> None:
        """A step was made."""
        if not self.active:
            return
        self.good += 1
        if self.good == self.config.growth_every:
            self.scale, self.good = min(2.0**120, self.scale * self.config.growth), 0

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"scale": self.scale, "good": self.good, "least": self._least} if self.active else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave."""
        if self.active and state:
            self.scale, self.good, self._least = state["scale"], state["good"], state["least"]
