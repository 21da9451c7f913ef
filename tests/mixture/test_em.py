"""EM: never downhill, scikit-learn's steps, weighted points, degenerate data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from sklearn.mixture import GaussianMixture

from gbnn_compress.mixture import em as module
from gbnn_compress.mixture.density import log_density
from gbnn_compress.mixture.em import expectation, fit_mixture, initial_mixture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gbnn_compress.types import Mixture

NEVER = -np.inf
"""A tolerance that never stops EM."""


@pytest.fixture(autouse=True, params=[module.PART_SIZE, 64], ids=["one part", "many parts"])
def part_size(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_SIZE", request.param)
        yield


def test_small_parts_are_several() -> None:
    assert len(list(module._parts(300, 6))) == (1 if module.PART_SIZE > 64 else 30)


def blobs(seed: int, *, size: int = 300) -> np.ndarray:
    """float64 (size, 2), three clouds of different widths."""
    random = np.random.default_rng(seed)
    centres = np.array([[-2.0, 0.5], [0.0, 0.0], [1.5, -1.0]])
    widths = np.array([[0.5, 0.3], [0.2, 0.6], [0.7, 0.2]])
    owner = random.integers(0, 3, size)
    return centres[owner] + widths[owner] * random.normal(size=(size, 2))


@st.composite
def weighted_points(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Clouds, lines (slanted, flat, upright), few distinct points, and any mixture of counts."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 60))
    points = random.laplace(size=(size, 2)) * draw(st.sampled_from([1e-3, 1.0, 30.0]))
    shape = draw(st.sampled_from(["cloud", "slanted", "flat", "upright", "grid", "same"]))
    if shape == "slanted":
        points[:, 1] = 3 * points[:, 0] - 1
    elif shape == "flat":
        points[:, 1] = 0.25
    elif shape == "upright":
        points[:, 0] = -0.5
    elif shape == "grid":
        points = np.rint(points)
    elif shape == "same":
        points[:] = points[0]
    return points, random.integers(1, 1000, size).astype(np.float64)


@given(weighted_points(), st.integers(1, 12), st.sampled_from([1e-6, 1e-3, 0.1]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_log_likelihood_never_falls(data: tuple[np.ndarray, np.ndarray], n_components: int, floor: float) -> None:
    points, counts = data
    before = points.copy(), counts.copy()
    mixture, trace = fit_mixture(
        points, counts, n_components=n_components, floor=floor, max_iterations=15, tolerance=NEVER
    )
    trace.append(expectation(mixture, points, counts)[1])
    assert np.diff(trace).min() >= -1e-9 * max(1.0, np.abs(trace).max()) - rounding(points, floor=floor)
    assert_sound(mixture, n_components=n_components, floor=floor)
    np.testing.assert_array_equal(points, before[0])
    np.testing.assert_array_equal(counts, before[1])


def rounding(points: np.ndarray, *, floor: float) -> float:
    """Of a squared distance over the least variance."""
    return float(np.finfo(np.float64).eps * np.square(points).max() / floor)


def assert_sound(mixture: Mixture, *, n_components: int, floor: float) -> None:
    assert 1 <= len(mixture.weights) <= n_components
    assert mixture.weights.sum() == pytest.approx(1.0)
    assert (mixture.weights > 0).all()
    assert np.isfinite(mixture.means).all()
    values = np.linalg.eigvalsh(mixture.covariances)
    assert (values.min(axis=1) >= floor * (1 - 1e-6) - 1e-15 * values.max(axis=1)).all()


@given(weighted_points(), st.integers(1, 12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_expectation_sums_what_each_component_is_responsible_for(
    data: tuple[np.ndarray, np.ndarray], n_components: int
) -> None:
    points, counts = data
    mixture = initial_mixture(points, counts, n_components=n_components, floor=1e-4)
    moments, log_likelihood = expectation(mixture, points, counts)
    joint = log_density(points, mixture.means, mixture.covariances) + np.log(mixture.weights)
    near = 1e-9 + 8 * rounding(points, floor=1e-4)
    assert log_likelihood == pytest.approx(np.average(logsumexp(joint, axis=1), weights=counts), rel=1e-9, abs=near)
    held = counts[:, None] * softmax(joint, axis=1)
    x, y = np.moveaxis(points[:, None] - mixture.means, -1, 0)
    powers = (np.ones_like(x), x, y, x * x, x * y, y * y)
    for moment, power in zip(moments, powers, strict=True):
        np.testing.assert_allclose(moment, (held * power).sum(axis=0), atol=near * counts.sum() * np.abs(power).max())


def test_points_far_from_the_origin_keep_narrow_components() -> None:
    points, counts = 1e-3 * blobs(7) + 1e5, np.ones(300)
    options = {"n_components": 3, "floor": 1e-9, "max_iterations": 20, "tolerance": NEVER}
    far, far_trace = fit_mixture(points, counts, **options)
    near, near_trace = fit_mixture(points - 1e5, counts, **options)
    np.testing.assert_allclose(far_trace, near_trace, rtol=1e-6)
    np.testing.assert_allclose(far.covariances, near.covariances, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("n_components", [1, 3, 6])
def test_same_parameters_as_scikit_learn(n_components: int) -> None:
    points, steps, floor = blobs(n_components), 12, 1e-9
    counts = np.ones(len(points))
    start = initial_mixture(points, counts, n_components=n_components, floor=floor)
    mixture, trace = fit_mixture(
        points, counts, n_components=n_components, floor=floor, max_iterations=steps, tolerance=NEVER
    )
    oracle = GaussianMixture(
        len(start.weights),
        weights_init=start.weights,
        means_init=start.means,
        precisions_init=np.linalg.inv(start.covariances),
        reg_covar=0.0,
        tol=0.0,
        max_iter=steps,
    )
    with pytest.warns(UserWarning, match="did not converge"):
        oracle.fit(points)
    np.testing.assert_allclose(mixture.weights, oracle.weights_, rtol=1e-8)
    np.testing.assert_allclose(mixture.means, oracle.means_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(mixture.covariances, oracle.covariances_, rtol=1e-7, atol=1e-9)
    assert expectation(mixture, points, counts)[1] == pytest.approx(oracle.score(points), rel=1e-10)
    assert len(trace) == steps


def test_a_weight_is_as_good_as_a_repetition() -> None:
    random, points = np.random.default_rng(3), blobs(3, size=80)
    counts = random.integers(1, 6, len(points))
    options = {"n_components": 5, "floor": 1e-4, "max_iterations": 8, "tolerance": NEVER}
    weighted, weighted_trace = fit_mixture(points, counts.astype(np.float64), **options)
    repeated = np.repeat(points, counts, axis=0)
    plain, plain_trace = fit_mixture(repeated, np.ones(len(repeated)), **options)
    np.testing.assert_allclose(weighted_trace, plain_trace, rtol=1e-10)
    np.testing.assert_allclose(weighted.means, plain.means, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(weighted.covariances, plain.covariances, rtol=1e-8, atol=1e-10)


def test_order_of_the_points_does_not_matter() -> None:
    points = blobs(4)
    shuffled = points[np.random.default_rng(0).permutation(len(points))]
    options = {"n_components": 4, "floor": 1e-4, "max_iterations": 5}
    first, _ = fit_mixture(points, np.ones(len(points)), **options)
    second, _ = fit_mixture(shuffled, np.ones(len(points)), **options)
    np.testing.assert_allclose(first.means, second.means, rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_cells_fit_as_well_as_the_points_they_hold() -> None:
    points = blobs(5, size=4000)
    width = 1 / 32
    _, owner = np.unique(np.rint(points / width), axis=0, return_inverse=True)
    counts = np.bincount(owner).astype(np.float64)
    cells = np.stack([np.bincount(owner, weights=points[:, axis]) / counts for axis in (0, 1)], axis=1)
    options = {"n_components": 6, "floor": width**2, "max_iterations": 40, "tolerance": 1e-6}
    of_cells, _ = fit_mixture(cells, counts, **options)
    of_points, _ = fit_mixture(points, np.ones(len(points)), **options)
    ones = np.ones(len(points))
    assert expectation(of_cells, points, ones)[1] == pytest.approx(expectation(of_points, points, ones)[1], abs=0.02)


def test_stops_when_the_gain_is_below_the_tolerance() -> None:
    points, counts = blobs(6), np.ones(300)
    _, trace = fit_mixture(points, counts, n_components=3, floor=1e-4, max_iterations=500, tolerance=1e-3)
    assert len(trace) < 500
    assert np.diff(trace).min() >= 1e-3


@given(weighted_points(), st.integers(1, 100))
@example((np.array([[0.5, -1.0]]), np.array([3.0])), 7)
@example((np.tile([[0.5, -1.0]], (4, 1)), np.ones(4)), 4)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_initial_mixture_has_the_means_of_its_points(data: tuple[np.ndarray, np.ndarray], n_components: int) -> None:
    points, counts = data
    mixture = initial_mixture(points, counts, n_components=n_components, floor=1e-6)
    distinct = len(np.unique(points[:, 0]))
    assert len(mixture.weights) <= min(n_components, distinct)
    assert (np.diff(mixture.means[:, 0]) > 0).all()
    mean = (counts[:, None] * points).sum(axis=0) / counts.sum()
    np.testing.assert_allclose(mixture.weights @ mixture.means, mean, rtol=1e-9, atol=1e-9)
    if n_components >= distinct:
        np.testing.assert_allclose(mixture.means[:, 0], np.unique(points[:, 0]), rtol=1e-12)


def test_a_component_holds_nothing_of_points_that_are_far_from_it() -> None:
    points, counts = np.array([[0.0, 0.25], [1.0, 0.5]]), np.array([3.0, 1.0])
    mixture = initial_mixture(points, counts, n_components=2, floor=1e-6)  # a thousand deviations apart
    moments, _ = expectation(mixture, points, counts)
    np.testing.assert_array_equal(moments, [[3, 1], *[[0, 0]] * 5])


def test_single_point_is_one_component_of_the_floor() -> None:
    mixture, trace = fit_mixture(np.array([[2.0, -3.0]]), np.array([5.0]), n_components=8, floor=0.01)
    np.testing.assert_allclose(mixture.means, [[2.0, -3.0]])
    np.testing.assert_allclose(mixture.covariances, [[[0.01, 0], [0, 0.01]]], atol=1e-15)
    assert trace[0] == pytest.approx(-np.log(2 * np.pi) - np.log(0.01))
