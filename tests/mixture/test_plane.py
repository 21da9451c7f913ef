from __future__ import annotations

import numpy as np
import pytest

from gbnn_compress.mixture.plane import plane_of, reach


def test_components_have_the_moments_of_their_members_and_every_weight_counts_once():
    generator = np.random.default_rng(0)
    ids, x, y = generator.integers(0, 4, 1000), generator.normal(size=1000), 0.3 * generator.normal(size=1000)
    ids[ids == 1] = 0  # nobody in component 1; 3 is past the bank
    halves = [(ids[part], x[part], y[part]) for part in (slice(0, 400), slice(400, None))]
    plane = plane_of(halves, size=3, x_limit=2.0)
    assert plane.density.sum() == pytest.approx(1000 * (1 - plane.beyond))
    assert plane.beyond == pytest.approx(np.mean((x < -2) | (x >= 2)))
    assert plane.components.weights.sum() == pytest.approx(1)
    for place, k in enumerate((0, 2)):
        members = np.stack([x[ids == k], y[ids == k]])
        np.testing.assert_allclose(plane.components.means[place], members.mean(axis=1))
        np.testing.assert_allclose(plane.components.covariances[place], np.cov(members, bias=True), atol=1e-12)


def test_density_lies_where_the_weights_are():
    x, y = np.array([-0.99, 0.0, 0.99]), np.array([-9.0, 0.0, 9.0])
    plane = plane_of([(np.zeros(3, dtype=int), x, y)], size=1, x_limit=1.0)
    rows, columns = plane.density.shape
    assert np.argwhere(plane.density).tolist() == [[0, 0], [rows // 2, columns // 2], [rows - 1, columns - 1]]


def test_the_grid_reaches_nearly_all_weights():
    means = np.array([-50.0, -1.0, 0.0, 1.0])
    ids = np.repeat([0, 1, 2, 3, 4], [1, 400, 400, 400, 9])
    assert reach(means, [ids]) == pytest.approx(1.2)
    assert reach(np.zeros(0), [ids]) == reach(np.zeros(1), [ids]) == 1.0
