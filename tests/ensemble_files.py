"""Small artifacts of two architectures, and the ensemble of them."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import torch
from torch import nn

import gbnn_compress

SETTINGS = {"n_components": 32, "em_iterations": 2}


def narrow(width: int = 16, classes: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def wide() -> nn.Module:
    return narrow(24)


MODELS = "from torch import nn\n\n\n" + "\n\n".join(map(inspect.getsource, (narrow, wide)))
"""The same networks as a file for `--arch`."""

NETWORKS = (narrow, narrow, wide)
"""What makes the network of each member."""


def artifact(path: Path, network: nn.Module, *, seed: int, ratio: float = 2) -> Path:
    """An artifact of a network with random weights, which draws noise, and no task."""
    random = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(tensor.shape, generator=random) if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    weights["1.running_var"] = weights["1.running_var"].abs() + 0.5
    gbnn_compress.compress(weights, target_ratio=ratio, file=path, settings=SETTINGS)
    return path


def three(folder: Path) -> list[Path]:
    """Two artifacts of one architecture, and one of another."""
    return [
        artifact(folder / f"{seed}.gbnn.safetensors", make(), seed=seed, ratio=ratio)
        for seed, (make, ratio) in enumerate(zip(NETWORKS, (2, 3, 2), strict=True))
    ]


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(9))


def write_inputs(folder: Path) -> None:
    """`models.py`, `labelled.npz` and `other.npz`, grey images of 8 x 8 pixels."""
    (folder / "models.py").write_text(MODELS)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(folder / "labelled.npz", x=x, y=np.arange(40) % 5)
    np.savez(folder / "other.npz", x=x // 4)
