"""What only a run knows for its page."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gbnn_compress import compress
from gbnn_compress.report import page as pages


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The page of a run, and the network."""
    folder = tmp_path_factory.mktemp("run")
    random = np.random.RandomState(0)
    network = {
        "conv.weight": torch.from_numpy(random.laplace(size=(32, 16, 3, 3))).float(),
        "fc.weight": torch.from_numpy(random.normal(size=(32, 256))).float(),
    }
    torch.save(network, folder / "net.pth")
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "write", lambda page, path: kept.append(page))
        compress(
            folder / "net.pth", target_ratio=8, output=folder / "net.gbnn", html=folder / "net.html", task="classifier"
        )
    return kept[0], network


def test_the_curve_goes_through_the_cut_and_damage_rises_along_it(shown):
    page, _ = shown
    size = page.report["artifact"]["bytes"]
    assert 0.95 * size < page.curve[0]["bytes"] <= size
    rates = [page.curve[octaves] for octaves in sorted(page.curve)]
    for key in ("ratio", "drop"):
        values = [rate[key] for rate in rates]
        assert values == sorted(values)


def test_the_plane_holds_every_weight_before_and_after_merging(shown):
    page, network = shown
    n_weights = sum(tensor.numel() for tensor in network.values())
    assert page.plane.density.sum() == pytest.approx(n_weights * (1 - page.plane.beyond))
    assert len(page.before.weights) == page.report["bank"]["components_before_merging"]
    assert len(page.plane.components.weights) == page.report["bank"]["components"]
    for mixture in (page.before, page.plane.components):
        assert np.abs(mixture.means[:, 1]).max() < page.plane.y_limit
        assert mixture.weights.sum() == pytest.approx(1)
