"""Dense gradients on their way while backward still runs.

Hooks on the parameters tell when a gradient is whole. A bucket is exchanged when all of its gradients are, by one
thread and in one order, the last parameters first, since backward reaches those first: so every rank starts the same
operations in the same order, whatever the timing. Row-sparse gradients are exchanged after backward, which ends with
the tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from headrace.comm.base import Collective
from headrace.strategies.reducers import Reducer, buckets

OVERLAP = ("auto", "on", "off")


def pays(wanted: str, collective: Collective, host: str) -> bool:
    """Whether to overlap, the same answer on every rank: `auto` where ranks wait for a network between machines.

    On one machine the exchange takes the cores from backward: see docs/decisions/0008.
    """
    if wanted != "auto" or collective.size == 1:
        return wanted == "on"
    return len(set(collective.allgather_object(host))) > 1


@runtime_checkable
class ByBuckets(Reducer, Protocol):
    """A Reducer that can be given one bucket at a time."""

    @property
    def bucket_bytes(self) -> int: ...

    def reduce_bucket(self, bucket: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """Sum one bucket of dense gradients of one dtype."""


class Overlap:
    """A Reducer whose dense sums were begun in `backward()`; without that it is the reducer it is made of.

    Inside `backward()` the collective belongs to this object's thread: nobody else may use it.

    Args:
        reducer: how a bucket is summed.
        collective: over whom.
        params: those whose gradients are dense, by name, in an order that is the same on every rank.
    """

    def __init__(self, reducer: ByBuckets, collective: Collective, params: Mapping[str, Tensor]) -> None:
        self._reducer, self._collective, self._params = reducer, collective, dict(params)
        self._buckets = [tuple(bucket) for bucket in buckets(self._params, reducer.bucket_bytes)][::-1]
        self._bucket_of = {name: k for k, bucket in enumerate(self._buckets) for name in bucket}
        self._missing = [0] * len(self._buckets)
        self._next, self._armed = 0, False
        self._running: list[Future[dict[str, Tensor]]] = []
        self._sums: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, f"headrace-exchange-{collective.rank}")
        self._hooks = [p.register_post_accumulate_grad_hook(self._hook(name)) for name, p in self._params.items()]

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """Surrounds backward: exchanges what becomes ready in it, then the rest, and waits for all of it.

        Raises:
            CollectiveError: an exchange failed.
        """
        self._missing = [len(bucket) for bucket in self._buckets]
        self._next, self._running, self._sums, self._armed = 0, [], {}, True
        try:
            yield
        except BaseException:
            self._forget()
            raise
        self._armed = False
        while self._next < len(self._buckets):  # a parameter that had no part in the loss keeps its bucket waiting
            self._start()
        self._sums = {name: total for future in self._running for name, total in future.result().items()}

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`: what was summed in backward, and what was not (row-sparse gradients) now."""
        sums, self._sums = self._sums, {}
        sums = sums | self._reducer.reduce({name: g for name, g in grads.items() if name not in sums}, collective)
        return {name: sums[name] for name in grads}

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """See `Reducer.settle`."""
        self._reducer.settle(made, rescaled)

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`."""
        return self._reducer.figures()

    def state_dict(self) -> dict[str, Any]:
        """See `Reducer.state_dict`."""
        return self._reducer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        self._reducer.load_state_dict(state)

    def close(self) -> None:
        """Leave the parameters alone and end the thread."""
        for hook in self._hooks:
            hook.remove()
        self._forget()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self) -> None:
        self._armed = False
        for future in self._running:
            future.cancel()

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def ready(param: Tensor) -> None:
            if self._armed:
                self._missing[self._bucket_of[name]] -= 1
                while self._next < len(self._buckets) and not self._missing[self._next]:
                    self._start()

        return ready

    def _start(self) -> None:
        """Send the next bucket of the fixed order to the thread."""
        grads = {name: self._params[name].grad for name in self._buckets[self._next]}
        self._next += 1
        bucket = {name: g for name, g in grads.items() if g is not None}
        if bucket:
            self._running.append(self._thread.submit(self._reducer.reduce_bucket, bucket, self._collective))
