"""Names of runs."""

from __future__ import annotations

import secrets
import time


def new_run_id(model: str) -> str:
    """Sorts by time; not to be guessed twice in a second."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{secrets.token_hex(2)}"
