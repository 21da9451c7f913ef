"""Who shares a component: by distance, with its guards."""

from __future__ import annotations

import numpy as np
import pytest
from small_networks import cells_of, problem_of, random_network

from gbnn_compress.mixture.merge_path import merge_path
from gbnn_compress.rate.codebook import HIGH_RATE_STEP
from gbnn_compress.rate.control import codebook_at
from gbnn_compress.rate.partition import moments_of
from gbnn_compress.types import Cells, Mixture


def random_cells() -> Cells:
    return cells_of(random_network(0))[1]


def four_in_a_row(log_sigmas: list[float]) -> Mixture:
    means = np.stack([[0.0, 1.0, 3.0, 6.0], log_sigmas], axis=1)
    return Mixture(np.full(4, 0.25), means, np.tile(1e-4 * np.eye(2), (4, 1, 1)))


def test_by_distance_the_nearest_pair_goes_first_whatever_it_costs() -> None:
    counts = np.array([[1000.0], [1000.0], [1.0], [1.0]])
    path = merge_path(four_in_a_row([0.0] * 4), counts, counts[:, 0], component_bits=None)
    assert set(path.pairs[0].tolist()) == {0, 1}
    assert path.slopes[0] == pytest.approx(1.0)
    assert len(np.unique(path.labels(0.99))) == 4
    assert len(np.unique(path.labels(1.01))) == 3
    assert len(np.unique(path.labels(np.inf))) == 1


def test_components_of_too_different_a_sigma_never_merge() -> None:
    counts = np.ones((4, 1))
    path = merge_path(four_in_a_row([0.0, 1.0, 0.0, 1.0]), counts, counts[:, 0], component_bits=None, widest_gap=0.5)
    labels = path.labels(np.finfo(float).max)
    assert labels[0] == labels[2] != labels[1] == labels[3]


def test_what_is_farther_than_the_threshold_stays_apart() -> None:
    problem = problem_of(random_cells(), merging="wasserstein", merge_distance=2.0, merge_variance=100.0)
    for penalty in (0.01, 0.1, 1.0):
        moments = moments_of(problem.near, problem.partition(penalty))
        gaps = np.diff(moments.first / moments.curvature)
        # W2 also counts what the components differ by in width.
        assert np.median(gaps) >= 0.5 * 2 * np.sqrt(HIGH_RATE_STEP * penalty)
        assert len(gaps) > 1
    assert len(np.unique(problem.partition(2.0**28))) == 1


def test_weights_beyond_a_limit_are_outliers_and_no_others_are() -> None:
    limits = np.array([2.0, 3.0, np.inf])
    problem = problem_of(random_cells(), limits=limits)
    cells = problem.cells
    book, _ = codebook_at(problem, 0.1)
    beyond = np.abs(cells.x) > limits[cells.tensor]
    expected = np.bincount(cells.tensor[beyond], weights=cells.count[beyond], minlength=3)
    np.testing.assert_allclose(book.counts[:, -1], expected)
    assert expected[0] > 0 == expected[2]
