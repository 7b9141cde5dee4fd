"""Row-sparse gradients by way of a codec, around a reducer that sums all the others.

    sent = ids, C(rows) of every table;  sum of a row = sum over ranks of C^-1(C(row)), in rank order

Without memory of what was not sent: the next step touches other rows, and a residual that waited for its row would be
of old weights. So the codec must be right in the mean (UNBIASED) or round only (casts), see `why_not`. A rank's own
rows go through the codec as well: all ranks add up the same numbers. Draws belong to the table's name, the rank and
the number of steps that were made; bytes are those of headrace.strategies.sparse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headrace.comm.base import Collective
from headrace.compress import CodecSpec, Payload
from headrace.compress.base import Codec
from headrace.compress.spec import EXACT, OWN_FEEDBACK, OWN_MOMENTUM, SHARED_DRAWS, SUMMABLE, UNBIASED
from headrace.strategies.compressed import key_of
from headrace.strategies.memory import Memory
from headrace.strategies.overlap import ByBuckets
from headrace.strategies.sparse import reduce_sparse


def why_not(spec: CodecSpec) -> str:
    """Why a codec does not serve rows; empty where it does."""
    if spec.traits & {OWN_FEEDBACK, OWN_MOMENTUM}:
        return "it remembers what it did not send, and the next step touches other rows"
    if SHARED_DRAWS in spec.traits:
        return "its ranks must send the same numbers, and they touch different rows"
    if not spec.traits & {EXACT, UNBIASED, SUMMABLE}:  # summable: casts, since other ranks' draws are not shared
        return "it is not right in the mean: error feedback would send the rest later, and rows have none"
    return ""


class CodedRows(Memory):
    """See the module's docstring.

    Args:
        codec: one that `why_not` has nothing against.
        inner: sums dense gradients.
        seed: of what the codec draws.
    """

    def __init__(self, codec: Codec, inner: ByBuckets, seed: int) -> None:
        super().__init__()
        self.codec, self.inner, self.seed = codec, inner, seed
        self.bucket_bytes = inner.bucket_bytes

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`."""
        tables = {name: g for name, g in grads.items() if g.is_sparse}
        summed = self.inner.reduce({name: g for name, g in grads.items() if name not in tables}, collective)
        summed |= reduce_sparse(tables, collective, self)
        return {name: summed[name] for name in grads}

    def reduce_bucket(self, bucket: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """Sum one bucket of dense gradients of one type."""
        return self.inner.reduce_bucket(bucket, collective)

    def encode(self, name: str, rows: Tensor, rank: int) -> Tensor:
        """See `RowCodec.encode`."""
        with self.timed("encode"):
            state = self.kept(name) or self.codec.init(rows, key_of(self.seed, name, 1 + rank))
            payload, state = self.codec.compress(rows, state)
        if state:
            self.remember(name, state)
        self.numbers["in"] += rows.nbytes
        self.numbers["out"] += payload.nbytes
        self.numbers["rows_out"] += payload.nbytes
        return payload.data

    def decode(self, data: Tensor, like: Tensor) -> Tensor:
        """See `RowCodec.decode`."""
        with self.timed("decode"):
            return self.codec.decompress(Payload(data, like.shape, like.dtype))

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """See `Reducer.settle`."""
        super().settle(made, rescaled)
        self.inner.settle(made, rescaled)

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`: of rows and dense gradients together."""
        own, other = super().figures(), self.inner.figures()
        return {name: own.get(name, 0) + other.get(name, 0) for name in own | other}

    def state_dict(self) -> dict[str, Any]:
        """See `Reducer.state_dict`."""
        return {"rows": super().state_dict(), "dense": self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: for the state of another reducer.
        """
        if "rows" not in state:
            raise ValueError("the checkpoint knows nothing of compressed rows: they were not compressed then")
        super().load_state_dict(state["rows"])
        self.inner.load_state_dict(state["dense"])
