"""Rules that treat every number of a tensor alike and apart from the others: Lion, NAdam, RMSProp, Adadelta.

Such a rule is written once, over lists of tensors. On a CPU it is called for one block after another, each small enough
to stay in a core's second-level cache over all of the rule's operations; large tensors are cut into blocks and small
ones go together. On other devices it is called once for all tensors, one kernel an operation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import ListRule, State
from headrace.optim.cache_blocks import block_size, blocks, packs
from headrace.optim.decay import decayed


class Elementwise(ListRule):
    """A rule over lists of tensors; weight decay is done here."""

    @abstractmethod
    def rule(self, params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """Change parameters and the states' tensors in place; `torch._foreach_*` fit."""

    def advance(self, state: State, options: Mapping[str, Any]) -> None:
        """Move a state's numbers on, before the rule: once a step, however many blocks the tensor has."""

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """See `RuleOptimizer.update_many`."""
        for state in states:
            self.advance(state, options)
        size = block_size(params[0].device)
        for pack in packs(params, size):
            for pieces, slopes, kept in _pieces([(params[i], grads[i], states[i]) for i in pack], size):
                self.rule(pieces, decayed(pieces, slopes, options), kept, options)


Lists = tuple[list[Tensor], list[Tensor], list[State]]


def _pieces(pack: list[tuple[Tensor, Tensor, State]], size: int) -> Iterator[Lists]:
    """Small tensors as they are, together; one large tensor in blocks: views, with the same views of its state's."""
    param, grad, state = pack[0]
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    if param.numel() <= size or not all(t.is_contiguous() for t in (param, *tensors.values())):
        yield [p for p, _, _ in pack], [g for _, g, _ in pack], [s for _, _, s in pack]
        return
    for p, g, *rest in blocks(size, param, grad.contiguous(), *tensors.values()):
        yield [p], [g], [{**state, **dict(zip(tensors, rest, strict=True))}]
