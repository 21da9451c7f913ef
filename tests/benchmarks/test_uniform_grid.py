"""A bank of equal steps, which the ablation compares with a mixture's."""

from __future__ import annotations

import numpy as np
import pytest
from small_networks import cells_of, random_network
from uniform_grid import LARGEST_GRID, GridProblem, fit_grid, grid_step

from gbnn_compress.rate.codebook import HIGH_RATE_STEP
from gbnn_compress.rate.rate_problem import codebook_at


def grid_problem(*, refinements: int) -> GridProblem:
    _, cells = cells_of(random_network(0))
    return fit_grid(
        cells,
        n_components=200,
        log_sigma_weight=0.1,
        max_iterations=5,
        scales=np.ones(cells.n_tensors),
        value_bits=np.full(cells.n_tensors, 32),
        other_bytes=lambda penalty: 100,
        refinements=refinements,
    )


@pytest.mark.parametrize("penalty", [0.01, 0.3])
def test_a_grid_that_is_not_refined_has_equal_steps(penalty: float) -> None:
    book, exponent = codebook_at(grid_problem(refinements=1), penalty)
    step = np.sqrt(HIGH_RATE_STEP * penalty)
    np.testing.assert_allclose(book.bank.means, step * np.rint(book.bank.means / step), atol=2.0**exponent)
    assert 0 in book.bank.means


def test_a_grid_has_a_finest_step() -> None:
    problem = grid_problem(refinements=3)
    means, counts = problem.merged(2.0**-44)
    assert problem.mixture_size == 0
    assert len(means) == len(counts) <= LARGEST_GRID + 1
    assert grid_step(problem.near, 2.0**-44) == pytest.approx(2 * np.abs(problem.near.x).max() / LARGEST_GRID)
