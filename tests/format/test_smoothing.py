"""Levels that are cheap to write."""

from __future__ import annotations

import numpy as np
import pytest

from gbnn_compress.format import smoothing
from gbnn_compress.format.smoothing import rounded_levels, smooth_levels
from gbnn_compress.format.tables import table_bits

NO_LEAKS = np.zeros(9)


def test_levels_of_frequent_symbols_are_kept() -> None:
    weights = np.exp2(np.array([0, 3, 1, 4, 1, 5, 9, 2, 6]) / 4)
    totals = np.full(9, 1e6)
    np.testing.assert_array_equal(smooth_levels(weights, totals, NO_LEAKS), [1, 4, 2, 5, 2, 6, 10, 3, 7])
    np.testing.assert_array_equal(rounded_levels(weights, totals), [1, 4, 2, 5, 2, 6, 10, 3, 7])


def test_rare_symbols_follow_their_neighbours() -> None:
    weights = np.exp2(np.array([4, 4, 6, 4, 4, 0, 4, 4, 4]) / 4)
    totals = np.array([1e6, 1e6, 1, 1e6, 1e6, 1, 1e6, 1e6, 1e6])
    np.testing.assert_array_equal(smooth_levels(weights, totals, NO_LEAKS), [5] * 9)


def test_a_symbol_that_does_not_occur_has_the_cheaper_of_no_level_and_one_that_leaks() -> None:
    weights = np.exp2(np.full(9, 10.0))
    totals = np.where(np.arange(9) == 4, 0, 1e6)
    weights[0] /= 2**8
    cheap = smooth_levels(weights, totals, np.full(9, 1e-9))
    dear = smooth_levels(weights, totals, np.full(9, 1e3))
    assert cheap[4] == cheap[3] == cheap[5]
    assert dear[4] == 0
    assert rounded_levels(weights, totals)[4] == 0
    assert table_bits(cheap) < table_bits(dear)


def test_large_tables_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "LARGEST", 8)
    weights, totals = np.exp2(np.array([4, 4, 6, 4, 4, 0, 4, 4, 4]) / 4), np.ones(9)
    np.testing.assert_array_equal(smooth_levels(weights, totals, NO_LEAKS), rounded_levels(weights, totals))
