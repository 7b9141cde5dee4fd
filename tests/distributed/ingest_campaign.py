"""`scripts/campaign_ingest.py` as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "campaign_ingest.py"


def load() -> ModuleType:
    """Its functions, for tests that kill and compare as it does."""
    spec = importlib.util.spec_from_file_location("campaign_ingest", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["campaign_ingest"] = module
    spec.loader.exec_module(module)
    return module
