"""Batches that are made when they are asked for."""

from __future__ import annotations

import torch

from gbnn_compress.data.batches import MadeBatches, read_batch, taken


def test_batches_are_made_anew_and_alike() -> None:
    made: list[int] = []

    def make(number: int):
        made.append(number)
        return read_batch(torch.full((2, 3), float(number)))

    batches = MadeBatches(make, range(5))
    assert len(batches) == 5
    assert not made
    assert torch.equal(batches[3].value, batches[3].value)
    assert made == [3, 3]
    assert [float(batch.value[0, 0]) for batch in batches[1:3]] == [1, 2]
    assert [float(batch.value[0, 0]) for batch in taken(batches, [4, 0])] == [4, 0]


def test_other_batches_are_taken_as_they_are() -> None:
    batches = [read_batch(torch.zeros(1)) for _ in range(3)]
    assert taken(batches, [2, 0]) == [batches[2], batches[0]]
