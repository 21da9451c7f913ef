"""The loops of `lanes` and `streams`, compiled: the same integers and the same roundings, several times as fast."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_LANES = 16
_N_LEVELS, _N_PREDICTIONS, _REACH = 112, 17, 8
_ROW_PRIOR, _KERNEL_PRIOR, _MEAN_PRIOR = 4.0, 16.0, 32.0
_ONE, _MOST = 127 << 4, 32 << 4
_PRECISION, _FACTOR_BITS, _TOP_BITS = 24, 30, 8
_LOW = np.uint64((1 << _PRECISION) - 1)
_WORD = np.uint64(32)
_FULL = np.uint64(1 << 32)
_NEXT = np.uint64(1)
_SHIFT, _TOP_SHIFT = np.uint64(_PRECISION), np.uint64(_PRECISION - _TOP_BITS)


@njit(cache=True, nogil=True)
def walk(
    ids: Any,
    slots: Any,
    shape: Any,
    neighbours: Any,
    values: Any,
    scales: Any,
    by_rule: Any,
    trellis: Any,
    sums: Any,
    coder: Any,
) -> Any:
    """Walk through whole groups of rows.

    Args:
        ids: int32 (n,), in coding order; written where slots are empty.
        slots: uint16 (n,), written; empty: decode the ids.
        shape: Rows, columns, taps and width of the kernel.
        neighbours: Weights of the left, the upper and the upper left neighbour.
        values: int32 (K + 1,).
        scales: float32 (112,), 2 over the magnitude of each level.
        by_rule: Whether slots depend on contexts.
        trellis: Whether slots depend on parities.
        sums: Of the taps float64 magnitudes and counts, of the columns float32 magnitudes and expected ones; changed.
        coder: The tables of `_made`, the words, the states (changed), and the numbers of the next weight and word.

    Returns:
        The place of the next word; -1 if a state allowed no symbol.
    """
    rows, columns, taps, width = shape
    left, above, corner = neighbours
    mean_sums, mean_counts, column_sums, column_usual = sums
    models, words, states, number, word = coder
    made, cumulative, tops, symbols = models[0], models[1], models[2], models[5]
    last_state = np.uint64(len(states) - 1)
    flat, stride = cumulative.reshape(cumulative.size), np.uint64(cumulative.shape[1])
    escape = len(values) - 1
    predicts = by_rule and (left != 0 or above != 0 or corner != 0)
    row_sums = np.ones(_LANES, np.float32)
    usual, distance = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.float32)
    gain = np.zeros(_LANES, np.float32)
    level, slot, state, guess = (
        np.zeros(_LANES, np.int32),
        np.zeros(_LANES, np.int32),
        np.zeros(_LANES, np.int32),
        np.zeros(_LANES, np.int32),
    )
    most, one, widest = np.int32(_MOST), np.int32(_ONE), np.int32(4 * _N_LEVELS - 1)
    prior = np.float32(_KERNEL_PRIOR)
    kernel_sums, kernel_usual = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.float32)
    read = np.zeros(taps * _LANES, np.int32)
    place = 0
    for first in range(0, rows, _LANES):
        lanes = min(_LANES, rows - first)
        state[:] = 0
        distance[:] = 0.0
        row_usual = np.float32(_ROW_PRIOR * max(1.0, mean_sums[0] / mean_counts[0]))
        row_sums[:] = row_usual
        for column in range(columns):
            kernel_sums[:] = 0.0
            kernel_usual[:] = 0.0
            guess[:] = 0
            for tap in range(taps):
                if by_rule:
                    if mean_counts[tap] == 0.0:
                        mean_sums[tap] = _MEAN_PRIOR * (mean_sums[tap - 1] / mean_counts[tap - 1])
                        mean_counts[tap] = _MEAN_PRIOR
                    mean = np.int32(_lg(np.float32(max(1.0, mean_sums[tap] / mean_counts[tap]))) - one)
                    offset = np.int32(mean - _lg(row_usual))
                    own = np.int32(0)
                    if columns > 1:
                        own = np.int32(_lg(column_sums[column]) - _lg(column_usual[column]))
                    if taps > 1:
                        for lane in range(_LANES):
                            near = _clipped(np.int32(offset + own + _lg(row_sums[lane])), most)
                            linear = _ex(near)
                            usual[lane] = linear
                            linear = prior * linear
                            high = np.float32(linear + kernel_sums[lane])
                            low = np.float32(linear + kernel_usual[lane])
                            near = np.int32(near + _lg(high) - _lg(low))
                            level[lane] = np.int32(_clipped(near, widest) >> 2)
                    else:
                        for lane in range(_LANES):
                            near = np.int32(offset + own + _lg(row_sums[lane]))
                            level[lane] = np.int32(_clipped(near, widest) >> 2)
                    for lane in range(_LANES):
                        slot[lane] = 2 * _N_PREDICTIONS * level[lane] + 2 * _REACH
                    if predicts and tap:
                        x, y = tap % width, tap // width
                        a, b, c = np.int32(left if x else 0), np.int32(above if y else 0), np.int32(0)
                        beside, over, across = (tap - 1) * _LANES, 0, 0
                        if y:
                            over = (tap - width) * _LANES
                            if x:
                                c, across = np.int32(corner), (tap - width - 1) * _LANES
                        for lane in range(_LANES):
                            gain[lane] = scales[np.uint64(level[lane])]
                        for lane in range(_LANES):
                            centre = np.int32(a * read[beside + lane] + b * read[over + lane])
                            guess[lane] = np.int32(np.int32(centre + c * read[across + lane]) >> 4)
                        for lane in range(_LANES):
                            halves = np.float32(np.float32(guess[lane]) * gain[lane]) + np.float32(_REACH + 0.5)
                            halves = halves if halves > np.float32(0.0) else np.float32(0.0)
                            halves = halves if halves < np.float32(2 * _REACH) else np.float32(2 * _REACH)
                            slot[lane] = np.int32(slot[lane] + np.int32(np.int32(halves) << 1)) - np.int32(2 * _REACH)
                else:
                    slot[:] = 0
                if trellis:
                    for lane in range(_LANES):
                        slot[lane] += state[lane] & 1
                if len(slots) == 0:
                    for lane in range(lanes):
                        key = np.uint64(slot[lane])
                        model = made[key]
                        if model < 0:
                            model = _made(np.int64(key), models)
                            if model < 0:
                                return -1
                        which = np.uint64(number + place + lane) & last_state
                        coded = states[which]
                        low = coded & _LOW
                        symbol = np.uint64(tops[np.uint64(model), low >> _TOP_SHIFT])
                        base = np.uint64(model) * stride + symbol
                        start, stop = np.uint64(flat[base]), np.uint64(flat[base + _NEXT])
                        while stop <= low:
                            base += _NEXT
                            start, stop = stop, np.uint64(flat[base + _NEXT])
                        coded = (coded >> _SHIFT) * (stop - start) + (low - start)
                        if coded < _FULL and word < len(words):
                            coded = coded << _WORD | np.uint64(words[np.uint64(word)])
                            word += 1
                        states[which] = coded
                        found = symbols[key & _NEXT, base - np.uint64(model) * stride]
                        ids[np.uint64(place + lane)] = found
                else:
                    for lane in range(lanes):
                        slots[place + lane] = slot[lane]
                if trellis:
                    for lane in range(lanes):
                        found = ids[np.uint64(place + lane)]
                        # The bits of `NEXT_STATE`, without a look-up.
                        before = state[lane]
                        branch = np.int32(0) if found == escape else found >> 1
                        state[lane] = ((before & 3) << 1) | ((branch ^ (before >> 1) ^ (before >> 2)) & 1)
                if by_rule:
                    here = tap * _LANES
                    for lane in range(lanes):
                        value = values[np.uint64(ids[np.uint64(place + lane)])]
                        read[here + lane] = value
                        distance[lane] = np.float32(abs(np.int32(value - guess[lane])))
                    if taps > 1:
                        for lane in range(_LANES):
                            kernel_sums[lane] += distance[lane]
                        for lane in range(_LANES):
                            kernel_usual[lane] += usual[lane]
                    for lane in range(_LANES):
                        usual[lane] = _ex(_clipped(np.int32(offset + _lg(row_sums[lane])), most))
                        row_sums[lane] = row_sums[lane] + distance[lane]
                    for lane in range(lanes, _LANES):
                        usual[lane] = np.float32(0.0)
                    total = _sum(distance)
                    column_sums[column] += total
                    column_usual[column] += _sum(usual)
                    mean_sums[tap] += total
                    mean_counts[tap] += lanes
                    row_usual = np.float32(row_usual + _ex(_clipped(np.int32(mean + own), most)))
                place += lanes
    return word


@njit(cache=True, nogil=True)
def _lg(number: Any) -> Any:
    """int32, bits of a float32: 16 times its exponent, and the first four bits of its mantissa."""
    bits = np.float32(number).view(np.int32)
    return np.int32(bits >> 19)


@njit(cache=True, nogil=True)
def _ex(level: Any) -> Any:
    """float32, the inverse of `_lg`, less its bias."""
    bits = np.int32(np.int32(level + _ONE) << 19)
    return np.int32(bits).view(np.float32)


@njit(cache=True, nogil=True)
def _clipped(level: Any, most: Any) -> Any:
    """int32, at least 0 and at most `most`."""
    level = level if level > np.int32(0) else np.int32(0)
    return level if level < most else most


@njit(cache=True, nogil=True)
def _sum(a: Any) -> Any:
    """Sum of 16 numbers: halves onto each other, four times."""
    first = ((a[0] + a[8]) + (a[4] + a[12])) + ((a[2] + a[10]) + (a[6] + a[14]))
    return first + (((a[1] + a[9]) + (a[5] + a[13])) + ((a[3] + a[11]) + (a[7] + a[15])))


@njit(cache=True, nogil=True)
def encode(ids: Any, slots: Any, positions: Any, models: Any, states: Any, number: Any, words: Any) -> Any:
    """Encode ids backwards.

    Args:
        ids: int32 (n,), in coding order.
        slots: uint16 (n,).
        positions: int32 (2, K + 1), number of each symbol among those of its parity.
        models: As `row_of` takes them.
        states: uint64 (S,), changed.
        number: Number of weights before these.
        words: uint32 (n + 1,), filled from the end.

    Returns:
        Where the words start.
    """
    made, cumulative = models[0], models[1]
    last_state = np.uint64(len(states) - 1)
    flat, stride = cumulative.reshape(cumulative.size), np.uint64(cumulative.shape[1])
    place = len(words)
    for index in range(len(ids) - 1, -1, -1):
        slot = np.uint64(slots[index])
        row = made[slot]
        if row < 0:
            row = _made(np.int64(slot), models)
        base = np.uint64(row) * stride + np.uint64(positions[slot & _NEXT, np.uint64(ids[index])])
        start = np.uint64(flat[base])
        share = np.uint64(flat[base + _NEXT]) - start
        which = np.uint64(number + index) & last_state
        state = states[which]
        if state >> np.uint64(64 - _PRECISION) >= share:
            place -= 1
            words[place] = np.uint32(state & np.uint64(0xFFFFFFFF))
            state >>= _WORD
        quotient = state // share
        states[which] = (quotient << _SHIFT) + (state - quotient * share) + start
    return place


@njit(cache=True, nogil=True)
def _made(slot: Any, models: Any) -> Any:
    rows, cumulative, tops, used, counts, symbols, weights, values, rule, weighted = models
    parity, context = slot & 1, slot >> 1
    count = counts[parity]
    if count == 0:
        return -1
    if used[0] == len(cumulative):
        rows[:] = -1
        used[0] = 0
    row = used[0]
    used[0] += 1
    rows[slot] = row
    by_rule, tail, offset, floor = rule
    level, prediction = context // _N_PREDICTIONS, context % _N_PREDICTIONS - _REACH
    centre = (prediction * _exp16(4 * level + 2)) >> 1
    scale = _exp16(max(4 * (level + offset) + 2, 0)) + floor
    freedom = ((4 << tail) - 1) << 20
    total = np.int64(0)
    for index in range(count):
        weight = weights[parity, index]
        if by_rule:
            symbol = symbols[parity, index]
            factor = np.int64(1 << _FACTOR_BITS)
            if symbol != len(values) - 1:
                far = min((abs(values[symbol] - centre) << 10) // scale, 1 << 20)
                factor = (freedom << _FACTOR_BITS) // (freedom + far * far)
                for _ in range(tail + 1):
                    factor = (factor * factor) >> _FACTOR_BITS
            weight = (weight * factor) >> (_FACTOR_BITS - 4)
        weighted[index] = weight
        total += weight
    free = (1 << _PRECISION) - count
    top, rest = 0, np.int64(1 << _PRECISION)
    for index in range(count):
        if weighted[index] > weighted[top]:
            top = index
    total = max(total, np.int64(1))
    for index in range(count):
        weight = 1 + weighted[index] * free // total
        rest -= weight
        cumulative[row, index + 1] = weight
    cumulative[row, top + 1] += rest
    cumulative[row, 0] = 0
    for index in range(count):
        cumulative[row, index + 1] += cumulative[row, index]
    symbol = 0
    for index in range(1 << _TOP_BITS):
        while np.int64(cumulative[row, symbol + 1]) <= index << (_PRECISION - _TOP_BITS):
            symbol += 1
        tops[row, index] = min(symbol, 65535)
    return row


@njit(cache=True, nogil=True)
def _exp16(level: Any) -> Any:
    return ((16 + (level & 15)) << (level >> 4)) >> 4


def nothing() -> tuple[Any, ...]:
    """The `coder` of a walk that does not decode."""
    table = np.zeros((2, 1), np.int64)
    models = (
        np.zeros(1, np.int32),
        np.zeros((1, 1), np.uint32),
        np.zeros((1, 1), np.uint16),
        table[0],
        table[1],
        table,
        table,
        table[0],
        (False, 0, 0, 0),
        table[0],
    )
    return models, np.zeros(0, np.uint32), np.zeros(1, np.uint64), 0, 0
