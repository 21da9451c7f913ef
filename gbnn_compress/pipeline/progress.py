"""Progress of a run: lines of text, and seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from gbnn_compress.report.schema import Timings

OnProgress = Callable[[str], None]
"""Is called with one line of text when a step begins."""


class Clock:
    """Measures the seconds that each stage takes."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages = dict.fromkeys(("read", "fit", "merge", "finetune", "encode"), 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        yield
        self._stages[stage] += time.perf_counter() - start

    def timings(self) -> Timings:
        """Stages and `total`, in seconds."""
        return cast("Timings", {**self._stages, "total": time.perf_counter() - self._start})
