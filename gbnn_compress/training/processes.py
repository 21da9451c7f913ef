"""Training in several processes, as `torchrun` and `accelerate launch` start them.

Every process holds the whole network, takes its own part of each batch, and draws its own noise. Gradients and
batch-norm statistics are averaged at each step, so weights, ids and rate control are the same in all processes.
`DistributedDataParallel` would not help: it does not see weights that are handed in. In a single process all functions
here do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

from gbnn_compress.parallel import STARTED_TOGETHER

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[None]:
    """A context in which the processes that were started together form one group, each with its own GPU."""
    if STARTED_TOGETHER not in os.environ or distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group()
    try:
        yield
    finally:
        distributed.destroy_process_group()


def count() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return distributed.get_rank() if _together() else 0


def average_(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one device by their mean over the processes, in place; all get the same bits."""
    if count() == 1 or not tensors:
        return
    together = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    distributed.all_reduce(together)
    parts = (together / count()).split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def gathered(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if count() == 1:
        return [value]
    values: list[T] = [value] * count()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """The value that the first process has."""
    if count() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
