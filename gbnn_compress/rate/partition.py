"""Which weights share a component at one lambda."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gbnn_compress.mixture.merge_exactly import Moments, merge_exactly
from gbnn_compress.mixture.merge_path import MergePath, merge_path
from gbnn_compress.rate.codebook import curvature_of
from gbnn_compress.types import Cells, Mixture

COMPONENT_BITS = 12.0
"""Bits of the numbers of one component."""

ENTRY_BITS = 4.0
"""Bits of a component's entry in the frequency table of one tensor."""

CUT_BELOW = 1 / 64
"""Fraction of lambda at which the path is cut, leaving components much too fine; exact merging goes on from there."""

LONGEST_RUN = 256
"""Most components that exact merging joins into one."""

Partition = Callable[[float], np.ndarray]
"""Maps lambda to int64 (n_cells,), the component of each cell, ascending in the members' mean."""


def by_rate(cells: Cells, mixture: Mixture, owner: np.ndarray) -> Partition:
    """Merge what adds less distortion than lambda times the bits it saves: first along the path, then exactly.

    Args:
        cells: The weights of the mixture.
        mixture: As fitted.
        owner: int64 (n_cells,), component of the mixture that each cell starts in.
    """
    moments = moments_of(cells, owner)
    path = merge_path(mixture, moments.counts, moments.curvature, component_bits=COMPONENT_BITS)
    return partial(_cut_and_merge, cells, owner, path)


def ascending(cells: Cells, label: np.ndarray) -> np.ndarray:
    """Labels renamed to 0, 1, ... in the order of their members' means."""
    _, label = np.unique(label, return_inverse=True)
    moments = moments_of(cells, label)
    order = np.argsort(moments.first / moments.curvature, kind="stable")
    return np.argsort(order, kind="stable")[label]


def moments_of(cells: Cells, label: np.ndarray) -> Moments:
    """Counts and moments of the cells with each of the labels 0, 1, ..."""
    size = int(label.max()) + 1
    mass = cells.count * curvature_of(cells.levels)[cells.level]
    counts = np.bincount(label * cells.n_tensors + cells.tensor, weights=cells.count, minlength=size * cells.n_tensors)
    curvature, first, second = (
        np.bincount(label, weights=mass * power, minlength=size) for power in (1.0, cells.x, cells.x**2)
    )
    return Moments(counts.reshape(size, cells.n_tensors), curvature, first, second)


def _cut_and_merge(cells: Cells, owner: np.ndarray, path: MergePath, penalty: float) -> np.ndarray:
    label = ascending(cells, path.labels(penalty * CUT_BELOW)[owner])
    runs = merge_exactly(
        moments_of(cells, label),
        penalty=penalty,
        component_bits=COMPONENT_BITS,
        entry_bits=ENTRY_BITS,
        longest=LONGEST_RUN,
    )
    return runs[label]
