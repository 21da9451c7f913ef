"""The histogram keeps counts, means and squares of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import cells_of, random_network

from gbnn_compress.rate.cells import LEVELS, build_cells, nearest_cells, pooled_points, row_blocks, sigma_levels
from gbnn_compress.types import Posterior


def posterior(rows: int, *, scale: float = 0.5, log_sigma: float = 0.0, name: str = "w") -> Posterior:
    return Posterior(name, scale, np.full(rows, log_sigma))


@given(st.integers(0, 2**32 - 1), st.sampled_from([8.0, 64.0, 512.0]))
@settings(max_examples=20, deadline=None)
def test_counts_means_and_squares_are_kept(seed: int, resolution: float) -> None:
    random = np.random.default_rng(seed)
    tensors = {
        "a": torch.from_numpy(random.laplace(size=(7, 30)) * 10.0 ** random.integers(-3, 4)),
        "b": torch.from_numpy(random.normal(size=(4, 3, 3, 3)).astype(np.float32)),
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    posteriors = [Posterior("a", 0.5, random.normal(size=7)), Posterior("b", 2.0, random.normal(size=4))]
    cells = build_cells(tensors, posteriors, resolution=resolution)
    assert cells.n_tensors == 2
    for index, part in enumerate(posteriors):
        chosen = cells.tensor == index
        x = tensors[part.name].double().numpy().ravel() / part.scale
        count, mean = cells.count[chosen], cells.x[chosen]
        assert count.sum() == len(x)
        assert count @ mean == pytest.approx(x.sum(), rel=1e-9, abs=1e-9)
        assert count @ (mean**2 + cells.spread[chosen]) == pytest.approx((x**2).sum(), rel=1e-9)
        every = sigma_levels(part, slice(None), x.reshape(len(part.log_sigma), -1))
        rows = np.bincount(every[:, 0], minlength=len(LEVELS)) * (len(x) // len(part.log_sigma))
        levels = np.bincount(cells.level[chosen], weights=count, minlength=len(LEVELS))
        np.testing.assert_array_equal(levels, rows)
    order = np.lexsort((cells.x, cells.level, cells.tensor))
    np.testing.assert_array_equal(order, np.arange(len(order)))
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name])


def test_cells_are_as_fine_as_asked_for_near_zero() -> None:
    values = torch.linspace(-0.5, 0.5, 2001, dtype=torch.float64).reshape(3, 667)
    cells = build_cells({"w": values}, [posterior(3, scale=1.0)], resolution=100)
    assert np.sqrt(cells.spread).max() < 0.5 / 100
    assert 60 < len(cells.x) < 110


def test_any_magnitude_fits() -> None:
    values = torch.tensor([[1e30, -1e30, 1e-30, 0.0]])
    cells = build_cells({"w": values}, [posterior(1)], resolution=64)
    np.testing.assert_allclose(cells.x, [-2e30, 1e-30, 2e30], rtol=1e-6)
    np.testing.assert_array_equal(cells.count, [1, 2, 1])


def test_levels_are_half_octaves_within_two_octaves() -> None:
    octaves = np.array([-9, -2, -0.5, 0, 0.2, 0.3, 2, 9])
    levels = sigma_levels(Posterior("w", 1.0, np.log(2.0) * octaves), slice(None), np.ones((8, 3)))[:, 0]
    np.testing.assert_array_equal(levels, [0, 0, 3, 4, 4, 5, 8, 8])
    np.testing.assert_allclose(LEVELS[levels[2]], -np.log(2) / 2)


def test_levels_may_follow_the_magnitude_of_each_weight() -> None:
    x = np.array([[0.25, -1.0, 0.0], [4.0, 2.0, -1e9]])
    by_magnitude = Posterior("w", 1.0, np.log([1.0, 0.5]), by_magnitude=True)
    np.testing.assert_array_equal(sigma_levels(by_magnitude, slice(None), x), [[0, 4, 0], [6, 4, 8]])
    np.testing.assert_array_equal(sigma_levels(by_magnitude, slice(1, 2), x[1:]), [[6, 4, 8]])


def test_row_blocks_cover_the_tensor_in_order() -> None:
    tensor = torch.arange(24.0).reshape(4, 2, 3)
    parts = list(row_blocks(tensor, posterior(4)))
    np.testing.assert_array_equal(np.concatenate([x for _, x in parts]), tensor.double().numpy().reshape(4, 6) * 2)
    assert parts[0][0].start == 0


def test_pooled_points_keep_counts_and_means_within_the_limit() -> None:
    network = random_network(0)
    network["fc.weight"][0, 0] = 1e9
    _, cells = cells_of(network)
    near = nearest_cells(cells, limit=1000.0)
    assert near.count.sum() == cells.count.sum() - 1
    assert np.abs(near.x).max() <= 1000
    points, counts = pooled_points(near, log_sigma_weight=0.25, resolution=32)
    assert counts.sum() == near.count.sum()
    assert counts @ points[:, 0] == pytest.approx(near.count @ near.x)
    assert counts @ points[:, 1] == pytest.approx(0.25 * near.count @ near.levels[near.level])
    assert len(points) < len(near.x)


def test_all_cells_are_near_when_none_is() -> None:
    cells = build_cells({"w": torch.tensor([[1e9, -1e9]])}, [posterior(1)], resolution=64)
    assert nearest_cells(cells, limit=1000.0) is cells


@pytest.mark.parametrize("scale", [1e-160, 5e-324])
def test_squares_of_far_weights_are_finite(scale: float) -> None:
    weights = torch.tensor([[1e160, -1e160, 0.0]], dtype=torch.float64)
    cells = build_cells({"w": weights}, [posterior(1, scale=scale)], resolution=64)
    assert np.isfinite(cells.x).all()
    assert np.isfinite(cells.spread).all()
    assert cells.count.sum() == 3
