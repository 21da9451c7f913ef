"""Error feedback against trying everything, and against the same without blocks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.calibration import path_search
from gbnn_compress.calibration.decisions import Alphabet
from gbnn_compress.calibration.feedback import assign_with_feedback, damped, inverse_factor
from gbnn_compress.calibration.path_search import BLOCK
from gbnn_compress.compiled import SWITCH
from gbnn_compress.format.trellis import next_states
from gbnn_compress.rate.codebook import HIGH_RATE_STEP
from gbnn_compress.rate.trellis_choice import UNION_STEP

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
    return assign_with_feedback(weights, hessian, alphabet=alphabet, **{**defaults, **options})[0]


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


def fed_forward_naively(weights: np.ndarray, hessian: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Nearest components with feedback, one weight at a time, without blocks (Frantar et al. 2022, without tricks)."""
    ids = np.empty(weights.shape, dtype=np.int64)
    for g, r in np.ndindex(weights.shape[:2]):
        inverse, pending = np.linalg.inv(hessian[g]), weights[g, r].copy()
        for j in range(weights.shape[2]):
            ids[g, r, j] = nearest(pending[j], means)
            error = (pending[j] - means[ids[g, r, j]]) / inverse[0, 0]
            pending[j + 1 :] -= error * inverse[0, 1:]
            # The inverse of the covariance of the columns to come: one step of Gaussian elimination.
            inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
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


def test_with_paths_for_all_assignments_the_best_of_two_components_is_found() -> None:
    random = np.random.default_rng(7)
    for _ in range(20):
        weights, hessian, alphabet = random.normal(size=(2, 3, 4)), covariances(random, 2, 4), alphabet_of(random, 2)
        exact = random.random(weights.shape) < 0.3
        ids = assigned(weights, hessian, alphabet, exact=exact, paths=2**4)
        least = least_costs(weights, hessian, alphabet, penalty=0.0, exact=exact)
        np.testing.assert_allclose(costs(weights, hessian, alphabet, ids), least)


def test_of_equal_costs_the_first_are_kept() -> None:
    """Two components as near to every weight, and paths for two of their eight assignments."""
    alphabet = Alphabet(np.array([-1.0, 1.0]), np.ones(2))
    ids = assigned(np.zeros((1, 2, 3)), np.eye(3)[None], alphabet, paths=2)
    np.testing.assert_array_equal(ids, np.zeros((1, 2, 3)))


def test_paths_are_followed_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(9)
    weights, hessian, alphabet = random.normal(size=(2, 20, 190)), covariances(random, 2, 190), alphabet_of(random, 7)
    found = []
    for block in (BLOCK, 200):
        monkeypatch.setattr(path_search, "BLOCK", block)
        ids = assigned(weights, hessian, alphabet, penalty=0.05, paths=4)
        found.append(costs(weights, hessian, alphabet, ids, penalty=0.05).sum())
    assert found[0] == pytest.approx(found[1], rel=2e-3)


def follows_the_trellis(ids: np.ndarray, escape: int) -> np.ndarray:
    """int64 (rows,), the last states of rows of ids (rows, n), after a check of each id against its state."""
    states = np.zeros(len(ids), dtype=np.int64)
    for column in ids.T:
        assert ((column == escape) | (column % 2 == states % 2)).all()
        states = next_states(states, column, escape=escape)
    return states


@pytest.mark.long
@given(SEEDS, st.booleans(), st.sampled_from([1, 3, 16]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_compiled_loops_and_numpy_give_the_same_ids(seed: int, trellis: bool, paths: int, has_exact: bool) -> None:
    random = np.random.default_rng(seed)
    groups, rows, width, size = (int(random.integers(low, high)) for low, high in ((1, 4), (1, 6), (1, 150), (4, 12)))
    weights, hessian = random.normal(size=(groups, rows, width)), covariances(random, groups, width)
    means = np.linspace(-1.5, 1.5, size) + 0.05 * random.random(size)
    alphabet = Alphabet(means, random.integers(1, 50, size) * 1.0, trellis=trellis)
    options = {
        "curvature": 2.0 ** random.normal(size=(groups, rows)),
        "penalty": 0.05,
        "exact": random.random(weights.shape) < 0.1 * has_exact,
        "paths": paths,
        "sweeps": 2,
        "states": random.integers(0, 8, size=(groups, rows)) * trellis,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "1")
        found = assign_with_feedback(weights, hessian, alphabet=alphabet, **options)
        patch.setattr(path_search, "loops", lambda name, work: None)
        plain = assign_with_feedback(weights, hessian, alphabet=alphabet, **options)
    np.testing.assert_array_equal(found[0], plain[0])
    np.testing.assert_array_equal(found[1], plain[1])


def test_ids_follow_the_trellis_and_its_last_states_go_on() -> None:
    random = np.random.default_rng(10)
    weights, hessian = random.normal(size=(1, 6, 100)), covariances(random, 1, 100)
    alphabet = Alphabet(np.linspace(-2, 2, 11), np.ones(11), trellis=True)
    exact = random.random(weights.shape) < 0.1
    options: dict[str, Any] = {"curvature": np.ones((1, 6)), "penalty": 0.01, "paths": 8, "sweeps": 2}
    ids, states = assign_with_feedback(weights, hessian, alphabet=alphabet, exact=exact, **options)
    np.testing.assert_array_equal(follows_the_trellis(ids[0], 11), states[0])
    more, last = assign_with_feedback(weights, hessian, alphabet=alphabet, exact=exact, states=states, **options)
    np.testing.assert_array_equal(follows_the_trellis(np.concatenate([ids[0], more[0]], axis=1), 11), last[0])


def test_a_trellis_lowers_the_error_at_equal_entropy() -> None:
    """Components 0.53 times as far apart, of which each weight has every second one (docs/method.md)."""
    random = np.random.default_rng(11)
    weights, hessian = random.laplace(size=(1, 300, 60)), covariances(random, 1, 60)
    step = np.sqrt(HIGH_RATE_STEP * 0.03 / (1 / np.diag(inverse_factor(hessian)[0]) ** 2).mean())
    found = []
    for trellis, distance in ((False, step), (True, UNION_STEP * step)):
        means = distance * np.arange(-100, 101)
        alphabet = Alphabet(means, np.exp(-np.abs(means)), trellis=trellis)
        ids = assigned(weights, hessian, alphabet, penalty=0.03, paths=16, sweeps=1)
        parts = [ids[ids % 2 == parity] for parity in (0, 1)] if trellis else [ids.ravel()]
        shares = [np.bincount(part) / len(part) for part in parts]
        bits = sum(
            -len(part) * (share[share > 0] * np.log2(share[share > 0])).sum()
            for part, share in zip(parts, shares, strict=True)
        )
        error = means[ids] - weights
        found.append(np.einsum("grj,gjk,grk->", error, hessian, error) + 0.03 * bits)
    assert found[1] < found[0] - 0.05 * 0.03 * weights.size  # more than 0.05 bits per weight


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
