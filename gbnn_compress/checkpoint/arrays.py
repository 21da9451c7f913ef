"""Tensors as float64 numpy blocks, so that no copy of a whole large tensor is made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

BLOCK_SIZE = 1 << 19
"""Values in a block, about: what is worked out from them stays in a processor's cache."""


def blocks(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    """Some rows (first axis) of a tensor at a time.

    Yields:
        float64 (rows, values a row), in order.
    """
    rows = tensor.detach().reshape(tensor.shape[0], -1)
    step = max(1, BLOCK_SIZE // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step].double().numpy()


def values(tensor: torch.Tensor, *, at_most: int | None = None) -> np.ndarray:
    """float64 (n,), the values of a tensor, or about `at_most` of them evenly spaced."""
    flat = tensor.detach().reshape(-1)
    if at_most is not None:
        flat = flat[:: max(1, -(-flat.numel() // at_most))]
    return flat.double().numpy()


def bit_patterns(tensor: torch.Tensor) -> np.ndarray:
    """Unsigned integers (n,), the bits of a floating tensor's values, C order."""
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
    """Values at a floating dtype, those past its range at its largest finite number of that sign.

    Args:
        values: Floating, of any shape.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        The same shape at `dtype`, a copy.
    """
    import torch

    tensor = torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values
    end = torch.finfo(dtype).max
    return tensor.to(dtype).nan_to_num(nan=math.nan, posinf=end, neginf=-end)


def raw_bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of any dense tensor, C order."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
