"""The cheapest component for a target, argmin_k c (m_k - x)^2 + lambda L_k, from thresholds computed in advance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gbnn_compress.mixture.intervals import IntervalTables, interval_tables

CURVATURE_STEPS = 8
"""Costs c of a squared error are rounded to 1/8 octave; thresholds are computed once per step."""


@dataclass(frozen=True)
class Alphabet:
    """The shared values that weights of one tensor may take.

    Attributes:
        means: float64 (K,), strictly ascending.
        counts: float64 (K,), expected number of weights in each, for the code lengths.
        trellis: Whether a weight's state decides which of them it may take (`format/trellis.py`).
    """

    means: np.ndarray
    counts: np.ndarray
    trellis: bool = False

    def supersets(self) -> list[np.ndarray]:
        """Positions of the components in use, of those that a weight may take: all, or the even and the odd ones."""
        live = np.flatnonzero(self.counts > 0)
        return [live[live % 2 == 0], live[live % 2 == 1]] if self.trellis else [live]


class Decisions(NamedTuple):
    """Thresholds between the cheapest components, for the weights of one layer; compiled loops take it as it is.

    Attributes:
        means: float64 (K,), those of the alphabet.
        bits_costs: float64 (K,), lambda times the code length of each component within its superset.
        row_costs: float64 (G, r), and
        column_costs: float64 (G, d): their product is c, the cost of a squared error of one weight.
        row_steps: int64 (G, r), and
        column_steps: int64 (G, d): their sum is the number of the rounded cost c, from 0.
        tables: One for each rounded cost of the first superset, then for each of the second.
        n_steps: Number of rounded costs.
        trellis: Whether a weight's state decides which superset it may use.
    """

    means: np.ndarray
    bits_costs: np.ndarray
    row_costs: np.ndarray
    column_costs: np.ndarray
    row_steps: np.ndarray
    column_steps: np.ndarray
    tables: IntervalTables
    n_steps: int
    trellis: bool

    def at(self, columns: slice) -> Decisions:
        """The same for some of the columns."""
        costs, steps = (np.ascontiguousarray(each[:, columns]) for each in (self.column_costs, self.column_steps))
        return self._replace(column_costs=costs, column_steps=steps)


def decisions(alphabet: Alphabet, rows: np.ndarray, columns: np.ndarray, *, penalty: float) -> Decisions:
    """Compute the thresholds.

    Args:
        alphabet: With at least one component in use in each superset.
        rows: float64 (G, r), > 0.
        columns: float64 (G, d), > 0.
        penalty: lambda, cost of one bit.
    """
    row_steps, column_steps = (np.rint(CURVATURE_STEPS * np.log2(each)).astype(np.int64) for each in (rows, columns))
    lowest = int(row_steps.min() + column_steps.min())
    n_steps = int(row_steps.max() + column_steps.max()) - lowest + 1
    wanted = np.zeros(n_steps, dtype=bool)
    for g in range(len(rows)):
        wanted[(np.unique(row_steps[g])[:, None] + np.unique(column_steps[g]) - lowest).ravel()] = True
    lengths = np.zeros(len(alphabet.means))
    for live in alphabet.supersets():
        counts = alphabet.counts[live]
        lengths[live] = np.log2(counts.sum()) - np.log2(counts)
    nothing = np.zeros(0, dtype=np.int64)
    tables = [
        (live if wanted[step] else nothing, penalty * 2.0 ** (-(step + lowest) / CURVATURE_STEPS))
        for live in alphabet.supersets()
        for step in range(n_steps)
    ]
    return Decisions(
        means=alphabet.means,
        bits_costs=penalty * lengths,
        row_costs=np.ascontiguousarray(rows),
        column_costs=np.ascontiguousarray(columns),
        row_steps=row_steps - row_steps.min(),
        column_steps=column_steps - column_steps.min(),
        tables=interval_tables(alphabet.means, lengths, tables),
        n_steps=n_steps,
        trellis=alphabet.trellis,
    )
