"""Rules that carry a learning rate tuned at one batch to another.

    linear: lr batch / base_batch           P. Goyal et al., "Accurate, large minibatch SGD", arXiv:1706.02677, 2017
    sqrt:   lr sqrt(batch / base_batch)     A. Krizhevsky, "One weird trick for parallelizing convolutional neural
                                            networks", arXiv:1404.5997, 2014; E. Hoffer, I. Hubara, D. Soudry, "Train
                                            longer, generalize better", 2017: keeps the covariance of a step

The linear rule is for SGD and momentum, k steps of a small batch as one; the square-root rule for LAMB (its paper's
section 4) and other rules whose step does not grow with the gradient. Both with a warm-up (`schedules`).
"""

from __future__ import annotations

import math

from headrace.errors import UserError

SCALINGS = ("none", "linear", "sqrt")


def linear(lr: float, batch: int, base_batch: int) -> float:
    """lr at `batch` rows of one tuned at `base_batch`."""
    return lr * _ratio(batch, base_batch)


def sqrt(lr: float, batch: int, base_batch: int) -> float:
    """lr at `batch` rows of one tuned at `base_batch`."""
    return lr * math.sqrt(_ratio(batch, base_batch))


def scaled(scaling: str, lr: float, batch: int, base_batch: int) -> float:
    """lr by a rule of SCALINGS.

    Raises:
        UserError: an unknown rule, or a batch below one row.
    """
    rules = {"none": lambda lr, batch, base_batch: lr, "linear": linear, "sqrt": sqrt}
    if scaling not in rules:
        raise UserError(f"there is no scaling of the learning rate {scaling!r}", f"one of {', '.join(SCALINGS)}")
    return float(rules[scaling](lr, batch, base_batch))


def _ratio(batch: int, base_batch: int) -> float:
    if batch < 1 or base_batch < 1:
        raise UserError(f"a batch has at least one row, not {min(batch, base_batch)}")
    return batch / base_batch
