"""Compiled: the walk of `contexts.py` through a tensor. Same blocks, same order, same contexts.

Sums and quotients are integers throughout, some of them held in float64: below 2^53, the floor of a rounded quotient
is the exact one, and the bits of a float64 hold `lg`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gbnn_compress.format.ans_loops import SETTINGS, decode

N_LEVELS = 112
REACH = 8
N_CONTEXTS = N_LEVELS * (2 * REACH + 1)
PHASES = 16
RATIO_BITS = 12
LARGEST_SUM = 1 << 50
ROW_PRIOR, KERNEL_PRIOR, MEAN_PRIOR = 8, 16, 8
UNIT = 16 * RATIO_BITS
BIAS = 1023 << 4


@njit(**SETTINGS)
def lg(number):
    """`log16` of one number."""
    return (np.float64(number).view(np.int64) >> 48) - BIAS


@njit(**SETTINGS)
def ex(level):
    """`exp16` of one level >= 0, as a float64."""
    return np.floor(np.int64((level + BIAS) << 48).view(np.float64))


@njit(**SETTINGS)
def level_of(row_log, column_log, mean_log, tap, kernel):
    """The level of one weight; `kernel` is the sum of its kernel's ratios."""
    level = row_log + column_log
    if tap > 0:
        linear = KERNEL_PRIOR * ex(min(max(level + UNIT, 0), 36 * 16)) + kernel
        level = lg(max(np.floor(linear / np.float64(KERNEL_PRIOR + tap)), 1.0)) - UNIT
    return min(max((level + mean_log) >> 2, 0), N_LEVELS - 1)


@njit(**SETTINGS)
def prediction_of(level, expected):
    """The expected value in half scales, to the nearest, as a float64."""
    scale = ex(4 * level + 2)
    return min(max(np.floor((4.0 * expected + scale) / (2.0 * scale)), -float(REACH)), float(REACH))


@njit(**SETTINGS)
def row_contexts(row_log, column_logs, mean_log, tap, kernels, expected, levels, out):
    """Write the contexts of a row; loops without branches, which become vector instructions.

    Args:
        row_log: Sixteenths of octaves of the row.
        column_logs: int64 (columns,), those of the columns.
        mean_log: That of the mean.
        tap: Number of the tap, from 0.
        kernels: float64 (columns,), not read in tap 0.
        expected: int32 (columns,), or empty without neighbours.
        levels: int64 (columns,), working memory.
        out: uint16 (columns,).
    """
    if tap == 0:
        for i in range(len(out)):
            level = min(max((row_log + column_logs[i] + mean_log) >> 2, 0), N_LEVELS - 1)
            out[i] = np.uint16((2 * REACH + 1) * level + REACH)
        return
    for i in range(len(out)):
        levels[i] = level_of(row_log, column_logs[i], mean_log, tap, kernels[i])
    if len(expected):
        for i in range(len(out)):
            prediction = np.int32(prediction_of(levels[i], expected[i]))
            out[i] = np.uint16(np.int32((2 * REACH + 1) * levels[i] + REACH) + prediction)
    else:
        for i in range(len(out)):
            out[i] = np.uint16((2 * REACH + 1) * levels[i] + REACH)


@njit(**SETTINGS)
def block_contexts(
    start,
    stop,
    low,
    high,
    rows,
    row_counts,
    columns,
    column_counts,
    mean,
    tap,
    kernels,
    expected,
    levels,
    lane,
    out,
    counts,
):
    """Write the contexts of the weights of rows start to stop and phases low to high, in C order.

    Args:
        levels: int64 (columns,), working memory.
        lane: uint16 (columns,), working memory.
        out: uint16 (n,) or longer.
        counts: int64 (N_CONTEXTS,), number of weights of each context, added to.

    Returns:
        The number of weights.
    """
    width, n = len(columns), 0
    column_logs = np.zeros(width, dtype=np.int64)
    if width > 1:
        for i in range(width):
            column_logs[i] = lg(columns[i]) - lg(column_counts[i] << RATIO_BITS)
    mean_log = lg(mean)
    predicted, has_kernel = tap > 0 and expected.shape[1] > 0, tap > 0
    for o in range(start, stop):
        row_log = lg(rows[o]) - lg(row_counts[o] << RATIO_BITS)
        if high == PHASES:
            row_contexts(row_log, column_logs, mean_log, tap, kernels[o], expected[o], levels, lane)
        for first in range(low - o % PHASES, width, PHASES):
            for i in range(max(first, 0), min(first + high - low, width)):
                if high == PHASES:
                    context = np.int64(lane[i])
                else:
                    level = level_of(row_log, column_logs[i], mean_log, tap, kernels[o, i] if has_kernel else 0.0)
                    context = (2 * REACH + 1) * level + REACH
                    if predicted:
                        context += np.int64(prediction_of(level, expected[o, i]))
                out[n] = context
                counts[context] += 1
                n += 1
    return n


@njit(**SETTINGS)
def learn(
    start,
    stop,
    low,
    high,
    rows,
    row_counts,
    columns,
    column_counts,
    sums,
    tap,
    kernels,
    expected,
    ids,
    values,
    read,
    distances,
):
    """Learn from the ids of a block. In the last part of a tap all ids are known, and whole rows are read.

    Args:
        sums: int64 (3,), the tap's sum of magnitudes, its number of weights, and the mean.
        ids: (rows, columns), ids of the tap.
        values: int32 (K + 1,).
        read: int32 (rows, columns), where the values of the tap are kept; (0, 0) without neighbours.
        distances: int32 (rows, columns) or more rows, working memory.
    """
    width = len(columns)
    in_columns, in_rows = np.zeros(width, dtype=np.int64), np.zeros(stop - start, dtype=np.int64)
    keeps, predicted, last = len(read) > 0, tap > 0 and expected.shape[1] > 0, high == PHASES
    for o in range(start, stop):
        in_row, line, of_row = 0, distances[o - start], ids[o]
        if last:
            for i in range(width):
                line[i] = values[of_row[i]]
            if keeps:
                read[o] = line
            if predicted:
                less = expected[o]
                for i in range(width):
                    line[i] -= less[i]
            for i in range(width):
                line[i] = abs(line[i])
            for first in range(-(o % PHASES), width, PHASES):
                for i in range(max(first, 0), min(first + low, width)):
                    line[i] = 0
            for i in range(width):
                in_row += line[i]
            for i in range(width):
                in_columns[i] += line[i]
        else:
            for first in range(low - o % PHASES, width, PHASES):
                for i in range(max(first, 0), min(first + high - low, width)):
                    value = values[of_row[i]]
                    if keeps:
                        read[o, i] = value
                    if predicted:
                        value -= expected[o, i]
                    line[i] = abs(value)
                    in_row += line[i]
                    in_columns[i] += line[i]
        in_rows[o - start] = in_row
    n_rows, n_columns = numbers(start, stop, width, low, high)
    sums[0] += in_rows.sum()
    sums[1] += n_rows.sum()
    mean = max(1, sums[0] // sums[1])
    sums[2] = mean
    for o in range(start, stop):
        rows[o] += (min(in_rows[o - start], LARGEST_SUM) << RATIO_BITS) // mean
        row_counts[o] += n_rows[o - start]
    for i in range(width):
        columns[i] += (min(in_columns[i], LARGEST_SUM) << RATIO_BITS) // mean
        column_counts[i] += n_columns[i]
    if kernels.shape[1] > 0:
        divisor = np.float64(mean)
        for o in range(start, stop):
            line, sums_of_row = distances[o - start], kernels[o]
            if last:
                for i in range(width):
                    sums_of_row[i] += np.floor(np.float64(line[i]) * (1 << RATIO_BITS) / divisor)
            else:
                for first in range(low - o % PHASES, width, PHASES):
                    for i in range(max(first, 0), min(first + high - low, width)):
                        sums_of_row[i] += np.floor(np.float64(line[i]) * (1 << RATIO_BITS) / divisor)


@njit(**SETTINGS)
def numbers(start, stop, width, low, high):
    """int64, number of weights of a block in each of its rows and in each column."""
    n_rows, n_columns = np.zeros(stop - start, dtype=np.int64), np.zeros(width, dtype=np.int64)
    for o in range(start, stop):
        for first in range(low - o % PHASES, width, PHASES):
            n_rows[o - start] += max(min(first + high - low, width) - max(first, 0), 0)
    n_columns[:] = (stop - start) // PHASES * (high - low)
    for o in range(start + (stop - start) // PHASES * PHASES, stop):
        for first in range(low - o % PHASES, width, PHASES):
            for i in range(max(first, 0), min(first + high - low, width)):
                n_columns[i] += 1
    return n_rows, n_columns


@njit(**SETTINGS)
def expect(read, tap, width, left, above, corner, out):
    """Write the prediction from the taps to the left, above, and above to the left; `out` int32 (rows, columns)."""
    y, x = tap // width, tap % width
    n = len(read)
    left, above, corner = (
        np.int32(left if x else 0),
        np.int32(above if y else 0),
        np.int32(corner if x and y else 0),
    )
    one, two, three = read[(tap - 1) % n], read[(tap - width) % n], read[(tap - width - 1) % n]
    for o in range(len(out)):
        for i in range(out.shape[1]):
            out[o, i] = (left * one[o, i] + above * two[o, i] + corner * three[o, i]) >> 4


@njit(**SETTINGS)
def walk(by_tap, values, mean, neighbours, width, band, first_ends, next_ends, reading, symbols, model, coder):
    """Walk through a tensor, and either sort its ids into coding order, or decode them.

    Args:
        by_tap: (taps, rows, columns), the ids; written if `reading`.
        values: int32 (K + 1,).
        mean: Magnitude expected first.
        neighbours: int64 (3,).
        width: Of the kernel.
        band: Number of rows of a band.
        first_ends: int64, end phases of the parts of the first tap.
        next_ends: int64, those of all other taps.
        reading: Whether ids are decoded; `symbols`, `model` and `coder` are not used otherwise.
        symbols: (m,), the ids that occur.
        model: See `ans_loops.Model`.
        coder: See `ans_loops.Coder`.

    Returns:
        uint16 (n,) contexts, (n,) ids, and int64 (b,) the end of each block; without meaning if `reading`.
    """
    taps, rows, columns = by_tap.shape
    band = min(band, rows)
    contexts = np.empty(band * columns if reading else by_tap.size, dtype=np.uint16)
    ids = np.empty(len(contexts), dtype=by_tap.dtype)
    places = np.empty(band * columns if reading else 0, dtype=np.uint32)
    n_bands = (rows + band - 1) // band
    edges = np.empty(n_bands * (len(first_ends) + (taps - 1) * len(next_ends)), dtype=np.int64)
    n_edges, end = 0, 0
    has_neighbours = neighbours[0] != 0 or neighbours[1] != 0 or neighbours[2] != 0
    n_read = (width + 1 if taps > width else 1) if has_neighbours else 0
    read = np.zeros((n_read, rows, columns), dtype=np.int32)
    predicts = n_read > 0 and taps > 1
    expected = np.zeros((rows, columns if predicts else 0), dtype=np.int32)
    nothing = np.zeros((0, 0), dtype=np.int32)
    kernels = np.zeros((rows, columns if taps > 1 else 0))
    row_sums, row_counts = np.full(rows, ROW_PRIOR << RATIO_BITS), np.full(rows, ROW_PRIOR)
    column_sums, column_counts = np.full(columns, ROW_PRIOR << RATIO_BITS), np.full(columns, ROW_PRIOR)
    sums = np.array([0, 0, mean])
    levels, lane = np.empty(columns, dtype=np.int64), np.empty(columns, dtype=np.uint16)
    distances = np.empty((band, columns), dtype=np.int32)
    block = np.empty(band * columns, dtype=np.uint16)
    counts = np.zeros(N_CONTEXTS, dtype=np.int64)
    for tap in range(taps):
        if tap > 0 and predicts:
            expect(read, tap, width, neighbours[0], neighbours[1], neighbours[2], expected)
        sums[0], sums[1] = MEAN_PRIOR * sums[2], MEAN_PRIOR
        low, of_tap = 0, by_tap[tap]
        for high in next_ends if tap > 0 else first_ends:
            for start in range(0, rows, band):
                stop = min(start + band, rows)
                counts[:] = 0
                n = block_contexts(
                    start,
                    stop,
                    low,
                    high,
                    row_sums,
                    row_counts,
                    column_sums,
                    column_counts,
                    sums[2],
                    tap,
                    kernels,
                    expected,
                    levels,
                    lane,
                    block,
                    counts,
                )
                if n == 0:
                    continue
                begin = 0 if reading else end
                fill(counts, contexts[begin : begin + n])
                if reading:
                    place(start, stop, low, high, columns, block, counts, places)
                    decode(contexts[:n], symbols, model, coder, ids[:n])
                    flat = of_tap.reshape(-1)
                    for k in range(n):
                        flat[places[k]] = ids[k]
                else:
                    pick(start, stop, low, high, of_tap, block, counts, ids[begin : begin + n])
                learn(
                    start,
                    stop,
                    low,
                    high,
                    row_sums,
                    row_counts,
                    column_sums,
                    column_counts,
                    sums,
                    tap,
                    kernels,
                    expected,
                    of_tap,
                    values,
                    read[tap % n_read] if n_read else nothing,
                    distances,
                )
                end += n
                edges[n_edges] = end
                n_edges += 1
            low = high
    return contexts, ids, edges[:n_edges]


@njit(**SETTINGS)
def fill(counts, out):
    """Write contexts in ascending order, by their numbers; those become the place where each context begins."""
    n = 0
    for context in range(N_CONTEXTS):
        count = counts[context]
        out[n : n + count] = context
        counts[context] = n
        n += count


@njit(**SETTINGS)
def pick(start, stop, low, high, of_tap, block, begins, out):
    """Write the ids of a block sorted by their contexts `block`."""
    k, columns = 0, of_tap.shape[1]
    for o in range(start, stop):
        row = of_tap[o]
        for first in range(low - o % PHASES, columns, PHASES):
            for i in range(max(first, 0), min(first + high - low, columns)):
                context = block[k]
                out[begins[context]] = row[i]
                begins[context] += 1
                k += 1


@njit(**SETTINGS)
def place(start, stop, low, high, columns, block, begins, out):
    """Write the places within the tap of the weights of a block sorted by their contexts `block`; uint32."""
    k = 0
    for o in range(start, stop):
        for first in range(low - o % PHASES, columns, PHASES):
            for i in range(max(first, 0), min(first + high - low, columns)):
                context = block[k]
                out[begins[context]] = o * columns + i
                begins[context] += 1
                k += 1
