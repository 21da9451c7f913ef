"""How many inputs a layer may see, and the memory of activations."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import nn

from gbnn_compress.calibration.stays import LiveBytes, bytes_of, find_stays


def test_live_bytes_are_those_of_tensors_that_are_still_there() -> None:
    with LiveBytes() as living:
        a = torch.ones(100)
        b = torch.ones(50) + 1
        view = a.view(10, 10)
        assert living.now == 600
        a.add_(1)
        del a
        assert living.now == 600
        del view
        assert living.now == 200
        del b
    assert living.now == 0


def test_a_tensor_that_is_given_another_memory_is_counted_with_it_whatever_the_memory_was_used_for_before() -> None:
    original, copies = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).requires_grad_(False).eval(), []
    for _ in range(20):
        with LiveBytes() as living:
            network = deepcopy(original)
            copied = living.now
            x = torch.ones(4, 8)
            assert living.now == copied + 4 * 4 * 8
            y = network(x).relu_()
            assert living.now >= copied + 2 * 4 * 4 * 8
            del x
        copies.append(copied)
        del y, network
        assert living.now == 0
    assert len(set(copies)) == 1


def test_layers_with_small_activations_see_more_batches() -> None:
    held = np.array([[100.0, 50, 10]] * 4)
    stays = find_stays(held, np.ones(3), most_bytes=100)
    assert stays == [range(3), range(1, 3), range(2, 3), range(2, 3)]
    assert bytes_of(held, stays).tolist() == [100, 100, 40]


def test_batches_leave_where_later_layers_are_large() -> None:
    held = np.array([[10.0, 60, 10, 10]] * 3)
    assert find_stays(held, np.ones(4), most_bytes=70) == [range(4), range(2, 4), range(2, 4)]
    assert find_stays(held, np.array([9.0, 1, 1, 1]), most_bytes=70) == [range(4), range(1), range(1)]


def test_the_first_batch_takes_part_everywhere_and_others_may_nowhere() -> None:
    held = np.full((2, 2), 1e9)
    assert find_stays(held, np.ones(2), most_bytes=1) == [range(2), range(0)]
