"""The writer's choice: whether to code a tensor's ids by context, and with which rule and table.

Nothing here is part of the format: a file records the choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gbnn_compress.format.contexts import (
    FACTOR_BITS,
    N_LEVELS,
    N_PREDICTIONS,
    ContextRule,
    factors,
    kernel_of,
    log16,
    walk,
)
from gbnn_compress.format.counts import id_counts
from gbnn_compress.format.smoothing import rounded_levels, smooth_levels
from gbnn_compress.format.tables import (
    PRECISION,
    Table,
    coarse_levels,
    code_lengths,
    frequencies,
    rule_bits,
    table_bits,
)

FLOORS = ((0, 0.05), (-1, 0.15), (-2, 0.25), (-3, 0.35), (1, 0.0))
"""Offsets and floors to try together, because one offsets the other; floors are fractions of the smallest magnitude."""

TAILS = (0, 1, 2, 3)

ROUNDS, FINAL_ROUNDS = 3, 8
"""Rounds of proportional fitting for a trial, and for the final rule."""

LARGEST_FIT = 1 << 21
"""Largest number of entries (contexts times symbols) that a rule is fitted on, those of the most frequent contexts."""

LARGE = 1 << 18
"""Tensors with more weights are tried on LARGE / 4 weights first: contexts take time also where they save nothing."""

NEIGHBOUR_WEIGHTS = 1 << 19
"""Largest number of weights, in whole rows drawn at random, for the regression on neighbours."""

FEWEST = 32
"""Tensors with fewer weights are coded without contexts."""


@dataclass(frozen=True)
class Block:
    """Ids of one block, sorted by context.

    Attributes:
        contexts: uint16 (n,), ascending.
        ids: int (n,).
    """

    contexts: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class Choice:
    """How to code the ids of a tensor.

    Attributes:
        table: The cheaper of a table without and one with contexts.
        blocks: The ids in the order of their contexts; empty without contexts.
        id_bits: Bits of the ids.
        plain_bits: Bits of the ids without contexts.
    """

    table: Table
    blocks: list[Block]
    id_bits: float
    plain_bits: float


def choose(
    ids: np.ndarray, shape: Sequence[int], values: np.ndarray, *, smooth: bool = True, contexts: bool = True
) -> Choice:
    """Choose between a table without contexts and one with them.

    Args:
        ids: (n,) ids of a tensor, C order.
        shape: Its shape.
        values: int64 (K + 1,), from `whole_values`.
        smooth: Whether to search for the cheapest levels, which takes time.
        contexts: Whether contexts are allowed.
    """
    counts = id_counts(ids, len(values))
    used = np.flatnonzero(counts)
    plain = Table(_plain_levels(counts, smooth=smooth))
    plain_bits = float((counts[used] * code_lengths(plain.levels)[used]).sum())
    without = Choice(plain, [], plain_bits, plain_bits)
    if not contexts or len(used) == 1 or len(ids) < FEWEST or not _pays_in_part(ids, shape, values):
        return without
    rule = _first_rule(ids, counts, shape, values)
    blocks = _blocks(ids, shape, values, rule)
    symbols = np.arange(used[0], used[-1] + 1)
    occurring, table = _count(blocks, symbols)
    fitted = _fit(rule, occurring, table, symbols, values, smooth=smooth)
    id_bits = _coded_bits(fitted, occurring, table, symbols, values)
    saved = plain_bits + table_bits(plain.levels) - id_bits - table_bits(fitted.levels) - rule_bits(shape)
    return Choice(fitted, blocks, id_bits, plain_bits) if saved > 0 else without


def _pays_in_part(ids: np.ndarray, shape: Sequence[int], values: np.ndarray) -> bool:
    """Whether contexts save bytes for the first rows and columns of a large tensor; True for other tensors."""
    if len(ids) < LARGE:
        return True
    part = math.sqrt(LARGE / 4 / len(ids))
    corner = ids.reshape(shape)[: math.ceil(part * shape[0]), : math.ceil(part * shape[1])]
    # Where the kernel is nearly all of a tensor, its corner is no smaller.
    return corner.size >= LARGE or choose(corner.ravel(), corner.shape, values, smooth=False).table.rule is not None


def _plain_levels(counts: np.ndarray, *, smooth: bool) -> np.ndarray:
    levels = coarse_levels(counts)
    if smooth:
        used = np.flatnonzero(counts)
        run = slice(used[0], used[-1] + 1)
        levels[run] = smooth_levels(np.maximum(counts[run], 1.0), counts[run], np.ones(run.stop - run.start))
    return levels


def _first_rule(ids: np.ndarray, counts: np.ndarray, shape: Sequence[int], values: np.ndarray) -> ContextRule:
    """The start and the neighbours of the rule; contexts do not depend on the rest, which is fitted later."""
    magnitude = float((counts * np.abs(values)).sum()) / len(ids)
    has_kernel = kernel_of(shape) != (1, 1)
    neighbours = _neighbours(ids, shape, values) if has_kernel else (0, 0, 0)
    return ContextRule(_quarter_octaves(magnitude), neighbours, tail=1, offset=0, floor=0)


def _quarter_octaves(magnitude: float) -> int:
    return int(log16(np.array([max(1, int(magnitude))]))[0]) >> 2


def _neighbours(ids: np.ndarray, shape: Sequence[int], values: np.ndarray) -> tuple[int, int, int]:
    """Least squares of a weight on its left, upper and upper left neighbour, with rows and columns normalised."""
    if len(ids) > NEIGHBOUR_WEIGHTS:
        n_rows = max(1, NEIGHBOUR_WEIGHTS * shape[0] // len(ids))
        drawn = np.random.default_rng(0).permutation(shape[0])[:n_rows]
        ids, shape = ids.reshape(shape)[drawn], (n_rows, *shape[1:])
    by_tap, x = _by_tap(ids, shape), values.astype(np.float64)
    magnitudes = sum(np.abs(x)[tap] for tap in by_tap) / len(by_tap)
    scale = np.broadcast_to(magnitudes.mean(axis=1, keepdims=True) + 1, shape[:2])
    if shape[1] > 1:
        scale = scale * ((magnitudes / scale).mean(axis=0) + 1e-3)
    x = np.stack([x[tap] / scale for tap in by_tap]).reshape(*kernel_of(shape), -1)
    # Sums of products of each weight with itself and with its left, upper, upper left and upper right neighbour.
    pairs = ((x, x), (x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[1:, 1:], x[:-1, :-1]), (x[1:, :-1], x[:-1, 1:]))
    own, beside, below, along, across = (np.einsum("yxn,yxn->yx", a, b) for a, b in pairs)
    gram = np.array(
        [
            [own[:, :-1].sum(), across.sum(), below[:, :-1].sum()],
            [across.sum(), own[:-1].sum(), beside[:-1].sum()],
            [below[:, :-1].sum(), beside[:-1].sum(), own[:-1, :-1].sum()],
        ]
    )
    ridge = (1e-3 * np.trace(gram) + 1e-9) * np.eye(3)
    weights = np.linalg.solve(gram + ridge, [beside.sum(), below.sum(), along.sum()])
    left, above, corner = np.clip(np.rint(16 * weights), -32, 31).astype(int).tolist()
    return left, above, corner


def _by_tap(ids: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(taps, rows, columns), contiguous."""
    return np.ascontiguousarray(np.moveaxis(ids.reshape(*shape[:2], math.prod(kernel_of(shape))), -1, 0))


def _blocks(ids: np.ndarray, shape: Sequence[int], values: np.ndarray, rule: ContextRule) -> list[Block]:
    by_tap = _by_tap(ids, shape)
    blocks = []

    def visit(tap: int, band: slice, places: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        part = by_tap[tap, band].reshape(-1).take(places)
        order = np.argsort(contexts, kind="stable")
        blocks.append(Block(contexts.take(order), part.take(order)))
        return part

    walk(shape, values, rule, visit)
    return blocks


def _count(blocks: Sequence[Block], symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The contexts that occur, ascending, and float64 (n, m) the count of each symbol in each."""
    occurs = np.zeros(N_LEVELS * N_PREDICTIONS, dtype=bool)
    for block in blocks:
        occurs[block.contexts] = True
    contexts = np.flatnonzero(occurs)
    place = len(symbols) * (np.cumsum(occurs) - 1) - symbols[0]
    table = np.zeros(len(contexts) * len(symbols))
    for part in _batches(blocks, len(table)):
        entries = [place.take(block.contexts) + block.ids for block in part]
        table += np.bincount(np.concatenate(entries), minlength=len(table))
    return contexts, table.reshape(len(contexts), len(symbols))


def _batches(blocks: Sequence[Block], size: int) -> Iterator[list[Block]]:
    """Batches of blocks with at least `size` ids in all."""
    batch: list[Block] = []
    for block in blocks:
        batch.append(block)
        if sum(len(part.ids) for part in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _fit(
    rule: ContextRule, contexts: np.ndarray, table: np.ndarray, symbols: np.ndarray, values: np.ndarray, *, smooth: bool
) -> Table:
    """The rule and the levels that maximise the likelihood of the counts."""
    totals = table.sum(axis=0)
    most = np.argsort(-table.sum(axis=1), kind="stable")[: max(1, LARGEST_FIT // len(symbols))]
    contexts, table = contexts[most], table[most]
    magnitudes = np.abs(values[symbols[totals > 0]])
    smallest = int(magnitudes[magnitudes > 0].min(initial=1 << 24))
    weights = np.ones(len(symbols))
    best = (math.inf, rule, weights)

    def attempt(candidate: ContextRule, start: np.ndarray, rounds: int) -> tuple[float, ContextRule, np.ndarray]:
        shape = _shape(contexts, symbols, values, candidate)
        fitted = _proportional_fit(table, shape, start, rounds=rounds)
        return _cost(table, shape * fitted), candidate, fitted

    for offset, floor in FLOORS:
        candidate = replace(rule, offset=offset, floor=_quarter_octaves(floor * smallest))
        best = min(best, attempt(candidate, best[2], ROUNDS), key=lambda trial: trial[0])
    for tail in TAILS:
        if tail != rule.tail:
            best = min(best, attempt(replace(best[1], tail=tail), best[2], ROUNDS), key=lambda trial: trial[0])
    for step in (-1, 1):
        candidate = replace(best[1], offset=min(max(best[1].offset + step, -5), 2))
        best = min(best, attempt(candidate, best[2], ROUNDS), key=lambda trial: trial[0])
    _, chosen, weights = attempt(best[1], best[2], FINAL_ROUNDS)
    leaks = _leaks(table, _shape(contexts, symbols, values, chosen), weights)
    levels = np.zeros(len(values), dtype=np.int64)
    levels[symbols] = smooth_levels(weights, totals, leaks) if smooth else rounded_levels(weights, totals)
    return Table(levels, chosen)


def _shape(contexts: np.ndarray, symbols: np.ndarray, values: np.ndarray, rule: ContextRule) -> np.ndarray:
    return factors(contexts, symbols, values, rule) / 2.0**FACTOR_BITS + 1e-9


def _proportional_fit(table: np.ndarray, shape: np.ndarray, weights: np.ndarray, *, rounds: int) -> np.ndarray:
    """Weights whose expected counts equal the observed ones; unchanged for symbols that do not occur."""
    totals = table.sum(axis=0)
    live = totals > 0
    table, shape, fitted = table[:, live], shape[:, live], weights[live]
    for _ in range(rounds):
        fitted = totals[live] / np.maximum(_leaks(table, shape, fitted), 1e-300)
    weights = weights.copy()
    weights[live] = fitted
    return weights


def _leaks(table: np.ndarray, shape: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 (m,), expected members of each symbol per unit of its weight."""
    live = table.any(axis=0)
    scale = table.sum(axis=1) / (shape[:, live] * weights[live]).sum(axis=1)
    return np.asarray((shape * scale[:, None]).sum(axis=0))


def _cost(table: np.ndarray, likelihood: np.ndarray) -> float:
    """Bits, except for the rounding of frequencies."""
    live = table.any(axis=0)
    table, likelihood = table[:, live], likelihood[:, live]
    rows, columns = np.nonzero(table)
    probability = likelihood[rows, columns] / likelihood.sum(axis=1)[rows]
    return -float((table[rows, columns] * np.log2(probability)).sum())


def _coded_bits(
    table: Table, contexts: np.ndarray, counts: np.ndarray, symbols: np.ndarray, values: np.ndarray
) -> float:
    """Bits of the ids with a table, from the coder's frequencies."""
    assert table.rule is not None
    live = table.levels[symbols] > 0
    bits, step = 0.0, max(1, LARGEST_FIT // len(symbols))
    for start in range(0, len(contexts), step):
        shape = factors(contexts[start : start + step], symbols[live], values, table.rule)
        rows = frequencies(table.levels[symbols[live]], shape)
        part = counts[start : start + step][:, live]
        place, symbol = np.nonzero(part)
        bits += float((part[place, symbol] * (PRECISION - np.log2(rows[place, symbol]))).sum())
    return bits
