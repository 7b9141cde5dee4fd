"""One rank of this process at a time, for what ranks that are threads share: torch's global random generator."""

from __future__ import annotations

import threading

ALONE = threading.RLock()
