"""Compiled: frequencies by context, and the coder of `symbols.py`. Same integers, same words.

A *model* is one row of three arrays: the cumulative frequencies of its symbols, and for one direction each the
reciprocals of their frequencies or, for every 2^16th of the range, the first symbol there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

SETTINGS = {"cache": True, "nogil": True, "error_model": "numpy"}

PRECISION = 24
RANGE = 1 << PRECISION
WORD = 1 << 32
FACTOR_BITS = 30
N_PREDICTIONS, REACH = 17, 8
BUCKET_BITS = 16
BUCKETS = 1 << (PRECISION - BUCKET_BITS)
FEW = 8
"""So many symbols or fewer are searched one by one."""


class Model(NamedTuple):
    """Frequencies of one tensor.

    Attributes:
        weights: int64 (m,), weights of the symbols that occur, before their factors.
        values: int64 (m,), their values.
        escape: Position of the outlier among them, or -1.
        rule: int64 (3,), tail, offset and floor (as a magnitude).
    """

    weights: np.ndarray
    values: np.ndarray
    escape: int
    rule: np.ndarray


class Coder(NamedTuple):
    """State of the coder, and models made so far; one of `reciprocals` and `buckets` has rows.

    Attributes:
        state: uint64 (1,).
        words: uint32 (w,), the words that are read, or room for those that are written.
        n_words: int64 (1,), number of words that are left, or were written.
        rows: int32 (contexts + 1,), row of each context's model, -1 if there is none; last the number of rows in use.
        cumulative: uint32 (r, m + 1).
        reciprocals: uint64 (r, m).
        shifts: uint8 (r, m).
        buckets: uint16 (r, BUCKETS + 1).
        scratch: int64 (m,), working memory.
    """

    state: np.ndarray
    words: np.ndarray
    n_words: np.ndarray
    rows: np.ndarray
    cumulative: np.ndarray
    reciprocals: np.ndarray
    shifts: np.ndarray
    buckets: np.ndarray
    scratch: np.ndarray


@intrinsic
def high_product(context, a, b):
    """The upper 64 bits of the product of two 64-bit integers."""

    def generate(context, builder, signature, arguments):
        wide = ir.IntType(128)
        x, y = (builder.zext(argument, wide) for argument in arguments)
        return builder.trunc(builder.lshr(builder.mul(x, y), wide(64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@njit(**SETTINGS)
def ex(level):
    """`exp16` of one level >= 0."""
    return ((16 + (level & 15)) << (level >> 4)) >> 4


@njit(**SETTINGS)
def frequencies_of(context, model, out, scratch):
    """Write the cumulative frequencies of a context: `tables.frequencies` with `contexts.factors`.

    Args:
        context: The context, or -1 for a table without contexts.
        model: The tensor's.
        out: uint32 (m + 1,).
        scratch: int64 (m,).
    """
    weights, values, escape, rule = model
    m, tail = len(weights), rule[0]
    level, prediction = context // N_PREDICTIONS, context % N_PREDICTIONS
    centre = ((prediction - REACH) * ex(4 * level + 2)) >> 1 if context >= 0 else 0
    scale = np.float64(ex(max(4 * (level + rule[1]) + 2, 0)) + rule[2])
    freedom = ((4 << tail) - 1) << 20
    total, largest, top = 0, -1, 0
    for j in range(m):
        weight = weights[j]
        if context >= 0:
            factor = np.int64(1) << FACTOR_BITS
            if j != escape:
                distance = min(np.int64(np.float64(abs(values[j] - centre) << 10) / scale), np.int64(1 << 20))
                factor = np.int64(np.uint64(freedom << FACTOR_BITS) // np.uint64(freedom + distance * distance))
                for _ in range(tail + 1):
                    factor = (factor * factor) >> FACTOR_BITS
            weight = (weight * factor) >> (FACTOR_BITS - 4)
        scratch[j] = weight
        total += weight
        if weight > largest:
            largest, top = weight, j
    free, divisor, left = RANGE - m, np.uint64(max(total, 1)), RANGE
    for j in range(m):
        scratch[j] = 1 + np.int64(np.uint64(scratch[j] * free) // divisor)
        left -= scratch[j]
    scratch[top] += left
    cumulative = 0
    for j in range(m):
        out[j] = cumulative
        cumulative += scratch[j]
    out[m] = cumulative


@njit(**SETTINGS)
def invert(cumulative, reciprocals, shifts):
    """Write reciprocals. `high_product(s, it) >> shift` is s / frequency, or one less, for all s < 2^40 frequency."""
    for j in range(len(reciprocals)):
        frequency = np.uint64(cumulative[j + 1]) - np.uint64(cumulative[j])
        bits = np.uint64(0)
        while (frequency >> bits) > np.uint64(0):
            bits += np.uint64(1)
        if frequency == np.uint64(1) << (bits - np.uint64(1)):
            reciprocals[j] = ~np.uint64(0)
        else:
            half = np.uint64(1 << 63)
            reciprocals[j] = ((half // frequency) << bits) + ((half % frequency) << bits) // frequency
        shifts[j] = bits - np.uint64(1)


@njit(**SETTINGS)
def find_buckets(cumulative, buckets):
    """Write the symbol at the start of each bucket, and the last symbol; `buckets` uint16 (BUCKETS + 1,)."""
    j = 0
    for bucket in range(BUCKETS):
        while cumulative[j + 1] <= bucket << BUCKET_BITS:
            j += 1
        buckets[bucket] = j
    buckets[BUCKETS] = len(cumulative) - 2


@njit(**SETTINGS)
def row_of(context, model, coder):
    """The row of a context's model, which is made where there is none; rows start over when all are taken."""
    rows = coder.rows
    if rows[context] >= 0:
        return np.int64(rows[context])
    if rows[-1] == len(coder.cumulative):
        rows[:-1] = -1
        rows[-1] = 0
    row = np.int64(rows[-1])
    rows[context] = row
    rows[-1] += 1
    frequencies_of(context if len(rows) > 2 else -1, model, coder.cumulative[row], coder.scratch)
    if len(coder.buckets):
        find_buckets(coder.cumulative[row], coder.buckets[row])
    else:
        invert(coder.cumulative[row], coder.reciprocals[row], coder.shifts[row])
    return row


@njit(**SETTINGS)
def encode(contexts, ids, positions, model, coder):
    """Push ids, from the last to the first.

    Args:
        contexts: uint16 (n,), equal ones side by side; empty for a table without contexts.
        ids: int (n,).
        positions: int32 (K + 1,), position of each symbol among those that occur.
        model: The tensor's.
        coder: Is changed.
    """
    words, n, end, s = coder.words, coder.n_words[0], len(ids), coder.state[0]
    while end > 0:
        context, begin = 0, 0
        if len(contexts):
            context, begin = np.int64(contexts[end - 1]), end - 1
            while begin > 0 and contexts[begin - 1] == context:
                begin -= 1
        row = row_of(context, model, coder)
        starts, factors, shifts = coder.cumulative[row], coder.reciprocals[row], coder.shifts[row]
        for i in range(end - 1, begin - 1, -1):
            j = positions[ids[i]]
            low = np.uint64(starts[j])
            frequency = np.uint64(starts[j + 1]) - low
            if (s >> np.uint64(64 - PRECISION)) >= frequency:
                words[n] = np.uint32(s & np.uint64(WORD - 1))
                n += 1
                s >>= np.uint64(32)
            quotient = high_product(s, factors[j]) >> np.uint64(shifts[j])
            if s - quotient * frequency >= frequency:
                quotient += np.uint64(1)
            s += quotient * (np.uint64(RANGE) - frequency) + low
        end = begin
    coder.state[0], coder.n_words[0] = s, n


@njit(**SETTINGS)
def decode(contexts, symbols, model, coder, out):
    """Pop ids, from the first to the last.

    Args:
        contexts: uint16 (n,), equal ones side by side; empty for a table without contexts.
        symbols: (m,), the ids that occur.
        model: The tensor's.
        coder: Is changed.
        out: (n,), where ids are written.
    """
    words, left, begin, s = coder.words, coder.n_words[0], 0, coder.state[0]
    while begin < len(out):
        context, end = 0, len(out)
        if len(contexts):
            context, end = np.int64(contexts[begin]), begin + 1
            while end < len(out) and contexts[end] == context:
                end += 1
        row = row_of(context, model, coder)
        starts, firsts = coder.cumulative[row], coder.buckets[row]
        for i in range(begin, end):
            place = s & np.uint64(RANGE - 1)
            bucket = place >> np.uint64(BUCKET_BITS)
            j, last = np.int64(firsts[bucket]), np.int64(firsts[bucket + np.uint64(1)])
            while last - j > FEW:
                middle = (j + last) >> 1
                if np.uint64(starts[middle + 1]) <= place:
                    j = middle + 1
                else:
                    last = middle
            while np.uint64(starts[j + 1]) <= place:
                j += 1
            low = np.uint64(starts[j])
            s = (s >> np.uint64(PRECISION)) * (np.uint64(starts[j + 1]) - low) + (place - low)
            if s < np.uint64(WORD) and left > 0:
                left -= 1
                s = (s << np.uint64(32)) | np.uint64(words[left])
            out[i] = symbols[j]
        begin = end
    coder.state[0], coder.n_words[0] = s, left
