"""A folder for compiled code that lasts as long as the test session and is shared by parallel workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def session_cache(factory: pytest.TempPathFactory) -> Path:
    """Where ``STRATA_CACHE_DIR`` may point to in this session."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "strata-cache"
