"""A file is compared with what it was meant to be before it is put in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gbnn_compress
from gbnn_compress.rate import unshared as coding
from gbnn_compress.target import write


def network() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(16, 8, 3, 3, generator=random),
        "bn.weight": torch.rand(16, generator=random) + 0.5,
        "bn.bias": torch.randn(16, generator=random),
        "bn.running_mean": torch.randn(16, generator=random),
        "bn.running_var": torch.rand(16, generator=random) + 0.5,
        "fc.weight": torch.randn(20, 16, generator=random),
    }


@pytest.mark.long
def test_a_coder_that_goes_wrong_is_made_good_by_exact_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of such a file is that of the file which was put in place."""
    whole = coding.code_norm

    def wrong(*args: np.ndarray, **options: object) -> list[object]:
        vectors = whole(*args, **options)  # type: ignore[arg-type]
        vectors[1].codes[3] += 1000
        return vectors

    monkeypatch.setattr(coding, "code_norm", wrong)
    torch.save(network(), tmp_path / "net.pth")
    report = gbnn_compress.compress(tmp_path / "net.pth", target_ratio=4, output=tmp_path / "net.gbnn.safetensors")
    state = gbnn_compress.load(tmp_path / "net.gbnn.safetensors").state_dict()
    before = network()
    assert torch.equal(state["bn.weight"], before["bn.weight"])
    assert torch.equal(state["bn.bias"], before["bn.bias"])
    assert report["artifact"]["bytes"] == (tmp_path / "net.gbnn.safetensors").stat().st_size
    assert sum(report["sections"].values()) == report["artifact"]["bytes"]


@pytest.mark.long
def test_what_cannot_be_made_good_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(write, "find_faults", lambda *args, **options: {"fc.weight": "values that are not finite"})
    torch.save(network(), tmp_path / "net.pth")
    (tmp_path / "net.gbnn.safetensors").write_bytes(b"what was there before")
    with pytest.raises(RuntimeError, match=r"`fc\.weight` has values that are not finite"):
        gbnn_compress.compress(tmp_path / "net.pth", target_ratio=4, output=tmp_path / "net.gbnn.safetensors")
    assert (tmp_path / "net.gbnn.safetensors").read_bytes() == b"what was there before"
    assert not list(tmp_path.glob(".*.tmp"))
