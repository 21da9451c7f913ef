"""Watching the steps of a training, and training with other settings, from outside."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from gbnn_compress.data.architectures import build_network
from gbnn_compress.data.datasets import load_data
from gbnn_compress.training import train


class Stop(BaseException):
    """Ends a run as a kill would: nothing catches it."""


def digits_options(folder: Path, models: str, *, n_validation: int) -> dict[str, Any]:
    """Arguments of `compress` for a network with random weights, 160 digits to train on, and others to validate.

    Args:
        folder: Where the files go.
        models: Text of a module with the function `tiny`, which makes the network.
        n_validation: Number of validation digits.
    """
    (folder / "models.py").write_text(models)
    arch = f"{folder / 'models.py'}:tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(build_network(arch).state_dict(), folder / "tiny.pth")
    data = load_data("digits:train")
    assert data.labels is not None
    count = 160 + n_validation
    x = np.stack([data.images[i] for i in range(count)])
    np.savez(folder / "train.npz", x=x[:160], y=data.labels[:160])
    np.savez(folder / "dev.npz", x=x[160:], y=data.labels[160:count])
    return {
        "checkpoint": str(folder / "tiny.pth"),
        "arch": arch,
        "data": f"npz:{folder / 'train.npz'}",
        "val_data": f"npz:{folder / 'dev.npz'}",
        "settings": {"n_components": 16, "em_iterations": 2, "finetune.precision": "float32"},
    }


@contextmanager
def each_step(action: Callable[[int, torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Call an action before each training step inside the block, with the step's number from 0 and its images.

    The action may raise an error, or return other images. The block holds one training.
    """
    numbers, roots = itertools.count(), list[torch.nn.Module]()

    def before(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not module.training or not torch.is_grad_enabled() or (roots and module is not roots[0]):
            return None
        roots[:] = [module]
        images = action(next(numbers), inputs[0])
        return None if images is None else (images, *inputs[1:])

    hook = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def stopped_at(number: int, error: type[BaseException]) -> Iterator[None]:
    """Raise an error in place of a step."""

    def stop(at: int, images: torch.Tensor) -> None:
        if at == number:
            raise error

    with each_step(stop):
        yield


@contextmanager
def trained_with(**settings: Any) -> Iterator[None]:
    """Let `compress` train with settings that no recipe has: `pacing` and `fitting` of `train_to_target`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_to_target", functools.partial(train.train_to_target, **settings))
        yield
