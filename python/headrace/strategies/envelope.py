"""Payloads of several tensors as one message, and back.

message = sizes int64 [count] where they vary from turn to turn, payloads end to end
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.comm.base import as_bytes
from headrace.compress.base import PayloadError, taken


def sealed(payloads: Sequence[Tensor], *, sizes: bool) -> Tensor:
    """Payloads uint8 [bytes] as one uint8 [bytes], behind their sizes where who opens it does not know these."""
    if not sizes:
        return torch.cat(list(payloads))
    told = torch.tensor([p.numel() for p in payloads], dtype=torch.int64, device=payloads[0].device)
    return torch.cat([as_bytes(told), *payloads])


def opened(raw: Tensor, count: int, fixed: Sequence[int] | None) -> list[Tensor]:
    """Undo `sealed`.

    Args:
        raw: uint8 [bytes].
        count: of payloads.
        fixed: their sizes; None: they stand before them.

    Raises:
        PayloadError: the bytes are no such message.
    """
    start, sizes = 0, list(fixed or ())
    if fixed is None:
        start = 8 * count
        if raw.numel() < start:
            raise PayloadError(f"{raw.numel()} bytes hold no sizes of {count} payloads")
        sizes = taken(raw, 0, count, torch.int64).tolist()
    if min(sizes) < 0 or start + sum(sizes) != raw.numel():
        raise PayloadError(f"{raw.numel()} bytes came for payloads of {sum(sizes)}")
    return list(torch.split(raw[start:], sizes))
