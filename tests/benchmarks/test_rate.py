"""The arithmetic behind `benchmarks/rate.py`: what peers' files cost and hold, and bytes at equal agreement."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cases
import nncodec_worker
import numpy as np
import peers
import pytest
import rate_report
from rate_report import Point


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "conv.weight": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "norm.weight": random.uniform(0.5, 2, 8).astype(np.float32),
        "norm.bias": random.normal(size=8).astype(np.float32),
        "norm.running_mean": random.normal(size=8).astype(np.float32),
        "norm.running_var": random.uniform(0, 2, 8).astype(np.float32),
        "linear.weight": random.normal(size=(5, 8)).astype(np.float32),
        "linear.bias": random.normal(size=5).astype(np.float32),
    }


def test_test_images_are_those_of_the_last_file() -> None:
    case = cases.CASES["resnet20"].on_test_images()
    assert (case.data, case.limit, case.images) == (("cifar10_test.npz",), 5_000, "cifar10_test-5000")
    assert replace(cases.CASES["resnet20"], limit=100).on_test_images().limit == 100
    alone = cases.CASES["efficientnet_lite0"]
    assert alone.on_test_images() == alone


def test_every_architecture_is_a_function_of_a_file() -> None:
    for case in cases.CASES.values():
        file, _, function = case.architecture.rpartition(":")
        assert f"\ndef {function}()" in Path(file).read_text()


def point(agreement: float, size_bytes: int, *, codec: str = "peer", setting: str = "a") -> Point:
    return Point("net", "10 images", codec, setting, "dial", 10**6, size_bytes, 1.0, 0.0, agreement, 0.0)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_palette_file_decodes_to_nearest_centroids(tensors, bits):
    decoded = peers.unpack(peers.palettise(tensors, bits=bits))
    assert list(decoded) == list(tensors)
    for name, value in tensors.items():
        assert decoded[name].shape == value.shape
        if value.ndim < 2:
            assert np.array_equal(decoded[name], value.astype(np.float16).astype(np.float32))
            continue
        centroids = np.unique(decoded[name])
        assert len(centroids) <= 2**bits
        gaps = np.abs(value.ravel()[:, None] - centroids)
        assert np.allclose(np.abs(value - decoded[name]).ravel(), gaps.min(axis=1), atol=1e-6)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_integer_file_is_within_half_a_step_by_channel(tensors, bits):
    decoded = peers.unpack(peers.round_to_integers(tensors, bits=bits))
    for name in ("conv.weight", "linear.weight"):
        rows, back = (array[name].reshape(len(array[name]), -1) for array in (tensors, decoded))
        step = np.abs(rows).max(axis=1) / (2 ** (bits - 1) - 1)
        assert (np.abs(rows - back).max(axis=1) <= 0.5 * step + 1e-2 * np.abs(rows).max(axis=1)).all()
        assert all(len(np.unique(row)) <= 2**bits - 1 for row in back)


def test_zero_channel_stays_zero(tensors):
    tensors["conv.weight"][2] = 0
    assert not peers.unpack(peers.round_to_integers(tensors, bits=4))["conv.weight"][2].any()


def test_size_counts_ids_centroids_norms_and_header():
    random = np.random.default_rng(1)
    weight, bias = random.uniform(size=(100, 80)).astype(np.float32), random.normal(size=500).astype(np.float32)
    file = peers.palettise({"w": weight, "b": bias}, bits=4)
    payload = 8000 * 4 / 8 + 2 * 16 + 2 * 500
    assert 0.97 * payload < len(file) < payload + 150


def test_kmeans_finds_the_best_clusters():
    values = np.array([-3.0, -2.9, -0.1, 0.0, 0.4, 2.0, 5.0, 5.5])
    error = [sum(np.var(part) * len(part) for part in np.split(values, cuts)) for cuts in combinations(range(1, 8), 3)]
    centroids = peers.kmeans(values, n_centroids=4)
    assert np.sum((values - centroids[peers.nearest(values, centroids)]) ** 2) == pytest.approx(min(error))


def test_norms_are_paired_with_the_convolution_before_them(tensors):
    assert peers.norm_blocks(tensors) == {"conv.weight": "norm."}


def test_folding_keeps_a_norm_with_another_epsilon(tensors):
    epsilon, blocks = 1e-3, {"conv.weight": "norm."}
    given = nncodec_worker.with_epsilon(tensors, blocks, epsilon)
    scale = given["norm.weight"] / np.sqrt(given["norm.running_var"] + 1e-5)
    folded = {
        "conv.weight": given["conv.weight"] * scale[:, None, None, None],
        "conv.weight.bias": given["norm.bias"] - given["norm.running_mean"] * scale,
    }
    back = nncodec_worker.unfolded(folded, blocks, epsilon)

    def output(state):
        sums = state["conv.weight"].sum(axis=(1, 2, 3)) - state["norm.running_mean"]
        return sums / np.sqrt(state["norm.running_var"] + epsilon) * state["norm.weight"] + state["norm.bias"]

    assert np.allclose(output(tensors), output(back), rtol=1e-4, atol=1e-4)


def test_front_leaves_out_what_another_point_beats():
    best = [point(0.99, 400), point(0.95, 200), point(0.90, 100)]
    assert rate_report.front([best[1], point(0.94, 250), point(0.95, 210), best[0], best[2]]) == best


def test_log_bytes_are_linear_in_agreement_on_the_best_setting():
    curve = [point(0.99, 400), point(0.95, 100), point(0.99, 300, setting="b"), point(0.95, 150, setting="b")]
    assert rate_report.bytes_at(curve[:2], 0.97) == (pytest.approx(200), "a")
    size, setting = rate_report.bytes_at(curve, 0.97)
    assert setting == "several settings"
    assert size == pytest.approx((100 * 300) ** 0.5)
    assert rate_report.bytes_at(curve, 0.95) == (pytest.approx(100), "a")
    assert rate_report.bytes_at(curve, 0.995) is None
    assert rate_report.bytes_at(curve, 0.9) is None


def test_log_bytes_are_linear_in_log_kl():
    curve = [replace(point(0.9, 400), logit_kl=0.001), replace(point(0.9, 100), logit_kl=0.1)]
    level = rate_report.closeness(replace(curve[0], logit_kl=0.01))
    assert rate_report.bytes_at(curve, level, quality=rate_report.closeness) == (pytest.approx(200), "a")


def test_log_bytes_are_linear_in_the_log_of_the_output_error():
    curve = [replace(point(0, 400), error=0.001), replace(point(0, 100), error=0.1)]
    level = rate_report.fidelity(replace(curve[0], error=0.01))
    assert rate_report.bytes_at(curve, level, quality=rate_report.fidelity) == (pytest.approx(200), "a")
    text = rate_report.tables([replace(curve[0], codec="ours", size_bytes=190, error=0.01), *curve])
    assert "| 5263.16 | 0.0100 | 190 | 0.950 | a |" in text
    assert "agreement" not in text


def test_tables_compare_ours_with_each_peer():
    points = [point(0.97, 190, codec="ours", setting="ours"), point(0.99, 400), point(0.95, 100)]
    text = rate_report.tables(points)
    assert "| peer | a, dial | 2500.00 | 0.00 | 99.00 % | 0.0000 | 1.0 |" in text
    assert "| 5263.16 | 97.00 % | 190 | 0.950 | a |" in text


def test_plot_takes_the_images_that_calibration_left():
    whole, half = point(0.9, 100, codec="ours"), replace(point(0.9, 100, codec="ours"), scored="second half")
    calibrated = replace(half, codec="ours-data")
    assert rate_report.plotted([whole, half]) == {"net (10 images)": [whole]}
    assert rate_report.plotted([whole, half, calibrated]) == {"net (second half)": [half, calibrated]}


def test_plot_writes_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    points = [point(0.97, 190, codec="ours", setting="ours"), replace(point(0.9, 100), codec="nncodec")]
    points += [replace(each, network="task", error=0.1) for each in points]
    rate_report.plot(points, tmp_path / "rate.png")
    assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")
