"""Ids <-> bits: the entropy coder. The only user of constriction.

constriction receives `frequency - 1` as probabilities. Its leaky fixed-point rule then returns exactly the integer
frequencies of a table, because every cumulative sum is an integer that a float64 holds (`perfect=False`, stated in
docs/format.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import constriction
import numpy as np

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format import compiled_coder
from gbnn_compress.format.contexts import factors, walk
from gbnn_compress.format.table_choice import Block, choose
from gbnn_compress.format.tables import Table, frequencies
from gbnn_compress.parallel import in_order

MODEL_ENTRIES = 1 << 20
"""Number of frequencies computed at once."""

CODED_AT_ONCE = 1 << 20
"""Number of ids coded at once in a tensor without contexts."""

KEPT_ENTRIES = 1 << 24
"""Largest number of frequencies cached for contexts that recur."""


def encode_maps(
    maps: Sequence[np.ndarray], shapes: Sequence[Sequence[int]], values: np.ndarray, *, contexts: bool = True
) -> tuple[list[Table], bytes]:
    """Entropy-code index maps into one ANS stream of little-endian 32-bit words.

    Args:
        maps: One integer array (n_t,) per tensor.
        shapes: Shape of each tensor.
        values: int64 (K + 1,), from `whole_values`.
        contexts: Whether contexts may be used, where they save bytes.

    Returns:
        The chosen tables, one per tensor, and the stream.
    """
    work = sum(len(ids) for ids in maps)
    coder = compiled_coder.Encoder() if compiled_coder.usable(len(values), work=work) else _Encoder()
    tables = []
    backwards = list(zip(reversed(maps), reversed(shapes), strict=True))
    choices = in_order(lambda pair: choose(*pair, values, contexts=contexts), backwards, weights=work)
    for choice, (ids, _) in zip(choices, backwards, strict=True):
        tables.append(choice.table)
        if np.count_nonzero(choice.table.levels) > 1:
            coder.encode(choice.table, choice.blocks or [Block(np.zeros(0, dtype=np.uint16), ids)], values)
    return tables[::-1], coder.words().astype("<u4", copy=False).tobytes()


def decode_maps(
    data: bytes,
    tables: Sequence[Table],
    shapes: Sequence[Sequence[int]],
    values: np.ndarray,
    *,
    consume: Callable[[int, np.ndarray], None],
) -> np.ndarray:
    """Decode index maps, and call `consume(tensor index, ids)` for each in order.

    Returns:
        float64 (T,), bits of each tensor's ids. The dtype of ids is the smallest unsigned integer that holds K.

    Raises:
        ArtifactError: The stream is longer or shorter than the ids.
    """
    words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
    work = sum(math.prod(shape) for shape in shapes)
    coder = compiled_coder.Decoder(words) if compiled_coder.usable(len(values), work=work) else _Decoder(words)
    left = [coder.bits_left()]
    for index, (table, shape) in enumerate(zip(tables, shapes, strict=True)):
        live = np.flatnonzero(table.levels)
        if len(live) == 1:
            consume(index, np.full(math.prod(shape), live[0], dtype=np.min_scalar_type(len(values) - 1)))
        else:
            consume(index, coder.decode(table, shape, values))
        left.append(coder.bits_left())
    if not coder.at_end():
        raise ArtifactError("damaged artifact: the index maps do not end where they should")
    return -np.diff(left).astype(np.float64)


class _Encoder:
    """Pushes ids with constriction, from the last to the first."""

    def __init__(self) -> None:
        self._coder = constriction.stream.stack.AnsCoder()

    def encode(self, table: Table, blocks: Sequence[Block], values: np.ndarray) -> None:
        """Push the ids of a tensor in which more than one symbol occurs; `Block.contexts` are empty without a rule."""
        live = np.flatnonzero(table.levels)
        positions = np.zeros(len(values), dtype=np.int32)
        positions[live] = np.arange(len(live), dtype=np.int32)
        if table.rule is None:
            model, ids = _model(frequencies(table.levels[live])), blocks[0].ids
            for start in reversed(range(0, len(ids), CODED_AT_ONCE)):
                self._coder.encode_reverse(positions[ids[start : start + CODED_AT_ONCE]], model)
            return
        models = _Models(table, live, values)
        for block in reversed(blocks):
            symbols = positions.take(block.ids)
            for start, stop, model in reversed(models.runs(block.contexts)):
                self._coder.encode_reverse(symbols[start:stop], model)

    def words(self) -> np.ndarray:
        """uint32, the stream."""
        return np.asarray(self._coder.get_compressed())


class _Decoder:
    """Pops ids with constriction, from the first to the last."""

    def __init__(self, words: np.ndarray) -> None:
        self._coder = constriction.stream.stack.AnsCoder(words)

    def bits_left(self) -> int:
        """Number of bits that are not read."""
        return int(self._coder.num_valid_bits())

    def at_end(self) -> bool:
        """Whether all is read."""
        return bool(self._coder.is_empty())

    def decode(self, table: Table, shape: Sequence[int], values: np.ndarray) -> np.ndarray:
        """(n,), the ids of a tensor in which more than one symbol occurs, C order."""
        live = np.flatnonzero(table.levels).astype(np.min_scalar_type(len(values) - 1))
        if table.rule is None:
            return self._plain(table, live, math.prod(shape))
        models = _Models(table, live, values)

        def visit(tap: int, band: slice, places: np.ndarray, contexts: np.ndarray) -> np.ndarray:
            order = np.argsort(contexts, kind="stable")
            symbols = np.empty(len(order), dtype=np.int32)
            for start, stop, model in models.runs(contexts.take(order)):
                symbols[start:stop] = self._coder.decode(model, stop - start)
            part = np.empty(len(order), dtype=live.dtype)
            part[order] = live.take(symbols)
            return part

        ids = walk(shape, values, table.rule, visit)
        return np.ascontiguousarray(np.moveaxis(ids, 0, -1)).reshape(-1)

    def _plain(self, table: Table, live: np.ndarray, size: int) -> np.ndarray:
        """Decode in parts: the coder's output takes several times the memory of the ids."""
        model, ids = _model(frequencies(table.levels[live])), np.empty(size, dtype=live.dtype)
        for start in range(0, size, CODED_AT_ONCE):
            part = ids[start : start + CODED_AT_ONCE]
            part[:] = live[self._coder.decode(model, len(part))]
        return ids


class _Models:
    """The coder's models of one tensor's contexts, made at first use."""

    def __init__(self, table: Table, live: np.ndarray, values: np.ndarray) -> None:
        assert table.rule is not None
        self._rule, self._live, self._levels, self._values = table.rule, live, table.levels[live], values
        self._known: dict[int, object] = {}

    def runs(self, contexts: np.ndarray) -> list[tuple[int, int, object]]:
        """Start, stop and model of each run of equal contexts, which must be sorted."""
        edges = [0, *(1 + np.flatnonzero(contexts[1:] != contexts[:-1])).tolist(), len(contexts)]
        found = contexts[edges[:-1]]
        if len(self._known) * len(self._levels) > KEPT_ENTRIES:
            self._known.clear()
        missing = np.array([context for context in found.tolist() if context not in self._known], dtype=np.int64)
        step = max(1, MODEL_ENTRIES // len(self._levels))
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            rows = frequencies(self._levels, factors(part, self._live, self._values, self._rule))
            self._known.update(zip(part.tolist(), map(_model, rows), strict=True))
        models = [self._known[context] for context in found.tolist()]
        return list(zip(edges[:-1], edges[1:], models, strict=True))


def _model(rows: np.ndarray) -> object:
    return constriction.stream.model.Categorical((rows - 1).astype(np.float64), perfect=False)
