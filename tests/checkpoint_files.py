"""Checkpoint files, good and hostile, and what is expected of reading them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.errors import CheckpointError

LEGACY = {"_use_new_zipfile_serialization": False}


def weights() -> dict[str, torch.Tensor]:
    """Some tensors with names as a network has them, shapes (4, 3) and (4,)."""
    return {"fc.weight": torch.arange(12.0).reshape(4, 3), "fc.bias": torch.ones(4)}


def saved(folder: Path, content: object, *, name: str = "net.pth", **options: object) -> Path:
    path = folder / name
    torch.save(content, path, **options)
    return path


def refusal(path: str | Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 300 + len(str(path))
    assert Path(path).name.replace("\0", " ") in line
    return line


def assert_holds(path: Path, expected: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Checks names, order and values, and returns the notes."""
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in checkpoint.tensors.items():
        assert type(tensor) is torch.Tensor
        assert tensor.dtype == expected[name].dtype
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert torch.equal(tensor, expected[name])
    return checkpoint.notes


class Attack:
    """Creates a file where it is unpickled carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (os.mkdir, (str(self.target),))
