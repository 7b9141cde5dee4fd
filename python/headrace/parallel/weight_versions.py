"""Weights as forward passes saw them, kept until their backward passes are through (weight stashing).

    forward m on v = version(m):  W_v is kept    backward m:  grad f(W_v)    update:  W_{v+1} = step(W_v, grad)

The newest version shares memory with the parameters; an update moves these to new memory where the old one is still
needed. So S - s versions take the memory of S - s sets of weights, the parameters among them.

Reference: D. Narayanan et al., "PipeDream", SOSP 2019, section 3.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn


class WeightVersions:
    """The versions of a stage's trained parameters that are still needed.

    Attributes:
        newest: number of updates so far.
        most: most versions held at a time.
    """

    def __init__(self, params: Mapping[str, nn.Parameter]) -> None:
        self._params = dict(params)
        self._held: dict[int, dict[str, Tensor]] = {}
        self._users: Counter[int] = Counter()
        self.newest = self.most = 0

    def take(self, number: int) -> dict[str, Tensor]:
        """The weights after `number` updates, as leaves, for a forward pass; given back with `give_back`."""
        held = self._hold_newest() if number == self.newest else self._held[number]
        self._users[number] += 1
        return held

    def _hold_newest(self) -> dict[str, Tensor]:
        if self.newest not in self._held:
            # `.data`: the same memory under a version counter of its own, for updates never change this memory.
            self._held[self.newest] = {name: p.data.requires_grad_() for name, p in self._params.items()}
            self.most = max(self.most, len(self._held))
        return self._held[self.newest]

    def give_back(self, number: int) -> None:
        """The backward pass is through: its gradients are added to those of the parameters."""
        self._users[number] -= 1
        for name, weights in self._held[number].items():
            if weights.grad is None:
                continue
            param = self._params[name]
            param.grad = weights.grad if param.grad is None else param.grad.add_(weights.grad)
            weights.grad = None

    def before_update(self, needed_from: int) -> None:
        """Let go of versions under `needed_from` that nobody uses, and keep the update off the memory of others."""
        if needed_from <= self.newest:
            self._hold_newest()
        self._drop(needed_from)
        if self.newest in self._held:
            for param in self._params.values():
                param.data = param.data.clone()
        self.newest += 1

    def restart(self) -> None:
        """The pipeline is empty: nothing is held, updates are counted anew."""
        assert not any(self._users.values())
        self._held.clear()
        self.newest = 0

    def _drop(self, needed_from: int) -> None:
        for number in [n for n in self._held if n < needed_from and not self._users[n]]:
            del self._held[number]
