"""One fit for all targets, and sizes that are predicted as they come out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import cells_of, problem_of, random_network

from gbnn_compress.format.bank import encode_bank
from gbnn_compress.format.contexts import whole_values
from gbnn_compress.format.symbols import encode_maps
from gbnn_compress.format.tables import encode_tables
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.control import LOWEST, parameters_of, predicted_bytes, solve_damage, solve_size
from gbnn_compress.rate.damage import predict_damage, relative_error
from gbnn_compress.rate.maps import index_maps
from gbnn_compress.rate.rate_problem import RateProblem, codebook_at, codebook_between
from gbnn_compress.types import Bank, Damage, Posterior


@pytest.fixture(scope="module")
def fitted() -> tuple[dict, tuple[Posterior, ...], RateProblem]:
    network = random_network(0)
    posteriors, cells = cells_of(network)
    return network, posteriors, problem_of(cells)


def actual_bytes(fitted: tuple[dict, tuple[Posterior, ...], RateProblem], book: Codebook, exponent: int) -> int:
    """Bytes of bank, maps and outliers as encoded, and the 100 of the rest."""
    network, posteriors, problem = fitted
    maps = index_maps(network, posteriors, book, value_bits=problem.value_bits)
    shapes = [tuple(network[m.name].shape) for m in maps]
    tables, ids = encode_maps([m.ids for m in maps], shapes, whole_values(book.bank.means))
    scales = np.array([posterior.scale for posterior in posteriors])
    bank = encode_bank(book.bank, exponent=exponent, scales=scales, relative_rmse=scales)
    return len(encode_tables(tables, shapes)) + len(ids) + len(bank) + sum(m.outliers.nbytes for m in maps) + 100


@pytest.mark.parametrize("log2_penalty", [-14, -9, -5, -2, 1])
def test_predicted_size_is_that_of_the_file(fitted: tuple, log2_penalty: int) -> None:
    book, exponent = codebook_at(fitted[2], 2.0**log2_penalty)
    assert predicted_bytes(fitted[2], book, exponent) == pytest.approx(
        actual_bytes(fitted, book, exponent), rel=0.03, abs=30
    )


def test_size_falls_and_distortion_grows_with_lambda(fitted: tuple) -> None:
    problem = fitted[2]
    books = [codebook_at(problem, 2.0**exponent) for exponent in range(-20, 8, 4)]
    sizes = [predicted_bytes(problem, *book) for book in books]
    assert sizes == sorted(sizes, reverse=True)
    distortions = [book.distortion.sum() for book, _ in books]
    assert distortions == sorted(distortions)
    assert len(books[-1][0].bank.means) < len(books[0][0].bank.means) <= problem.mixture_size


def test_bank_is_on_the_grid_that_comes_with_it(fitted: tuple) -> None:
    book, exponent = codebook_at(fitted[2], 0.01)
    codes = np.ldexp(book.bank.means, -exponent)
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert (np.diff(codes) >= 1).all()


def test_the_extremes_of_lambda_work(fitted: tuple) -> None:
    problem = fitted[2]
    coarse, _ = codebook_at(problem, 2.0**28)
    assert len(coarse.bank.means) == 1
    fine, _ = codebook_at(problem, 2.0**-44)
    sizes = [tensor.numel() for tensor in fitted[0].values() if tensor.dim() >= 2]
    np.testing.assert_array_equal(fine.counts.sum(axis=1), sizes)


def test_components_merged_for_a_finer_file_are_more_and_fit_better(fitted: tuple) -> None:
    problem = fitted[2]
    usual, _ = codebook_at(problem, 0.1)
    same, _ = codebook_at(problem, 0.1, merge_penalty=0.1)
    finer, _ = codebook_at(problem, 0.1, merge_penalty=0.0125)
    np.testing.assert_array_equal(same.bank.means, usual.bank.means)
    assert finer.penalty == usual.penalty == 0.1
    assert len(finer.bank.means) > len(usual.bank.means)
    assert finer.distortion.sum() < usual.distortion.sum()


def flat_network() -> dict[str, torch.Tensor]:
    """Twelve matrices of evenly distributed weights: their rates jump between 0 and 1 bit per weight."""
    generator = torch.Generator().manual_seed(0)
    return {f"{i}.weight": torch.rand(64, 128, generator=generator) - 0.5 for i in range(12)}


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_a_size_in_a_gap_is_kept_to_and_used(fraction: float) -> None:
    network = flat_network()
    problem = problem_of(cells_of(network)[1])
    one_bit = sum(tensor.numel() for tensor in network.values()) / 8
    book, exponent = solve_size(problem, partial(predicted_bytes, problem), limit=fraction * one_bit)
    assert (fraction - 1 / 12) * one_bit <= predicted_bytes(problem, book, exponent) <= fraction * one_bit


def test_between_two_codebooks_every_tensor_is_as_in_one_of_them() -> None:
    problem = problem_of(cells_of(flat_network())[1])
    finer, coarser = (codebook_at(problem, 2.0**place)[0] for place in (-3, 6))
    coarse = np.arange(4)
    book, _ = codebook_between(problem, finer, coarser, coarse=coarse)
    np.testing.assert_allclose(book.distortion[:4], coarser.distortion[:4], rtol=0.05)
    np.testing.assert_allclose(book.distortion[4:], finer.distortion[4:], rtol=0.05)
    none, _ = codebook_between(problem, finer, coarser, coarse=np.arange(0))
    np.testing.assert_allclose(none.distortion, finer.distortion, rtol=0.05)


@pytest.mark.parametrize("budget", [40_000, 15_000, 6_000, 1_500])
def test_a_size_is_kept_to_and_used(fitted: tuple, budget: int) -> None:
    problem = fitted[2]
    book, exponent = solve_size(problem, partial(predicted_bytes, problem), limit=budget)
    assert 0.95 * budget <= predicted_bytes(problem, book, exponent) <= budget


def test_a_damage_is_kept_to_and_used(fitted: tuple) -> None:
    problem = fitted[2]
    limit = 0.1 * codebook_at(problem, 2.0**28)[0].distortion.sum()
    book, _ = solve_damage(problem, lambda b: b.distortion.sum(), limit=limit)
    assert 0.9 * limit <= book.distortion.sum() <= limit


def test_the_coarsest_codebook_when_no_size_fits(fitted: tuple) -> None:
    book, _ = solve_size(fitted[2], lambda b, e, limit: 1.0, limit=0.0)
    assert len(book.bank.means) == 1


def test_the_finest_codebook_when_no_damage_fits(fitted: tuple) -> None:
    problem = fitted[2]
    book, _ = solve_damage(problem, lambda b: 1.0, limit=0.0)
    assert book.penalty == 2.0**LOWEST
    assert book.distortion.sum() <= codebook_at(problem, 2.0**-20)[0].distortion.sum()


def test_same_problem_same_codebook(fitted: tuple) -> None:
    first, second = (codebook_at(fitted[2], 0.02)[0] for _ in range(2))
    np.testing.assert_array_equal(first.bank.means, second.bank.means)
    np.testing.assert_array_equal(first.counts, second.counts)


def test_parameters_are_two_a_live_component_two_an_outlier_one_a_value() -> None:
    counts = np.array([[5.0, 0, 0, 2], [0, 0, 3, 1]])
    book = Codebook(Bank(np.arange(3.0), np.zeros(3)), counts, 1.0, np.zeros(2))
    assert parameters_of(book, 7) == 2 * 2 + 2 * 3 + 7


CLASSES = [1, 2, 3, 10, 100, 1000, 21_843]


def rising(damages: list[Damage]) -> bool:
    """Whether each damage is at least the one before, by all three measures."""
    return all(
        before.drop <= after.drop and before.agreement >= after.agreement and before.logit_kl <= after.logit_kl
        for before, after in itertools.pairwise(damages)
    )


@pytest.mark.parametrize("n_classes", CLASSES)
def test_damage_grows_with_the_error_from_nothing_to_chance(n_classes: int) -> None:
    damages = [predict_damage(error, n_classes=n_classes) for error in (0.0, *np.logspace(-8, 0, 50))]
    assert damages[0] == Damage(drop=0.0, agreement=1.0, logit_kl=0.0)
    assert rising(damages)
    chance = 1 / max(n_classes, 2)
    assert damages[-1].agreement >= chance
    assert damages[-1].drop <= 100 * (1 - chance)


@pytest.mark.parametrize("error", [1e-6, 1e-3, 0.05, 0.3, 1.0])
def test_damage_grows_with_the_number_of_classes(error: float) -> None:
    assert rising([predict_damage(error, n_classes=n_classes) for n_classes in CLASSES])


@given(st.floats(0, 1), st.integers(1, 100_000))
def test_damage_is_bounded(error: float, n_classes: int) -> None:
    damage = predict_damage(error, n_classes=n_classes)
    assert 0 <= damage.drop <= 100
    assert 0 <= damage.agreement <= 1
    assert 0 <= damage.logit_kl < np.inf


def test_relative_error_is_the_mean_over_tensors_at_most_one_each() -> None:
    book = Codebook(Bank(np.zeros(1), np.zeros(1)), np.ones((2, 2)), 1.0, np.array([5.0, 1e9]))
    assert relative_error(book, typical=10.0) == pytest.approx(0.75)


def test_what_contexts_save_is_measured_once_and_interpolated() -> None:
    measured: list[float] = []

    def measure(book: Codebook) -> float:
        measured.append(book.penalty)
        return 0.9 if book.penalty < 1 else 0.5

    problem = problem_of(cells_of(random_network(0))[1], measure_fraction=measure)
    assert [problem.id_fraction(2.0**octaves) for octaves in (-2, 0)] == [0.9, 0.5]
    assert problem.id_fraction(0.5) == pytest.approx(0.7)
    assert measured == [0.25, 1.0]
    assert replace(problem, refinements=1).id_fraction(1.0) == 0.5
    assert measured == [0.25, 1.0, 1.0]
