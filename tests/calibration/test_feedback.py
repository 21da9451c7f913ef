"""Error feedback against trying everything, and against the same without blocks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.calibration import feedback
from gbnn_compress.calibration.feedback import (
    BLOCK,
    Alphabet,
    assign_with_feedback,
    by_falling_variance,
    damped,
    inverse_factor,
    reordered,
)

SEEDS = st.integers(0, 2**32 - 1)


def covariances(random: np.random.Generator, groups: int, width: int) -> np.ndarray:
    """float64 (G, d, d), of correlated inputs."""
    mixing = random.normal(size=(groups, width, width)) + 2 * random.normal(size=(groups, width, 1))
    return damped(mixing @ np.swapaxes(mixing, 1, 2) / width, damping=0.05)


def alphabet_of(random: np.random.Generator, size: int) -> Alphabet:
    return Alphabet(np.linspace(-1.5, 1.5, size) + 0.2 * random.random(size), random.integers(1, 50, size) * 1.0)


def assigned(weights: np.ndarray, hessian: np.ndarray, alphabet: Alphabet, **options: Any) -> np.ndarray:
    defaults: dict[str, Any] = {
        "curvature": np.ones(weights.shape[:2]),
        "penalty": 0.0,
        "exact": np.zeros(weights.shape, dtype=bool),
        "paths": 1,
        "sweeps": 0,
    }
    return assign_with_feedback(weights, hessian, alphabet=alphabet, **{**defaults, **options})


def costs(
    weights: np.ndarray, hessian: np.ndarray, alphabet: Alphabet, ids: np.ndarray, *, penalty: float = 0.0
) -> np.ndarray:
    """float64 (G, r), the objective of each filter at curvature 1; ids beyond the means are exact weights."""
    lengths = np.log2(alphabet.counts.sum()) - np.log2(alphabet.counts)
    is_exact = ids == len(alphabet.means)
    error = np.where(is_exact, 0.0, np.append(alphabet.means, 0.0)[ids] - weights)
    bits = np.where(is_exact, 0.0, np.append(lengths, 0.0)[ids]).sum(axis=2)
    return np.einsum("grj,gjk,grk->gr", error, hessian, error) + penalty * bits


def least_costs(
    weights: np.ndarray, hessian: np.ndarray, alphabet: Alphabet, *, penalty: float, exact: np.ndarray | bool = False
) -> np.ndarray:
    """float64 (G, r), by trying every assignment."""
    every = itertools.product(range(len(alphabet.means)), repeat=weights.shape[2])
    tried = [
        costs(weights, hessian, alphabet, np.where(exact, len(alphabet.means), ids), penalty=penalty)
        for ids in (np.broadcast_to(np.array(each), weights.shape) for each in every)
    ]
    return np.min(tried, axis=0)


def nearest(weights: np.ndarray, means: np.ndarray) -> np.ndarray:
    return np.abs(weights[..., None] - means).argmin(axis=-1)


def falling(hessian: np.ndarray) -> np.ndarray:
    return np.argsort(-np.diag(hessian), kind="stable")


def fed_forward_naively(weights: np.ndarray, hessian: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Nearest components with feedback, one weight at a time, without blocks (Frantar et al. 2022, without tricks)."""
    ids = np.empty(weights.shape, dtype=np.int64)
    for g, r in np.ndindex(weights.shape[:2]):
        order = falling(hessian[g])
        inverse, pending = np.linalg.inv(hessian[g][order][:, order]), weights[g, r, order]
        for i, j in enumerate(order):
            ids[g, r, j] = nearest(pending[i], means)
            error = (pending[i] - means[ids[g, r, j]]) / inverse[0, 0]
            pending[i + 1 :] -= error * inverse[0, 1:]
            # The inverse of the covariance of the columns to come: one step of Gaussian elimination.
            inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return ids


def descended_naively(weights: np.ndarray, hessian: np.ndarray, means: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """One sweep of coordinate descent, one weight at a time."""
    ids = ids.copy()
    for g, r in np.ndindex(weights.shape[:2]):
        for j in falling(hessian[g]):
            error = means[ids[g, r]] - weights[g, r]
            ids[g, r, j] = nearest(means[ids[g, r, j]] - hessian[g, j] @ error / hessian[g, j, j], means)
    return ids


def test_inverse_factor_is_upper_triangular_and_gives_the_inverse() -> None:
    hessian = covariances(np.random.default_rng(0), 3, 7)
    factor = inverse_factor(hessian)
    np.testing.assert_allclose(np.swapaxes(factor, 1, 2) @ factor @ hessian, np.tile(np.eye(7), (3, 1, 1)), atol=1e-9)
    assert not np.tril(factor, -1).any()


def test_damping_lifts_by_the_mean_diagonal_and_zero_becomes_the_identity() -> None:
    hessian = np.stack([np.diag([1.0, 3.0]), np.zeros((2, 2))])
    np.testing.assert_allclose(damped(hessian, damping=0.1), [[[1.2, 0], [0, 3.2]], [[1, 0], [0, 1]]])


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_white_inputs_without_rate_give_the_nearest_component(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights, alphabet = random.normal(size=(2, 3, 5)), alphabet_of(random, 4)
    ids = assigned(weights, np.tile(np.eye(5), (2, 1, 1)), alphabet, sweeps=int(random.integers(3)))
    np.testing.assert_array_equal(ids, nearest(weights, alphabet.means))


@given(SEEDS, st.sampled_from([1e-3, 0.05, 1.0]))
@settings(max_examples=100, deadline=None)
def test_white_inputs_give_the_cheapest_component_at_each_filter_s_curvature(seed: int, penalty: float) -> None:
    random = np.random.default_rng(seed)
    weights, alphabet = random.normal(size=(2, 3, 5)), alphabet_of(random, 4)
    curvature = 2.0 ** random.integers(-3, 4, size=(2, 3))
    ids = assigned(weights, np.tile(np.eye(5), (2, 1, 1)), alphabet, curvature=curvature, penalty=penalty)
    lengths = np.log2(alphabet.counts.sum() / alphabet.counts)
    every = curvature[..., None, None] * (weights[..., None] - alphabet.means) ** 2 + penalty * lengths
    chosen = np.take_along_axis(every, ids[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, every.min(axis=-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("penalty", "allowed"), [(0.0, 1.3), (0.02, 1.2), (0.3, 1.1)])
def test_within_a_small_factor_of_the_best_of_all_assignments(penalty: float, allowed: float) -> None:
    random = np.random.default_rng(0)
    total = np.zeros(3)
    for _ in range(60):
        groups, width, size = (int(random.integers(1, high)) for high in (3, 5, 4))
        weights = random.normal(size=(groups, 4, width))
        hessian, alphabet = covariances(random, groups, width), alphabet_of(random, size)
        best = least_costs(weights, hessian, alphabet, penalty=penalty)
        with_feedback, plain = (
            costs(weights, hessian, alphabet, ids, penalty=penalty)
            for ids in (
                assigned(weights, hessian, alphabet, penalty=penalty, sweeps=2 if penalty == 0 else 0),
                nearest(weights, alphabet.means),
            )
        )
        assert (with_feedback >= best - 1e-9).all()
        total += best.sum(), with_feedback.sum(), plain.sum()
    assert total[1] <= allowed * total[0]
    assert total[1] < total[2]


def test_with_paths_for_all_assignments_the_best_of_three_components_is_found() -> None:
    random = np.random.default_rng(7)
    for _ in range(20):
        weights, hessian, alphabet = random.normal(size=(2, 3, 4)), covariances(random, 2, 4), alphabet_of(random, 3)
        exact = random.random(weights.shape) < 0.3
        ids = assigned(weights, hessian, alphabet, exact=exact, paths=3**4)
        least = least_costs(weights, hessian, alphabet, penalty=0.0, exact=exact)
        np.testing.assert_allclose(costs(weights, hessian, alphabet, ids), least)


def test_of_equal_costs_the_first_are_kept() -> None:
    """Two components as near to every weight, and paths for two of their eight assignments."""
    alphabet = Alphabet(np.array([-1.0, 1.0]), np.ones(2))
    ids = assigned(np.zeros((1, 2, 3)), np.eye(3)[None], alphabet, paths=2)
    np.testing.assert_array_equal(ids, np.zeros((1, 2, 3)))


@pytest.mark.parametrize("block", [1, 7, 200])
def test_paths_are_followed_across_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(9)
    weights, hessian, alphabet = random.normal(size=(2, 5, 150)), covariances(random, 2, 150), alphabet_of(random, 7)
    ids = assigned(weights, hessian, alphabet, penalty=0.05, paths=4)
    monkeypatch.setattr(feedback, "BLOCK", block)
    np.testing.assert_array_equal(assigned(weights, hessian, alphabet, penalty=0.05, paths=4), ids)


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_more_paths_find_cheaper_assignments(penalty: float) -> None:
    random = np.random.default_rng(8)
    weights, hessian, alphabet = random.normal(size=(2, 50, 70)), covariances(random, 2, 70), alphabet_of(random, 7)
    found = [
        costs(weights, hessian, alphabet, ids, penalty=penalty).sum()
        for ids in (assigned(weights, hessian, alphabet, penalty=penalty, paths=paths) for paths in (1, 2, 4, 16))
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.97 * found[0]


def test_columns_are_decided_by_falling_variance() -> None:
    hessian = np.diag([1.0, 3.0, 2.0])[None]
    hessian[0, 0, 1] = hessian[0, 1, 0] = 0.5
    order = by_falling_variance(hessian)
    np.testing.assert_array_equal(order, [[1, 2, 0]])
    np.testing.assert_array_equal(reordered(hessian, order), [[[3, 0, 0.5], [0, 2, 0], [0.5, 0, 1]]])


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_descent_without_rate_never_worsens_any_filter(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights, hessian = random.normal(size=(2, 6, 12)), covariances(random, 2, 12)
    alphabet = alphabet_of(random, 5)
    before = costs(weights, hessian, alphabet, assigned(weights, hessian, alphabet))
    for sweeps in (1, 2, 5):
        after = costs(weights, hessian, alphabet, assigned(weights, hessian, alphabet, sweeps=sweeps))
        assert (after <= before + 1e-9).all()
        before = after


@pytest.mark.parametrize("sweeps", [0, 2])
def test_feedback_beats_rounding_on_correlated_inputs(sweeps: int) -> None:
    random, total = np.random.default_rng(1), np.zeros(2)
    for _ in range(20):
        weights, hessian, alphabet = random.normal(size=(1, 8, 20)), covariances(random, 1, 20), alphabet_of(random, 6)
        for i, ids in enumerate(
            (nearest(weights, alphabet.means), assigned(weights, hessian, alphabet, sweeps=sweeps))
        ):
            total[i] += costs(weights, hessian, alphabet, ids).sum()
    assert total[1] < 0.7 * total[0]


@pytest.mark.parametrize("width", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_blocks_of_columns_change_nothing(width: int) -> None:
    random = np.random.default_rng(width)
    weights, hessian = random.normal(size=(2, 3, width)), covariances(random, 2, width)
    alphabet = alphabet_of(random, 7)
    ids = fed_forward_naively(weights, hessian, alphabet.means)
    np.testing.assert_array_equal(assigned(weights, hessian, alphabet), ids)
    for sweeps in (1, 2):
        ids = descended_naively(weights, hessian, alphabet.means, ids)
        np.testing.assert_array_equal(assigned(weights, hessian, alphabet, sweeps=sweeps), ids)


@given(SEEDS, st.sampled_from([0.0, 0.01, 1.0, 100.0]), st.sampled_from([1, 2, 5]), st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_ids_are_components_in_use_and_exact_weights_stay(seed: int, penalty: float, paths: int, sweeps: int) -> None:
    random = np.random.default_rng(seed)
    groups, rows, width, size = (int(random.integers(1, high)) for high in (4, 5, 9, 7))
    weights = random.normal(size=(groups, rows, width)) * 10.0 ** random.integers(-3, 3)
    hessian = covariances(random, groups, width)
    means = np.sort(random.normal(size=size)) + 1e-3 * np.arange(size)
    alphabet = Alphabet(means, random.integers(0, 3, size) * 1.0)
    exact = random.random(weights.shape) < 0.3
    before = weights.copy()
    ids = assigned(
        weights,
        hessian,
        alphabet,
        curvature=10.0 ** random.normal(size=(groups, rows)),
        penalty=penalty,
        exact=exact,
        paths=paths,
        sweeps=sweeps,
    )
    assert ids.shape == weights.shape
    assert (ids[exact] == size).all()
    used = ids[~exact]
    if alphabet.counts.any():
        assert ((used >= 0) & (used < size)).all()
        assert (alphabet.counts[used] > 0).all()
    else:
        assert (used == size).all()
    np.testing.assert_array_equal(weights, before)


def test_errors_are_made_good_around_exact_weights() -> None:
    random = np.random.default_rng(3)
    weights, hessian, alphabet = random.normal(size=(1, 40, 10)), covariances(random, 1, 10), alphabet_of(random, 4)
    exact = np.zeros(weights.shape, dtype=bool)
    exact[:, :, ::3] = True
    ids = assigned(weights, hessian, alphabet, exact=exact, sweeps=1)
    plain = np.where(exact, 4, nearest(weights, alphabet.means))
    assert costs(weights, hessian, alphabet, ids).sum() < 0.8 * costs(weights, hessian, alphabet, plain).sum()


@pytest.mark.parametrize("paths", [1, 3])
def test_groups_and_filters_know_nothing_of_each_other(paths: int) -> None:
    random = np.random.default_rng(4)
    weights, hessian = random.normal(size=(3, 4, 70)), covariances(random, 3, 70)
    curvature, alphabet = 10.0 ** random.normal(size=(3, 4)), alphabet_of(random, 5)
    together = assigned(weights, hessian, alphabet, curvature=curvature, penalty=0.05, paths=paths)
    for g, r in np.ndindex(3, 4):
        alone = assigned(
            weights[g : g + 1, r : r + 1],
            hessian[g : g + 1],
            alphabet,
            curvature=curvature[g : g + 1, r : r + 1],
            penalty=0.05,
            paths=paths,
        )
        np.testing.assert_array_equal(together[g, r], alone[0, 0])


def test_a_higher_price_of_bits_buys_fewer_of_them() -> None:
    random = np.random.default_rng(5)
    weights, hessian, alphabet = random.normal(size=(1, 50, 30)), covariances(random, 1, 30), alphabet_of(random, 8)
    entropies = []
    for penalty in (0.0, 0.1, 1.0, 10.0):
        ids = assigned(weights, hessian, alphabet, penalty=penalty, sweeps=2)
        shares = np.bincount(ids.ravel()) / ids.size
        entropies.append(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[-1] < 0.5 * entropies[0]


def test_targets_far_outside_go_to_the_component_that_wins_there() -> None:
    # At this price the thresholds lie beyond the means: only the middle component is ever the cheapest near them.
    alphabet = Alphabet(np.array([-1.0, 0.0, 1.0]), np.array([1.0, 1000.0, 1.0]))
    weights = np.array([[[-2.5, -0.5, 0.5, 2.5]]])
    ids = assigned(weights, np.eye(4)[None], alphabet, penalty=3.0)
    np.testing.assert_array_equal(ids, np.ones((1, 1, 4)))
