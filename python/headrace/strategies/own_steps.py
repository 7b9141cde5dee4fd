"""What strategies share whose ranks step on their own between the steps that all meet in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Places = Mapping[str, tuple[Any, Tensor]]  # by parameter: an index (rows, or ... for all of it), and values there


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


def put(params: Mapping[str, Tensor], values: Places) -> None:
    """Write values into parameters."""
    for name, (where, value) in values.items():
        params[name][where] = value


@contextlib.contextmanager
def replaced(params: Mapping[str, Tensor], values: Places) -> Iterator[None]:
    """Inside, parameters have these values; afterwards their own again."""
    own = {name: (where, params[name][where].clone()) for name, (where, _) in values.items()}
    put(params, values)
    try:
        yield
    finally:
        put(params, own)
