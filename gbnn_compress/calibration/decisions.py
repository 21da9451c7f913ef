"""The cheapest component for a target, argmin_k c (m_k - x)^2 + lambda L_k, from thresholds computed in advance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gbnn_compress.mixture.intervals import decision_intervals

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


@dataclass(frozen=True)
class Decisions:
    """Thresholds between the cheapest components, for the weights of one layer.

    Attributes:
        means: float64 (K,), those of the alphabet.
        bits_costs: float64 (K,), lambda times the code length of each component within its superset.
        row_costs: float64 (G, r), and
        column_costs: float64 (G, d): their product is c, the cost of a squared error of one weight.
        row_steps: int64 (G, r), and
        column_steps: int64 (G, d): their sum is the number of the rounded cost c, from 0.
        winners: int64 (n,), the components that win somewhere, table after table. There is a table for each rounded
            cost of the first superset, then for each of the second.
        thresholds: float64 (n,), the upper end of each winner's interval; infinite for the last of a table.
        edges: int64 (tables + 1,), where each table starts, and the end.
        n_steps: Number of rounded costs.
        trellis: Whether a weight's state decides which superset it may use.
    """

    means: np.ndarray
    bits_costs: np.ndarray
    row_costs: np.ndarray
    column_costs: np.ndarray
    row_steps: np.ndarray
    column_steps: np.ndarray
    winners: np.ndarray
    thresholds: np.ndarray
    edges: np.ndarray
    n_steps: int
    trellis: bool

    def at(self, columns: slice) -> Decisions:
        """The same for some of the columns."""
        costs, steps = self.column_costs[:, columns], self.column_steps[:, columns]
        return replace(self, column_costs=costs, column_steps=steps)


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
    bits_costs = np.zeros(len(alphabet.means))
    winners, sizes = [], []
    thresholds: list[np.ndarray] = []
    for live in alphabet.supersets():
        counts = alphabet.counts[live]
        lengths = np.log2(counts.sum()) - np.log2(counts)
        bits_costs[live] = penalty * lengths
        for step, is_wanted in enumerate(wanted.tolist()):
            if is_wanted:
                price = penalty * 2.0 ** (-(step + lowest) / CURVATURE_STEPS)
                won, between = decision_intervals(alphabet.means[live], lengths, penalty=price)
                winners.append(live[won])
                thresholds += [between, np.array([np.inf])]
            sizes.append(len(won) if is_wanted else 0)
    return Decisions(
        means=alphabet.means,
        bits_costs=bits_costs,
        row_costs=rows,
        column_costs=columns,
        row_steps=row_steps - row_steps.min(),
        column_steps=column_steps - column_steps.min(),
        winners=np.concatenate(winners),
        thresholds=np.concatenate(thresholds),
        edges=np.cumsum([0, *sizes]),
        n_steps=n_steps,
        trellis=alphabet.trellis,
    )
