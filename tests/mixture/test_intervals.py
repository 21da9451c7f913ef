"""Interval cuts against trying every component."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gbnn_compress.mixture.intervals import decision_intervals

finite = {"allow_nan": False, "allow_infinity": False}
means_lists = st.lists(st.floats(-100, 100, **finite), min_size=1, max_size=12, unique=True)


@given(means_lists, st.lists(st.floats(0, 30, **finite), min_size=12, max_size=12), st.floats(0, 1e4, **finite))
@example([0.0], [0.0] * 12, 1.0)
@example([-1.0, 1.0], [3.0] * 12, 0.0)
@settings(max_examples=150, deadline=None)
def test_same_cost_as_trying_every_component(means: list[float], lengths: list[float], penalty: float) -> None:
    centres, bits = np.sort(np.array(means)), np.array(lengths[: len(means)])
    centres = centres[np.append(True, np.diff(centres) > 1e-6)]
    bits = bits[: len(centres)]
    winners, thresholds = decision_intervals(centres, bits, penalty=penalty)
    assert len(winners) == len(thresholds) + 1
    assert (np.diff(winners) > 0).all()
    assert (np.diff(thresholds) > 0).all()
    x = np.concatenate([np.linspace(-150, 150, 601), centres])
    cost = (x[:, None] - centres) ** 2 + penalty * bits
    chosen = winners[np.searchsorted(thresholds, x)]
    excess = cost[np.arange(len(x)), chosen] - cost.min(axis=1)
    assert excess.max() <= 1e-9 * (1 + np.abs(cost).min(axis=1).max() + 150**2)


def test_without_penalty_every_component_wins_up_to_the_midpoints() -> None:
    winners, thresholds = decision_intervals(np.array([-1.0, 0.0, 4.0]), np.array([9.0, 1.0, 5.0]), penalty=0.0)
    np.testing.assert_array_equal(winners, [0, 1, 2])
    np.testing.assert_allclose(thresholds, [-0.5, 2.0])


def test_a_component_that_costs_too_much_wins_nowhere() -> None:
    winners, thresholds = decision_intervals(np.array([-1.0, 0.0, 1.0]), np.array([1.0, 30.0, 1.0]), penalty=1.0)
    np.testing.assert_array_equal(winners, [0, 2])
    np.testing.assert_allclose(thresholds, [0.0])
