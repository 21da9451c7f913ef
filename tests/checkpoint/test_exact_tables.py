"""Tables: exact, or coded so finely that nobody who looks a value up can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.checkpoint.arrays import from_bit_patterns, rounded, values
from gbnn_compress.checkpoint.exact_tables import code_table, is_table
from gbnn_compress.format.vectors import EXACT, dequantise, vector_bits


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rotary_emb.inv_freq", (32,)),
        ("alphas_cumprod", (1000,)),
        ("bins", (50,)),
        ("logit_scale", ()),
        ("energies.weight", (1, 94)),
        ("energies.weight", (94, 1)),
        ("head.weight", (15, 17)),
        ("conv.weight_g", (64, 1, 1, 1)),
        ("spectral.weight_u", (64,)),
    ],
)
def test_what_is_a_table(name: str, shape: tuple[int, ...]) -> None:
    assert is_table(name, torch.ones(shape))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("fc.weight", (64, 64)),
        ("fc.weight", (16, 16)),
        ("norm.weight", (64,)),
        ("norm.bias", (64,)),
        ("LayerNorm.gamma", (64,)),
        ("LayerNorm.beta", (64,)),
        ("bn.running_mean", (8,)),
        ("lstm.bias_ih_l0_reverse", (64,)),
        ("attn.in_proj_bias", (64,)),
        ("weight", (64,)),
        ("conv.weight", (8, 3, 3, 3)),
    ],
)
def test_what_is_none(name: str, shape: tuple[int, ...]) -> None:
    assert not is_table(name, torch.ones(shape))


def decoded(tensor: torch.Tensor) -> np.ndarray:
    vector = code_table(tensor)
    if vector.mode == EXACT:
        return values(from_bit_patterns(vector.codes, str(tensor.dtype).removeprefix("torch.")))
    return values(rounded(dequantise(vector), tensor.dtype))


def assert_serves(tensor: torch.Tensor) -> None:
    before, after = values(tensor), decoded(tensor)
    assert (np.abs(after - before) <= 1e-3 * np.abs(before)).all()
    if ((before > 0) & (before < 1)).all():
        assert (np.abs(after - before) <= 1e-3 * (1 - before)).all()
    np.testing.assert_array_equal(after == 0, before == 0)
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order])[np.diff(before[order]) > 0] > 0).all()


entries = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.floats(0, 1, width=32),
    st.floats(0.9990000128746033, 1, width=32),
    st.floats(width=32),
).filter(np.isfinite)


@given(st.lists(entries, min_size=1, max_size=40), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
@settings(max_examples=150, deadline=None)
def test_any_table_serves_as_before(numbers: list[float], dtype: torch.dtype) -> None:
    assert_serves(rounded(torch.tensor(numbers, dtype=torch.float64), dtype))


def test_usual_tables_take_fewer_bits_where_they_must_be_coded() -> None:
    frequencies = 1e4 ** -(torch.arange(0, 64, 2) / 64)
    energies = -9 * torch.rand(1, 94, generator=torch.Generator().manual_seed(0)) - 0.1
    for table in (frequencies, energies, torch.logspace(-6, 6, 50)):
        assert_serves(table)
        assert vector_bits([code_table(table)], roles=[""]) < 0.75 * 32 * table.numel()


def test_a_schedule_near_one_keeps_its_distance_from_one() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert_serves(torch.cumprod(1 - betas, 0).float())


def test_coding_leaves_the_table_as_it_is() -> None:
    table = torch.logspace(-6, 6, 50)
    before = table.clone()
    code_table(table)
    assert torch.equal(table, before)
