"""What neighbouring stages send each other: activations forward, gradients backward, point to point.

A message is one micro-batch: dtypes and shapes in the head, the bytes of all tensors after each other as body. A stage
knows what it must get next and from whom; anything else is an error, before a number is looked at. Sending does not
wait, so stages cannot wait for each other in a circle (`pipeline_schedule.finish_times` shows it of every schedule).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headrace.comm import CollectiveError
from headrace.comm.base import as_bytes, from_bytes
from headrace.comm.mailbox import Mailbox, Message
from headrace.parallel.stages import Values, tensors_of

ACTIVATIONS, GRADIENTS, FAILED = "activations", "gradients", "failed"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip
_MAX_TENSORS, _MAX_DIMS = 64, 16


class Arrived(NamedTuple):
    """Activations as they came.

    Args:
        rows: of the batch in this micro-batch.
        values: a tensor, or a tuple of them; leaves, where a gradient is to be sent back.
    """

    rows: int
    values: Values


class Boundary:
    """One stage's ends to its neighbours.

    Args:
        mailbox: of this rank.
        ranks: of the stages of this pipeline, in order.
        name: of the pipeline: two on one mailbox have different ones.
        max_bytes: of a message that is accepted.
        timeout_s: how long a neighbour is waited for.
    """

    def __init__(
        self, mailbox: Mailbox, ranks: Sequence[int], name: str, max_bytes: int, timeout_s: float | None
    ) -> None:
        self.mailbox, self.ranks, self.name = mailbox, list(ranks), name
        self.max_bytes, self.timeout_s = max_bytes, timeout_s
        self.stage = self.ranks.index(mailbox.rank)
        self.told = False  # whether another rank's failure has come

    def send_activations(self, number: int, rows: int, values: Values, grad: Sequence[bool]) -> None:
        """Micro-batch `number` to the next stage; `grad`: which tensors want a gradient."""
        head = {"rows": rows, "tuple": not torch.is_tensor(values), "grad": list(grad)}
        self._send(ACTIVATIONS, self.stage + 1, number, tensors_of(values), head)

    def receive_activations(self, number: int, device: torch.device) -> Arrived:
        """Micro-batch `number` from the stage before.

        Raises:
            CollectiveError: a rank failed or is gone, nothing came in time, or what came is something else.
        """
        head, tensors = self._receive(ACTIVATIONS, self.stage - 1, number)
        rows, grads = head.get("rows"), head.get("grad")
        if not isinstance(rows, int) or rows < 0 or not isinstance(grads, list) or len(grads) != len(tensors):
            raise self._unlike(ACTIVATIONS, number, f"a head {head}")
        leaves = tuple(_leaf(t, device, grad is True) for t, grad in zip(tensors, grads, strict=True) if t is not None)
        if len(leaves) != len(grads) or not leaves or (len(leaves) > 1 and head.get("tuple") is not True):
            raise self._unlike(ACTIVATIONS, number, f"{len(leaves)} tensors for {len(grads)}")
        return Arrived(rows, leaves if head.get("tuple") is True else leaves[0])

    def send_gradients(self, number: int, grads: Sequence[Tensor | None]) -> None:
        """Gradients of what came for micro-batch `number`, to the stage before; None: it had no part in the loss."""
        self._send(GRADIENTS, self.stage - 1, number, grads, {})

    def receive_gradients(self, number: int, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of the outputs of micro-batch `number`, from the next stage.

        Raises:
            CollectiveError: see `receive_activations`.
        """
        _, grads = self._receive(GRADIENTS, self.stage + 1, number)
        like = [(out.shape, out.dtype) for out in outputs]
        if len(grads) != len(outputs) or any(
            g is not None and (g.shape, g.dtype) != want for g, want in zip(grads, like, strict=True)
        ):
            raise self._unlike(GRADIENTS, number, "gradients that do not fit what was sent")
        return [None if g is None else g.to(out.device) for g, out in zip(grads, outputs, strict=True)]

    def fail(self, reason: str) -> None:
        """Release all ranks that wait in a pipeline of this name, now or later, with what happened here."""
        for rank in range(self.mailbox.size):
            for kind in (ACTIVATIONS, GRADIENTS):
                try:
                    if rank != self.mailbox.rank:
                        self.mailbox.send(rank, f"{self.name}.{kind}", FAILED, {"stage": self.stage, "reason": reason})
                except CollectiveError:
                    return

    def _send(self, kind: str, stage: int, number: int, tensors: Sequence[Tensor | None], head: dict[str, Any]) -> None:
        there = [t.detach() for t in tensors if t is not None]
        shapes = [None if t is None else [str(t.dtype).removeprefix("torch."), *t.shape] for t in tensors]
        # Joined into new memory: nothing that is done to the tensors here changes what was sent.
        body = torch.cat([as_bytes(t).cpu() for t in there]) if there else None
        head = head | {"micro_batch": number, "tensors": shapes}
        self.mailbox.send(self.ranks[stage], f"{self.name}.{kind}", kind, head, body)

    def _receive(self, kind: str, stage: int, number: int) -> tuple[dict[str, Any], list[Tensor | None]]:
        message = self.mailbox.receive(f"{self.name}.{kind}", self.timeout_s)
        if message is None:
            raise CollectiveError(
                f"stage {self.stage} got no {kind} of micro-batch {number} from stage {stage} (rank "
                f"{self.ranks[stage]}) within {self.timeout_s} s"
            )
        head = message.head if isinstance(message.head, dict) else {}
        if message.kind == FAILED:
            self.told = True
            raise CollectiveError(f"stage {head.get('stage')} (rank {message.source}) failed: {head.get('reason')}")
        if (message.source, message.kind, head.get("micro_batch")) != (self.ranks[stage], kind, number):
            raise self._unlike(
                kind, number, f"{message.kind} of micro-batch {head.get('micro_batch')} from rank {message.source}"
            )
        tensors = _unpacked(message, head.get("tensors"), self.max_bytes)
        if tensors is None:
            raise self._unlike(kind, number, f"{message.body.numel()} bytes for {str(head.get('tensors'))[:200]}")
        return head, tensors

    def _unlike(self, kind: str, number: int, what: str) -> CollectiveError:
        return CollectiveError(f"stage {self.stage} waited for {kind} of micro-batch {number} and got {what}")


def _leaf(x: Tensor, device: torch.device, grad: bool) -> Tensor:
    return x.to(device).requires_grad_(grad and x.is_floating_point())


def _unpacked(message: Message, shapes: Any, max_bytes: int) -> list[Tensor | None] | None:
    """The tensors of a body; None where head and body do not agree, or are beyond what is accepted."""
    if not isinstance(shapes, list) or len(shapes) > _MAX_TENSORS or message.body.numel() > max_bytes:
        return None
    tensors: list[Tensor | None] = []
    at = 0
    for shape in shapes:
        if shape is None:
            tensors.append(None)
            continue
        if not _is_shape(shape):
            return None
        like = torch.empty(shape[1:], dtype=_DTYPES[shape[0]], device="meta")
        if like.nbytes > message.body.numel() - at:
            return None
        tensors.append(from_bytes(message.body[at : at + like.nbytes], like))
        at += like.nbytes
    return tensors if at == message.body.numel() else None


def _is_shape(shape: Any) -> bool:
    """Whether it is a known dtype and sizes of a tensor that memory could hold."""
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_DIMS:
        return False
    if not isinstance(shape[0], str) or shape[0] not in _DTYPES:
        return False
    numel = 1
    for size in shape[1:]:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            return False
        numel *= max(size, 1)
    return numel < 1 << 48
