from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.report.axes import Axis


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (Axis(0, 1, 0, 100), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (Axis(-2.4, 2.4, 0, 100), ["−2", "−1", "0", "1", "2"]),
        (Axis(0, 7.3, 0, 100), ["0", "2", "4", "6"]),
        (Axis(0.01, 100, 0, 100, logarithmic=True), ["0.01", "0.1", "1", "10", "100"]),
        (Axis(4.7, 28, 0, 100, logarithmic=True), ["5", "10", "20"]),
        (Axis(1e-9, 1e9, 0, 100, logarithmic=True), ["1e−08", "0.0001", "1", "10,000", "1e+08"]),
        (Axis(0.34, 0.38, 0, 100, logarithmic=True), ["0.34", "0.35", "0.36", "0.37", "0.38"]),
    ],
)
def test_labels_are_round(axis, labels):
    assert [label for _, label in axis.ticks()] == labels


def test_values_find_their_place_and_stay_on_the_axis():
    axis = Axis(1, 100, 10, 20, logarithmic=True)
    assert [axis.at(value) for value in (1, 10, 100, 0.5, 1e6)] == [10, 15, 20, 10, 20]
    assert Axis(3, 3, 0, 10).at(3) == 5


@settings(deadline=None)
@given(low=st.floats(1e-6, 1e6), factor=st.floats(1.001, 1e6), at_most=st.integers(2, 8), logarithmic=st.booleans())
def test_ticks_are_few_rising_and_on_the_axis(low, factor, at_most, logarithmic):
    ticks = Axis(low, low * factor, 0, 1000, logarithmic=logarithmic).ticks(at_most=at_most)
    places = [place for place, _ in ticks]
    assert places == sorted(places)
    assert 1 <= len(ticks) <= at_most + 1
    assert all(0 <= place <= 1000 for place in places)
