"""The published rules: merging by distance, outliers by magnitude, blends, sigma by magnitude."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import cells_of, problem_of, random_network

from gbnn_compress.mixture.merge_path import merge_path
from gbnn_compress.rate.codebook import HIGH_RATE_STEP, Codebook, Groups, assign_cells, group_cells, refine
from gbnn_compress.rate.paper import (
    ALPHAS,
    PaperRules,
    find_candidates,
    magnitude_posterior,
    paper_rules,
    with_blends,
)
from gbnn_compress.rate.partition import moments_of
from gbnn_compress.rate.posterior import data_free_posterior, typical_size
from gbnn_compress.rate.rate_problem import codebook_at
from gbnn_compress.recipe import resolve
from gbnn_compress.types import Cells, Mixture

BITS = np.full(3, 32)


def cells_and_book(penalty: float, *, size: int = 9) -> tuple[Cells, Groups, Codebook]:
    _, cells = cells_of(random_network(0))
    groups = group_cells(cells)
    means, counts = np.linspace(-4, 4, size), np.ones((cells.n_tensors, size + 1))
    return cells, groups, refine(cells, groups, means, counts, penalty=penalty, value_bits=BITS, iterations=3)


def test_a_candidate_lies_between_two_components_at_one_of_the_shares() -> None:
    cells, groups, book = cells_and_book(0.02)
    means = book.bank.means
    ids = assign_cells(cells, groups, means, book.counts, penalty=book.penalty, value_bits=BITS)
    found = find_candidates(cells, ids, book, log_sigma_weight=0.1)
    assert len(found.means) > 1
    between = {
        round(alpha * a + (1 - alpha) * b, 9)
        for a in means.tolist()
        for b in means.tolist()
        for alpha in ALPHAS.tolist()
    }
    assert {round(mean, 9) for mean in found.means.tolist()} <= between
    assert not np.isin(found.means, means).any()
    assert (ids[found.cell] < len(means)).all()
    assert set(found.blend.tolist()) == set(range(len(found.means)))


def test_few_weights_are_flagged() -> None:
    cells, groups, book = cells_and_book(0.02)
    ids = assign_cells(cells, groups, book.bank.means, book.counts, penalty=book.penalty, value_bits=BITS)
    found = find_candidates(cells, ids, book, log_sigma_weight=0.1)
    assert 0 < cells.count[found.cell].sum() < 0.1 * cells.count.sum()


def test_blends_are_components_like_any_other() -> None:
    cells, groups, before = cells_and_book(1e-3)
    after = with_blends(cells, groups, before, value_bits=BITS, log_sigma_weight=0.1)
    assert (np.diff(after.bank.means) > 0).all()
    assert after.counts.shape == (3, len(after.bank.means) + 1)
    np.testing.assert_allclose(after.counts.sum(axis=1), before.counts.sum(axis=1))
    assert len(after.blends) > 0
    assert (after.counts[:, after.blends].sum(axis=0) > 0).all()
    assert not np.isin(after.bank.means[after.blends], before.bank.means).any()


def test_one_component_has_nothing_to_blend_with() -> None:
    cells, groups, book = cells_and_book(0.1, size=1)
    assert with_blends(cells, groups, book, value_bits=BITS, log_sigma_weight=0.1) is book


def random_cells() -> Cells:
    return cells_of(random_network(0))[1]


def four_in_a_row(log_sigmas: list[float]) -> Mixture:
    means = np.stack([[0.0, 1.0, 3.0, 6.0], log_sigmas], axis=1)
    return Mixture(np.full(4, 0.25), means, np.tile(1e-4 * np.eye(2), (4, 1, 1)))


def test_by_distance_the_nearest_pair_goes_first_whatever_it_costs() -> None:
    counts = np.array([[1000.0], [1000.0], [1.0], [1.0]])
    path = merge_path(four_in_a_row([0.0] * 4), counts, counts[:, 0], component_bits=None)
    assert set(path.pairs[0].tolist()) == {0, 1}
    assert path.slopes[0] == pytest.approx(1.0)
    assert len(np.unique(path.labels(0.99))) == 4
    assert len(np.unique(path.labels(1.01))) == 3
    assert len(np.unique(path.labels(np.inf))) == 1


def test_components_of_too_different_a_sigma_never_merge() -> None:
    counts = np.ones((4, 1))
    path = merge_path(four_in_a_row([0.0, 1.0, 0.0, 1.0]), counts, counts[:, 0], component_bits=None, widest_gap=0.5)
    labels = path.labels(np.finfo(float).max)
    assert labels[0] == labels[2] != labels[1] == labels[3]


def test_what_is_farther_than_the_threshold_stays_apart() -> None:
    problem = problem_of(random_cells(), paper=PaperRules(merge_distance=2.0, merge_variance=100.0))
    for penalty in (0.01, 0.1, 1.0):
        moments = moments_of(problem.near, problem.partition(penalty))
        gaps = np.diff(moments.first / moments.curvature)
        # W2 also counts what the components differ by in width.
        assert np.median(gaps) >= 0.5 * 2 * np.sqrt(HIGH_RATE_STEP * penalty)
        assert len(gaps) > 1
    assert len(np.unique(problem.partition(2.0**28))) == 1


def test_weights_beyond_a_limit_are_outliers_and_no_others_are() -> None:
    scales = np.array([1.0, 2 / 3, 1e-300])
    problem = problem_of(random_cells(), scales=scales, paper=PaperRules(outlier_threshold=2.0))
    limits = 2.0 / scales
    cells = problem.cells
    book, _ = codebook_at(problem, 0.1)
    beyond = np.abs(cells.x) > limits[cells.tensor]
    expected = np.bincount(cells.tensor[beyond], weights=cells.count[beyond], minlength=3)
    np.testing.assert_allclose(book.counts[:, -1], expected)
    assert expected[0] > 0 == expected[2]


def test_sigma_may_follow_the_magnitude_of_each_weight() -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(4, 50, generator=random), "b": torch.randn(8, 100, generator=random)}
    typical = typical_size([200, 800])
    for posterior, usual in zip(
        magnitude_posterior(tensors, ["a", "b"]), data_free_posterior(tensors, ["a", "b"]), strict=True
    ):
        assert posterior.by_magnitude
        assert posterior.scale == usual.scale
        assert posterior.log_sigma.shape == usual.log_sigma.shape
        # Of a weight at the root mean square, sigma is s_t.
        rms = posterior.scale * np.sqrt(typical / tensors[posterior.name].numel())
        assert rms == pytest.approx(float(tensors[posterior.name].double().square().mean().sqrt()), rel=0.05)
        np.testing.assert_allclose(np.exp(posterior.log_sigma) * rms / posterior.scale, 1.0)


def test_recipes_without_published_rules_have_none() -> None:
    assert paper_rules(resolve()) is None
    assert paper_rules(resolve("default", {"merge_distance": 2.0, "feedback": False})) is None
    assert paper_rules(resolve("paper")) == PaperRules(
        merge_distance=1.0, merge_variance=1.0, outlier_threshold=0.2, blends=True
    )


@pytest.mark.parametrize("settings", [{"merging": "wasserstein"}, {"outliers": "magnitude"}, {"blending": "all"}])
def test_rules_may_hold_one_by_one(settings: dict[str, str]) -> None:
    rules = paper_rules(resolve("default", settings))
    assert rules is not None
    assert (rules.merge_distance is not None) == ("merging" in settings)
    assert (rules.limits(np.ones(2)) is not None) == ("outliers" in settings)
    assert rules.blends == ("blending" in settings)


def test_no_rules_change_nothing() -> None:
    plain, ruled = (codebook_at(problem_of(random_cells(), paper=paper), 0.1)[0] for paper in (None, PaperRules()))
    np.testing.assert_array_equal(plain.bank.means, ruled.bank.means)
    np.testing.assert_array_equal(plain.counts, ruled.counts)
