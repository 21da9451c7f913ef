"""Blends: who is flagged, what they are made of, and when they are formed."""

from __future__ import annotations

import numpy as np
from small_networks import cells_of, random_network

from gbnn_compress.rate.blend import ALPHAS, find_candidates, with_blends
from gbnn_compress.rate.codebook import Codebook, Groups, assign_cells, group_cells, refine
from gbnn_compress.types import Cells

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
