"""Levels of a table that minimise the bits of the table plus the excess bits of the ids."""

from __future__ import annotations

import numpy as np

WIDEST = 6
"""Largest difference, in quarter octaves, between a level and the best one for the ids alone."""

LARGEST = 4096
"""Tables with more symbols are rounded instead: smoothing would take too long."""


def smooth_levels(weights: np.ndarray, totals: np.ndarray, leaks: np.ndarray) -> np.ndarray:
    """Choose levels by dynamic programming over the symbols (Viterbi), for the better of two orders of the steps.

    An error of d quarter octaves in the weight of a symbol with n members costs n (d ln 2 / 4)^2 / (2 ln 2) bits. A
    symbol without members may have level 0, or any other level at the cost of the frequency taken from the rest.

    Args:
        weights: float64 (n,), > 0, the best weights; first and last of symbols that occur.
        totals: float64 (n,), number of occurrences of each symbol.
        leaks: float64 (n,), expected members of a symbol per unit of its weight.

    Returns:
        int64 (n,), levels from 0 to 255.
    """
    if len(weights) > LARGEST:
        return rounded_levels(weights, totals)
    ideal = _ideal_levels(weights, totals)
    unit = float((weights / 2.0 ** (ideal / 4))[totals > 0][0])
    spread = np.arange(-WIDEST, WIDEST + 1)
    levels = np.clip(np.rint(ideal).astype(np.int64)[:, None] + spread, 1, 255)
    price = totals[:, None] * (levels - ideal[:, None]) ** 2 * np.log(2) / 32
    empty = totals == 0
    levels[empty, 0] = 0
    taken = leaks[:, None] * unit * 2.0 ** (levels / 4) / np.log(2)
    price = np.where(empty[:, None], np.where(levels == 0, 0.0, taken), price)
    return min((_cheapest(levels, price, order) for order in (0, 1)), key=lambda found: found[0])[1]


def rounded_levels(weights: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """int64 (n,), the levels nearest to the weights; 0 for symbols that do not occur."""
    return np.where(totals > 0, np.rint(_ideal_levels(weights, totals)), 0).astype(np.int64)


def _ideal_levels(weights: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """float64 (n,), levels before rounding, the smallest 1; interpolated for symbols that do not occur."""
    live = np.flatnonzero(totals > 0)
    octaves = np.log2(weights[live])
    levels = np.minimum(1 + 4 * (octaves - octaves.min()), 255.0)
    return np.interp(np.arange(len(weights)), live, levels)


def _cheapest(levels: np.ndarray, price: np.ndarray, order: int) -> tuple[float, np.ndarray]:
    """The fewest bits, and int64 (n,) the path through the candidates (n, m) that takes them."""
    step = levels[1:, None, :] - levels[:-1, :, None]
    coded = np.where(step < 0, -2 * step - 1, 2 * step) + (1 << order)
    lengths = 2.0 * np.frexp(coded.astype(np.float64))[1] - 1 - order + price[1:, None, :]
    cost, came, every = price[0], [], np.arange(levels.shape[1])
    for added in lengths:
        total = cost[:, None] + added
        best = total.argmin(axis=0)
        came.append(best)
        cost = total[best, every]
    place = int(cost.argmin())
    path = [place]
    for back in reversed(came):
        path.append(int(back[path[-1]]))
    return float(cost.min()), levels[np.arange(len(levels)), path[::-1]]
