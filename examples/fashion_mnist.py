"""Fashion-MNIST as the npz files of the recipe `lenet5-fashion-mnist`.

    python examples/fashion_mnist.py /usr/share/datasets/fashion-mnist DATA

The first folder holds the four `*-ubyte.gz` files as published (Debian's package `dataset-fashion-mnist` puts them
there); DATA gets `fashion_train.npz` (60,000 images) and the two halves of the 10,000 test images:
`fashion_dev.npz` for choices and `fashion_test.npz` for figures.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

HEADERS = {"images-idx3": 16, "labels-idx1": 8}
"""Bytes before the first pixel or label."""

SIDE = 28


def read(folder: Path, part: str, kind: str) -> np.ndarray:
    """uint8 (N,): all pixels or all labels of `train` or `t10k`."""
    return np.frombuffer(gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes())[HEADERS[kind] :], np.uint8)


def convert(source: Path, target: Path) -> None:
    """Write the three npz files."""
    target.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        images = read(source, part, "images-idx3").reshape(-1, SIDE, SIDE)
        labels = read(source, part, "labels-idx1").astype(np.int64)
        half = len(labels) // 2
        halves = {"dev": slice(half), "test": slice(half, None)}
        for name, chosen in ({"train": slice(None)} if part == "train" else halves).items():
            np.savez_compressed(target / f"fashion_{name}.npz", x=images[chosen], y=labels[chosen])


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
