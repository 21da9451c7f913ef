"""Targets that no codebook comes near are met with exact outliers, in few files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from gbnn_compress.pipeline.compress import compress
from gbnn_compress.rate.maps import _OutlierPrice
from gbnn_compress.target import encode

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.long
def test_a_gap_between_0_and_1_bit_a_weight_takes_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = {f"{i}.weight": torch.rand(256, 256, generator=generator) - 0.5 for i in range(4)}
    save_file(flat, tmp_path / "net.safetensors")
    sizes, encoder = [], encode.encode_artifact

    def counted(**parts: object) -> bytes:
        encoded: bytes = encoder(**parts)  # type: ignore[arg-type]
        sizes.append(len(encoded))
        return encoded

    monkeypatch.setattr(encode, "encode_artifact", counted)
    report = compress(tmp_path / "net.safetensors", target_ratio=50, output=tmp_path / "net.gbnn.safetensors")
    assert 50 <= report["ratio"] <= 51.5
    assert report["weights"]["outliers"] == 0
    assert len(sizes) <= 6


@pytest.mark.parametrize("count", [1, 20, 5_000, 1_000_000])
def test_what_outliers_cost_buys_as_many(count: int) -> None:
    price = _OutlierPrice(weights=1_000_000, value_bits=32.0)
    assert price.affordable(price(count)) == pytest.approx(count, rel=0.001, abs=1)
