"""How often each id occurs in each slot of format version 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gbnn_compress.format.lanes import N_SLOTS, batches, by_row, coding_order
from gbnn_compress.format.streams import allowed
from gbnn_compress.format.table_fit import Counts


def count_slots(
    ids: np.ndarray, shape: Sequence[int], slots: np.ndarray, symbols: np.ndarray, *, escape: int, trellis: bool
) -> list[Counts]:
    """Counts of the ids in the contexts that occur, for each parity that occurs.

    Args:
        ids: (n,), C order.
        shape: Shape of the tensor.
        slots: uint16 (n,), in coding order.
        symbols: int (m,), consecutive; all ids are among them.
        escape: K.
        trellis: Whether slots of a parity have only symbols of that parity, and K.
    """
    occurs = np.bincount(slots, minlength=N_SLOTS) > 0
    parities = (0, 1) if trellis else (0,)
    places = [np.flatnonzero(allowed(symbols, parity, escape, trellis=trellis)) for parity in parities]
    contexts = [np.flatnonzero(occurs[parity::2]) for parity in parities]
    starts, columns = np.full(N_SLOTS, -1), np.full((len(parities), len(symbols)), -1)
    size = 0
    for parity in parities:
        starts[2 * contexts[parity] + parity] = size + len(places[parity]) * np.arange(len(contexts[parity]))
        columns[parity, places[parity]] = np.arange(len(places[parity]))
        size += len(contexts[parity]) * len(places[parity])
    table = _counted(ids, shape, slots, symbols[0], starts, columns, size)
    result = []
    for parity in parities:
        n, m = len(contexts[parity]), len(places[parity])
        result.append(Counts(contexts[parity], places[parity], table[: n * m].reshape(n, m)))
        table = table[n * m :]
    return [part for part in result if len(part.contexts)]


def _counted(
    ids: np.ndarray,
    shape: Sequence[int],
    slots: np.ndarray,
    first: int,
    starts: np.ndarray,
    columns: np.ndarray,
    size: int,
) -> np.ndarray:
    """float64 (size,), the counts of all parities, one after the other."""
    table, rows = np.zeros(size), by_row(ids, shape)
    pending: list[np.ndarray] = []
    start = 0
    for batch in batches(shape):
        part = coding_order(rows[batch]) - np.int32(first)
        here = slots[start : start + len(part)]
        column = columns[0].take(part) if len(columns) == 1 else columns[here & 1, part]
        assert column.min() >= 0, "an id that its state does not allow"
        pending.append(starts.take(here) + column)
        start += len(part)
        # Adding an array of counts takes as long as counting so many ids.
        if sum(map(len, pending)) >= size or start == len(slots):
            table += np.bincount(np.concatenate(pending), minlength=size)
            pending = []
    return table
