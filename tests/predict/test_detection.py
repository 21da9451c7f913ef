"""Histograms of the scores that tell other data apart."""

import numpy as np
import pytest

from gbnn_compress.predict.detection import histogram


def test_shares_add_up_and_follow_the_scores():
    spread = histogram(np.array([0.0, 0.1, 0.1, 0.9]), np.array([1.9, 2.0]), n_bins=2)
    assert spread.edges[0] == 0
    assert spread.edges[-1] == pytest.approx(2.0, abs=0.01)
    np.testing.assert_allclose(spread.inside, [1.0, 0.0])
    np.testing.assert_allclose(spread.outside, [0.0, 1.0])


def test_a_few_extreme_scores_are_in_the_last_bin_and_do_not_stretch_the_rest():
    inside = np.append(np.linspace(0, 1, 999), 1e6)
    spread = histogram(inside, np.linspace(0, 1, 1000), n_bins=10)
    assert spread.edges[-1] < 1.01
    np.testing.assert_allclose(spread.inside, 0.1, atol=0.01)
    assert spread.inside.sum() == pytest.approx(1)


def test_scores_that_are_all_0_have_bins_too():
    spread = histogram(np.zeros(3), np.zeros(5), n_bins=4)
    np.testing.assert_array_equal(spread.inside, [1, 0, 0, 0])
    assert spread.edges[-1] == 1
