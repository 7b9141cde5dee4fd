"""What strategies share whose ranks step on their own between the steps that all meet in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from torch import Tensor, nn


class OwnSteps:
    """Base of such strategies: see `Strategy` for what is what."""

    local = True
    one_copy = False

    def begin(self, params: Mapping[str, nn.Parameter]) -> None:
        """Nothing to do."""

    def backward(self) -> contextlib.AbstractContextManager[None]:
        """Surrounds backward: nothing is exchanged in it."""
        return contextlib.nullcontext()

    def on_gradients(self, grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """This rank's own, as they are."""
        return grads

    def before_update(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
        """Nothing to do."""

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """Nothing is open: what is exchanged is settled in `on_parameters`."""

    def close(self) -> None:
        """Let go of the parameters."""
