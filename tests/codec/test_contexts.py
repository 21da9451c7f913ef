"""Contexts: whole numbers, the same on both sides of the walk, and about the right scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.codec import contexts
from gbnn_compress.codec.contexts import (
    FACTOR_BITS,
    N_LEVELS,
    N_PREDICTIONS,
    REACH,
    Rule,
    exp16,
    factors,
    kernel_of,
    log16,
    walk,
    whole_values,
)

RULE = Rule(start=80, neighbours=(7, 6, -3), tail=1, offset=0, floor=60)


@given(st.integers(1, 2**53))
def test_log16_is_exact_integer_arithmetic(number: int) -> None:
    power = number.bit_length() - 1
    assert int(log16(np.array([number]))[0]) == 16 * power + 16 * number // 2**power - 16
    assert abs(log16(np.array([number]))[0] / 16 - math.log2(number)) < 0.15


@given(st.integers(64, 800))
def test_exp16_undoes_log16(level: int) -> None:
    assert log16(exp16(np.array([level])))[0] == level


def test_whole_values_use_all_bits_and_round_towards_zero() -> None:
    np.testing.assert_array_equal(whole_values(np.array([-3.0, 0.0, 1.5])), [-3 << 22, 0, 3 << 21, 0])
    assert np.abs(whole_values(np.array([-1e-300, 0.7, 1e-3]))).max() < 2**24
    np.testing.assert_array_equal(whole_values(np.array([-(2.0**-23) / 3, 0.75])), [0, 3 << 22, 0])
    np.testing.assert_array_equal(whole_values(np.zeros(2)), [0, 0, 0])


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((4, 5), (1, 1)), ((4, 5, 3), (1, 3)), ((4, 5, 3, 7), (3, 7)), ((4, 5, 2, 3, 4), (6, 4)), ((4, 1, 1, 1), (1, 1))],
)
def test_kernels(shape: tuple[int, ...], kernel: tuple[int, int]) -> None:
    assert kernel_of(shape) == kernel


def recorded(ids: np.ndarray, shape: tuple[int, ...], values: np.ndarray, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a walk, and the context of each, (taps, rows, columns)."""
    taps = math.prod(kernel_of(shape))
    source = np.moveaxis(ids.reshape(*shape[:2], taps), -1, 0)
    seen = np.full(source.shape, -1)

    def visit(tap: int, band: slice, places: np.ndarray, found: np.ndarray) -> np.ndarray:
        rows, columns = np.divmod(places, shape[1])
        rows += band.start
        assert (seen[tap, rows, columns] == -1).all()
        seen[tap, rows, columns] = found
        return source[tap, rows, columns]

    return walk(shape, values, rule, visit), seen


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_walk_sees_every_weight_once(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=2)))
    shape += tuple(data.draw(st.lists(st.integers(1, 3), max_size=3)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = whole_values(np.sort(random.laplace(size=9)))
    ids = random.integers(0, 10, math.prod(shape))
    walked, seen = recorded(ids, shape, values, RULE)
    np.testing.assert_array_equal(np.moveaxis(walked, 0, -1).ravel(), ids)
    assert seen.min() >= 0
    assert seen.max() < N_LEVELS * N_PREDICTIONS


def test_contexts_do_not_depend_on_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "BAND", 40)
    random = np.random.default_rng(0)
    shape, values = (12, 10, 2, 2), whole_values(np.sort(random.laplace(size=9)))
    ids = random.integers(0, 10, (12, 10, 4))
    _, before = recorded(ids, shape, values, RULE)
    ids[..., 2:] = random.integers(0, 10, (12, 10, 2))
    _, after = recorded(ids, shape, values, RULE)
    np.testing.assert_array_equal(before[:2], after[:2])
    assert (before[3] != after[3]).any()


def test_contexts_follow_rows_columns_and_neighbours() -> None:
    random = np.random.default_rng(0)
    means = np.linspace(-8, 8, 129)
    scale = np.exp2(random.normal(size=(64, 1)) / 2) * np.exp2(random.normal(size=64) / 2)
    x = random.normal(size=(64, 64, 1)) * scale[..., None] + 0.3 * random.normal(size=(64, 64, 2)) * scale[..., None]
    ids = np.abs(np.clip(x, -8, 8)[..., None] - means).argmin(axis=-1)
    rule = Rule(start=80, neighbours=(14, 0, 0), tail=1, offset=0, floor=60)
    _, seen = recorded(ids, (64, 64, 2), whole_values(means), rule)
    levels, predictions = np.divmod(seen[1], N_PREDICTIONS)
    assert np.corrcoef(levels.ravel(), np.log2(scale).ravel())[0, 1] > 0.7
    assert np.corrcoef((predictions - REACH).ravel(), (x[..., 1] / scale).ravel())[0, 1] > 0.8


def test_factors_are_the_density_of_students_t() -> None:
    values, rule = whole_values(np.linspace(-1, 1, 21)), Rule(80, (0, 0, 0), tail=2, offset=1, floor=70)
    found = factors(np.array([85 * N_PREDICTIONS + REACH + 3]), np.arange(22), values, rule)[0] / 2.0**FACTOR_BITS
    magnitude = float(exp16(np.array([4 * 85 + 2]))[0])
    scale = float(exp16(np.array([4 * 86 + 2]))[0] + exp16(np.array([280]))[0])
    u = (values[:-1] - 3 * magnitude / 2) / scale
    np.testing.assert_allclose(found[:-1], (1 + u**2 / 15) ** -8, rtol=0.01, atol=1e-6)
    assert found[-1] == 1


@given(st.integers(0, N_LEVELS * N_PREDICTIONS - 1), st.integers(0, 3), st.integers(-5, 2), st.integers(0, 127))
@settings(max_examples=100, deadline=None)
def test_factors_fit_their_bits_under_any_rule(context: int, tail: int, offset: int, floor: int) -> None:
    values = np.array([-(2**24) + 1, -5, 0, 3, 2**24 - 1, 0])
    found = factors(np.array([context]), np.arange(6), values, Rule(127, (31, 31, 31), tail, offset, floor))
    assert found.min() >= 0
    assert found.max() <= 1 << FACTOR_BITS
