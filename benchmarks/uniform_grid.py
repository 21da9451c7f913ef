"""A bank of equal steps in place of a mixture's, for the ablation: what merging a mixture is worth beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gbnn_compress.rate.codebook import HIGH_RATE_STEP
from gbnn_compress.rate.partition import ascending, moments_of
from gbnn_compress.rate.rate_problem import RateProblem, fit_path
from gbnn_compress.types import Cells

LARGEST_GRID = 4096
"""Most components."""


@dataclass(frozen=True)
class GridProblem(RateProblem):
    """Rate control whose components are the steps of a uniform grid, one of them around zero.

    Refinement moves them; with one round of it they stay.
    """

    def merged(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Means (K,) and counts (K, T) of the steps that hold weights."""
        step = grid_step(self.near, penalty)
        moments = moments_of(self.near, ascending(self.near, np.rint(self.near.x / step)))
        return step * np.rint(moments.first / moments.curvature / step), moments.counts


def fit_grid(cells: Cells, **options: Any) -> GridProblem:
    """As `fit_path`, whose arguments it takes, but with a grid at every lambda."""
    problem = fit_path(cells, **{**options, "n_components": 1})
    given = {field.name: getattr(problem, field.name) for field in fields(problem) if field.init}
    return GridProblem(**{**given, "mixture": None})


def grid_step(cells: Cells, penalty: float) -> float:
    """Step of the best uniform quantiser at lambda, but no finer than gives LARGEST_GRID components."""
    return max(float(np.sqrt(HIGH_RATE_STEP * penalty)), 2 * float(np.abs(cells.x).max()) / LARGEST_GRID)
