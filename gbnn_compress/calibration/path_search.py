"""Search for the cheapest ids of filters, column by column, and their descent: compiled, or the same in numpy.

For each filter the cheapest few partial assignments go on, its paths. Columns are decided in blocks. Within a block,
and towards the next one, each path spreads its own errors. Then the best path's choices in the block before are
settled: paths that differ from them end, and errors of settled blocks are spread once per filter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from gbnn_compress.calibration.decisions import Decisions
from gbnn_compress.compiled import loops
from gbnn_compress.format.trellis import next_states
from gbnn_compress.mixture.intervals import places_in
from gbnn_compress.parallel import on_threads

BLOCK = 64
"""Columns of a block."""

WORTHWHILE = 1 << 14
"""Products of filters, columns and paths from which threads are used."""

SLOWER = 16
"""About by how much numpy is slower here, per path, than in the jobs that `compiled.WORTHWHILE` is measured in."""

NEIGHBOURS = np.array([0, -1, 1])
"""Components that a path may go on with: the cheapest, and its neighbours among those that are cheapest somewhere."""


class Columns(NamedTuple):
    """The columns of one block.

    Attributes:
        base: float64 (G, r, B), weights minus the errors of settled columns, spread to them.
        weights: float64 (G, r, B).
        exact: bool (G, r, B), weights that are kept as they are.
        factor_before: float64 (G, b, B), from the b columns of the block before.
        factor: float64 (G, B, B), within the block.
    """

    base: np.ndarray
    weights: np.ndarray
    exact: np.ndarray
    factor_before: np.ndarray
    factor: np.ndarray


class Paths(NamedTuple):
    """The paths of each filter; the arrays are updated from block to block.

    Attributes:
        costs: float64 (filters, paths), cheapest first; infinite: no such path.
        states: int64 (filters, paths), of the trellis.
        errors: float64 (filters, paths, BLOCK), of the last block's columns, over the diagonal of the factor.
        ids: int64 (filters, paths, BLOCK), alike.
    """

    costs: np.ndarray
    states: np.ndarray
    errors: np.ndarray
    ids: np.ndarray


def search(
    weights: np.ndarray,
    factor: np.ndarray,
    decide: Decisions,
    exact: np.ndarray,
    *,
    paths: int,
    states: np.ndarray,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Decide column by column, spreading the errors of each path over the columns to come.

    Args:
        weights: float64 (G, r, d).
        factor: float64 (G, d, d), upper Cholesky factors of the inverse covariances.
        decide: Thresholds.
        exact: bool (G, r, d), weights that are kept as they are.
        paths: Partial assignments kept for each filter, at least 1.
        states: int64 (G, r), the trellis' states before the first column.
        threads: Number of threads; ids do not depend on it.

    Returns:
        int64 (G, r, d), ids, K where `exact`; and int64 (G, r), the states after the last column.
    """
    groups, rows, width = weights.shape
    found = _started(states, paths)
    errors, ids = np.zeros((groups * rows, width)), np.zeros((groups * rows, width), dtype=np.int64)
    settled = start = 0
    for start in range(0, width, BLOCK):
        block = slice(start, min(start + BLOCK, width))
        spread = errors[:, :settled].reshape(groups, rows, settled) @ factor[:, :settled, block]
        columns = Columns(
            weights[:, :, block] - spread,
            weights[:, :, block],
            exact[:, :, block],
            factor[:, settled:start, block],
            factor[:, block, block],
        )
        settled_errors, settled_ids = _decide(columns, decide.at(block), found, settles=True, threads=threads)
        errors[:, settled:start], ids[:, settled:start] = settled_errors, settled_ids
        settled = start
    ids[:, start:] = found.ids[:, 0, : width - start]
    return ids.reshape(weights.shape), found.states[:, 0].reshape(states.shape)


def descend(
    weights: np.ndarray,
    hessian: np.ndarray,
    factor: np.ndarray,
    decide: Decisions,
    exact: np.ndarray,
    ids: np.ndarray,
    *,
    edges: Sequence[int],
    paths: int,
    states: np.ndarray,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Search each window of columns again, with all others as they are, and keep what is cheaper.

    With e the error outside a window and H_ww, H_wo the parts of the covariance, the window's cost is, up to a
    constant, that of the targets w - H_ww^-1 H_wo e. With a trellis, a row must leave a window in the same state as
    before.

    Args:
        weights: float64 (G, r, d).
        hessian: float64 (G, d, d), the covariances.
        factor: float64 (G, d, BLOCK), upper Cholesky factors of the inverse covariances of the windows, one after the
            other.
        decide: Thresholds; the costs of columns are those within their windows.
        exact: bool (G, r, d), weights that are kept as they are.
        ids: int64 (G, r, d), where the descent starts.
        edges: Where the windows start, and d.
        paths: Partial assignments kept for each filter.
        states: int64 (G, r), the trellis' states before the first column.
        threads: Number of threads; ids do not depend on it.

    Returns:
        int64 (G, r, d), ids, K where `exact`; and int64 (G, r), the states after the last column.
    """
    (groups, rows, width), escape = weights.shape, len(decide.means)
    ids, table = ids.copy(), np.append(decide.means, np.nan)
    errors = np.where(exact, weights, table[ids]) - weights
    slope = errors @ hessian
    for start, stop in pairwise(edges):
        window = slice(start, stop)
        own, inverse, before = hessian[:, window, window], factor[:, window, : stop - start], ids[:, :, window]
        last = states
        for column in np.moveaxis(before, 2, 0):
            last = next_states(last, column, escape=escape)
        outside = slope[:, :, window] - errors[:, :, window] @ own
        targets = weights[:, :, window] - (outside @ np.swapaxes(inverse, 1, 2)) @ inverse
        found = _started(states, paths)
        of_window = weights[:, :, window], exact[:, :, window]
        columns = Columns(targets, *of_window, factor[:, :0, : stop - start], inverse)
        _decide(columns, decide.at(window), found, settles=False, threads=threads)
        open_ends = not decide.trellis or stop == width
        costs = np.where((found.states == last.reshape(-1, 1)) | open_ends, found.costs, np.inf)
        best = costs.argmin(axis=1)
        every = np.arange(len(best))
        tried = found.ids[every, best, : stop - start].reshape(before.shape)
        values, tried_values = (np.where(columns.exact, columns.weights, table[i]) for i in (before, tried))
        gain = _costs(values - targets, before, own, decide) - _costs(tried_values - targets, tried, own, decide)
        better = (gain > 0) & np.isfinite(costs.min(axis=1)).reshape(groups, rows)
        ids[:, :, window] = np.where(better[:, :, None], tried, before)
        change = np.where(better[:, :, None], tried_values - values, 0.0)
        errors[:, :, window] += change
        slope += change @ hessian[:, window]
        states = np.where(better, found.states[every, best].reshape(groups, rows), last)
    return ids, states


def _costs(errors: np.ndarray, ids: np.ndarray, covariance: np.ndarray, decide: Decisions) -> np.ndarray:
    """float64 (G, r), costs of the errors of a window, and of its ids; outliers cost no bits."""
    bits = np.append(decide.bits_costs, 0.0)[ids].sum(axis=2)
    found: np.ndarray = decide.row_costs * ((errors @ covariance) * errors).sum(axis=2) + bits
    return found


def _started(states: np.ndarray, paths: int) -> Paths:
    """One path of each filter, in its state (G, r)."""
    shape = (states.size, paths)
    costs = np.full(shape, np.inf)
    costs[:, 0] = 0
    every = np.repeat(states.reshape(-1, 1), paths, axis=1)
    return Paths(costs, every, np.zeros((*shape, BLOCK)), np.zeros((*shape, BLOCK), dtype=np.int64))


def _decide(
    columns: Columns, decide: Decisions, found: Paths, *, settles: bool, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decide the columns of one block: see `_search_block`; updates `found`.

    Returns:
        float64 and int64 (filters, columns of the block before), its settled errors and ids.
    """
    filters, paths = found.costs.shape
    before, work = columns.factor_before.shape[1], filters * columns.base.shape[2] * paths
    settled = np.zeros((filters, BLOCK)), np.zeros((filters, BLOCK), dtype=np.int64)
    compiled = loops("calibration.search_loops", work=SLOWER * work)
    kernel = _search_block if compiled is None else compiled.search_block
    arguments = (Columns(*map(np.ascontiguousarray, columns)), decide, found, *settled, settles)
    # Filters know nothing of each other.
    parts = threads if work >= WORTHWHILE else 1
    edges = pairwise(np.linspace(0, filters, parts + 1).astype(int).tolist())
    for _ in on_threads(partial(_of_filters, kernel, arguments), edges, threads=parts, alone=True):
        pass
    return settled[0][:, :before], settled[1][:, :before]


def _of_filters(kernel: Callable[..., None], arguments: tuple[Any, ...], part: tuple[int, int]) -> None:
    kernel(*part, *arguments)


def _search_block(
    first: int,
    last: int,
    columns: Columns,
    decide: Decisions,
    found: Paths,
    out_errors: np.ndarray,
    out_ids: np.ndarray,
    settles: bool,
) -> None:
    """Decide the columns of one block for filters `first` to `last`, numbered through all groups.

    Args:
        first: First filter.
        last: The filter after the last one.
        columns: The block.
        decide: Thresholds; columns are those of the block.
        found: The paths up to the block before; replaced.
        out_errors: float64 (filters, BLOCK), gets the settled errors of the block before.
        out_ids: int64 (filters, BLOCK), alike.
        settles: Whether paths end that differ from the cheapest one before this block.
    """
    base, weights, exact, factor_before, factor = columns
    costs, states, errors, ids = found
    means, row_costs, row_steps = decide.means, decide.row_costs, decide.row_steps
    rows, width = base.shape[1:]
    group, row = np.divmod(np.arange(first, last), rows)
    mine, count, paths = slice(first, last), last - first, costs.shape[1]
    every = np.arange(count)[:, None]
    cost_of_paths, state = costs[mine].copy(), states[mine].copy()
    targets = np.repeat(base[group, row][:, None], paths, axis=1)
    for i in range(factor_before.shape[1]):
        targets -= errors[mine, :, i, None] * factor_before[group, i][:, None]
    sources, chosen = (np.empty((width, count, paths), dtype=np.int64) for _ in range(2))
    made = np.empty((width, count, paths))
    for j in range(width):
        weight, is_exact = weights[group, row, j][:, None], exact[group, row, j][:, None]
        cost = (row_costs[group, row] * decide.column_costs[group, j])[:, None]
        step = (row_steps[group, row] + decide.column_steps[group, j])[:, None]
        number = step + (state & 1) * (decide.n_steps * decide.trellis)
        x = targets[:, :, j]
        centre = places_in(decide.tables, number, x)[..., None]
        beside = centre + NEIGHBOURS
        start, stop = (decide.tables.edges[each][..., None] for each in (number, number + 1))
        there = (beside >= start) & (beside < stop)
        component = decide.tables.winners[np.where(there, beside, centre)]
        miss = means[component] - x[..., None]
        added = np.where(there, cost[..., None] * (miss * miss) + decide.bits_costs[component], np.inf)
        missed = weight - x
        alone = np.where(np.arange(3) == 0, (cost * (missed * missed))[..., None], np.inf)
        totals = cost_of_paths[..., None] + np.where(is_exact[..., None], alone, added)
        # A stable sort: among equal costs, the choice must not depend on the processor.
        best = np.argsort(totals.reshape(count, -1), axis=1, kind="stable")[:, :paths]
        source = best // 3
        component = np.where(is_exact, len(means), component.reshape(count, -1)[every, best])
        value = np.where(is_exact, weight, np.append(means, 0.0)[component])
        error = (x[every, source] - value) / factor[group, j, j][:, None]
        cost_of_paths = totals.reshape(count, -1)[every, best]
        state = next_states(state[every, source], component, escape=len(means))
        targets = targets[every, source] - error[..., None] * factor[group, j][:, None]
        sources[j], chosen[j], made[j] = source, component, error
    path = np.broadcast_to(np.arange(paths), (count, paths))
    traced_errors, traced_ids = np.zeros_like(errors[mine]), np.zeros_like(ids[mine])
    for j in reversed(range(width)):
        traced_errors[:, :, j], traced_ids[:, :, j] = made[j][every, path], chosen[j][every, path]
        path = sources[j][every, path]
    root = path[:, :1]
    out_errors[mine] = errors[mine][every[:, 0], root[:, 0]]
    out_ids[mine] = ids[mine][every[:, 0], root[:, 0]]
    costs[mine], states[mine] = np.where((path == root) | (not settles), cost_of_paths, np.inf), state
    errors[mine], ids[mine] = traced_errors, traced_ids
