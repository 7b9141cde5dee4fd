"""Random numbers of layers as a function of where they are drawn, not of who runs when.

    masks of layer l for part p of the data = f(seed, p, l),     p = step x parts of a step + number of the part

l is the layer's place in the whole model: the same masks however the model is cut, in a second forward pass
(recomputation) and after a resume; there is no state to save.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from headrace.comm.alone import ALONE
from headrace.models.layers import dropout_seed, reseed_dropout

_DRAWING = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def draws(layer: nn.Module) -> bool:
    """Whether a layer in training draws from torch's default generator: dropout, also by an attribute `dropout` above 0
    as recurrent layers and attention have it."""
    return any(module.training and (isinstance(module, _DRAWING) or _rate(module) > 0.0) for module in layer.modules())


def _rate(module: nn.Module) -> float:
    rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0.0)
    return float(rate) if isinstance(rate, int | float) else 0.0


@contextmanager
def seeded(layer: nn.Module, seed: int, part: int, place: int) -> Iterator[None]:
    """Inside, a layer draws what belongs to this part of the data; see the module's docstring."""
    reseed_dropout(layer, seed, part, place)
    if not draws(layer):
        yield
        return
    with ALONE, torch.random.fork_rng():
        torch.manual_seed(dropout_seed(seed, part, place, 0))
        yield
