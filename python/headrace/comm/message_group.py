"""Some ranks as a group of their own whose operations are their own business: by messages.

    replicas = MessageGroup(mailbox, members, "stage-2")

Unlike a `Subgroup`, whose every operation is one of all ranks at once, members operate when they like, whatever others
do. Sends do not wait; every member reads what each other sent in order. Sums go in rank order: the bits of a Subgroup.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.comm.base import CollectiveError, as_bytes, check_chunks, from_bytes, row_bytes
from headrace.comm.mailbox import Mailbox
from headrace.comm.subgroup import Subgroup


class MessageGroup(Subgroup):
    """See the module's docstring.

    Args:
        mailbox: of this rank.
        members: ranks of the group, this one among them, ascending.
        box: name of its boxes: groups that share members have different ones.
        timeout_s: how long a member is waited for; None: for ever.
    """

    def __init__(self, mailbox: Mailbox, members: Sequence[int], box: str, timeout_s: float | None = 600.0) -> None:
        if mailbox.rank not in members or sorted(set(members)) != list(members):
            raise ValueError(f"rank {mailbox.rank} must be among ascending members; got {list(members)}")
        self.mailbox, self.members, self.box, self.timeout_s = mailbox, list(members), box, timeout_s

    @property
    def rank(self) -> int:
        return self.members.index(self.mailbox.rank)

    @property
    def name(self) -> str:
        return "messages"

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.alltoall`."""
        check_chunks(chunks, self.size)
        kind = f"{chunks[0].dtype} {list(chunks[0].shape[1:])}"
        for member, chunk in zip(self.members, chunks, strict=True):
            if member != self.mailbox.rank:
                # A copy: what the caller does to its tensor later changes nothing that is under way.
                body = as_bytes(chunk).cpu().clone()
                self.mailbox.send(member, f"{self.box}.{self.mailbox.rank}", kind, chunk.shape[0], body)
        return [
            chunks[place].detach().clone() if place == self.rank else
            self._from(member, kind, chunks[0], None if rows is None else rows[place])
            for place, member in enumerate(self.members)
        ]  # fmt: skip

    def _from(self, member: int, kind: str, like: Tensor, rows: int | None) -> Tensor:
        """What a member sent: `[rows, ...]` of the type and trailing shape of `like`."""
        message = self.mailbox.receive(f"{self.box}.{member}", self.timeout_s)
        if message is None:
            raise CollectiveError(f"no answer from rank {member} within {self.timeout_s} s in group {self.box}")
        count, found = message.head, message.body.numel()
        fits = isinstance(count, int) and count >= 0 and count * row_bytes(like) == found and rows in (None, count)
        if (message.source, message.kind) != (member, kind) or not fits:
            raise CollectiveError(
                f"group {self.box}: {found} bytes of {message.kind} from rank {message.source}, not "
                f"{'' if rows is None else rows} rows of {kind} from rank {member}"
            )
        return from_bytes(message.body, like, count).to(like.device, copy=True)

    def barrier(self) -> None:
        """Return when all members have called it."""
        self.allgather(torch.empty(0, dtype=torch.uint8), [0] * self.size)
