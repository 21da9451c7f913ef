"""Assignment against trying every component, and refinement that pays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import cells_of, random_network

from gbnn_compress.rate import maps as rate_maps
from gbnn_compress.rate.cells import LEVELS, sigma_levels
from gbnn_compress.rate.codebook import (
    NOISE_CEILING,
    Codebook,
    assign,
    curvature_of,
    group_cells,
    ideal_lengths,
    noise_deviation,
    refine,
    snap_to_zero,
)
from gbnn_compress.rate.maps import index_maps, squared_errors
from gbnn_compress.types import Bank


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-3, 0.1, 10.0]), st.sampled_from([0.25, 1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_assignment_costs_no_more_than_any_other(seed: int, penalty: float, curvature: float) -> None:
    random = np.random.default_rng(seed)
    size, total = int(random.integers(1, 12)), 1000.0
    means = np.sort(random.normal(size=size)) + 1e-6 * np.arange(size)
    counts = random.integers(0, 50, size + 1).astype(np.float64)
    lengths = ideal_lengths(counts[None] + (counts.sum() == 0))[0]
    x = np.concatenate([random.laplace(size=300) * 2, means])
    ids = assign(x, means, lengths, penalty=penalty, curvature=curvature, value_bits=32, total=total)
    escape = lengths[size] if np.isfinite(lengths[size]) else np.log2(total + 1)
    cost = np.column_stack(
        [
            curvature * (x[:, None] - means) ** 2 + penalty * lengths[:size],
            np.full(len(x), penalty * (escape + 32)),
        ]
    )
    chosen = cost[np.arange(len(x)), ids]
    assert np.isfinite(chosen).all()
    assert (chosen <= cost.min(axis=1) * (1 + 1e-9) + 1e-12).all()


def test_without_a_live_component_every_weight_is_an_outlier() -> None:
    lengths = np.array([np.inf, np.inf, 0.0])
    options = {"penalty": 1.0, "curvature": 1.0, "value_bits": 32, "total": 3.0}
    np.testing.assert_array_equal(assign(np.zeros(3), np.array([0.0, 1.0]), lengths, **options), [2, 2, 2])


def test_ideal_lengths_are_those_of_the_shares() -> None:
    np.testing.assert_allclose(
        ideal_lengths(np.array([[4.0, 2, 2, 0], [1, 0, 0, 0]])),
        [
            [1, 2, 2, np.inf],
            [0, np.inf, np.inf, np.inf],
        ],
    )


def test_curvature_is_one_at_the_typical_row_and_quarters_with_an_octave_of_sigma() -> None:
    np.testing.assert_allclose(curvature_of(np.log([1.0, 2.0, 0.5])), [1, 0.25, 4])


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([-1.0, 0.1, 1.0], [-1.0, 0.0, 1.0]),
        ([-1.0, 0.4, 1.0], [-1.0, 0.4, 1.0]),
        ([0.3], [0.3]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_snapping_to_zero(means: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(snap_to_zero(np.array(means)), expected)


def refined(penalty: float, iterations: int, *, seed: int = 0) -> Codebook:
    """Refinement from an even grid of 41 components."""
    _, cells = cells_of(random_network(seed))
    means = np.linspace(-5, 5, 41)
    counts = np.ones((cells.n_tensors, 42))
    bits = np.full(cells.n_tensors, 32)
    return refine(cells, group_cells(cells), means, counts, penalty=penalty, value_bits=bits, iterations=iterations)


def objective(book: Codebook) -> float:
    """Distortion + lambda * bits of the ids and of the outliers' values."""
    lengths = ideal_lengths(book.counts)
    bits = book.counts[book.counts > 0] @ lengths[book.counts > 0] + 32 * book.counts[:, -1].sum()
    return float(book.distortion.sum() + book.penalty * bits)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 0.1, 1.0])
def test_refining_lowers_distortion_plus_lambda_bits(penalty: float) -> None:
    values = [objective(refined(penalty, iterations)) for iterations in (1, 2, 4, 8)]
    # Snapping a mean to zero may cost a little.
    assert all(after <= before * 1.001 for before, after in itertools.pairwise(values))
    assert values[-1] < values[0]


def test_distortion_grows_and_bits_fall_with_lambda() -> None:
    books = [refined(penalty, 6) for penalty in 2.0 ** np.arange(-14, 4, 2)]
    distortions = [book.distortion.sum() for book in books]
    assert distortions == sorted(distortions)
    bits = [objective(book) - distortion for book, distortion in zip(books, distortions, strict=True)]
    rates = [bit / book.penalty for bit, book in zip(bits, books, strict=True)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 5.0])
def test_codebook_counts_every_weight_and_means_ascend(penalty: float) -> None:
    network = random_network(1)
    _, cells = cells_of(network)
    book = refined(penalty, 5, seed=1)
    sizes = [tensor.numel() for tensor in network.values() if tensor.dim() >= 2]
    np.testing.assert_array_equal(book.counts.sum(axis=1), sizes)
    assert (np.diff(book.bank.means) > 0).all()
    assert book.counts.shape == (cells.n_tensors, len(book.bank.means) + 1)
    assert np.isfinite(book.bank.log_sigmas).all()


def test_predicted_distortion_is_that_of_the_maps() -> None:
    network = random_network(2)
    posteriors, cells = cells_of(network, resolution=512)
    book = refined(0.05, 20, seed=2)
    bits = np.full(cells.n_tensors, 32)
    maps = index_maps(network, posteriors, book, value_bits=bits)
    curved = 0.0
    for index, (posterior, index_map) in enumerate(zip(posteriors, maps, strict=True)):
        tensor = network[posterior.name]
        counts = np.bincount(index_map.ids, minlength=len(book.bank.means) + 1)
        assert np.abs(counts - book.counts[index]).sum() <= 0.06 * counts.sum()
        x = tensor.double().numpy().reshape(len(posterior.log_sigma), -1) / posterior.scale
        difference = np.nan_to_num(x - np.append(book.bank.means, np.nan)[index_map.ids].reshape(x.shape))
        curvature = curvature_of(LEVELS[sigma_levels(posterior, slice(None), x)])
        curved += float((curvature * difference**2).sum())
        error, total = squared_errors(tensor, posterior, index_map, book.bank.means)
        assert total == pytest.approx((x**2).sum())
        assert 0 < error < total
    assert curved == pytest.approx(book.distortion.sum(), rel=0.03)


def test_outliers_hold_their_exact_bits() -> None:
    network = random_network(3)
    network["conv2.weight"][3, 2, 1, 0] = 777.125
    posteriors, cells = cells_of(network)
    book = refined(0.05, 5, seed=3)
    before = {name: tensor.clone() for name, tensor in network.items()}
    maps = index_maps(network, posteriors, book, value_bits=np.full(cells.n_tensors, 32))
    place = (3 * 16 + 2) * 9 + 3
    index_map = maps[1]
    assert index_map.name == "conv2.weight"
    assert index_map.ids[place] == len(book.bank.means)
    assert index_map.ids.dtype == np.uint8
    position = int((index_map.ids[:place] == len(book.bank.means)).sum())
    assert index_map.outliers.view(np.float32)[position] == 777.125
    for name, tensor in network.items():
        assert (tensor == before[name]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_go_where_each_alone_would_go(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network(5, dtype=dtype)
    network["conv2.weight"][3, 2, 1, 0] = 777
    posteriors, cells = cells_of(network)
    assert max(len(np.unique(sigma_levels(p, slice(None), np.zeros(0)))) for p in posteriors) > 1
    options = {"penalty": 0.05, "value_bits": np.full(cells.n_tensors, 16), "iterations": 3}
    start = np.linspace(-2, 2, 9)
    book = refine(cells, group_cells(cells), start, np.ones((cells.n_tensors, 10)), **options)
    alone = index_maps(network, posteriors, book, value_bits=np.full(cells.n_tensors, 16))
    monkeypatch.setattr(rate_maps, "FEW_PATTERNS", 0)
    monkeypatch.setattr(rate_maps, "BLOCK_SIZE", 1000)
    together = index_maps(network, posteriors, book, value_bits=np.full(cells.n_tensors, 16))
    assert sum(len(index_map.outliers) for index_map in alone) > 0
    for got, expected in zip(together, alone, strict=True):
        assert got.ids.dtype == expected.ids.dtype
        np.testing.assert_array_equal(got.ids, expected.ids)
        np.testing.assert_array_equal(got.outliers, expected.outliers)


def test_maps_choose_the_cheapest_component_for_every_weight() -> None:
    network = random_network(4)
    posteriors, cells = cells_of(network)
    book = refined(0.1, 5, seed=4)
    maps = index_maps(network, posteriors, book, value_bits=np.full(cells.n_tensors, 32))
    lengths = ideal_lengths(book.counts)
    size = len(book.bank.means)
    for t, posterior in enumerate(posteriors):
        x = network[posterior.name].double().numpy().reshape(len(posterior.log_sigma), -1) / posterior.scale
        levels = np.rint(posterior.log_sigma / (np.log(2) / 2)).clip(-4, 4) * np.log(2) / 2
        curvature = np.exp(-2 * levels)[:, None, None]
        cost = curvature * (x[:, :, None] - book.bank.means) ** 2 + book.penalty * lengths[t, :size]
        ids = maps[t].ids.reshape(x.shape)
        shared = ids < size
        chosen = np.take_along_axis(cost, np.minimum(ids, size - 1)[:, :, None].astype(np.int64), axis=2)[:, :, 0]
        assert (chosen[shared] <= cost.min(axis=2)[shared] * (1 + 1e-9)).all()


@pytest.mark.parametrize("relative", [0.35, 2.0])
def test_noise_of_all_components_is_the_wanted_share_of_the_quantisation_error(relative: float) -> None:
    book = refined(0.05, 5, seed=6)
    noise = noise_deviation(book, relative=relative, typical=1e9)
    members = book.counts[:, :-1]
    # All n members share one draw of the variance noise^2 sigma^2 / n; each has the curvature 1 / sigma^2.
    variance = noise**2 / np.maximum(members, 1)
    each = np.where(book.bank.means != 0, members * variance, 0)
    assert np.sqrt(each.sum() / book.distortion.sum()) == pytest.approx(relative, rel=1e-3)
    assert noise == float(f"{noise:.4g}")


def test_noise_stays_below_the_ceiling_of_the_layers_output_error() -> None:
    book = refined(0.05, 5, seed=6)
    noise = noise_deviation(book, relative=10.0, typical=1.0)
    noisy = (book.counts[:, :-1][:, book.bank.means != 0] > 0).sum()
    assert noise**2 * noisy / len(book.counts) == pytest.approx(NOISE_CEILING, rel=1e-3)


def test_no_noise_without_a_wish_or_an_error_or_a_component_off_zero() -> None:
    book = refined(0.05, 5)
    assert noise_deviation(book, relative=0.0, typical=1e9) == 0
    assert noise_deviation(replace(book, distortion=np.zeros(3)), relative=0.35, typical=1e9) == 0
    zeros = Codebook(Bank(np.zeros(1), np.zeros(1)), np.array([[432.0, 0.0]]), 1.0, np.array([4.0]))
    assert np.isfinite(noise_deviation(zeros, relative=0.35, typical=1e9))


def test_a_bank_of_one_component() -> None:
    network = {"w": random_network(5)["conv1.weight"]}
    posteriors, _ = cells_of(network)
    book = Codebook(Bank(np.zeros(1), np.zeros(1)), np.array([[432.0, 0.0]]), 1e6, np.zeros(1))
    maps = index_maps(network, posteriors, book, value_bits=np.array([32]))
    np.testing.assert_array_equal(maps[0].ids, np.zeros(432))
    assert maps[0].outliers.dtype == np.uint32
