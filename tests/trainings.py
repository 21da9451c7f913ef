"""Watching the steps of a training, and training with other settings, from outside."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from gbnn_compress.training import train


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
