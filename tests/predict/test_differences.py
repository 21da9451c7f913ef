"""Differences of outputs, against plain formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from gbnn_compress.errors import DataError
from gbnn_compress.predict.differences import OutputDifference, as_json, compared, left_out_note, require_compared


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 + torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def relative_error(y: np.ndarray, yhat: np.ndarray, axes: int | tuple[int, ...] = 0) -> float:
    """The formula, word by word."""
    spread = ((y - y.mean(axis=axes, keepdims=True)) ** 2).sum()
    return math.sqrt(((yhat - y) ** 2).sum() / spread)


def cosine(y: np.ndarray, yhat: np.ndarray) -> float:
    rows = zip(y.reshape(-1, y.shape[-1]), yhat.reshape(-1, y.shape[-1]), strict=True)
    return float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows]))


def differences(before: Mapping[str, list[torch.Tensor]], after: Mapping[str, list[torch.Tensor]]) -> OutputDifference:
    """`compared`, from the batches of each output."""
    n_batches = max(map(len, before.values()), default=0)
    sides = ([{name: each[i] for name, each in side.items()} for i in range(n_batches)] for side in (before, after))
    return compared(zip(*sides, strict=True))


def together(batches: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(batches).double().numpy()


@pytest.mark.parametrize("shape", [(7,), (2, 3), (5, 4), (3, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_at_each_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    before = [random(n, *shape, seed=n, dtype=dtype) for n in (4, 4, 1)]
    after = [each + 0.1 * random(*each.shape, seed=9, dtype=dtype) for each in before]
    found = differences({"a": before}, {"a": after})
    y, yhat = together(before), together(after)
    assert found.relative_error == pytest.approx(relative_error(y, yhat))
    assert found.outputs == {"a": {"relative_error": found.relative_error}}
    assert found.cosine == pytest.approx(cosine(y, yhat))


def test_several_outputs_each_and_together() -> None:
    before = {"a": [random(4, 3), random(2, 3, seed=1)], "b.0": [random(4, 2, 2), random(2, 2, 2, seed=2)]}
    after = {name: [1.1 * each for each in batches] for name, batches in before.items()}
    found = differences(before, after)
    pairs = {name: (together(before[name]), together(after[name])) for name in before}
    for name, (y, yhat) in pairs.items():
        assert found.outputs[name]["relative_error"] == pytest.approx(relative_error(y, yhat))
    errors = sum(((yhat - y) ** 2).sum() for y, yhat in pairs.values())
    spreads = sum(((y - y.mean(axis=0)) ** 2).sum() for y, _ in pairs.values())
    assert found.relative_error == pytest.approx(math.sqrt(errors / spreads))
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("shapes", "channel"),
    [
        ([(4, 5, 3), (2, 7, 3)], 2),  # words of sentences
        ([(4, 3, 5), (2, 3, 7)], 1),  # channels of sounds
        ([(1, 3, 5, 6), (2, 3, 7, 6)], 1),  # maps of images of several heights
        ([(1, 5, 6, 3), (2, 7, 8, 3)], 3),
        ([(1, 9, 3)], 2),  # one input
    ],
)
def test_shapes_that_differ_between_batches(shapes: list[tuple[int, ...]], channel: int) -> None:
    before = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    after = [each + 0.2 * random(*each.shape, seed=9) for each in before]
    y, yhat = (
        np.concatenate([np.moveaxis(each.double().numpy(), channel, -1).reshape(-1, 3) for each in batches])
        for batches in (before, after)
    )
    found = differences({"a": before}, {"a": after})
    assert found.relative_error == pytest.approx(relative_error(y, yhat))


def test_without_a_common_axis_the_mean_is_over_all_values() -> None:
    before, after = [random(1, 4), random(1, 6, seed=1)], [random(1, 4, seed=2), random(1, 6, seed=3)]
    y, yhat = (torch.cat([each.flatten() for each in batches]).double().numpy() for batches in (before, after))
    assert differences({"a": before}, {"a": after}).relative_error == pytest.approx(relative_error(y, yhat))


def test_one_number_for_each_batch() -> None:
    before, after = [torch.tensor(value) for value in (1.0, 3.0)], [torch.tensor(value) for value in (1.5, 3.0)]
    assert differences({"a": before}, {"a": after}).relative_error == pytest.approx(0.5 / math.sqrt(2))


def test_large_means_cost_no_digits() -> None:
    y = 1e6 + random(50, 3, dtype=torch.float64)
    yhat = y + 0.01 * random(50, 3, seed=1, dtype=torch.float64)
    found = differences({"a": list(y.split(7))}, {"a": list(yhat.split(7))})
    assert found.relative_error == pytest.approx(relative_error(y.numpy(), yhat.numpy()), rel=1e-9)


def test_outputs_of_other_shapes_are_left_out() -> None:
    before = {"boxes": [random(1, 4), random(2, 4)], "features": [random(2, 3), random(2, 3, seed=1)]}
    after = {"boxes": [random(1, 4), random(3, 4)], "features": [random(2, 3), random(2, 3, seed=1)]}
    found = differences(before, after)
    assert (found.left_out, list(found.outputs), found.relative_error) == (("boxes",), ["features"], 0.0)
    assert left_out_note(found) == "the shapes of `boxes` differ between the two networks, so they are not compared"
    require_compared(found, option="--data")
    with pytest.raises(DataError, match=r"`--output`.*`--forward`.*`--metric`"):
        require_compared(differences({"a": before["boxes"]}, {"a": after["boxes"]}), option="--data")


def test_an_output_that_one_network_or_one_batch_lacks_is_left_out() -> None:
    x = random(2, 3)
    assert differences({"a": [x], "b": [x]}, {"a": [x]}).left_out == ("b",)


def test_outputs_that_are_not_finite() -> None:
    y = random(4, 3)
    found = differences({"a": [y], "b": [y]}, {"a": [y.where(y > 3, torch.nan)], "b": [y]})
    assert (found.relative_error, found.cosine) == (math.inf, None)
    assert (found.outputs["a"]["relative_error"], found.outputs["b"]["relative_error"]) == (math.inf, 0.0)
    assert as_json(found)["relative_error"] is None
    assert as_json(found)["outputs"]["a"] == {"relative_error": None}


def test_masks_that_both_networks_have_are_no_error() -> None:
    y = random(4, 3)
    y[1, 2] = -torch.inf
    yhat = 1.1 * y
    known = np.ma.masked_invalid(y.double().numpy())
    spread = ((known - known.mean(axis=0)) ** 2).sum()
    expected = math.sqrt(np.ma.masked_invalid(((yhat - y) ** 2).double().numpy()).sum() / spread)
    assert differences({"a": [y]}, {"a": [yhat]}).relative_error == pytest.approx(expected)
    assert differences({"a": [y]}, {"a": [yhat.clamp(min=-5)]}).relative_error == math.inf


def test_constant_and_zero_outputs() -> None:
    y = torch.ones(4, 3)
    assert differences({"a": [y]}, {"a": [2 * y]}).relative_error is None
    assert differences({"a": [0 * y]}, {"a": [y]}).cosine is None
    assert differences({}, {}).relative_error is None


def test_inputs_stay_as_they_are() -> None:
    y, yhat = random(4, 3), random(4, 3, seed=1)
    copies = y.clone(), yhat.clone()
    differences({"a": [y]}, {"a": [yhat]})
    assert torch.equal(y, copies[0])
    assert torch.equal(yhat, copies[1])
