"""Batch norms of compressed layers: means and variances that fit the weights that are left."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from gbnn_compress.rate.recentre import VARIANCE_RANGE, _input_means, recentred_statistics
from gbnn_compress.types import IndexMap

MEANS = np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
"""A coarse bank: errors are large."""


def map_of(name: str, tensor: torch.Tensor, *, scale: float = 1.0) -> IndexMap:
    """Every weight to the nearest mean."""
    x = tensor.double().numpy().ravel() / scale
    ids = np.abs(x[:, None] - MEANS).argmin(axis=1).astype(np.uint8)
    return IndexMap(name, ids, np.empty(0, np.uint32))


def compressed(tensor: torch.Tensor, index_map: IndexMap, *, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(MEANS[index_map.ids] * scale).reshape(tensor.shape).to(tensor.dtype)


def layer(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A convolution and a batch norm that nothing is known of yet."""
    random = np.random.RandomState(seed)
    return {
        "conv.weight": torch.from_numpy(random.normal(size=shape) + 0.1).to(dtype),
        "bn.weight": torch.ones(shape[0], dtype=dtype),
        "bn.bias": torch.zeros(shape[0], dtype=dtype),
        "bn.running_mean": torch.zeros(shape[0], dtype=dtype),
        "bn.running_var": torch.ones(shape[0], dtype=dtype),
    }


def inputs(channels: int, *, mean: np.ndarray, seed: int = 1) -> torch.Tensor:
    """float32 (64, channels, 10, 10), white around the mean of each channel."""
    random = np.random.RandomState(seed)
    return torch.from_numpy(random.normal(size=(64, channels, 10, 10)) + mean[:, None, None]).float()


def observed(weight: torch.Tensor, images: torch.Tensor, *, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each output channel."""
    output = torch.nn.functional.conv2d(images, weight, groups=groups).transpose(0, 1).flatten(1)
    return output.mean(dim=1), output.var(dim=1)


def recentred(network: dict[str, torch.Tensor], *, scale: float = 1.0) -> dict[str, torch.Tensor]:
    index_map = map_of("conv.weight", network["conv.weight"], scale=scale)
    return recentred_statistics(network, [index_map], means=MEANS, scales=np.array([scale]))


def test_one_mean_for_all_channels_is_recovered_exactly() -> None:
    sums = np.random.RandomState(0).normal(size=(20, 7)) + 0.5
    np.testing.assert_allclose(_input_means(sums, 0.75 * sums.sum(axis=1)), np.full(7, 0.75))


@pytest.mark.parametrize("rows", [60, 200])
def test_means_of_single_channels_are_recovered_from_running_means(rows: int) -> None:
    random = np.random.RandomState(1)
    sums, known = random.normal(size=(rows, 24)), random.uniform(0, 2, 24)
    single = _input_means(sums, known.mean() * sums.sum(axis=1))
    found = _input_means(sums, sums @ known)
    assert np.abs(found - known).mean() < np.abs(single - known).mean()
    # The ridge keeps them a fifth of the way to the single mean, or more where there are few filters.
    assert np.corrcoef(found, known)[0, 1] > 0.95
    np.testing.assert_allclose(found, known, atol=0.6)


def test_both_ways_to_solve_agree() -> None:
    random = np.random.RandomState(2)
    sums, mean = random.normal(size=(16, 16)), random.normal(size=16)
    square = _input_means(sums, mean)
    # A row of zeros is no equation, but makes the matrix tall; the ridge does not change.
    tall = _input_means(np.vstack([sums, np.zeros((1, 16))]), np.append(mean, 0.0))
    np.testing.assert_allclose(square, tall, rtol=1e-9)
    wide = np.hstack([sums, np.zeros((16, 1))]) * np.sqrt(17 / 16)
    np.testing.assert_allclose(_input_means(wide, mean)[:16] * np.sqrt(17 / 16), square, rtol=0.2, atol=0.05)


@pytest.mark.parametrize(("shape", "scale"), [((48, 16, 3, 3), 1.0), ((48, 16, 1, 1), 0.7), ((64, 32, 3, 3), 1.3)])
def test_output_means_of_the_compressed_layer_are_right_again(shape: tuple[int, ...], scale: float) -> None:
    network = layer(*shape)
    images = inputs(shape[1], mean=np.random.RandomState(3).uniform(0.2, 1.8, shape[1]))
    weight = network["conv.weight"]
    network["bn.running_mean"], network["bn.running_var"] = observed(weight, images)
    shared = compressed(weight, map_of("conv.weight", weight, scale=scale), scale=scale)
    truth, _ = observed(shared, images)
    before = (network["bn.running_mean"] - truth).norm()
    after = (recentred(network, scale=scale)["bn.running_mean"] - truth).norm()
    assert after < 0.35 * before


def test_output_variances_of_the_compressed_layer_are_right_again() -> None:
    network = layer(40, 16, 3, 3)
    network["conv.weight"] *= torch.linspace(0.5, 1.2, 40)[:, None, None, None]
    images = inputs(16, mean=np.zeros(16))
    network["bn.running_mean"], network["bn.running_var"] = observed(network["conv.weight"], images)
    shared = compressed(network["conv.weight"], map_of("conv.weight", network["conv.weight"]))
    _, truth = observed(shared, images)
    torch.testing.assert_close(recentred(network)["bn.running_var"], truth, rtol=0.03, atol=0)
    assert (network["bn.running_var"] / truth - 1).abs().max() > 0.1


def test_depthwise_filters_have_means_of_their_own() -> None:
    network = layer(32, 1, 3, 3)
    network["conv.weight"] += 0.3
    images = inputs(32, mean=np.random.RandomState(4).uniform(0.2, 1.8, 32))
    weight = network["conv.weight"]
    network["bn.running_mean"], network["bn.running_var"] = observed(weight, images, groups=32)
    truth, _ = observed(compressed(weight, map_of("conv.weight", weight)), images, groups=32)
    before = (network["bn.running_mean"] - truth).norm()
    after = (recentred(network)["bn.running_mean"] - truth).norm()
    assert after < 0.4 * before


def test_variances_change_within_a_range() -> None:
    network = layer(3, 4, 1, 1)
    network["conv.weight"][0] = 0.1  # all shared as zero
    network["conv.weight"][1] = 0.26  # all shared as a half
    network["conv.weight"][2] = 0.5
    factors = recentred(network)["bn.running_var"]
    torch.testing.assert_close(factors, torch.tensor([*VARIANCE_RANGE, 1.0]))


def test_weights_kept_exactly_move_nothing() -> None:
    network = layer(6, 4, 3, 3)
    network["bn.running_mean"] = torch.linspace(-1, 1, 6)
    escaped = IndexMap("conv.weight", np.full(6 * 36, len(MEANS), np.uint8), np.zeros(6 * 36, np.uint32))
    result = recentred_statistics(network, [escaped], means=MEANS, scales=np.ones(1))
    torch.testing.assert_close(result["bn.running_mean"], network["bn.running_mean"], rtol=0, atol=0)
    torch.testing.assert_close(result["bn.running_var"], network["bn.running_var"], rtol=1e-6, atol=0)


def test_only_batch_norms_that_follow_a_shared_tensor_are_corrected() -> None:
    network = {**layer(6, 4, 3, 3), "fc.weight": torch.randn(5, 6), "fc.bias": torch.zeros(5)}
    network |= {"alone.weight": torch.ones(6), "alone.running_mean": torch.ones(6), "alone.running_var": torch.ones(6)}
    maps = [map_of(name, network[name]) for name in ("conv.weight", "fc.weight")]
    result = recentred_statistics(network, maps, means=MEANS, scales=np.ones(2))
    assert set(result) == {"bn.running_mean", "bn.running_var"}
    assert recentred_statistics(network, maps[1:], means=MEANS, scales=np.ones(1)) == {}
    assert recentred_statistics({"w": torch.ones(2, 2)}, [], means=MEANS, scales=np.ones(0)) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inputs_are_left_as_they_are_and_dtypes_kept(dtype: torch.dtype) -> None:
    network = layer(6, 4, 3, 3, dtype=dtype)
    network["bn.running_mean"] += 1
    before = {name: tensor.clone() for name, tensor in network.items()}
    index_map = map_of("conv.weight", network["conv.weight"])
    ids, means, scales = index_map.ids.copy(), MEANS.copy(), np.ones(1)
    result = recentred_statistics(network, [index_map], means=means, scales=scales)
    assert all(torch.equal(network[name], before[name]) for name in before)
    assert not torch.equal(result["bn.running_mean"], network["bn.running_mean"])
    np.testing.assert_array_equal(index_map.ids, ids)
    np.testing.assert_array_equal(means, MEANS)
    assert {tensor.dtype for tensor in result.values()} == {dtype}
    assert {tuple(tensor.shape) for tensor in result.values()} == {(6,)}


@pytest.mark.parametrize("value", [0.0, 1e-310, 1e160, 1e300])
def test_extreme_weights_give_finite_statistics(value: float) -> None:
    network = layer(6, 4, 3, 3, dtype=torch.float64)
    network["conv.weight"] *= value
    scale = value or 1.0
    result = recentred(network, scale=scale)
    assert all(bool(tensor.isfinite().all()) for tensor in result.values())


PROGRAM = """
import hashlib
import numpy as np, torch
from gbnn_compress.types import IndexMap
from gbnn_compress.rate.recentre import recentred_statistics
random, digest = np.random.RandomState(0), hashlib.sha256()
for shape in ((500, 300, 1, 1), (200, 600, 1, 1), (300, 1, 3, 3)):
    weight = torch.from_numpy(random.normal(size=shape))
    network = {"w": weight, "weight": torch.ones(shape[0]), "running_var": torch.ones(shape[0], dtype=torch.float64)}
    network["running_mean"] = torch.from_numpy(random.normal(size=shape[0]))
    maps = [IndexMap("w", (weight > 0).numpy().ravel().astype(np.uint8), np.empty(0, np.uint64))]
    for tensor in recentred_statistics(network, maps, means=np.array([-0.8, 0.8]), scales=np.ones(1)).values():
        digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.long
def test_same_bytes_with_any_number_of_threads() -> None:
    def digest(threads: str) -> str:
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
        return subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | limits, **options).stdout

    assert digest("1") == digest("2")
