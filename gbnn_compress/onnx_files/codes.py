"""Ids of a shared tensor as ONNX stores them: 2, 4, 8 or 16 bits each, packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gbnn_compress.types import IndexMap

PAIRED = 4
"""Up to so many components, one code of 4 bits stands for two weights: runtimes lack integers of 2 bits."""


@dataclass(frozen=True)
class Codes:
    """One shared tensor.

    Attributes:
        codes: Unsigned integers (n,), or (n / 2,) when one stands for two neighbours, C order.
        bits: 4, 8 or 16, that a code takes in the file.
        components: int64 (rows,) or (rows, 2), the component of each weight that a code stands for; K, one past
            the bank, is a weight of 0.
        outliers: int32 (n_outliers,), positions of the weights that are written afterwards, C order.
    """

    codes: np.ndarray
    bits: int
    components: np.ndarray
    outliers: np.ndarray

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed codes."""
        return -(-len(self.codes) * self.bits // 8)


def codes_of(index_map: IndexMap, *, n_components: int) -> Codes:
    """Number the components that a tensor uses, in as few bits as an ONNX type has.

    Args:
        index_map: Of the tensor.
        n_components: K, of the bank.
    """
    ids = index_map.ids
    used = np.flatnonzero(np.bincount(ids, minlength=n_components + 1)[:n_components])
    if not len(used):
        used = np.array([n_components])
    # An outlier's own code is of no account: 0.
    local = np.zeros(n_components + 1, dtype=np.uint16)
    local[used] = np.arange(len(used))
    codes, components = local[ids], used
    if len(used) <= PAIRED and len(ids) % 2 == 0:
        codes = codes[0::2] + len(used) * codes[1::2]
        components = np.stack([np.tile(used, len(used)), np.repeat(used, len(used))], axis=1)
    bits = next(bits for bits in (4, 8, 16) if len(components) <= 1 << bits)
    return Codes(codes, bits, components, np.flatnonzero(ids == n_components).astype(np.int32))
