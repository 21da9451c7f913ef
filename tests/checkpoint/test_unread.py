"""Numpy values and generators beside the weights are read past, and written again as they were."""

from __future__ import annotations

import argparse
import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import LEGACY, assert_holds, refusal, saved, weights

from gbnn_compress.checkpoint.opening import open_file
from gbnn_compress.checkpoint.original import laid_out, open_original

BESIDE: dict[str, Any] = {
    "rng": np.random.RandomState(3).get_state(),
    "hist": np.arange(10.0),
    "names": np.array(["a", "bc"]),
    "table": np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    "empty": np.zeros((0, 3), dtype=np.float16),
    "best": np.float32(0.5),
    "flag": np.bool_(True),
    "generator": np.random.default_rng(7),
    "legacy_generator": np.random.RandomState(5),
    "python": random.Random(5),
    "python_state": random.Random(5).getstate(),
    "torch": torch.get_rng_state(),
    "args": argparse.Namespace(lr=0.1, limits=np.ones(3)),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_they_are_read_past(tmp_path, name, options):
    for content in ({"state_dict": weights(), name: BESIDE[name]}, {**weights(), "more": {name: BESIDE[name]}}):
        assert_holds(saved(tmp_path, content, **options), weights())


def test_no_array_is_made(tmp_path, monkeypatch):
    path = saved(tmp_path, {"state_dict": weights(), "objects": np.array([{"a": 1}, None], dtype=object)})
    held = open_file(path).loaded["objects"]
    assert not isinstance(held, np.ndarray)
    assert type(held).__name__ == "Unread"


def test_other_classes_are_refused_even_among_arrays(tmp_path):
    path = saved(tmp_path, {"state_dict": weights(), "objects": np.array([torch.nn.Linear(1, 1)], dtype=object)})
    assert "which cannot be loaded without running code" in refusal(path)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.random.Generator):
        return same(a.bit_generator.state, b.bit_generator.state)
    if isinstance(a, np.random.RandomState):
        return same(a.get_state(), b.get_state())
    if isinstance(a, random.Random):
        return same(a.getstate(), b.getstate())
    if isinstance(a, argparse.Namespace):
        return same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else bool(a == b)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_they_are_written_again_as_they_were(tmp_path, options):
    path = saved(tmp_path, {"state_dict": weights(), **BESIDE}, **options)
    data = laid_out(open_original(path), {name: tensor + 1 for name, tensor in weights().items()})
    found = torch.load(io.BytesIO(data), weights_only=False)
    assert list(found) == ["state_dict", *BESIDE]
    for name, value in BESIDE.items():
        assert same(value, found[name]), name
    assert torch.equal(found["state_dict"]["fc.bias"], weights()["fc.bias"] + 1)
