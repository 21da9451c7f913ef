"""Search for the cheapest ids of filters, column by column, and their descent: compiled, or the same in numpy.

For each filter the cheapest few partial assignments go on, its paths. Columns are decided in blocks. Within a block,
and towards the next one, each path spreads its own errors. Then the best path's choices in the block before are
settled: paths that differ from them end, and errors of settled blocks are spread once per filter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gbnn_compress.calibration.decisions import Decisions
from gbnn_compress.compiled import loops
from gbnn_compress.format.trellis import next_states
from gbnn_compress.parallel import available_threads

BLOCK = 64
"""Columns of a block."""

WORTHWHILE = 1 << 14
"""Products of filters, columns and paths from which threads are used."""

SLOWER = 16
"""About by how much numpy is slower here, per path, than in the jobs that `compiled.WORTHWHILE` is measured in."""

NEIGHBOURS = np.array([0, -1, 1])
"""Components that a path may go on with: the cheapest, and its neighbours among those that are cheapest somewhere."""


@dataclass(frozen=True)
class _Paths:
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
) -> tuple[np.ndarray, np.ndarray]:
    """Decide column by column, spreading the errors of each path over the columns to come.

    Args:
        weights: float64 (G, r, d).
        factor: float64 (G, d, d), upper Cholesky factors of the inverse covariances.
        decide: Thresholds.
        exact: bool (G, r, d), weights that are kept as they are.
        paths: Partial assignments kept for each filter, at least 1.
        states: int64 (G, r), the trellis' states before the first column.

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
        settled_errors, settled_ids = _decide(
            weights[:, :, block] - spread,
            weights[:, :, block],
            exact[:, :, block],
            factor[:, settled:start, block],
            factor[:, block, block],
            decide.at(block),
            found,
            settles=True,
        )
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
        arguments = (weights[:, :, window], exact[:, :, window], factor[:, :0, : stop - start], inverse)
        _decide(targets, *arguments, decide.at(window), found, settles=False)
        open_ends = not decide.trellis or stop == width
        costs = np.where((found.states == last.reshape(-1, 1)) | open_ends, found.costs, np.inf)
        best = costs.argmin(axis=1)
        tried = found.ids[np.arange(len(best)), best, : stop - start].reshape(before.shape)
        values, tried_values = (np.where(exact[:, :, window], weights[:, :, window], table[i]) for i in (before, tried))
        gain = _costs(values - targets, before, own, decide) - _costs(tried_values - targets, tried, own, decide)
        better = (gain > 0) & np.isfinite(costs.min(axis=1)).reshape(groups, rows)
        ids[:, :, window] = np.where(better[:, :, None], tried, before)
        change = np.where(better[:, :, None], tried_values - values, 0.0)
        errors[:, :, window] += change
        slope += change @ hessian[:, window]
        states = np.where(better, found.states[np.arange(len(best)), best].reshape(groups, rows), last)
    return ids, states


def _costs(errors: np.ndarray, ids: np.ndarray, covariance: np.ndarray, decide: Decisions) -> np.ndarray:
    """float64 (G, r), costs of the errors of a window, and of its ids; outliers cost no bits."""
    bits = np.append(decide.bits_costs, 0.0)[ids].sum(axis=2)
    found: np.ndarray = decide.row_costs * ((errors @ covariance) * errors).sum(axis=2) + bits
    return found


def _started(states: np.ndarray, paths: int) -> _Paths:
    """One path of each filter, in its state (G, r)."""
    shape = (states.size, paths)
    costs = np.full(shape, np.inf)
    costs[:, 0] = 0
    every = np.repeat(states.reshape(-1, 1), paths, axis=1)
    return _Paths(costs, every, np.zeros((*shape, BLOCK)), np.zeros((*shape, BLOCK), dtype=np.int64))


def _decide(
    base: np.ndarray,
    weights: np.ndarray,
    exact: np.ndarray,
    factor_before: np.ndarray,
    factor: np.ndarray,
    decide: Decisions,
    found: _Paths,
    *,
    settles: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Decide the columns of one block: see `_search_block`; updates `found`.

    Returns:
        float64 and int64 (filters, columns of the block before), its settled errors and ids.
    """
    width, before = base.shape[2], factor_before.shape[1]
    filters, paths = found.costs.shape
    settled = np.zeros((filters, BLOCK)), np.zeros((filters, BLOCK), dtype=np.int64)
    arguments = (
        *map(np.ascontiguousarray, (base, weights, exact, factor_before, factor)),
        decide.means,
        decide.bits_costs,
        decide.row_costs,
        np.ascontiguousarray(decide.column_costs),
        decide.row_steps,
        np.ascontiguousarray(decide.column_steps),
        decide.winners,
        decide.thresholds,
        decide.edges,
        decide.n_steps,
        decide.trellis,
        found.costs,
        found.states,
        found.errors,
        found.ids,
        before,
        *settled,
        settles,
    )
    work = filters * width * paths
    compiled = loops("calibration.search_loops", work=SLOWER * work)
    _in_parts(_search_block if compiled is None else compiled.search_block, filters, arguments, work=work)
    return settled[0][:, :before], settled[1][:, :before]


def _in_parts(kernel: Callable[..., None], filters: int, arguments: tuple[Any, ...], *, work: int) -> None:
    """Call a kernel for all filters, in as many parts as there are threads; filters know nothing of each other."""
    threads = available_threads() if work >= WORTHWHILE else 1
    edges = np.linspace(0, filters, threads + 1).astype(int).tolist()
    if threads == 1:
        kernel(0, filters, *arguments)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, first, last, *arguments) for first, last in pairwise(edges)]:
            done.result()


def _search_block(
    first: int,
    last: int,
    base: np.ndarray,
    weights: np.ndarray,
    exact: np.ndarray,
    factor_before: np.ndarray,
    factor: np.ndarray,
    means: np.ndarray,
    bits_costs: np.ndarray,
    row_costs: np.ndarray,
    column_costs: np.ndarray,
    row_steps: np.ndarray,
    column_steps: np.ndarray,
    winners: np.ndarray,
    thresholds: np.ndarray,
    edges: np.ndarray,
    n_steps: int,
    has_trellis: bool,
    costs: np.ndarray,
    states: np.ndarray,
    errors: np.ndarray,
    ids: np.ndarray,
    n_before: int,
    out_errors: np.ndarray,
    out_ids: np.ndarray,
    settles: bool,
) -> None:
    """Decide the columns of one block for filters `first` to `last` of all groups.

    Args:
        first: First filter, numbered through all groups.
        last: The filter after the last one.
        base: float64 (G, r, B), weights minus the settled errors spread to them.
        weights: float64 (G, r, B).
        exact: bool (G, r, B).
        factor_before: float64 (G, n_before, B), from the columns of the block before to those of this one.
        factor: float64 (G, B, B), within the block.
        means: See `Decisions`, as for the arguments up to `n_steps`; columns are those of the block.
        bits_costs: See there.
        row_costs: See there.
        column_costs: See there.
        row_steps: See there.
        column_steps: See there.
        winners: See there.
        thresholds: See there.
        edges: See there.
        n_steps: See there.
        has_trellis: Whether states matter.
        costs: float64 (filters, paths), of the paths so far; replaced, cheapest first.
        states: int64 (filters, paths); replaced.
        errors: float64 (filters, paths, BLOCK), of the block before, then of this one.
        ids: int64 (filters, paths, BLOCK), alike.
        n_before: Columns of the block before.
        out_errors: float64 (filters, BLOCK), gets the settled errors of the block before.
        out_ids: int64 (filters, BLOCK), alike.
        settles: Whether paths end that differ from the cheapest one before this block.
    """
    rows, width = base.shape[1:]
    group, row = np.divmod(np.arange(first, last), rows)
    mine, count, paths = slice(first, last), last - first, costs.shape[1]
    every = np.arange(count)[:, None]
    cost_of_paths, state = costs[mine].copy(), states[mine].copy()
    targets = np.repeat(base[group, row][:, None], paths, axis=1)
    for i in range(n_before):
        targets -= errors[mine, :, i, None] * factor_before[group, i][:, None]
    sources, chosen = (np.empty((width, count, paths), dtype=np.int64) for _ in range(2))
    made = np.empty((width, count, paths))
    for j in range(width):
        weight, is_exact = weights[group, row, j][:, None], exact[group, row, j][:, None]
        cost = (row_costs[group, row] * column_costs[group, j])[:, None]
        table = (row_steps[group, row] + column_steps[group, j])[:, None] + (state & 1) * (n_steps * has_trellis)
        x = targets[:, :, j]
        centre = _places(thresholds, edges, x, table)[..., None]
        beside = centre + NEIGHBOURS
        there = (beside >= edges[table][..., None]) & (beside < edges[table + 1][..., None])
        component = winners[np.where(there, beside, centre)]
        miss = means[component] - x[..., None]
        added = np.where(there, cost[..., None] * (miss * miss) + bits_costs[component], np.inf)
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


def _places(thresholds: np.ndarray, edges: np.ndarray, x: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Positions of the winners for targets x by the tables to ask; a target on a threshold goes below it."""
    low, high = edges[tables], edges[tables + 1] - 1
    while (low < high).any():
        middle, open_ = (low + high) >> 1, low < high
        above = thresholds[middle] < x
        low, high = np.where(open_ & above, middle + 1, low), np.where(open_ & ~above, middle, high)
    return low
