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

from headrace.optim.base import RuleOptimizer, State
from headrace.optim.decay import decayed

BLOCK = 1 << 16  # numbers: six operands of float32 take 1.5 MiB

Piece = tuple[Tensor, Tensor, State]


class Elementwise(RuleOptimizer):
    """A rule over lists of tensors; weight decay is done here."""

    @abstractmethod
    def rule(self, params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """Change parameters and the states' tensors in place; `torch._foreach_*` fit."""

    def advance(self, state: State, options: Mapping[str, Any]) -> None:
        """Move a state's numbers on, before the rule: once a step, however many blocks the tensor has."""

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """One tensor."""
        self.update_many([param], [grad], [state], options)

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """See `RuleOptimizer.update_many`."""
        for state in states:
            self.advance(state, options)
        for chunk in _chunks(zip(params, grads, states, strict=True)):
            pieces, slopes, kept = [p for p, _, _ in chunk], [g for _, g, _ in chunk], [s for _, _, s in chunk]
            self.rule(pieces, decayed(pieces, slopes, options), kept, options)


def _chunks(tensors: Iterator[Piece]) -> Iterator[list[Piece]]:
    """On a CPU pieces of together at most BLOCK numbers, or one tensor that cannot be cut; elsewhere everything."""
    chunk: list[Piece] = []
    size = 0
    for tensor in tensors:
        for piece in _cut(*tensor):
            if chunk and piece[0].is_cpu and size + piece[0].numel() > BLOCK:
                yield chunk
                chunk, size = [], 0
            chunk.append(piece)
            size += piece[0].numel()
    if chunk:
        yield chunk


def _cut(param: Tensor, grad: Tensor, state: State) -> Iterator[Piece]:
    """A tensor in blocks: views, with the same views of its state's tensors."""
    kept = {name: value for name, value in state.items() if torch.is_tensor(value)}
    if not param.is_cpu or param.numel() <= BLOCK or not all(t.is_contiguous() for t in (param, *kept.values())):
        yield param, grad, state
        return
    cut = {name: value.view(-1).split(BLOCK) for name, value in kept.items()}
    for i, (p, g) in enumerate(zip(param.view(-1).split(BLOCK), grad.reshape(-1).split(BLOCK), strict=True)):
        yield p, g, {**state, **{name: blocks[i] for name, blocks in cut.items()}}
