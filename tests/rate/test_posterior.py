"""The data-free posterior: scales, batch norms, outliers, and nothing else touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.format.bank import short_float_codes, short_floats
from gbnn_compress.rate.cells import FARTHEST
from gbnn_compress.rate.posterior import (
    CURVATURE_RANGE,
    LARGEST_SCALE,
    SMALLEST_SCALE,
    batch_norm_after,
    data_free_posterior,
    typical_size,
    value_unit,
)

if TYPE_CHECKING:
    from gbnn_compress.types import Posterior


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).normal(size=shape)).to(dtype)


def conv_and_norm(*, channels: int = 6) -> dict[str, torch.Tensor]:
    return {
        "conv.weight": normal(channels, 3, 3, 3),
        "conv.bias": normal(channels),
        "bn.weight": torch.linspace(0.5, 2.0, channels),
        "bn.bias": torch.zeros(channels),
        "bn.running_mean": torch.zeros(channels),
        "bn.running_var": torch.linspace(3.0, 0.2, channels),
        "bn.num_batches_tracked": torch.tensor(3),
        "fc.weight": normal(10, channels, seed=1),
        "fc.bias": normal(10),
    }


def posterior_of(tensor: torch.Tensor) -> Posterior:
    return data_free_posterior({"w": tensor}, ["w"])[0]


def is_storable(value: float) -> bool:
    return float(short_floats(short_float_codes(np.array([value])))[0]) == value


@given(st.floats(1e-300, 1e300))
@settings(max_examples=60, deadline=None)
def test_scales_of_any_magnitude_are_as_the_file_stores_them(value: float) -> None:
    scale = posterior_of(torch.full((2, 3), value, dtype=torch.float64)).scale
    assert is_storable(scale)
    assert scale == pytest.approx(value, rel=2**-5)


@pytest.mark.parametrize("value", [1e-160, 1e-310, 5e-324, 1e160, 1e299])
def test_squares_that_do_not_fit_are_no_obstacle(value: float) -> None:
    weights = normal(30, 40, dtype=torch.float64).clip(-0.9, 0.9) * value
    posterior, usual = posterior_of(weights), posterior_of(normal(30, 40, dtype=torch.float64).clip(-0.9, 0.9))
    assert np.isfinite(posterior.log_sigma).all()
    if value > 1e-300:
        assert posterior.scale == pytest.approx(value * usual.scale, rel=2**-4)
        np.testing.assert_allclose(posterior.log_sigma, usual.log_sigma, atol=1e-9)
    else:
        assert posterior.scale > 0


def test_zeros_have_a_scale_so_small_that_any_component_decodes_to_zero() -> None:
    posterior = posterior_of(torch.zeros(3, 4))
    assert posterior.scale == SMALLEST_SCALE
    assert is_storable(posterior.scale)
    assert np.float32(posterior.scale * FARTHEST) == 0
    np.testing.assert_array_equal(posterior.log_sigma, 0)


@pytest.mark.parametrize("value", [1e308, 1.7e308])
def test_the_scale_of_the_largest_weights_is_capped(value: float) -> None:
    network = {"small": normal(2, 2), "large": torch.full((300, 400), value, dtype=torch.float64)}
    scale = data_free_posterior(network, ["small", "large"])[1].scale
    assert is_storable(scale)
    assert scale * np.sqrt(typical_size([4, 120_000])) == pytest.approx(LARGEST_SCALE, rel=2**-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scale_makes_the_norm_that_of_a_typical_tensor(dtype: torch.dtype) -> None:
    network = {"a": normal(20, 50, dtype=dtype), "b": 0.01 * normal(64, 3, 3, 3, seed=1, dtype=dtype)}
    posteriors = data_free_posterior(network, ["a", "b"])
    typical = typical_size([1000, 1728])
    assert 1000 < typical < 1728
    for posterior in posteriors:
        assert is_storable(posterior.scale)
        norm = float(network[posterior.name].double().norm())
        assert posterior.scale * np.sqrt(typical) == pytest.approx(norm, rel=2**-5)
    assert [posterior.name for posterior in posteriors] == ["a", "b"]


def test_typical_size_of_equal_tensors_is_their_size() -> None:
    assert typical_size([500, 500, 500]) == pytest.approx(500)


@pytest.mark.parametrize("network", [{"w": normal(8, 40)}, conv_and_norm()])
def test_curvature_is_one_on_average(network: dict[str, torch.Tensor]) -> None:
    shared = [name for name, tensor in network.items() if tensor.dim() >= 2]
    for posterior in data_free_posterior(network, shared):
        assert posterior.log_sigma.shape == (network[posterior.name].shape[0],)
        assert posterior.log_sigma.dtype == np.float64
        assert np.exp(-2 * posterior.log_sigma).mean() == pytest.approx(1.0)


def test_rows_of_small_weights_are_sharper_without_a_batch_norm() -> None:
    weights = normal(4, 500) * torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    log_sigma = posterior_of(weights).log_sigma
    # h ~ |w_f|^-1, so sigma ~ |w_f|^1/2.
    np.testing.assert_allclose(np.diff(log_sigma), np.log(2) / 2, atol=0.05)


def test_rows_follow_the_gain_of_their_batch_norm() -> None:
    network = conv_and_norm()
    log_sigma = data_free_posterior(network, ["conv.weight"])[0].log_sigma
    gain = network["bn.weight"].double() / network["bn.running_var"].double().sqrt()
    expected = -0.5 * torch.log(gain).numpy()
    np.testing.assert_allclose(np.diff(log_sigma), np.diff(expected), rtol=1e-6)


def test_batch_norm_is_found_only_where_it_follows() -> None:
    network = conv_and_norm()
    assert batch_norm_after("conv.weight", network) == "bn."
    assert batch_norm_after("fc.weight", network) is None
    reordered = {"conv.weight": network["conv.weight"], "fc.weight": network["fc.weight"], **network}
    assert batch_norm_after("conv.weight", reordered) is None
    other_size = {**network, "bn.running_var": torch.ones(7)}
    assert batch_norm_after("conv.weight", other_size) is None
    no_gain = {name: tensor for name, tensor in network.items() if name != "bn.weight"}
    assert batch_norm_after("conv.weight", no_gain) is None
    bare = {"w": normal(2, 3), "weight": torch.ones(2), "running_var": torch.ones(2)}
    assert batch_norm_after("w", bare) == ""


def test_dead_and_runaway_channels_stay_finite() -> None:
    network = conv_and_norm()
    network["bn.weight"][0], network["bn.running_var"][1] = 0.0, 0.0
    network["fc.weight"][3] = 0.0
    for posterior in data_free_posterior(network, ["conv.weight", "fc.weight"]):
        assert np.isfinite(posterior.log_sigma).all()
        assert np.ptp(posterior.log_sigma) <= 0.5 * np.log(2.0**8) + 1e-9
    network["bn.running_var"][:] = 0.0
    network["bn.weight"][:] = 0.0
    assert np.isfinite(data_free_posterior(network, ["conv.weight"])[0].log_sigma).all()


@pytest.mark.parametrize("value", [1e30, 1e9, 1e4])
def test_an_outlier_does_not_hide_the_scale_of_the_others(value: float) -> None:
    weights = 0.05 * normal(100, 200)
    usual = posterior_of(weights)
    weights[3, 5] = value
    assert posterior_of(weights).scale == pytest.approx(usual.scale, rel=0.02)


@pytest.mark.parametrize("value", [1e30, 1e9, 1e6])
def test_an_outlier_does_not_hide_the_rows_of_the_others(value: float) -> None:
    weights = 0.05 * normal(100, 200) * torch.linspace(0.5, 2, 100)[:, None]
    usual = posterior_of(weights)
    weights[3, 5] = value
    others = np.arange(100) != 3
    np.testing.assert_allclose(posterior_of(weights).log_sigma[others], usual.log_sigma[others], atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_single_precision(dtype: torch.dtype) -> None:
    weights = 1e-4 * normal(30, 40, dtype=dtype)
    got, expected = posterior_of(weights), posterior_of(weights.double())
    assert got.scale == expected.scale
    np.testing.assert_array_equal(got.log_sigma, expected.log_sigma)


def test_inputs_are_never_changed() -> None:
    network = conv_and_norm()
    before = {name: tensor.clone() for name, tensor in network.items()}
    data_free_posterior(network, ["conv.weight", "fc.weight"])
    for name in network:
        if network[name].is_floating_point():
            value_unit(name, network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.items())


def test_views_and_gradients_are_no_obstacle() -> None:
    weights = normal(12, 9).T.requires_grad_()
    got, expected = posterior_of(weights), posterior_of(weights.detach().contiguous())
    assert got.scale == expected.scale
    np.testing.assert_allclose(got.log_sigma, expected.log_sigma, rtol=1e-9, atol=1e-12)


def test_units_of_batch_norm_vectors_and_others() -> None:
    network = conv_and_norm()
    norm = float(network["bn.weight"].double().norm())
    assert value_unit("bn.weight", network) == pytest.approx(norm)
    assert value_unit("bn.bias", network) == pytest.approx(norm)
    assert value_unit("fc.bias", network) == pytest.approx(float(network["fc.bias"].double().norm()))
    assert value_unit("zeros", {"zeros": torch.zeros(3)}) == 0.0


def test_a_norm_without_any_weight_is_felt_by_its_bias() -> None:
    network = {"bn.weight": torch.zeros(4), "bn.bias": torch.ones(4), "bn.running_var": torch.ones(4)}
    assert value_unit("bn.bias", network) == pytest.approx(2.0)


def test_a_filter_that_its_norm_divides_by_much_does_not_hide_the_others() -> None:
    usual = conv_and_norm()
    huge = {name: tensor.clone() for name, tensor in usual.items()}
    huge["conv.weight"][2] *= 1e4
    huge["bn.running_var"][2] *= 1e8
    scales = [data_free_posterior(network, ["conv.weight"])[0].scale for network in (usual, huge)]
    assert scales[1] == pytest.approx(scales[0], rel=0.3)


def test_precisions_take_the_place_of_the_filters_curvatures() -> None:
    tensors = conv_and_norm()
    precisions = np.array([1.0, 2, 4, 8, 16, 32])
    plain = data_free_posterior(tensors, ["conv.weight", "fc.weight"])
    conv, fc = data_free_posterior(tensors, ["conv.weight", "fc.weight"], precisions={"conv.weight": precisions})
    np.testing.assert_allclose(np.diff(conv.log_sigma), -0.5 * np.log(2))
    assert np.exp(-2 * conv.log_sigma).mean() == pytest.approx(1)
    assert conv.scale == plain[0].scale
    assert (fc.log_sigma == plain[1].log_sigma).all()


def test_precisions_are_believed_within_a_range() -> None:
    tensors = conv_and_norm()
    for precisions in (np.array([0.0, 0, 0, 0, 0, 1e30]), np.zeros(6)):
        (conv,) = data_free_posterior(tensors, ["conv.weight"], precisions={"conv.weight": precisions})
        assert np.ptp(conv.log_sigma) <= np.log(CURVATURE_RANGE) + 1e-9
        assert np.isfinite(conv.log_sigma).all()
