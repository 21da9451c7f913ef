"""Processor seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def seconds(action: Callable[[], Any]) -> float:
    """Of one run, in all threads of this process."""
    start = time.process_time()
    action()
    return time.process_time() - start


def median(action: Callable[[], Any]) -> float:
    """Of three runs."""
    return statistics.median(seconds(action) for _ in range(3))
