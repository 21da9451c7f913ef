"""A file has the wanted ratio, and hardly more."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_networks import floating_size, random_network

from gbnn_compress import parallel
from gbnn_compress.pipeline.compress import compress
from gbnn_compress.target import budget, encode

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE = 1.03


def compressed(folder: Path, network: dict[str, torch.Tensor], **options: Any) -> dict[str, Any]:
    save_file(network, folder / "net.safetensors")
    return compress(folder / "net.safetensors", output=folder / "net.gbnn.safetensors", **options)


def misses(folder: Path, cases: list[tuple[int, float]], *, key: str = "ratio", **options: Any) -> list[str]:
    """Seeds and targets of networks that `key` of the report does not meet."""
    dtype = options.pop("dtype", torch.float32)
    found = []
    for seed, ratio in cases:
        report = compressed(folder, random_network(seed, dtype=dtype), target_ratio=ratio, **options)
        if not ratio <= report[key] <= TOLERANCE * ratio:
            found.append(f"seed {seed}: wanted {ratio}, got {report[key]:.5g}")
    return found


def drawn(count: int, low: float, high: float, *, seed: int) -> list[tuple[int, float]]:
    """Seeds, and ratios evenly spread in their logarithm."""
    random = np.random.RandomState(seed)
    ratios = np.exp(random.uniform(np.log(low), np.log(high), count))
    return [(int(random.randint(1000)), float(f"{ratio:.4g}")) for ratio in ratios]


JUMPS = [(600, 9.752998351670884), (870, 36.541021418515584)]
"""Networks whose size jumps near the target."""


@pytest.mark.long
def test_bytes_meet_the_target(tmp_path: Path) -> None:
    assert misses(tmp_path, drawn(2, 2, 40, seed=1) + JUMPS) == []


@pytest.mark.long
def test_parameters_meet_the_target(tmp_path: Path) -> None:
    assert misses(tmp_path, [(3, 2.5)], key="parameter_ratio", ratio_of="parameters") == []


@pytest.mark.long
def test_bytes_of_a_half_precision_checkpoint_meet_the_target(tmp_path: Path) -> None:
    assert misses(tmp_path, drawn(2, 2, 18, seed=2), dtype=torch.float16) == []


@pytest.mark.long
def test_ratios_of_the_report_are_those_of_the_file(tmp_path: Path) -> None:
    network = random_network(3)
    report = compressed(tmp_path, network, target_ratio=50, ratio_of="parameters")
    size = (tmp_path / "net.gbnn.safetensors").stat().st_size
    assert report["artifact"]["bytes"] == size
    assert report["ratio"] == pytest.approx(floating_size(network) / size)
    weights, live = report["weights"], report["bank"]["components"]
    counted = weights["shared"] + weights["outliers"] + weights["unshared"]
    assert counted == sum(tensor.numel() for tensor in network.values() if tensor.is_floating_point())
    parameters = 2 * live + 2 * weights["outliers"] + weights["unshared"]
    assert report["parameter_ratio"] == pytest.approx(2 * counted / parameters)
    assert report["target_met"] == (report["parameter_ratio"] >= 50)


@pytest.mark.long
def test_no_compression_at_all_is_a_target_like_any_other(tmp_path: Path) -> None:
    report = compressed(tmp_path, {"w": random_network(4)["conv2.weight"]}, target_ratio=1)
    assert 1 <= report["ratio"] <= TOLERANCE
    assert report["target_met"]


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (10, 10)])
def test_a_network_smaller_than_any_file_misses_and_says_so(tmp_path: Path, shape: tuple[int, int]) -> None:
    report = compressed(tmp_path, {"w": torch.linspace(-1, 1, shape[0] * shape[1]).reshape(shape)}, target_ratio=2)
    assert not report["target_met"]
    assert report["ratio"] < 2


def test_a_small_network_meets_a_small_target(tmp_path: Path) -> None:
    report = compressed(tmp_path, {"w": random_network(5)["fc.weight"][:, :100].contiguous()}, target_ratio=2)
    assert 2 <= report["ratio"] <= TOLERANCE * 2


def test_a_damage_within_reach(tmp_path: Path) -> None:
    report = compressed(tmp_path, random_network(6), max_drop=1.0, task="classifier")
    assert 0.5 <= report["damage"]["drop"] <= 1.0
    assert report["target_met"]


def test_a_file_that_is_not_the_last_tried_is_written_with_its_own_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, made, encoder, assign = [], [], encode.encode_artifact, budget.assign

    def counted(**parts: Any) -> bytes:
        encoded.append(encoder(**parts))
        return encoded[-1]

    monkeypatch.setattr(encode, "encode_artifact", counted)
    monkeypatch.setattr(budget, "assign", lambda *words: made.append(words) or assign(*words))
    for seed in range(16, 60):
        encoded.clear()
        made.clear()
        compressed(tmp_path, random_network(seed), target_ratio=30)
        written = (tmp_path / "net.gbnn.safetensors").read_bytes()
        assert written in encoded
        if written != encoded[-1]:
            assert len(made) == len(encoded) + 1
            return
    pytest.fail("every network got the file that was tried last")


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_same_bytes_from_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    network = random_network(8, dtype=dtype)
    alone = compressed(tmp_path, network, target_ratio=8)
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    monkeypatch.setattr(parallel, "usable_threads", lambda: 3)
    assert compressed(tmp_path, network, target_ratio=8)["artifact"] == alone["artifact"]


PROGRAM = """
import sys
from gbnn_compress.pipeline.compress import compress
print(compress(sys.argv[1], target_ratio=10, output=sys.argv[2])["artifact"]["sha256"])
"""


@pytest.mark.long
def test_same_seed_same_bytes_at_any_thread_count_and_under_any_name(tmp_path: Path) -> None:
    save_file(random_network(7), tmp_path / "net.safetensors")
    digests = set()
    for threads, name in (("1", "one.gbnn.safetensors"), ("2", "another.gbnn.safetensors")):
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "net.safetensors"), str(tmp_path / name)]
        told = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True, check=True).stdout
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert told.strip() == digest
        digests.add(digest)
    assert len(digests) == 1
