"""The rule and the levels of a table that minimise the bits of counted ids. Nothing here is part of the format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gbnn_compress.format.contexts import FACTOR_BITS, ContextRule, factors, log16
from gbnn_compress.format.smoothing import rounded_levels, smooth_levels
from gbnn_compress.format.tables import PRECISION, frequencies

FLOORS = ((0, 0.05), (-1, 0.15), (-2, 0.25), (-3, 0.35), (1, 0.0))
"""Offsets and floors to try together, because one offsets the other; floors are fractions of the smallest magnitude."""

TAILS = (0, 1, 2, 3)

ROUNDS, FINAL_ROUNDS = 3, 8
"""Rounds of proportional fitting for a trial, and for the final rule."""

LARGEST_FIT = 1 << 21
"""Largest number of entries (contexts times symbols) that a rule is fitted on, those of the most frequent contexts."""


@dataclass(frozen=True)
class Counts:
    """How often each symbol follows each context, where some of the symbols are possible.

    Attributes:
        contexts: int (n,), ascending.
        places: int (m,), the possible symbols, as places in a list of all.
        table: float64 (n, m), number of occurrences.
    """

    contexts: np.ndarray
    places: np.ndarray
    table: np.ndarray


Trial = tuple[float, ContextRule | None, np.ndarray]
"""Bits, the rule, and float64 (m,) weights of the symbols."""


def fit(
    rule: ContextRule | None, parts: Sequence[Counts], symbols: np.ndarray, values: np.ndarray, *, smooth: bool
) -> tuple[np.ndarray, ContextRule | None]:
    """The levels and the rule that maximise the likelihood of counts.

    Args:
        rule: A rule with the right start and neighbours; None: levels alone.
        parts: The counts, one for each set of symbols that are possible together.
        symbols: int (m,), ascending; the first and the last occur.
        values: int64 (K + 1,), from `whole_values`.
        smooth: Whether to search for the cheapest levels, which takes time.

    Returns:
        int64 (K + 1,) levels, and the rule.
    """
    totals = _totals(parts, len(symbols))
    parts = _most_frequent(parts, len(symbols))
    magnitudes = np.abs(values[symbols[totals > 0]])
    smallest = int(magnitudes[magnitudes > 0].min(initial=1 << 24))
    best: Trial = (math.inf, rule, np.ones(len(symbols)))

    def attempt(candidate: ContextRule | None, start: np.ndarray, rounds: int) -> Trial:
        shapes = _shapes(parts, symbols, values, candidate)
        fitted = _proportional_fit(parts, shapes, start, rounds=rounds)
        return _cost(parts, shapes, fitted), candidate, fitted

    def better(candidate: ContextRule) -> ContextRule:
        nonlocal best
        best = min(best, attempt(candidate, best[2], ROUNDS), key=lambda trial: trial[0])
        return best[1] or candidate

    if rule is not None:
        chosen = rule
        for offset, floor in FLOORS:
            chosen = better(replace(rule, offset=offset, floor=quarter_octaves(floor * smallest)))
        for tail in TAILS:
            if tail != rule.tail:
                chosen = better(replace(chosen, tail=tail))
        for step in (-1, 1):
            chosen = better(replace(chosen, offset=min(max(chosen.offset + step, -5), 2)))
    _, last, weights = attempt(best[1], best[2], FINAL_ROUNDS)
    leaks = _leaks(parts, _shapes(parts, symbols, values, last), weights)
    levels = np.zeros(len(values), dtype=np.int64)
    levels[symbols] = smooth_levels(weights, totals, leaks) if smooth else rounded_levels(weights, totals)
    return levels, last


def coded_bits(
    levels: np.ndarray, rule: ContextRule | None, parts: Sequence[Counts], symbols: np.ndarray, values: np.ndarray
) -> float:
    """Bits of the counted ids with a table, from the coder's frequencies."""
    bits = 0.0
    for part in parts:
        live = levels[symbols[part.places]] > 0
        possible = symbols[part.places[live]]
        step = max(1, LARGEST_FIT // len(symbols))
        for start in range(0, len(part.contexts), step):
            contexts = part.contexts[start : start + step]
            shape = None if rule is None else factors(contexts, possible, values, rule)
            rows = np.broadcast_to(frequencies(levels[possible], shape), (len(contexts), len(possible)))
            counts = part.table[start : start + step][:, live]
            place, symbol = np.nonzero(counts)
            bits += float((counts[place, symbol] * (PRECISION - np.log2(rows[place, symbol]))).sum())
    return bits


def quarter_octaves(magnitude: float) -> int:
    """A magnitude as rules hold it."""
    return int(log16(np.array([max(1, int(magnitude))]))[0]) >> 2


def _totals(parts: Sequence[Counts], size: int) -> np.ndarray:
    totals = np.zeros(size)
    for part in parts:
        totals[part.places] += part.table.sum(axis=0)
    return totals


def _most_frequent(parts: Sequence[Counts], size: int) -> list[Counts]:
    """The most frequent contexts, each part's in descending order of their counts."""
    members = np.concatenate([part.table.sum(axis=1) for part in parts])
    most = np.argsort(-members, kind="stable")[: max(1, LARGEST_FIT // size)]
    result, start = [], 0
    for part in parts:
        stop = start + len(part.contexts)
        kept = most[(most >= start) & (most < stop)] - start
        if len(kept):
            result.append(Counts(part.contexts[kept], part.places, part.table[kept]))
        start = stop
    return result


def _shapes(
    parts: Sequence[Counts], symbols: np.ndarray, values: np.ndarray, rule: ContextRule | None
) -> list[np.ndarray]:
    """float64 (n, m) of each part, relative likelihoods by the context alone."""
    if rule is None:
        return [np.ones(part.table.shape) for part in parts]
    return [factors(part.contexts, symbols[part.places], values, rule) / 2.0**FACTOR_BITS + 1e-9 for part in parts]


def _proportional_fit(
    parts: Sequence[Counts], shapes: Sequence[np.ndarray], weights: np.ndarray, *, rounds: int
) -> np.ndarray:
    """Weights whose expected counts equal the observed ones; unchanged for symbols that do not occur."""
    totals = _totals(parts, len(weights))
    live = totals > 0
    renumbered = np.cumsum(live) - 1
    cut, cut_shapes = [], []
    for part, shape in zip(parts, shapes, strict=True):
        here = live[part.places]
        cut.append(Counts(part.contexts, renumbered[part.places[here]], part.table[:, here]))
        cut_shapes.append(shape[:, here])
    fitted = weights[live]
    for _ in range(rounds):
        fitted = totals[live] / np.maximum(_leaks(cut, cut_shapes, fitted), 1e-300)
    weights = weights.copy()
    weights[live] = fitted
    return weights


def _leaks(parts: Sequence[Counts], shapes: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """float64 (m,), expected members of each symbol per unit of its weight."""
    live = _totals(parts, len(weights)) > 0
    result = np.zeros(len(weights))
    for part, shape in zip(parts, shapes, strict=True):
        here = live[part.places]
        scale = part.table.sum(axis=1) / (shape[:, here] * weights[part.places[here]]).sum(axis=1)
        result[part.places] += (shape * scale[:, None]).sum(axis=0)
    return result


def _cost(parts: Sequence[Counts], shapes: Sequence[np.ndarray], weights: np.ndarray) -> float:
    """Bits, except for the rounding of frequencies."""
    live, bits = _totals(parts, len(weights)) > 0, 0.0
    for part, shape in zip(parts, shapes, strict=True):
        here = live[part.places]
        table, likelihood = part.table[:, here], shape[:, here] * weights[part.places[here]]
        rows, columns = np.nonzero(table)
        probability = likelihood[rows, columns] / likelihood.sum(axis=1)[rows]
        bits -= float((table[rows, columns] * np.log2(probability)).sum())
    return bits
