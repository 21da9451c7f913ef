"""Tensors in a mapped file whose memory is released again, so that a pass over all needs the memory of only one.

This works on Linux. On other systems the operating system decides when pages are released.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

LARGE_BYTES = 1 << 20
"""Size in bytes from which tensors are paged; smaller ones stay in memory."""


class PagedTensors(Mapping[str, "torch.Tensor"]):
    """A state dict that releases the pages of its files whenever a large tensor is accessed.

    Tensors that were returned earlier stay valid: their pages are read again from the file, usually from the system's
    cache. The tensors must not be written to.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], pages: Sequence[mmap.mmap]) -> None:
        self._tensors, self._pages = tensors, tuple(pages)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        if tensor.nbytes >= LARGE_BYTES and sys.platform == "linux":
            for pages in self._pages:
                pages.madvise(mmap.MADV_DONTNEED)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def map_file(path: Path) -> mmap.mmap:
    """Map a file into memory; changes stay private to this process."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def in_pages(pages: mmap.mmap, tensors: Mapping[str, torch.Tensor], *, start: int) -> dict[str, torch.Tensor]:
    """The same tensors, with large ones as views of a mapped file.

    Args:
        pages: The mapped file.
        tensors: Name -> tensor, in the order of their bytes in the file, which have no gaps.
        start: Offset of the first tensor in the file, in bytes.
    """
    import torch

    result = {}
    for name, tensor in tensors.items():
        result[name] = tensor
        if tensor.nbytes >= LARGE_BYTES:
            flat = torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel(), offset=start)
            result[name] = flat.reshape(tensor.shape)
        start += tensor.nbytes
    return result
