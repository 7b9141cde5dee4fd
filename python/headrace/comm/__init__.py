"""Collectives and mailboxes: the two ways ranks talk to each other during a computation."""

from headrace.comm.base import Collective, CollectiveError
from headrace.comm.clock import Clock, WallClock
from headrace.comm.local import LocalCollective, LocalGroup
from headrace.comm.mailbox import Mailbox, Message
from headrace.comm.metered import Metered
from headrace.comm.metered_mailbox import MeteredMailbox
from headrace.comm.simulated import SimulatedCluster
from headrace.comm.tcp_mailbox import open_mailbox

__all__ = [
    "Clock",
    "Collective",
    "CollectiveError",
    "LocalCollective",
    "LocalGroup",
    "Mailbox",
    "Message",
    "Metered",
    "MeteredMailbox",
    "SimulatedCluster",
    "WallClock",
    "open_mailbox",
]
