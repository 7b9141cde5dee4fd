"""Which server holds what of a model: dense parameters whole, embedding tables by rows.

dense tensor       to one of K servers, the largest first to the least laden (headrace.optim.dealing): rules that
                   look at a whole tensor (LARS, LAMB, Muon) see it
row i of a table   server i mod K, where it is row i // K
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headrace.optim.dealing import longest_first
from headrace.optim.master_weights import HALF


@dataclass(frozen=True)
class Layout:
    """What is where; the same on every rank.

    Args:
        servers: K: ranks 0 to K - 1.
        owners: server of each dense parameter by name.
        names: of all parameters, in the model's order.
    """

    servers: int
    owners: Mapping[str, int]
    names: tuple[str, ...]

    def is_table(self, name: str) -> bool:
        """Whether a parameter is dealt by rows."""
        return name not in self.owners

    def part(self, server: int, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A server's parameters in the model's order: whole ones, and rows of tables; views."""
        return {
            name: params[name][server :: self.servers] if self.is_table(name) else params[name]
            for name in self.names
            if self.owners.get(name, server) == server
        }


def deal(params: Mapping[str, Tensor], tables: Collection[str], servers: int) -> Layout:
    """Deal parameters out to at most so many servers: no more than there is something to hold for."""
    dense = {name: max(1, param.numel()) for name, param in params.items() if name not in tables}
    servers = servers if len(dense) < len(params) else min(servers, len(dense))
    dealt = longest_first(list(dense.values()), [1.0] * servers)
    return Layout(servers, dict(zip(dense, dealt, strict=True)), tuple(params))


class Part(nn.Module):
    """A server's parameters under the model's names, as a model that an optimizer can be made for.

    Args:
        values: copied.
        layout: says which are tables.
    """

    def __init__(self, values: Mapping[str, Tensor], layout: Layout) -> None:
        super().__init__()
        self.held = {name: nn.Parameter(value.clone()) for name, value in values.items()}
        for param in self.held.values():
            if param.dtype in HALF:
                param.grad_dtype = torch.float32  # as ranks have them: headrace.train.precision
        self.tables = [name for name in self.held if layout.is_table(name)]

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """By the model's names, which a module's own would be split at their dots."""
        yield from self.held.items()

    def sparse_parameters(self) -> Iterator[nn.Parameter]:
        """Those with row-sparse gradients."""
        return (self.held[name] for name in self.tables)
