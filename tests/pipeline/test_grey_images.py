"""Folders of grey images, for networks that read one channel and for those that read three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gbnn_compress import compress, evaluate
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import DataError, GbnnError
from gbnn_compress.predict.bench import Bench, Evaluation, open_bench
from gbnn_compress.types import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = """
import torch
from torch import nn

def network(channels):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 2))

def one():
    return network(1)

def three():
    return network(3)

def flat():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 8, 8)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five grey images of two classes each, as `data`, and as `grey.npz`; networks."""
    for index, pixels in enumerate(PIXELS):
        path = tmp_path / "data" / f"{index // 5}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    np.savez(tmp_path / "grey.npz", x=PIXELS, y=np.repeat([0, 1], 5))
    (tmp_path / "networks.py").write_text(NETWORKS)
    return tmp_path


def checkpoint(folder: Path, name: str) -> Path:
    namespace: dict[str, Any] = {}
    exec(NETWORKS, namespace)
    path = folder / f"{name}.pth"
    torch.save(namespace[name]().state_dict(), path)
    return path


def bench_of(folder: Path, name: str, data: str, **options: Any) -> tuple[Bench, Checkpoint]:
    read = read_checkpoint(checkpoint(folder, name))
    spec = f"{data}:{folder / ('data' if data == 'imagefolder' else 'grey.npz')}"
    return open_bench(read, Evaluation(spec, device="cpu", **options), f"{folder / 'networks.py'}:{name}"), read


@pytest.mark.parametrize("name", ["one", "flat"])
def test_a_network_of_one_channel_reads_a_folder_as_it_reads_the_array(folder: Path, name: str) -> None:
    images, read = bench_of(folder, name, "imagefolder")
    array, _ = bench_of(folder, name, "npz")
    assert images.inputs(at_most=1).shape[1] == 1
    torch.testing.assert_close(images.run(read.tensors), array.run(read.tensors), rtol=0, atol=0)


def test_a_network_of_three_channels_reads_three_equal_ones(folder: Path) -> None:
    bench, _ = bench_of(folder, "three", "imagefolder", mean=(0.0,) * 3, std=(1.0,) * 3)
    inputs = bench.inputs(at_most=100)
    expected = torch.tensor(PIXELS)[:, None].expand(-1, 3, -1, -1) / 255
    torch.testing.assert_close(inputs, expected)


def test_mean_and_std_fit_the_channels_that_the_network_reads(folder: Path) -> None:
    bench, _ = bench_of(folder, "one", "imagefolder", mean=(0.5,), std=(0.25,))
    torch.testing.assert_close(bench.inputs(at_most=100)[:, 0], (torch.tensor(PIXELS) / 255 - 0.5) / 0.25)
    for name, given, channels in (("one", 3, 1), ("three", 1, 3)):
        message = rf"images with {channels} channel\(s\), `--mean` has {given} number\(s\)"
        with pytest.raises(DataError, match=message):
            bench_of(folder, name, "imagefolder", mean=(0.5,) * given, std=(0.25,) * given)


def test_other_data_of_a_bench_are_read_in_its_channels_too(folder: Path) -> None:
    bench, _ = bench_of(folder, "one", "npz")
    images = load_data(f"imagefolder:{folder / 'data'}")
    for data in (images, images.take(np.arange(3))):
        assert bench.on(data, option="--val-data").inputs(at_most=1).shape[1] == 1


@pytest.mark.long
def test_compress_calibrates_and_measures_on_a_grey_folder(folder: Path) -> None:
    spec, arch, path = f"imagefolder:{folder / 'data'}", f"{folder / 'networks.py'}:one", checkpoint(folder, "one")
    artifact = folder / "one.gbnn.safetensors"
    report = compress(path, target_ratio=3, output=artifact, arch=arch, data=spec, eval_data=spec)
    assert report["damage"]["measured"]
    assert evaluate(artifact, spec, arch=arch, ood=spec)["inputs"] == 10


def test_a_folder_of_grey_and_colour(folder: Path) -> None:
    colour = np.stack([PIXELS[0], PIXELS[1], PIXELS[2]], axis=2)
    Image.fromarray(colour).save(folder / "data" / "1" / "z.png")
    bench, read = bench_of(folder, "three", "imagefolder")
    assert bench.run(read.tensors).shape == (11, 2)
    bench, read = bench_of(folder, "one", "imagefolder")
    with pytest.raises(DataError, match=r"z.png`: expected a grey image for a network with one input channel"):
        bench.run(read.tensors)


def test_error_colour_for_a_network_of_one_channel(folder: Path) -> None:
    for path in (folder / "data").rglob("*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
    bench, read = bench_of(folder, "one", "imagefolder")
    with pytest.raises(DataError, match=r"has images with 3 channel\(s\), the network expects 1"):
        bench.run(read.tensors)


def test_error_grey_images_of_another_size_are_not_taken_for_colour(folder: Path) -> None:
    bench, read = bench_of(folder, "one", "imagefolder", image_size=12)
    with pytest.raises(GbnnError, match=r"fails on a batch of shape \(10, 1, 12, 12\)"):
        bench.run(read.tensors)
