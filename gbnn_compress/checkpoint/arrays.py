"""Conversion between tensors and numpy arrays: float64 values, bit patterns, rounding and raw bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

BLOCK_SIZE = 1 << 19
"""Approximate number of values in a block, small enough for a processor's cache."""


def blocks(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield a tensor in blocks of rows (first axis), without a copy of the whole tensor.

    Yields:
        float64 (rows, values per row), in order.
    """
    rows = tensor.detach().reshape(tensor.shape[0], -1)
    step = max(1, BLOCK_SIZE // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step].double().numpy()


def values(tensor: torch.Tensor, *, at_most: int | None = None) -> np.ndarray:
    """The values of a tensor, or about `at_most` evenly spaced ones, float64 (n,)."""
    flat = tensor.detach().reshape(-1)
    if at_most is not None:
        flat = flat[:: max(1, -(-flat.numel() // at_most))]
    return flat.double().numpy()


def bit_patterns(tensor: torch.Tensor) -> np.ndarray:
    """The bits of a floating tensor's values as unsigned integers (n,), in C order."""
    import torch

    width = tensor.element_size()
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
    return tensor.detach().reshape(-1).view(signed).numpy().view(f"u{width}")


def from_bit_patterns(patterns: np.ndarray, dtype: str) -> torch.Tensor:
    """The inverse of `bit_patterns`: a tensor (n,) of the named dtype."""
    import torch

    width = patterns.dtype.itemsize
    signed = np.array(patterns).astype(f"<u{width}").view(f"<i{width}")
    return torch.from_numpy(signed).view(getattr(torch, dtype))


def rounded(values: np.ndarray | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round values to a floating dtype. Values outside its range become its largest finite number of that sign.

    Args:
        values: Floating values of any shape.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        A copy at `dtype`, of the same shape.
    """
    import torch

    tensor = torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values
    end = torch.finfo(dtype).max
    return tensor.to(dtype).nan_to_num(nan=math.nan, posinf=end, neginf=-end)


def raw_bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of any dense tensor, in C order."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
