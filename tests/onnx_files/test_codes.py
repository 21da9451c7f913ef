"""Ids survive the packing, in as few bits as an ONNX type has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbnn_compress.onnx_files.codes import Codes, codes_of
from gbnn_compress.types import IndexMap

BANK = 300


def decoded(codes: Codes) -> np.ndarray:
    """Components of all weights; those of outliers are of no account."""
    return codes.components[codes.codes].reshape(-1)


def index_map(ids: np.ndarray) -> IndexMap:
    return IndexMap("t", ids.astype(np.uint16), np.zeros((ids == BANK).sum(), dtype=np.uint32))


@given(st.lists(st.integers(0, BANK), min_size=1, max_size=60))
def test_every_id_comes_back(ids: list[int]) -> None:
    given_ids = np.array(ids)
    codes = codes_of(index_map(given_ids), n_components=BANK)
    inside = given_ids != BANK
    np.testing.assert_array_equal(decoded(codes)[inside], given_ids[inside])
    np.testing.assert_array_equal(codes.outliers, np.flatnonzero(~inside))
    assert codes.codes.max() < 1 << codes.bits


@pytest.mark.parametrize(
    ("n_used", "n_weights", "bits_per_weight"),
    [
        *[(n_used, 600, 2) for n_used in (1, 2, 4)],
        *[(n_used, 600, 4) for n_used in (5, 16)],
        *[(n_used, 600, 8) for n_used in (17, 256)],
        *[(n_used, 600, 16) for n_used in (257, 300)],
        (4, 601, 4),
    ],
)
def test_bits(n_used: int, n_weights: int, bits_per_weight: int) -> None:
    codes = codes_of(index_map(np.arange(n_weights) % n_used), n_components=BANK)
    assert codes.bits * len(codes.codes) == bits_per_weight * n_weights


def test_outliers_take_no_code_of_their_own() -> None:
    codes = codes_of(index_map(np.array([*range(16), BANK, BANK])), n_components=BANK)
    assert codes.bits == 4


def test_a_tensor_of_outliers_alone() -> None:
    codes = codes_of(index_map(np.full(7, BANK)), n_components=BANK)
    assert decoded(codes).tolist() == [BANK] * 7
    assert codes.outliers.tolist() == list(range(7))
