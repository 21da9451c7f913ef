"""Training batches of any kind, as the user's data yield them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gbnn_compress.data.batches import Batch, mapped, read_batch, tensors_in
from gbnn_compress.data.loaders import Batches
from gbnn_compress.errors import DataError
from gbnn_compress.predict.outputs import stored_bytes
from gbnn_compress.training import processes

MOST_BYTES = 1_000_000_000
"""Largest size of the batches that are held in memory, in bytes. Beyond it, each epoch reads the data again."""

APART = 1_000_003
"""Distance between the seeds of two epochs, so that they differ from the seeds of other processes and other runs."""

HELD_OUT_BATCHES = 10
"""One batch in so many is held out as validation data."""


@dataclass(frozen=True, eq=False)
class LoadedData:
    """Batches of a network's inputs, in a random order for each epoch if they fit into memory.

    Attributes:
        source: The data; each iteration is a pass.
        device: Of the network.
        seed: Of the order of the batches.
        option: The option that names the data, for messages.
        held: The batches, on the CPU; None if they do not fit into memory.
        n_batches: Number of batches of a pass.
        n_inputs: Number of inputs of a pass.
    """

    source: Iterable[Batch]
    device: torch.device
    seed: int
    option: str
    held: tuple[Batch, ...] | None
    n_batches: int
    n_inputs: int

    @property
    def steps(self) -> int:
        """Batches per epoch of one process."""
        return self.n_batches // processes.count()

    def __len__(self) -> int:
        """Number of inputs."""
        return self.n_inputs

    def batches(self, epoch: int, *, whole: bool = False) -> Iterator[Batch]:
        """The batches of an epoch, copied to the device: this process's part of them, or the whole ones.

        Raises:
            DataError: A pass over the data yields fewer batches than the first one.
        """
        count, rank = (1, 0) if whole else (processes.count(), processes.rank())
        taken = 0
        for position, batch in enumerate(self._ordered(epoch)):
            if position % count == rank and taken < self.n_batches // count:
                taken += 1
                yield batch.on(self.device)
        if taken < self.n_batches // count:
            raise DataError(
                f"`{self.option}`: expected {self.n_batches:,} batches in each pass, as in the"
                f" first, got fewer in epoch {epoch}"
            )

    def _ordered(self, epoch: int) -> Iterator[Batch]:
        if self.held is None:
            yield from self.source.pass_with(epoch) if isinstance(self.source, Batches) else self.source
            return
        generator = torch.Generator().manual_seed(self.seed + APART * epoch)
        for position in torch.randperm(len(self.held), generator=generator).tolist():
            yield self.held[position]


def loaded_data(source: Iterable[Batch], *, device: torch.device, seed: int, option: str) -> LoadedData:
    """Read all batches once, and keep them if they fit into memory.

    Raises:
        DataError: There are fewer batches than processes.
    """
    held: list[Batch] | None = []
    n_batches = n_inputs = n_bytes = 0
    for batch in source:
        n_batches, n_inputs, n_bytes = n_batches + 1, n_inputs + batch.size, n_bytes + stored_bytes(batch.value)
        if n_bytes > MOST_BYTES:
            held = None
        elif held is not None:
            held.append(batch)
    if n_batches < processes.count():
        raise DataError(f"`{option}`: expected at least one batch per process, got {n_batches} in all")
    return LoadedData(source, device, seed, option, None if held is None else tuple(held), n_batches, n_inputs)


def held_out(data: Batches, *, at_most: int) -> tuple[Batches, Batches]:
    """The data for training and those for validation: every so many-th batch, or the last tenth of a single one.

    Args:
        data: All batches.
        at_most: Number of inputs up to which a tenth is held out.

    Returns:
        The same data twice if there is one batch that cannot be split.
    """
    n_batches = n_inputs = 0
    for batch in data:
        n_batches, n_inputs = n_batches + 1, n_inputs + batch.size
    if n_batches == 1:
        parts = in_two(data.first)
        if parts is None:
            return data, data
        first, last = (_of_one(data, part) for part in parts)
        return first, last
    every = min(max(HELD_OUT_BATCHES, n_inputs // at_most), n_batches)
    return (
        data.only(lambda position: position % every != every - 1),
        data.only(lambda position: position % every == every - 1),
    )


def _of_one(data: Batches, batch: Batch) -> Batches:
    return Batches(data.spec, lambda: iter([batch.value]), option=data.option)


def in_two(batch: Batch) -> tuple[Batch, Batch] | None:
    """A batch without its last tenth, and that tenth; None if it cannot be split along axis 0, or has too few inputs.

    A batch can be split if it consists of tensors of one length.
    """
    tensors = list(tensors_in(batch.value))
    lengths = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
    (length,) = lengths if len(lengths) == 1 else (0,)
    if length < 2 * HELD_OUT_BATCHES or _has_others(batch):
        return None
    first = length - length // HELD_OUT_BATCHES
    return (
        read_batch(mapped(batch.value, lambda tensor: tensor[:first])),
        read_batch(mapped(batch.value, lambda tensor: tensor[first:])),
    )


def _has_others(batch: Batch) -> bool:
    """Whether there is something else than tensors in a batch."""
    found = list[Any]()
    mapped(batch.value, lambda tensor: tensor, found.append)
    return bool(found)
