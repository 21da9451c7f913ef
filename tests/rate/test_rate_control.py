"""One fit for all targets, and sizes that are predicted as they come out."""

from __future__ import annotations

import numpy as np
import pytest
from rate_networks import cells_of, random_network

from gbnn_compress.codec.bank import encode_bank
from gbnn_compress.codec.symbols import coarse_levels, encode_maps, encode_tables
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.control import (
    RateProblem,
    codebook_at,
    fit_path,
    parameters_of,
    predicted_bytes,
    solve,
)
from gbnn_compress.rate.damage import predict_damage, relative_error
from gbnn_compress.rate.maps import index_maps
from gbnn_compress.types import Bank, Posterior


@pytest.fixture(scope="module")
def fitted() -> tuple[dict, tuple[Posterior, ...], RateProblem]:
    network = random_network(0)
    posteriors, cells = cells_of(network)
    problem = fit_path(
        cells,
        n_components=200,
        log_sigma_weight=0.1,
        max_iterations=5,
        value_bits=np.full(cells.n_tensors, 32),
        other_bytes=lambda penalty: 100,
    )
    return network, posteriors, problem


def actual_bytes(fitted: tuple[dict, tuple[Posterior, ...], RateProblem], book: Codebook, exponent: int) -> int:
    """Bytes of bank, maps and outliers as encoded, and the 100 of the rest."""
    network, posteriors, problem = fitted
    maps = index_maps(network, posteriors, book, value_bits=problem.value_bits)
    tables = [coarse_levels(np.bincount(m.ids, minlength=len(book.bank.means) + 1)) for m in maps]
    scales = np.array([posterior.scale for posterior in posteriors])
    bank = encode_bank(book.bank, exponent=exponent, scales=scales, relative_rmse=scales)
    ids = encode_maps([m.ids for m in maps], tables)
    return len(encode_tables(tables)) + len(ids) + len(bank) + sum(m.outliers.nbytes for m in maps) + 100


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


@pytest.mark.parametrize("budget", [40_000, 15_000, 6_000, 1_500])
def test_solve_stays_within_a_budget_and_uses_it(fitted: tuple, budget: int) -> None:
    problem = fitted[2]
    book, exponent = solve(problem, lambda b, e: predicted_bytes(problem, b, e) <= budget, finest=True)
    assert 0.95 * budget <= predicted_bytes(problem, book, exponent) <= budget


def test_solve_stays_within_a_damage_and_uses_it(fitted: tuple) -> None:
    problem = fitted[2]
    limit = 0.1 * codebook_at(problem, 2.0**28)[0].distortion.sum()
    book, _ = solve(problem, lambda b, _: b.distortion.sum() <= limit, finest=False)
    assert 0.9 * limit <= book.distortion.sum() <= limit


def test_solve_gives_the_far_end_when_nothing_fits(fitted: tuple) -> None:
    book, _ = solve(fitted[2], lambda b, e: False, finest=True)
    assert len(book.bank.means) == 1


def test_same_problem_same_codebook(fitted: tuple) -> None:
    first, second = (codebook_at(fitted[2], 0.02)[0] for _ in range(2))
    np.testing.assert_array_equal(first.bank.means, second.bank.means)
    np.testing.assert_array_equal(first.counts, second.counts)


def test_parameters_are_two_a_live_component_two_an_outlier_one_a_value() -> None:
    counts = np.array([[5.0, 0, 0, 2], [0, 0, 3, 1]])
    book = Codebook(Bank(np.arange(3.0), np.zeros(3)), counts, 1.0, np.zeros(2))
    assert parameters_of(book, 7) == 2 * 2 + 2 * 3 + 7


def test_damage_grows_from_nothing_to_chance() -> None:
    assert predict_damage(0.0, n_classes=10).drop == 0
    assert predict_damage(0.0, n_classes=10).agreement == 1
    drops = [predict_damage(error, n_classes=10).drop for error in np.linspace(0, 1, 30)]
    assert drops == sorted(drops)
    assert 0 <= drops[-1] <= 90
    for n_classes in (1, 2, 1000, 21_843):
        damage = predict_damage(1.0, n_classes=n_classes)
        assert 0 <= damage.agreement <= 1
        assert 0 <= damage.drop <= 100


def test_relative_error_is_the_mean_over_tensors_at_most_one_each() -> None:
    book = Codebook(Bank(np.zeros(1), np.zeros(1)), np.ones((2, 2)), 1.0, np.array([5.0, 1e9]))
    assert relative_error(book, typical=10.0) == pytest.approx(0.75)
