"""Ids <-> bits in format version 2: one rANS stream of 32-bit words per tensor, read forwards.

Interleaved states (Giesen 2014, "Interleaved entropy coders") let a decoder work on several ids at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from gbnn_compress.compiled import loops
from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.contexts import exp16, factors
from gbnn_compress.format.lanes import N_SLOTS, SLOWER, Walk, batches, by_row, coding_order, from_coding_order
from gbnn_compress.format.tables import PRECISION, Table, frequencies, symbol_weights

MANY, MANY_STATES = 1 << 17, 4
"""Tensors with at least MANY weights have MANY_STATES states, others one."""

KEPT_ENTRIES = 1 << 22
"""About the largest number of cumulative frequencies kept for slots that recur."""

_WORD_BITS, _FULL = 32, 1 << 32
_TOP_BITS = 8


def n_states(size: int) -> int:
    """Number of states of a tensor with this many weights."""
    return MANY_STATES if size >= MANY else 1


def first_state(size: int) -> int:
    """Where the writer's states start, and the reader's must end.

    With one state that is 0: no more words are left where it falls below 2^32. With several, words of the others may be
    left, so all start at 2^32.
    """
    return 0 if n_states(size) == 1 else _FULL


def encode_stream(ids: np.ndarray, slots: np.ndarray, shape: Sequence[int], models: Models) -> np.ndarray:
    """The words of a tensor's stream.

    Args:
        ids: (n,), C order.
        slots: uint16 (n,), in coding order, from `slots_of`.
        shape: Shape of the tensor.
        models: Its frequencies.

    Returns:
        uint32 (words,): the states, high word first, then the words in the order in which they are read.
    """
    compiled = loops("format.lane_loops", work=SLOWER * len(ids))
    states = np.full(n_states(len(ids)), first_state(len(ids)), dtype=np.uint64)
    rows, parts, stop = by_row(ids, shape), [], len(ids)
    for batch in reversed(batches(shape)):
        part = coding_order(rows[batch])
        start = stop - len(part)
        if compiled is None:
            parts.append(_encode(part, slots[start:stop], models, states, start))
        else:
            words = np.empty(len(part) + 1, dtype=np.uint32)
            first = compiled.encode(part, slots[start:stop], models.positions, models.compiled, states, start, words)
            parts.append(words[first:].copy())
        stop = start
    heads = np.stack([states >> np.uint64(_WORD_BITS), states & np.uint64(_FULL - 1)], axis=1)
    return np.concatenate([heads.astype(np.uint32).ravel(), *reversed(parts)])


def decode_stream(words: np.ndarray, shape: Sequence[int], walk: Walk, models: Models) -> np.ndarray:
    """The inverse of `encode_stream`.

    Args:
        words: uint32 (words,).
        shape: Shape of the tensor.
        walk: The tensor's walk, at its start.
        models: Its frequencies.

    Returns:
        (n,), ids in C order, in the smallest unsigned integers that hold K.

    Raises:
        ArtifactError: The stream is longer or shorter than the ids, or needs an id of a parity that never occurs.
    """
    size = int(np.prod(shape))
    ids = by_row(np.empty(size, dtype=np.min_scalar_type(models.escape)), shape)
    reader, start = Reader(words, size, models), 0
    for batch in batches(shape):
        part = reader.read(walk, ids[batch].size, start)
        from_coding_order(part, ids[batch])
        start += len(part)
    reader.finish()
    return ids.reshape(-1)


class Reader:
    """States and place of a stream that is read.

    Args:
        words: uint32 (words,).
        size: Number of ids in it.
        models: Their frequencies.

    Raises:
        ArtifactError: There are too few words for the states.
    """

    def __init__(self, words: np.ndarray, size: int, models: Models) -> None:
        count = n_states(size)
        if len(words) < 2 * count:
            raise _damaged()
        heads = words[: 2 * count].astype(np.uint64).reshape(count, 2)
        self._states = heads[:, 0] << np.uint64(_WORD_BITS) | heads[:, 1]
        self._words, self._place, self._end, self._models = words, 2 * count, first_state(size), models

    def read(self, walk: Walk, size: int, number: int) -> np.ndarray:
        """int32 (size,), the next ids in coding order; `number` ids were read before."""
        compiled = loops("format.lane_loops", work=SLOWER * size)
        ids = np.empty(size, dtype=np.int32)
        if compiled is not None:
            coder = (self._models.compiled, self._words, self._states, number, self._place)
            self._place = compiled.walk(ids, np.empty(0, np.uint16), *walk.compiled_arguments(size), coder)
            if self._place < 0:
                raise _damaged()
            return ids
        states, words, models = self._states.tolist(), self._words, self._models

        def visit(first: int, slots: np.ndarray) -> np.ndarray:
            for index, slot in enumerate(slots.tolist(), first):
                symbols, starts = models.row(slot)
                which = (number + index) % len(states)
                quantile = states[which] % (1 << PRECISION)
                found = bisect_right(starts, quantile) - 1
                state = (states[which] >> PRECISION) * (starts[found + 1] - starts[found]) + quantile - starts[found]
                if state < _FULL and self._place < len(words):
                    state = state << _WORD_BITS | int(words[self._place])
                    self._place += 1
                states[which] = state
                ids[index] = symbols[found]
            return ids[first : first + len(slots)]

        walk.visit(size, visit)
        self._states = np.array(states, dtype=np.uint64)
        return ids

    def finish(self) -> None:
        """Check that the stream ends here.

        Raises:
            ArtifactError: It does not.
        """
        if self._place != len(self._words) or (self._states != self._end).any():
            raise _damaged()


class Models:
    """Cumulative frequencies of a tensor's slots, made at first use.

    Args:
        table: The tensor's table.
        values: int64 (K + 1,), from `whole_values`.

    Attributes:
        escape: K.
        positions: int32 (2, K + 1), number of each symbol among those of each parity; -1 if it is not one of them.
    """

    def __init__(self, table: Table, values: np.ndarray) -> None:
        self.escape, self._values, self._rule = len(values) - 1, values, table.rule
        live = np.flatnonzero(table.levels)
        self._symbols = [live[allowed(live, parity, self.escape, trellis=table.trellis)] for parity in (0, 1)]
        self._levels = [table.levels[symbols] for symbols in self._symbols]
        self.positions = np.full((2, len(values)), -1, dtype=np.int32)
        for positions, symbols in zip(self.positions, self._symbols, strict=True):
            positions[symbols] = np.arange(len(symbols))
        self._rows: dict[int, tuple[list[int], list[int]]] = {}
        self._compiled: tuple[object, ...] | None = None

    def row(self, slot: int) -> tuple[list[int], list[int]]:
        """The symbols of a slot, and their cumulative frequencies from 0 to 2^24.

        Raises:
            ArtifactError: The slot allows no symbol.
        """
        if slot not in self._rows:
            context, parity = divmod(slot, 2)
            symbols = self._symbols[parity]
            if not len(symbols):
                raise _damaged()
            shares = None
            if self._rule is not None:
                shares = factors(np.array([context]), symbols, self._values, self._rule)
            row = frequencies(self._levels[parity], shares).reshape(-1)
            if len(self._rows) * len(symbols) > KEPT_ENTRIES:
                self._rows.clear()
            self._rows[slot] = symbols.tolist(), [0, *np.cumsum(row).tolist()]
        return self._rows[slot]

    @property
    def compiled(self) -> tuple[object, ...]:
        """The same for compiled loops, which fill it."""
        if self._compiled is None:
            counts = np.array([len(symbols) for symbols in self._symbols])
            most = int(counts.max())
            kept = min(N_SLOTS, max(64, KEPT_ENTRIES // (most + 1)))
            padded = np.zeros((2, 2, most), dtype=np.int64)
            for parity, (symbols, levels) in enumerate(zip(self._symbols, self._levels, strict=True)):
                if len(symbols):
                    padded[:, parity, : len(symbols)] = symbols, symbol_weights(levels)
            rule = self._rule
            floor = 0 if rule is None else int(exp16(np.array([4 * rule.floor]))[0])
            self._compiled = (
                np.full(N_SLOTS, -1, dtype=np.int32),
                np.empty((kept, most + 1), dtype=np.uint32),
                np.empty((kept, 1 << _TOP_BITS), dtype=np.uint16),
                np.zeros(1, dtype=np.int64),
                counts,
                padded[0],
                padded[1],
                self._values,
                (rule is not None, rule.tail if rule else 0, rule.offset if rule else 0, floor),
                np.empty(most, dtype=np.int64),
            )
        return self._compiled


def allowed(symbols: np.ndarray, parity: int, escape: int, *, trellis: bool) -> np.ndarray:
    """bool (n,), whether a slot of a parity allows these symbols: those of its parity and the outlier.

    Without a trellis, all slots have parity 0, which allows every symbol.
    """
    return (symbols & 1 == parity) | (symbols == escape) if trellis else np.full(len(symbols), parity == 0)


def _encode(ids: np.ndarray, slots: np.ndarray, models: Models, states: np.ndarray, number: int) -> np.ndarray:
    """uint32 words of ids (n,) in coding order, as they are read; changes the states."""
    now, words = states.tolist(), []
    for index in range(len(ids) - 1, -1, -1):
        slot = int(slots[index])
        _, starts = models.row(slot)
        symbol = models.positions[slot & 1, ids[index]]
        start, share = starts[symbol], starts[symbol + 1] - starts[symbol]
        which = (number + index) % len(now)
        if now[which] >> (64 - PRECISION) >= share:
            words.append(now[which] % _FULL)
            now[which] >>= _WORD_BITS
        high, low = divmod(now[which], share)
        now[which] = (high << PRECISION) + low + start
    states[:] = now
    return np.array(words[::-1], dtype=np.uint32)


def _damaged() -> ArtifactError:
    return ArtifactError("damaged artifact: the index maps do not end where they should")
