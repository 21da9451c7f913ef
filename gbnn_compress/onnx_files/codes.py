"""Component ids of a shared tensor as ONNX stores them: 2, 4, 8 or 16 bits per id, packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gbnn_compress.types import IndexMap

PAIRED = 4
"""With at most this many components, one code of 4 bits encodes two weights: runtimes lack integers of 2 bits."""


@dataclass(frozen=True)
class Codes:
    """The codes of one shared tensor.

    Attributes:
        codes: Unsigned integers (n,), or (n / 2,) where a code encodes two neighbours, C order.
        bits: Bits per code in the file: 4, 8 or 16.
        components: int64 (rows,) or (rows, 2), the component of each weight that a code encodes; K, one past the
            bank, is a weight of 0.
        outliers: int32 (n_outliers,), positions of the outliers, C order.
    """

    codes: np.ndarray
    bits: int
    components: np.ndarray
    outliers: np.ndarray

    @property
    def size_bytes(self) -> int:
        """Size of the packed codes."""
        return -(-len(self.codes) * self.bits // 8)


def codes_of(index_map: IndexMap, *, n_components: int) -> Codes:
    """Number the components that a tensor uses, with the smallest ONNX integer type that holds them.

    Args:
        index_map: The tensor's index map.
        n_components: K, number of components in the bank.
    """
    ids = index_map.ids
    used = np.flatnonzero(np.bincount(ids, minlength=n_components + 1)[:n_components])
    if not len(used):
        used = np.array([n_components])
    # Outliers are overwritten later, so that their code does not matter: 0.
    local = np.zeros(n_components + 1, dtype=np.uint16)
    local[used] = np.arange(len(used))
    codes, components = local[ids], used
    if len(used) <= PAIRED and len(ids) % 2 == 0:
        codes = codes[0::2] + len(used) * codes[1::2]
        components = np.stack([np.tile(used, len(used)), np.repeat(used, len(used))], axis=1)
    bits = next(bits for bits in (4, 8, 16) if len(components) <= 1 << bits)
    return Codes(codes, bits, components, np.flatnonzero(ids == n_components).astype(np.int32))
