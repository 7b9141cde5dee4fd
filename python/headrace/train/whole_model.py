"""The whole model, tensor by tensor and block by block, also where each rank has rows of its own: its digest, its file.

The file is one of safetensors, the bytes that safetensors itself writes (github.com/huggingface/safetensors, "Format"):
8 bytes of the header's length, the header in JSON, the tensors end to end, wide types first, then by name. Rank 0 holds
one block of a table at a time, whatever the table's size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headrace.comm import Collective
from headrace.parallel.base import Parallelism, Replicated
from headrace.parallel.layout import layout

# Names of types in the file, in the order in which safetensors lays tensors out from the last to the first.
_TYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip


@dataclass(frozen=True)
class WholeTensor:
    """A parameter or buffer of the model.

    Args:
        name: in the model's state.
        held: what this rank has of it.
        parallel: how it lies on ranks.
    """

    name: str
    held: Tensor
    parallel: Parallelism

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return (self.parallel.rows(self.name), *self.held.shape[1:]) if self.shared else tuple(self.held.shape)

    @property
    def shared(self) -> bool:
        """Whether other ranks have rows of it."""
        return self.name in self.parallel.names

    def blocks(self) -> Iterator[memoryview]:
        """Its bytes, in order; those of a shared one at rank 0 alone, and all ranks go through it together."""
        for block in self.parallel.whole(self.name) if self.shared else (self.held,):
            raw = block.detach().cpu().contiguous().reshape(-1)
            bytes_of: Any = raw.view(torch.uint8).numpy()
            yield memoryview(bytes_of)


def tensors_of(model: nn.Module, parallel: Parallelism) -> list[WholeTensor]:
    """Parameters and buffers, in the order of the model's state."""
    return [WholeTensor(name, tensor, parallel) for name, tensor in model.state_dict().items()]


def weights_sha256(model: nn.Module, collective: Collective | None = None) -> str:
    """sha256 over names and bytes of parameters and buffers, whole ones; with a collective the same on all ranks, and
    what every rank has a copy of is checked to be equal.

    Raises:
        RuntimeError: ranks hold different weights after a synchronous run.
    """
    parallel = layout(model, collective) if collective else Replicated()
    own, whole = hashlib.sha256(), hashlib.sha256()
    for tensor in tensors_of(model, parallel):
        for digest in (whole,) if tensor.shared else (own, whole):
            digest.update(tensor.name.encode())
        for block in tensor.blocks():
            for digest in (whole,) if tensor.shared else (own, whole):
                digest.update(block)
    if collective is None:
        return whole.hexdigest()
    told = collective.allgather_object([own.hexdigest(), whole.hexdigest()])
    if len({copy for copy, _ in told}) > 1:
        raise RuntimeError(f"ranks hold different weights: {', '.join(copy[:12] for copy, _ in told)}")
    return str(told[0][1])


def write_whole(path: Path, model: nn.Module, collective: Collective) -> None:
    """Write parameters and buffers to a file of safetensors, at rank 0; all ranks call it together."""
    order = list(_TYPES)
    tensors = sorted(tensors_of(model, layout(model, collective)), key=lambda t: (-order.index(t.held.dtype), t.name))
    if collective.rank != 0:
        for tensor in tensors:
            if tensor.shared:
                for _ in tensor.blocks():
                    pass
        return
    with path.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            for block in tensor.blocks():
                file.write(block)


def _header(tensors: list[WholeTensor]) -> bytes:
    at = 0
    entries: dict[str, object] = {}
    for tensor in tensors:
        end = at + torch.Size(tensor.shape).numel() * tensor.held.element_size()
        entries[tensor.name] = {
            "dtype": _TYPES[tensor.held.dtype], "shape": list(tensor.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
