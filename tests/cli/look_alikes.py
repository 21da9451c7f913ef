"""Small files that look like the data and checkpoints that recipes are for."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gbnn_compress.data.architectures import build_network


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=shape).astype(np.uint8)


def npz(*names: str, shape: tuple[int, ...] = (32, 32, 3), n: int = 64) -> None:
    """`data/NAME.npz` of images in ten classes."""
    Path("data").mkdir(exist_ok=True)
    for name in names:
        np.savez(f"data/{name}.npz", x=pixels(n, *shape), y=np.arange(n) % 10)


def fashion_mnist(folder: Path, *, n: int = 64) -> None:
    """The four files as published."""
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = struct.pack(">IIII", 0x803, n, 28, 28) + pixels(n, 28, 28).tobytes()
        labels = struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def cifar(n_classes: int, *, n: int = 64) -> None:
    """CIFAR-10 or CIFAR-100 below `data`, as torchvision unpacks it; its checksums have to be waved through."""
    if n_classes == 10:
        folder, key, files = "cifar-10-batches-py", "labels", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        names = ("batches.meta", "label_names")
    else:
        folder, key, files = "cifar-100-python", "fine_labels", ["train", "test"]
        names = ("meta", "fine_label_names")
    (Path("data") / folder).mkdir(parents=True)
    few = n // (len(files) - 1)
    for file in files:
        batch = {"data": pixels(few, 3072), key: [i % n_classes for i in range(few)]}
        (Path("data") / folder / file).write_bytes(pickle.dumps(batch))
    (Path("data") / folder / names[0]).write_bytes(pickle.dumps({names[1]: [str(i) for i in range(n_classes)]}))


def image_folders(root: str, *, classes: int = 3, n: int = 8, side: int = 64) -> None:
    """`root/train` and `root/val`, one folder a class."""
    for part in ("train", "val"):
        for label in range(classes):
            folder = Path(root) / part / f"n{label:08}"
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(pixels(side, side, 3)).save(folder / f"{i}.png")


def checkpoint(path: str, arch: str) -> None:
    """An architecture's weights as they are drawn."""
    Path(path).parent.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(build_network(arch).state_dict(), path)
