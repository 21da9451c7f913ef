"""Rate-constrained assignment with error feedback inside a layer.

Other weights of a filter can compensate for the error of one weight, as far as their inputs are correlated. With the
covariance H of a layer's inputs, weights w and shared values q, the output error of filter f is
(q_f - w_f)^T H (q_f - w_f). Ids minimise

    sum_f h_f (q_f - w_f)^T H (q_f - w_f) + lambda * bits

in two steps:

1. Column by column, each error is spread over the columns not yet decided (Optimal Brain Surgeon, Hassibi & Stork 1993;
   in a fixed order, with the Cholesky factor U of H^-1: Frantar et al. 2022, "GPTQ"). An error in column j then costs
   1 / U_jj^2. For each filter the cheapest few partial assignments go on, its paths: the M-algorithm (Anderson & Mohan
   1984, "Sequential coding algorithms"). A path costs the sum of h_f (q_j - x_j)^2 / U_jj^2 + lambda * bits over the
   columns decided, with x_j = w_j minus the errors spread to column j.
2. Sweeps of coordinate descent minimise the objective itself.

The rate term in both is that of entropy-constrained quantisation (Conzelmann & Bamler 2025, "Reducing storage of
pretrained neural networks by rate-constrained quantization and entropy coding").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gbnn_compress.mixture.intervals import decision_intervals

BLOCK = 64
"""Columns of a block: errors are spread one by one inside a block, and all at once to the columns after it."""

CURVATURE_STEPS = 8
"""Curvature is rounded to 1/8 octave; decision thresholds are computed once per step."""

NEIGHBOURS = np.array([0, -1, 1])
"""Components that a path may go on with: the cheapest, and its neighbours among those that are cheapest somewhere."""

REACH = 1000.0
"""Targets beyond the means by more than so many times the means' range are treated alike."""


@dataclass(frozen=True)
class Alphabet:
    """The shared values that weights of one tensor may take.

    Attributes:
        means: float64 (K,), strictly ascending.
        counts: float64 (K,), expected number of weights in each, for the code lengths.
    """

    means: np.ndarray
    counts: np.ndarray


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """Upper Cholesky factors U of the inverses, H^-1 = U^T U.

    Args:
        hessian: float64 (G, d, d), positive definite.
    """
    return np.ascontiguousarray(np.swapaxes(np.linalg.cholesky(np.linalg.inv(hessian)), 1, 2))


def damped(hessian: np.ndarray, *, damping: float) -> np.ndarray:
    """H + damping * (its mean diagonal) * I, float64 (G, d, d); the identity where H is zero."""
    diagonal = np.einsum("gii->gi", hessian).mean(axis=1)
    lift = np.where(diagonal > 0, damping * diagonal, 1.0)
    return hessian + lift[:, None, None] * np.eye(hessian.shape[1])


def by_falling_variance(hessian: np.ndarray) -> np.ndarray:
    """int64 (G, d), the order in which columns are decided: most columns are left to compensate for the largest errors.

    Args:
        hessian: float64 (G, d, d).
    """
    return np.argsort(-np.einsum("gjj->gj", hessian), axis=1, kind="stable")


def reordered(hessian: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The covariance, float64 (G, d, d), of columns in another order (G, d)."""
    rows = np.take_along_axis(hessian, order[:, :, None], axis=1)
    return np.take_along_axis(rows, order[:, None], axis=2)


def assign_with_feedback(
    weights: np.ndarray,
    hessian: np.ndarray,
    curvature: np.ndarray,
    alphabet: Alphabet,
    *,
    penalty: float,
    exact: np.ndarray,
    paths: int,
    sweeps: int,
) -> np.ndarray:
    """Choose components for the weights of one layer.

    Args:
        weights: float64 (G, r, d), groups of r filters with d weights each, in the units of the means.
        hessian: float64 (G, d, d), covariance of the inputs that each group sees, positive definite.
        curvature: float64 (G, r), h_f > 0: cost of a unit of squared output error.
        alphabet: The components.
        penalty: lambda, cost of one bit.
        exact: bool (G, r, d), weights that are kept as they are.
        paths: Partial assignments kept for each filter, at least 1.
        sweeps: Rounds of coordinate descent.

    Returns:
        int64 (G, r, d), ids; K where `exact`.
    """
    live = np.flatnonzero(alphabet.counts > 0)
    if not live.size:
        return np.full(weights.shape, len(alphabet.means))
    means, counts = alphabet.means[live], alphabet.counts[live]
    order = by_falling_variance(hessian)
    weights, fixed = (np.take_along_axis(each, order[:, None], axis=2) for each in (weights, exact))
    hessian = reordered(hessian, order)
    factor = inverse_factor(hessian)
    column = 1 / np.einsum("gjj->gj", factor) ** 2
    ids = _search(weights, factor, _Decisions(means, counts, curvature, column, penalty), fixed, paths)
    diagonal = np.einsum("gjj->gj", hessian)
    for _ in range(sweeps):
        counts = np.bincount(ids[~fixed].ravel(), minlength=len(live)) + 0.5
        decide = _Decisions(means, counts, curvature, diagonal, penalty)
        ids = _descend(weights, hessian, diagonal, decide, fixed, ids)
    ids = np.take_along_axis(ids, np.argsort(order, axis=1)[:, None], axis=2)
    return np.where(exact, len(alphabet.means), live[ids])


class _Decisions:
    """argmin_k c (m_k - x)^2 + lambda L_k and its neighbours, one column at a time, with c = rows * columns."""

    def __init__(
        self, means: np.ndarray, counts: np.ndarray, rows: np.ndarray, columns: np.ndarray, penalty: float
    ) -> None:
        lengths = np.log2(counts.sum()) - np.log2(counts)
        self.means = means
        self._bits_cost, self._curvature = penalty * lengths, (rows, columns)
        self._rows = np.rint(CURVATURE_STEPS * np.log2(rows)).astype(np.int64)
        self._columns = np.rint(CURVATURE_STEPS * np.log2(columns)).astype(np.int64)
        pairs = (np.unique(self._rows[g])[:, None] + np.unique(self._columns[g]) for g in range(len(rows)))
        self._levels = np.unique(np.concatenate([np.unique(pair) for pair in pairs]))
        reach = REACH * (float(means[-1] - means[0]) + 1.0)
        self._low, self._high = float(means[0]) - reach, float(means[-1]) + reach
        # One sorted array serves all levels: the thresholds of level i lie in [i, i + 1).
        keys, winners = [], []
        for position, level in enumerate(self._levels.tolist()):
            won, thresholds = decision_intervals(means, lengths, penalty=penalty * 2.0 ** (-level / CURVATURE_STEPS))
            keys.append(position + self._inside(thresholds).clip(0.0, 1.0))
            keys.append(np.array([position + 1.0]))
            winners.append(won)
        self._keys, self._winners = np.concatenate(keys), np.concatenate(winners)
        self._edges = np.cumsum([0, *map(len, winners)])

    def __call__(self, x: np.ndarray, j: int) -> np.ndarray:
        """int64 (G, r), the winners for targets x, float64 (G, r), of column j."""
        return self._winners[self._place(x, self._level(j))]

    def around(self, x: np.ndarray, j: int, *, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The winners for targets x, float64 (G, r, P), of column j, and their neighbours.

        Returns:
            int64 (G, r, P, n), the winners (with curvature rounded to 1/8 octave) first, and their costs, float64,
            infinite where there is no such neighbour.
        """
        level = self._level(j)[..., None]
        won = self._place(x, level)[..., None]
        beside = won + NEIGHBOURS[:n]
        there = (beside >= self._edges[level][..., None]) & (beside < self._edges[level + 1][..., None])
        ids = self._winners[np.where(there, beside, won)]
        costs = self.error_costs(self.means[ids] - x[..., None], j) + self._bits_cost[ids]
        return ids, np.where(there, costs, np.inf)

    def error_costs(self, errors: np.ndarray, j: int) -> np.ndarray:
        """c times the squares of errors (G, r, P, n) in column j."""
        rows, columns = self._curvature
        return (rows * columns[:, j : j + 1])[..., None, None] * errors**2

    def _level(self, j: int) -> np.ndarray:
        return np.searchsorted(self._levels, self._rows + self._columns[:, j : j + 1])

    def _place(self, x: np.ndarray, level: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._keys, level + self._inside(x).clip(1e-9, 1 - 1e-9), side="left")

    def _inside(self, x: np.ndarray) -> np.ndarray:
        return (x - self._low) / (self._high - self._low)


def _search(weights: np.ndarray, factor: np.ndarray, decide: _Decisions, exact: np.ndarray, paths: int) -> np.ndarray:
    """Decide column by column, spreading the errors of each path over the columns to come.

    Paths are numbered through all filters. For each path after a column, `sources` holds the path that it extends, and
    `chosen` the id that it adds.
    """
    groups, rows, width = weights.shape
    shape, tried = (groups, rows, paths), 1 if paths == 1 else len(NEIGHBOURS)
    first = np.arange(0, groups * rows * paths, paths).reshape(groups, rows, 1)
    costs = np.full(shape, np.inf)  # infinite: no such path yet
    costs[:, :, 0] = 0
    errors = np.empty((width, groups * rows * paths))
    sources, chosen = (np.empty((width, *shape), dtype=np.int32) for _ in range(2))
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        targets = np.moveaxis(weights[:, :, start:stop], 2, 0)[..., None]
        targets = targets - _spread(errors[:start], factor[:, :start, start:stop], shape)
        origin = first + np.arange(paths)  # number of each path at the start of the block
        for j in range(start, stop):
            x = targets[j - start].take(origin) - _spread(errors[start:j], factor[:, start:j, j : j + 1], shape)[0]
            weight, is_exact = weights[:, :, j, None], exact[:, :, j, None]
            ids, added = decide.around(x, j, n=tried)
            missed = decide.error_costs((weight - x)[..., None], j)
            added = np.where(is_exact[..., None], np.where(np.arange(tried) == 0, missed, np.inf), added)
            totals = (costs[..., None] + added).reshape(groups, rows, paths * tried)
            # A stable sort: among equal costs, the choice must not depend on the processor.
            best = np.argsort(totals, axis=2, kind="stable")[:, :, :paths] + first * tried
            costs, chosen[j], sources[j] = totals.take(best), ids.take(best), best // tried
            value = np.where(is_exact, weight, decide.means[chosen[j]])
            errors[j] = ((x.take(sources[j]) - value) / factor[:, j, j][:, None, None]).ravel()
            if paths > 1:
                errors[start:j] = errors[start:j].take(sources[j].ravel(), axis=1)
                origin = origin.take(sources[j])
        errors[:start] = errors[:start].take(origin.ravel(), axis=1)
    return _traced(chosen, sources, first[..., 0])


def _spread(errors: np.ndarray, factor: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """float64 (m, G, r, paths), what errors (n, paths of all filters) subtract from m columns, by factors (G, n, m)."""
    groups, rows, paths = shape
    by_group = np.swapaxes(errors.reshape(len(errors), groups, rows * paths), 0, 1)
    return np.swapaxes(np.swapaxes(factor, 1, 2) @ by_group, 0, 1).reshape(-1, *shape)


def _traced(chosen: np.ndarray, sources: np.ndarray, path: np.ndarray) -> np.ndarray:
    """int64 (G, r, d), the ids of paths (G, r), traced back from the last column."""
    ids = np.empty((*path.shape, len(chosen)), dtype=np.int64)
    for j in reversed(range(len(chosen))):
        ids[:, :, j], path = chosen[j].take(path), sources[j].take(path)
    return ids


def _descend(
    weights: np.ndarray,
    hessian: np.ndarray,
    diagonal: np.ndarray,
    decide: _Decisions,
    exact: np.ndarray,
    ids: np.ndarray,
) -> np.ndarray:
    """One sweep of coordinate descent over the columns."""
    ids, width = ids.copy(), weights.shape[2]
    shared = np.where(exact, weights, decide.means[ids])
    slope = (shared - weights) @ hessian
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        before = shared[:, :, start:stop].copy()
        for j in range(start, stop):
            target = shared[:, :, j] - slope[:, :, j] / diagonal[:, None, j]
            chosen = decide(target, j)
            value = np.where(exact[:, :, j], weights[:, :, j], decide.means[chosen])
            step = value - shared[:, :, j]
            slope[:, :, j:stop] += step[:, :, None] * hessian[:, None, j, j:stop]
            ids[:, :, j], shared[:, :, j] = chosen, value
        slope[:, :, stop:] += (shared[:, :, start:stop] - before) @ hessian[:, start:stop, stop:]
    return ids
