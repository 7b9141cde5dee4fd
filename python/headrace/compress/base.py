"""What goes over the wire for a tensor, and what every codec has.

    codec = create("qsgd", levels=7)
    state = codec.init(grad, key=seed)
    payload, state = codec.compress(grad, state)
    decoded = codec.decompress(payload)

A payload is packed bytes and nothing else: shape, type and shared draws are known to all ranks beforehand. `compress`
changes neither tensor nor state but returns the next state, so that a step that is given up leaves none behind. A
number that is not finite is never lost: something in what is decoded is not finite then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.catalog.fingerprint import splitmix64
from headrace.comm.base import as_bytes, from_bytes

State = dict[str, Any]


class PayloadError(ValueError):
    """Bytes that no payload of this codec for such a tensor consists of."""


@dataclass(frozen=True)
class Payload:
    """A tensor on the wire.

    Args:
        data: uint8 [bytes], on the tensor's device: all that is sent.
        shape: of the tensor; not sent.
        dtype: of the tensor; not sent.
        draw: (key, turn) of what all ranks drew alike, where a codec has it; not sent.
    """

    data: Tensor
    shape: torch.Size
    dtype: torch.dtype
    draw: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that are sent."""
        return self.data.numel()


class Codec:
    """Base of all codecs: a subclass turns flat tensors of one number or more into bytes and back.

    Attributes:
        number: of a summable codec, the type of the numbers that its payload consists of; None: the tensor's own.
    """

    number: torch.dtype | None = None

    def init(self, like: Tensor, key: int = 0) -> State:
        """The state of a tensor before its first turn.

        Args:
            like: of the tensor's shape, type and device.
            key: of the draws; equal on all ranks where the codec shares them, different otherwise.
        """
        return {}

    def compress(self, x: Tensor, state: State) -> tuple[Payload, State]:
        """A dense floating-point tensor, and the state behind it."""
        flat = x.detach().reshape(-1)
        if flat.numel() == 0:
            return Payload(torch.empty(0, dtype=torch.uint8, device=x.device), x.shape, x.dtype), state
        data, state = self.encode(flat, state)
        return Payload(data, x.shape, x.dtype), state

    def decompress(self, payload: Payload) -> Tensor:
        """The tensor that a payload stands for, of its shape and type.

        Raises:
            PayloadError: the bytes are none that the codec makes.
        """
        n = payload.shape.numel()
        expected = self.nbytes(n, payload.dtype) if n else 0
        if expected is not None and payload.nbytes != expected:
            raise PayloadError(f"{payload.nbytes} bytes for {n} numbers: {expected} were to come")
        if n == 0:
            return torch.empty(payload.shape, dtype=payload.dtype, device=payload.data.device)
        return self._opened(payload, n).view(payload.shape)

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Bytes uint8 [m] of x [n], n > 0, of any floating type; the next state."""
        raise NotImplementedError

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """Numbers [n] of `dtype`, n > 0; the size of `data` is right where it is fixed.

        Raises:
            PayloadError: of a codec whose size varies, as in `decompress`.
        """
        raise NotImplementedError

    def nbytes(self, n: int, dtype: torch.dtype) -> int | None:
        """Bytes of n > 0 numbers of a type; None where that depends on them."""
        raise NotImplementedError

    def _opened(self, payload: Payload, n: int) -> Tensor:
        return self.decode(payload.data, n, payload.dtype)


class RandomCodec(Codec):
    """A codec that draws numbers: by the key and the turn of its state, and nothing else."""

    def init(self, like: Tensor, key: int = 0) -> State:
        """See `Codec.init`."""
        return {"key": key, "turn": 0}

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        generator = generator_of(state["key"], state["turn"], x.device)
        return self.encode_drawing(x, generator), state | {"turn": state["turn"] + 1}

    def encode_drawing(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Bytes of x [n]."""
        raise NotImplementedError


class SharedDrawCodec(RandomCodec):
    """A random codec whose draws are equal on all ranks: a payload knows their key and turn, and decoding repeats them.

    Nothing of the draw is among the bytes, so that these may be numbers that ranks add up.
    """

    def compress(self, x: Tensor, state: State) -> tuple[Payload, State]:
        """See `Codec.compress`; an empty tensor takes a turn as well, for other ranks' are not empty."""
        payload, _ = super().compress(x, state)
        return replace(payload, draw=(state["key"], state["turn"])), state | {"turn": state["turn"] + 1}

    def decode_drawing(self, data: Tensor, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """See `Codec.decode`; the generator begins where that of `encode_drawing` began."""
        raise NotImplementedError

    def _opened(self, payload: Payload, n: int) -> Tensor:
        if payload.draw is None:
            raise PayloadError("the payload was made by a draw that is not given")
        return self.decode_drawing(payload.data, n, payload.dtype, generator_of(*payload.draw, payload.data.device))


def generator_of(key: int, turn: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one turn of one key; neighbouring keys and turns have nothing in common."""
    first = splitmix64(np.array([key], np.int64).view(np.uint64))
    mixed = splitmix64(first ^ np.array([turn], np.uint64))
    return torch.Generator(device).manual_seed(int(mixed[0] >> np.uint64(1)))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts' memory end to end: uint8 [bytes]. Wider types go first, so that none lies askew."""
    return torch.cat([as_bytes(part) for part in parts])


def taken(data: Tensor, start: int, count: int, dtype: torch.dtype) -> Tensor:
    """`count` numbers of `dtype` that begin at byte `start`."""
    like = torch.empty(0, dtype=dtype, device=data.device)
    return from_bytes(data[start : start + count * like.element_size()], like, count)
