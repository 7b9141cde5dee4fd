"""Collectives: the one way ranks talk to each other during a computation."""

from headrace.comm.base import Collective, CollectiveError
from headrace.comm.local import LocalCollective, LocalGroup
from headrace.comm.metered import Metered

__all__ = ["Collective", "CollectiveError", "LocalCollective", "LocalGroup", "Metered"]
