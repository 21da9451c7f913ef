"""Contexts: whole numbers, the same on both sides of the walk, and about the right scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.format import contexts
from gbnn_compress.format.contexts import (
    FACTOR_BITS,
    N_LEVELS,
    N_PREDICTIONS,
    REACH,
    ContextRule,
    exp16,
    factors,
    kernel_of,
    log16,
    walk,
    whole_values,
)

RULE = ContextRule(start=80, neighbours=(7, 6, -3), tail=1, offset=0, floor=60)


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


def recorded(
    ids: np.ndarray, shape: tuple[int, ...], values: np.ndarray, rule: ContextRule
) -> tuple[np.ndarray, np.ndarray]:
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


def by_the_format(
    ids: np.ndarray, shape: tuple[int, ...], values: np.ndarray, rule: ContextRule, band: int
) -> np.ndarray:
    """Contexts (taps, rows, columns) as docs/format.md has them, weight by weight, in Python's own integers."""

    def lg(x: int) -> int:
        e = 1 << (x.bit_length() - 1)
        return 16 * (e.bit_length() - 1) + 16 * x // e - 16

    def ex(level: int) -> int:
        return (16 + level % 16) * 2 ** (level // 16) // 16

    rows, columns = shape[:2]
    height, width = kernel_of(shape)
    v = np.moveaxis(values[ids].reshape(rows, columns, height * width), -1, 0).tolist()
    seen = np.full((height * width, rows, columns), -1)
    big_m = ex(4 * rule.start)
    a_sum, a_count, b_sum, b_count = [8 * 4096] * rows, [8] * rows, [8 * 4096] * columns, [8] * columns
    kernels = [[0] * columns for _ in range(rows)]
    step = max(1, band // columns)
    for t in range(height * width):
        y, x = divmod(t, width)
        total, count, low = 8 * big_m, 8, 0
        for high in (2, 16) if t else (1, 2, 4, 8, 16):
            for start in range(0, rows, step):
                block = [
                    (o, i)
                    for o in range(start, min(start + step, rows))
                    for i in range(columns)
                    if low <= (o + i) % 16 < high
                ]
                distances = []
                for o, i in block:
                    left = v[t - 1][o][i] if x else 0
                    above = v[t - width][o][i] if y else 0
                    corner = v[t - width - 1][o][i] if x and y else 0
                    weights = rule.neighbours
                    p = (weights[0] * left + weights[1] * above + weights[2] * corner) // 16
                    level = lg(a_sum[o]) - lg(4096 * a_count[o])
                    if columns > 1:
                        level += lg(b_sum[i]) - lg(4096 * b_count[i])
                    if t:
                        level = lg(max(1, (16 * ex(min(max(level + 192, 0), 576)) + kernels[o][i]) // (16 + t))) - 192
                    level = min(max((level + lg(big_m)) // 4, 0), 111)
                    e = ex(4 * level + 2)
                    seen[t, o, i] = 17 * level + (min(max((4 * p + e) // (2 * e), -8), 8) if t else 0) + 8
                    distances.append(abs(v[t][o][i] - p))
                if not block:
                    continue
                total, count = total + sum(distances), count + len(block)
                big_m = max(1, total // count)
                for (o, i), d in zip(block, distances, strict=True):
                    a_count[o] += 1
                    b_count[i] += 1
                    kernels[o][i] += d * 4096 // big_m
                for o in {o for o, _ in block}:
                    d = sum(d for (row, _), d in zip(block, distances, strict=True) if row == o)
                    a_sum[o] += min(d, 2**50) * 4096 // big_m
                for i in {i for _, i in block}:
                    d = sum(d for (_, column), d in zip(block, distances, strict=True) if column == i)
                    b_sum[i] += min(d, 2**50) * 4096 // big_m
            low = high
    return seen


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_contexts_are_those_of_the_format_under_any_rule(data: st.DataObject) -> None:
    kernels = st.sampled_from([(), (3,), (1, 40), (40, 1), (3, 3), (2, 2, 2)])
    shape = (data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), *data.draw(kernels))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    spread = data.draw(st.sampled_from([0.0, 1.0, 30.0]))
    means = np.sort(random.choice([-1, 1], size=9) * np.exp(spread * random.normal(size=9)))
    weight = st.integers(-32, 31)
    start, neighbours = data.draw(st.integers(0, 127)), data.draw(st.tuples(weight, weight, weight))
    rule = ContextRule(start, neighbours, tail=0, offset=0, floor=0)
    ids, values = random.integers(0, 10, shape), whole_values(means)
    band = data.draw(st.sampled_from([1, 30, contexts.BAND]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "BAND", band)
        _, seen = recorded(ids, shape, values, rule)
    np.testing.assert_array_equal(seen, by_the_format(ids, shape, values, rule, band))


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
    rule = ContextRule(start=80, neighbours=(14, 0, 0), tail=1, offset=0, floor=60)
    _, seen = recorded(ids, (64, 64, 2), whole_values(means), rule)
    levels, predictions = np.divmod(seen[1], N_PREDICTIONS)
    assert np.corrcoef(levels.ravel(), np.log2(scale).ravel())[0, 1] > 0.7
    assert np.corrcoef((predictions - REACH).ravel(), (x[..., 1] / scale).ravel())[0, 1] > 0.8


def test_factors_are_the_density_of_students_t() -> None:
    values, rule = whole_values(np.linspace(-1, 1, 21)), ContextRule(80, (0, 0, 0), tail=2, offset=1, floor=70)
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
    found = factors(np.array([context]), np.arange(6), values, ContextRule(127, (31, 31, 31), tail, offset, floor))
    assert found.min() >= 0
    assert found.max() <= 1 << FACTOR_BITS
