"""Index maps <-> bytes in format version 2: one stream of words per tensor, each after its length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.bits import read_length, write_length
from gbnn_compress.format.lanes import Walk
from gbnn_compress.format.streams import Models, decode_stream, encode_stream
from gbnn_compress.format.table_choice import choose_by_lanes
from gbnn_compress.format.tables import Table
from gbnn_compress.parallel import in_order
from gbnn_compress.types import IndexMap

WORD_BYTES = 4


def encode_lane_maps(
    maps: Sequence[IndexMap], shapes: Sequence[Sequence[int]], values: np.ndarray, *, contexts: bool = True
) -> tuple[list[Table], bytes]:
    """Entropy-code index maps.

    Args:
        maps: One per shared tensor; those with a trellis follow it.
        shapes: Shape of each tensor.
        values: int64 (K + 1,), from `whole_values`.
        contexts: Whether contexts may be used, where they save bytes.

    Returns:
        The chosen tables, one per tensor, and the streams.
    """

    def encoded(pair: tuple[IndexMap, Sequence[int]]) -> tuple[Table, bytes]:
        part, shape = pair
        choice = choose_by_lanes(part.ids, shape, values, smooth=True, contexts=contexts, trellis=part.trellis)
        if np.count_nonzero(choice.table.levels) == 1:
            return choice.table, b""
        assert choice.slots is not None
        words = encode_stream(part.ids, choice.slots, shape, Models(choice.table, values))
        return choice.table, write_length(len(words)) + words.astype("<u4", copy=False).tobytes()

    pairs = list(zip(maps, shapes, strict=True))
    results = list(in_order(encoded, pairs, weights=sum(len(part.ids) for part in maps)))
    return [table for table, _ in results], b"".join(stream for _, stream in results)


def decode_lane_maps(
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
        ArtifactError: A stream is longer or shorter than its ids, or the streams do not fill the data.
    """
    place, bits = 0, []
    for index, (table, shape) in enumerate(zip(tables, shapes, strict=True)):
        live = np.flatnonzero(table.levels)
        before = place
        if len(live) == 1:
            ids = np.full(math.prod(shape), live[0], dtype=np.min_scalar_type(len(values) - 1))
        else:
            length, place = read_length(data, place)
            if WORD_BYTES * length > len(data) - place:
                raise ArtifactError("damaged artifact: a stream of ids is cut short")
            words = np.frombuffer(data, dtype="<u4", count=length, offset=place).astype(np.uint32)
            place += WORD_BYTES * length
            walk = Walk(shape, values, table.rule, trellis=table.trellis)
            ids = decode_stream(words, shape, walk, Models(table, values))
        consume(index, ids)
        bits.append(8 * (place - before))
    if place != len(data):
        raise ArtifactError("damaged artifact: the index maps do not end where they should")
    return np.array(bits, dtype=np.float64)
