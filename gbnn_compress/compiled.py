"""Compiled inner loops: numba where it can be used; else numpy code that computes the same bytes, more slowly."""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from types import ModuleType

SWITCH = "GBNN_COMPRESS_NUMBA"
"""Environment variable; `0` turns compiled loops off."""


@lru_cache
def loops(name: str) -> ModuleType | None:
    """The module `gbnn_compress.NAME`, whose functions numba compiles at their first call and caches on disk.

    Returns:
        None without numba, where its cache cannot be written, and where SWITCH turns it off.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return importlib.import_module(f"gbnn_compress.{name}")
    except (ImportError, RuntimeError):  # no numba for this Python or numpy; no place for its cache
        return None
