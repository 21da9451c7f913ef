"""Tensors in a mapped file that leave the process's memory again: a pass over them costs no more than one of them.

On Linux; elsewhere the pages stay as long as the system likes.
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
"""Tensors of fewer bytes stay in memory."""


class PagedTensors(Mapping[str, "torch.Tensor"]):
    """A state dict that lets go of its files' pages whenever a large tensor is asked for.

    Tensors handed out before stay as they are: what is read again comes from the file, most often from the system's
    own copy of it. Nobody may write to them.
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
    """The pages of a file, private to this process."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def in_pages(pages: mmap.mmap, tensors: Mapping[str, torch.Tensor], *, start: int) -> dict[str, torch.Tensor]:
    """The same tensors, large ones as views of the pages.

    Args:
        pages: Of the file.
        tensors: In the order of their bytes, which follow each other without gaps.
        start: Where they begin.
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
