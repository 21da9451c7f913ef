"""Processor seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def processor_seconds(action: Callable[[], Any]) -> float:
    """Of one run, in all threads of this process."""
    start = time.process_time()
    action()
    return time.process_time() - start


def median_processor_seconds(action: Callable[[], Any]) -> float:
    """Of three runs."""
    return statistics.median(processor_seconds(action) for _ in range(3))
