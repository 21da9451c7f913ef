"""Merging down to one component: what is kept, in which order, and where the cut falls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.mixture.merge_path import MergePath, merge_path
from gbnn_compress.types import Mixture


def problem(seed: int, *, size: int, tensors: int = 3) -> tuple[Mixture, np.ndarray, np.ndarray]:
    """A random mixture, counts (K, T) with every component in use, and curvatures (K,)."""
    random = np.random.default_rng(seed)
    roots = 0.1 * random.normal(size=(size, 2, 2))
    covariances = roots @ roots.transpose(0, 2, 1) + 1e-4 * np.eye(2)
    means = np.sort(random.laplace(size=(size, 2)), axis=0)
    counts = random.integers(0, 500, size=(size, tensors)).astype(np.float64)
    counts[:, 0] += 1
    return (
        Mixture(np.full(size, 1 / size), means, covariances),
        counts,
        counts.sum(axis=1) * random.uniform(0.5, 2, size),
    )


def path_of(seed: int, *, size: int) -> MergePath:
    return merge_path(*problem(seed, size=size), component_bits=24.0)


paths = st.builds(path_of, st.integers(0, 2**32 - 1), size=st.integers(1, 25))


@given(paths)
@settings(max_examples=40, deadline=None)
def test_every_merge_joins_two_live_components_until_one_is_left(path: MergePath) -> None:
    alive = set(range(len(path.pairs) + 1))
    for kept, joined in path.pairs.tolist():
        assert kept != joined
        assert {kept, joined} <= alive
        alive.remove(joined)
    assert len(alive) == 1


@given(paths)
@settings(max_examples=40, deadline=None)
def test_slopes_never_fall_and_labels_follow_them(path: MergePath) -> None:
    size = len(path.pairs) + 1
    assert (np.diff(path.slopes) >= 0).all()
    assert np.isfinite(path.slopes).all()
    np.testing.assert_array_equal(path.labels(-1.0), np.arange(size))
    assert len(np.unique(path.labels(np.inf))) == 1
    live = [len(np.unique(path.labels(penalty))) for penalty in path.slopes]
    assert live == sorted(live, reverse=True)
    for penalty in path.slopes:
        assert len(np.unique(path.labels(penalty))) == size - int((path.slopes <= penalty).sum())


@given(paths)
@settings(max_examples=20, deadline=None)
def test_labels_name_live_components_and_coarser_cuts_only_join(path: MergePath) -> None:
    finer = path.labels(-1.0)
    for penalty in path.slopes:
        labels = path.labels(penalty)
        np.testing.assert_array_equal(labels[labels], labels)
        for label in np.unique(finer):
            assert len(np.unique(labels[finer == label])) == 1
        finer = labels


@given(st.integers(0, 2**32 - 1), st.integers(1, 25))
@settings(max_examples=20, deadline=None)
def test_every_merge_keeps_the_total_counts(seed: int, size: int) -> None:
    mixture, counts, curvature = problem(seed, size=size)
    before = counts.copy(), curvature.copy(), mixture.means.copy(), mixture.covariances.copy()
    path = merge_path(mixture, counts, curvature, component_bits=24.0)
    for penalty in [-1.0, *path.slopes.tolist()]:
        merged = np.zeros_like(counts)
        np.add.at(merged, path.labels(penalty), counts)
        np.testing.assert_array_equal(merged.sum(axis=0), counts.sum(axis=0))
    for kept, given_ in zip((counts, curvature, mixture.means, mixture.covariances), before, strict=True):
        np.testing.assert_array_equal(kept, given_)


def test_the_pair_that_costs_least_for_its_bits_goes_first() -> None:
    means = np.array([[0.0, 0.0], [0.01, 0.0], [5.0, 0.0], [7.0, 0.0]])
    mixture = Mixture(np.full(4, 0.25), means, np.tile(1e-4 * np.eye(2), (4, 1, 1)))
    path = merge_path(mixture, np.full((4, 1), 10.0), np.full(4, 10.0), component_bits=24.0)
    assert {frozenset(pair) for pair in path.pairs.tolist()[:2]} == {frozenset({0, 1}), frozenset({2, 3})}
    assert set(path.pairs[0].tolist()) == {0, 1}
    # Ward: 10 * 10 / 20 * 0.01^2, over the 20 bits that two equal symbols cost and the 24 of the component.
    assert path.slopes[0] == pytest.approx(5 * 1e-4 / (20 + 24))


def test_identical_components_merge_for_nothing() -> None:
    mixture = Mixture(np.full(3, 1 / 3), np.zeros((3, 2)), np.tile(np.eye(2), (3, 1, 1)))
    path = merge_path(mixture, np.ones((3, 2)), np.ones(3), component_bits=24.0)
    np.testing.assert_allclose(path.slopes, 0.0, atol=1e-15)
    assert len(np.unique(path.labels(0.0))) == 1


def test_one_component_has_an_empty_path() -> None:
    path = path_of(0, size=1)
    assert path.pairs.shape == (0, 2)
    np.testing.assert_array_equal(path.labels(np.inf), [0])


def test_same_input_same_path() -> None:
    first, second = path_of(9, size=20), path_of(9, size=20)
    np.testing.assert_array_equal(first.pairs, second.pairs)
    np.testing.assert_array_equal(first.slopes, second.slopes)
