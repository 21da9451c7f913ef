"""The entropy coder, compiled: the same words as those of `symbols.py`, and the same ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from gbnn_compress import compiled
from gbnn_compress.format import contexts
from gbnn_compress.format.contexts import N_LEVELS, N_PREDICTIONS, ContextRule, kernel_of, magnitude_of
from gbnn_compress.format.tables import Table, symbol_weights

MOST_SYMBOLS = 1 << 16
"""Largest alphabet of compiled loops."""

KEPT_ENTRIES = 1 << 24
"""Largest number of frequencies cached for contexts that recur."""

AT_ONCE = 1 << 20
"""Number of ids coded at once, for which there is room for words."""


def usable(alphabet: int, *, work: int) -> bool:
    """Whether compiled loops can be used for an alphabet of this size, and pay for this number of weights."""
    return alphabet <= MOST_SYMBOLS and _loops(work=work) is not None


def _loops(*, work: int | None = None) -> tuple[ModuleType, ModuleType] | None:
    ans = compiled.loops("format.ans_loops", work=work)
    walk = None if ans is None else compiled.loops("format.walk_loops")
    return None if ans is None or walk is None else (ans, walk)


def sorted_ids(
    ids: np.ndarray, shape: Sequence[int], values: np.ndarray, rule: ContextRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts and ids of a tensor in coding order.

    Args:
        ids: (n,), C order.
        shape: Shape of the tensor.
        values: int64 (K + 1,), from `whole_values`.
        rule: The tensor's rule.

    Returns:
        uint16 (n,) contexts, uint16 (n,) ids, and int64 (b,) the end of each block.
    """
    ans, _ = _need()
    by_tap = np.moveaxis(ids.reshape(*shape[:2], math.prod(kernel_of(shape))), -1, 0).astype(np.uint16, order="C")
    nothing = np.zeros(0, dtype=np.int64)
    model = ans.Model(nothing, nothing, -1, nothing)
    return _walk(by_tap, shape, values, rule, np.zeros(0, dtype=np.uint16), model, _coder(0, 0), reading=False)


class Coded(Protocol):
    """Contexts uint16 (n,), empty without contexts, and ids (n,) of a block."""

    @property
    def contexts(self) -> np.ndarray: ...  # noqa: D102
    @property
    def ids(self) -> np.ndarray: ...  # noqa: D102


class Encoder:
    """A stream of words that grows from its last id to its first."""

    def __init__(self) -> None:
        self._state, self._words = np.zeros(1, dtype=np.uint64), list[np.ndarray]()

    def encode(self, table: Table, blocks: Sequence[Coded], values: np.ndarray) -> None:
        """Push the ids of a tensor.

        Args:
            table: Its table; more than one symbol occurs.
            blocks: Its ids in coding order.
            values: int64 (K + 1,), from `whole_values`.
        """
        ans, _ = _need()
        live = np.flatnonzero(table.levels)
        positions = np.zeros(len(values), dtype=np.int32)
        positions[live] = np.arange(len(live), dtype=np.int32)
        model = _model(table, live, values)
        most = max(len(block.ids) for block in blocks)
        room = np.empty(min(most, AT_ONCE) + 1, dtype=np.uint32)
        coder = _coder(len(live), _n_contexts(table), writing=True)._replace(state=self._state, words=room)
        for block in reversed(blocks):
            for start in reversed(range(0, len(block.ids), AT_ONCE)):
                part = slice(start, start + AT_ONCE)
                coder.n_words[0] = 0
                ans.encode(block.contexts[part], _plain(block.ids[part]), positions, model, coder)
                self._words.append(room[: coder.n_words[0]].copy())

    def words(self) -> np.ndarray:
        """uint32, all words: those pushed, then the lower and the upper half of the state, without leading zeros."""
        state = int(self._state[0])
        halves = [state & 0xFFFFFFFF, state >> 32]
        while halves and not halves[-1]:
            halves.pop()
        return np.concatenate([*self._words, np.array(halves, dtype=np.uint32)])


class Decoder:
    """Reads a stream of words from its end.

    Raises:
        ValueError: The last word is 0.
    """

    def __init__(self, words: np.ndarray) -> None:
        if len(words) and not words[-1]:
            raise ValueError("the last word of the index maps is 0")
        left = len(words)
        state = 0
        while left and state < 1 << 32:
            left -= 1
            state = state << 32 | int(words[left])
        self._words, self._state = words, np.array([state], dtype=np.uint64)
        self._left = np.array([left])

    def bits_left(self) -> int:
        """Number of bits that are not read."""
        return 32 * int(self._left[0]) + max(int(self._state[0]).bit_length() - 1, 0)

    def at_end(self) -> bool:
        """Whether all is read."""
        return not self._left[0] and not self._state[0]

    def decode(self, table: Table, shape: Sequence[int], values: np.ndarray) -> np.ndarray:
        """(n,), the ids of a tensor in C order; more than one symbol occurs."""
        ans, _ = _need()
        live = np.flatnonzero(table.levels)
        symbols, dtype = live.astype(np.uint16), np.min_scalar_type(len(values) - 1)
        model = _model(table, live, values)
        coder = _coder(len(live), _n_contexts(table), writing=False)
        coder = coder._replace(state=self._state, words=self._words, n_words=self._left)
        if table.rule is None:
            ids = np.empty(math.prod(shape), dtype=dtype)
            for start in range(0, len(ids), AT_ONCE):
                part = np.empty(min(AT_ONCE, len(ids) - start), dtype=np.uint16)
                ans.decode(np.zeros(0, dtype=np.uint16), symbols, model, coder, part)
                ids[start : start + AT_ONCE] = part
            return ids
        by_tap = np.zeros((math.prod(kernel_of(shape)), *shape[:2]), dtype=np.uint16)
        _walk(by_tap, shape, values, table.rule, symbols, model, coder, reading=True)
        return np.moveaxis(by_tap, 0, -1).astype(dtype, order="C").reshape(-1)


def _plain(ids: np.ndarray) -> np.ndarray:
    """The ids as loops are compiled for them: of one type, contiguous, and not read-only."""
    return np.require(ids, dtype=np.uint16, requirements=["C", "W"])


def _need() -> tuple[ModuleType, ModuleType]:
    found = _loops()
    assert found is not None
    return found


def _walk(
    by_tap: np.ndarray,
    shape: Sequence[int],
    values: np.ndarray,
    rule: ContextRule,
    symbols: np.ndarray,
    model: Any,
    coder: Any,
    *,
    reading: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, walk = _need()
    found: tuple[np.ndarray, np.ndarray, np.ndarray] = walk.walk(
        by_tap,
        values.astype(np.int32),
        magnitude_of(rule.start),
        np.array(rule.neighbours),
        kernel_of(shape)[1],
        max(1, contexts.BAND // shape[1]),
        np.array(contexts.FIRST_PARTS),
        np.array(contexts.NEXT_PARTS),
        reading,
        symbols,
        model,
        coder,
    )
    return found


def _n_contexts(table: Table) -> int:
    return 1 if table.rule is None else N_LEVELS * N_PREDICTIONS


def _model(table: Table, live: np.ndarray, values: np.ndarray) -> Any:
    ans, _ = _need()
    rule = table.rule
    numbers = (0, 0, 0) if rule is None else (rule.tail, rule.offset, magnitude_of(rule.floor))
    escape = len(live) - 1 if live[-1] == len(values) - 1 else -1
    return ans.Model(symbol_weights(table.levels[live]), values[live], escape, np.array(numbers))


def _coder(symbols: int, n_contexts: int, *, writing: bool = True) -> Any:
    """A coder without words, with room for models; memory that is not used is not taken from the system."""
    ans, _ = _need()
    rows = min(n_contexts, max(1, KEPT_ENTRIES // max(symbols, 1)))
    of_contexts = np.full(n_contexts + 1, -1, dtype=np.int32)
    of_contexts[-1] = 0
    return ans.Coder(
        state=np.zeros(1, dtype=np.uint64),
        words=np.zeros(0, dtype=np.uint32),
        n_words=np.zeros(1, dtype=np.int64),
        rows=of_contexts,
        cumulative=np.empty((rows, symbols + 1), dtype=np.uint32),
        reciprocals=np.empty((rows if writing else 0, symbols), dtype=np.uint64),
        shifts=np.empty((rows if writing else 0, symbols), dtype=np.uint8),
        buckets=np.empty((0 if writing else rows, ans.BUCKETS + 1), dtype=np.uint16),
        scratch=np.empty(symbols, dtype=np.int64),
    )
