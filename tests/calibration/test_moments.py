"""Sums over inputs, against the formulas on all patches at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gbnn_compress.calibration import moments
from gbnn_compress.calibration.blocks import Block
from gbnn_compress.calibration.moments import Halves, collected, whole

GROUPS, SAMPLES, WIDTH = 2, 101, 5


def pairs(*, offset: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(GROUPS, SAMPLES, WIDTH, generator=generator) + offset
    return x, x + 0.3 * torch.randn(GROUPS, SAMPLES, WIDTH, generator=generator)


def moments_of(before: torch.Tensor | None, after: torch.Tensor, *, centred: bool) -> Halves:
    block = Block(lambda operand: operand, WIDTH, lambda use: 0, lambda use, positions: after)
    return collected(block, before, after, centred=centred)


def expected(left: torch.Tensor, right: torch.Tensor, *, centred: bool) -> np.ndarray:
    a, b = (each.double() - (each.double().mean(dim=1, keepdim=True) if centred else 0) for each in (left, right))
    return (a.transpose(1, 2) @ b / left.shape[1]).numpy()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 64 * WIDTH, 1 << 25])
def test_covariances_are_those_of_all_patches(monkeypatch: pytest.MonkeyPatch, centred: bool, chunk_bytes: int) -> None:
    monkeypatch.setattr(moments, "CHUNK_BYTES", chunk_bytes)
    x, y = pairs()
    halves = moments_of(x, y, centred=centred)
    half = SAMPLES // 2
    for found, part in ((halves[0], slice(half)), (halves[1], slice(half, None)), (whole(halves, 0), slice(None))):
        assert found is not None
        assert found.n == y[:, part].shape[1]
        for got, left in (
            (found.covariance(0, centred=centred), y),
            (found.cross_covariance(0, centred=centred), x),
        ):
            wanted = expected(left[:, part], y[:, part], centred=centred)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_large_mean_costs_no_digits() -> None:
    _, y = pairs(offset=0.0)
    far = moments_of(None, y + 1000.0, centred=True)
    exact = expected(y + 1000.0, y + 1000.0, centred=True)
    np.testing.assert_allclose(whole(far, 0).covariance(0, centred=True), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-22, 1e22])
def test_inputs_outside_of_the_range_of_float32_are_multiplied_in_float64(factor: float) -> None:
    x, y = pairs()
    found = whole(moments_of(factor * x, factor * y, centred=False), 0)
    wanted = expected(x, y, centred=False)
    np.testing.assert_allclose(found.cross_covariance(0, centred=False) / factor**2, wanted, rtol=1e-4)


def test_one_pair_is_the_second_half() -> None:
    x, y = (each[:, :1] for each in pairs())
    first, second = moments_of(x, y, centred=True)
    assert first is None
    assert second is not None
    assert (second.covariance(0, centred=True) == 0).all()
