"""How a model lies on ranks: whole on each, or with parts that each rank has for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor


class Parallelism(Protocol):
    """Called around forward, at the exchange of gradients, and where the whole model is wanted.

    Attributes:
        names: parameters of which every rank has rows of its own; other ranks hold the rest.
    """

    names: frozenset[str]

    def fetch(self, inputs: Mapping[str, Tensor]) -> Any:
        """What forward on a batch's inputs, or on some of its rows, needs of other ranks; all ranks call it together.

        Raises:
            UserError: the inputs are not of the model.
        """

    def serving(self, fetched: Any) -> AbstractContextManager[None]:
        """Inside, the model can be evaluated on the inputs that `fetch` was given; nothing is exchanged then."""

    def gradients(self, fetched: Any) -> dict[str, Tensor]:
        """This rank's gradients of what was fetched, by the name of the parameter."""

    def exchanged(self, fetched: Any) -> dict[str, Tensor]:
        """Row-sparse gradients of this rank's rows, summed over ranks in rank order; all ranks call it together."""

    def rows(self, name: str) -> int:
        """Rows of a parameter in `names`, of all ranks together."""

    def whole(self, name: str) -> Iterator[Tensor]:
        """Rows of a parameter in `names`, block by block in their order, at rank 0 and empty elsewhere; all ranks go
        through it together."""

    def figures(self) -> dict[str, float]:
        """Of this rank so far: rows that it holds, asked for and served."""


class Replicated:
    """Every rank holds the whole model."""

    names: frozenset[str] = frozenset()

    def fetch(self, inputs: Mapping[str, Tensor]) -> Any:
        """Nothing."""

    def serving(self, fetched: Any) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def gradients(self, fetched: Any) -> dict[str, Tensor]:
        """None wait: all lie with the parameters."""
        return {}

    def exchanged(self, fetched: Any) -> dict[str, Tensor]:
        """None: all are the strategy's."""
        return {}

    def rows(self, name: str) -> int:
        """There are none."""
        raise KeyError(name)

    def whole(self, name: str) -> Iterator[Tensor]:
        """There are none."""
        raise KeyError(name)

    def figures(self) -> dict[str, float]:
        """None."""
        return {}
