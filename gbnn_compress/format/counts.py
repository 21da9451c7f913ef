"""How often each id occurs."""

from __future__ import annotations

import numpy as np

from gbnn_compress import compiled

AT_ONCE = 1 << 19
"""Number of ids counted at a time: `numpy.bincount` converts them to 64-bit integers."""


def id_counts(ids: np.ndarray, size: int) -> np.ndarray:
    """int64 (size,), number of occurrences of 0, 1, ... in unsigned integers (n,) below `size`."""
    counts = np.zeros(size, dtype=np.int64)
    fits = ids.dtype.kind == "u" and size <= len(ids)
    if fits and (loops := compiled.loops("format.count_loops", work=len(ids))) is not None:
        loops.count(np.require(ids, requirements=["C", "W"]), counts)
        return counts
    for start in range(0, len(ids), AT_ONCE):
        counts += np.bincount(ids[start : start + AT_ONCE], minlength=size)
    return counts
