"""Weights that the network divides by their norm keep it above zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gbnn_compress.rate.divided import divided_weights, uneven_warnings, vanished_places, with_parts_kept
from gbnn_compress.types import IndexMap


def names_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return divided_weights({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})


parametrizations = nn.utils.parametrizations


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (parametrizations.weight_norm(nn.Linear(4, 6)), {"parametrizations.weight.original1": (0,)}),
        (parametrizations.weight_norm(nn.Conv2d(4, 6, 3), dim=1), {"parametrizations.weight.original1": (1,)}),
        (parametrizations.weight_norm(nn.Linear(4, 6), dim=None), {"parametrizations.weight.original1": ()}),
        (nn.utils.weight_norm(nn.Conv1d(4, 6, 3)), {"weight_v": (0,)}),
        (nn.utils.weight_norm(nn.LSTM(4, 6), name="weight_hh_l0"), {"weight_hh_l0_v": (0,)}),
        (nn.utils.weight_norm(nn.Linear(4, 6), dim=None), {"weight_v": ()}),
        (nn.utils.spectral_norm(nn.Linear(4, 6)), {"weight_orig": ()}),
        (parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), {"parametrizations.weight.original": ()}),
        (nn.Linear(4, 6), {}),
        (nn.MultiheadAttention(4, 2), {}),
    ],
)
def test_every_form_that_torch_has(network: nn.Module, expected: dict[str, tuple[int, ...]]) -> None:
    assert names_of(network) == expected
    assert names_of(nn.Sequential(network)) == {f"0.{name}": axes for name, axes in expected.items()}


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data(), st.sampled_from([torch.float32, torch.float16]))
@settings(max_examples=80, deadline=None)
def test_vanished_parts_are_found_at_their_largest_value(
    shape: list[int], data: st.DataObject, dtype: torch.dtype
) -> None:
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    random = np.random.RandomState(data.draw(st.integers(0, 9)))
    before = torch.from_numpy(random.normal(size=shape) * random.randint(0, 2, shape)).to(dtype)
    after = before * torch.from_numpy(random.randint(0, 2, shape)).to(dtype)
    found = set(vanished_places(before, after, axes=sorted(axes)).tolist())
    expected = set()
    for index in np.ndindex(*(shape[axis] for axis in sorted(axes))):
        chosen = [slice(None)] * len(shape)
        for axis, place in zip(sorted(axes), index, strict=True):
            chosen[axis] = place
        part = torch.zeros(shape, dtype=torch.bool)
        part[tuple(chosen)] = True
        old = torch.where(part, before.abs(), torch.zeros(()).to(dtype))
        if old.max() > 0 and not (after[part] != 0).any():
            expected.add(int(old.flatten().argmax()))
    assert found == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_part_that_would_vanish_keeps_its_largest_value(dtype: torch.dtype) -> None:
    direction = torch.tensor([[0.1, -0.2], [0.0, 0.0], [3.0, 1.0]], dtype=dtype)
    tensors = {"l.weight_v": direction, "l.weight_g": torch.ones(3, 1), "other": torch.ones(2, 2)}
    zeros = IndexMap("l.weight_v", np.array([1, 1, 1, 1, 2, 1], dtype=np.uint8), np.empty(0, "u2"))
    plain = IndexMap("other", np.array([1, 1, 1, 1], dtype=np.uint8), np.empty(0, "u4"))
    kept, same = with_parts_kept([zeros, plain], tensors, means=np.array([-1.0, 0.0, 1.0]), scales=[2.0, 1.0])
    assert kept.ids.tolist() == [1, 3, 1, 1, 2, 1]
    assert kept.outliers.itemsize == direction.element_size()
    assert len(kept.outliers) == 1
    assert same is plain
    assert zeros.ids.tolist() == [1, 1, 1, 1, 2, 1]


def test_parts_far_smaller_than_the_others_are_warned_of() -> None:
    direction = torch.randn(32, 40, generator=torch.Generator().manual_seed(0))
    even = {"l.weight_v": direction, "l.weight_g": torch.ones(32, 1)}
    assert uneven_warnings(even, ["l.weight_v"]) == []
    uneven = direction.clone()
    uneven[::3] *= 1e-4
    (line,) = uneven_warnings({**even, "l.weight_v": uneven}, ["l.weight_v"])
    assert line.startswith("`l.weight_v`: 11 of 32 parts")
    assert uneven_warnings({"l.weight": uneven}, ["l.weight"]) == []
