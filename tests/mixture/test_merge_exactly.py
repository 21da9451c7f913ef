"""Exact merging against trying every partition of the line."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.mixture.merge_exactly import Moments, merge_exactly

OPTIONS = {"component_bits": 12.0, "entry_bits": 4.0}


def random_moments(seed: int, *, size: int, tensors: int = 2) -> Moments:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 40, size=(size, tensors)).astype(np.float64)
    counts[:, 0] += 1
    curvature = counts.sum(axis=1) * random.uniform(0.5, 2, size)
    means = np.sort(random.normal(size=size))
    return Moments(counts, curvature, curvature * means, curvature * (means**2 + random.uniform(0, 0.01, size)))


def cost(moments: Moments, runs: np.ndarray, *, penalty: float) -> float:
    """Distortion + lambda * bits, a run at a time."""
    total = 0.0
    for run in np.unique(runs):
        members = runs == run
        counts = moments.counts[members].sum(axis=0)
        used = counts[counts > 0]
        mass, first = moments.curvature[members].sum(), moments.first[members].sum()
        total += moments.second[members].sum() - first**2 / mass
        total += penalty * (12.0 + 4.0 * len(used) - (used * np.log2(used)).sum())
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([0.0, 1e-4, 1e-2, 0.1, 1.0, 100.0]))
@settings(max_examples=40, deadline=None)
def test_no_partition_into_runs_costs_less(seed: int, size: int, penalty: float) -> None:
    moments = random_moments(seed, size=size)
    runs = merge_exactly(moments, penalty=penalty, **OPTIONS, longest=size)
    assert runs.shape == (size,)
    assert runs[0] == 0
    assert set(np.diff(runs)) <= {0, 1}
    partitions = (np.cumsum((0, *cuts)) for cuts in product((0, 1), repeat=size - 1))
    least = min(cost(moments, partition, penalty=penalty) for partition in partitions)
    assert cost(moments, runs, penalty=penalty) <= least + 1e-9 * (1 + abs(least))


def test_nothing_merges_for_nothing_and_everything_at_any_price() -> None:
    moments = random_moments(0, size=30)
    np.testing.assert_array_equal(merge_exactly(moments, penalty=0.0, **OPTIONS, longest=30), np.arange(30))
    np.testing.assert_array_equal(merge_exactly(moments, penalty=1e9, **OPTIONS, longest=30), np.zeros(30))


def test_runs_are_no_longer_than_allowed() -> None:
    runs = merge_exactly(random_moments(1, size=31), penalty=1e9, **OPTIONS, longest=4)
    assert np.bincount(runs).max() == 4
    assert len(np.unique(runs)) == 8


def test_runs_get_fewer_with_lambda() -> None:
    moments = random_moments(2, size=60)
    sizes = [
        merge_exactly(moments, penalty=penalty, **OPTIONS, longest=60).max() + 1 for penalty in np.logspace(-6, 3, 12)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
