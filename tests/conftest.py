"""Fixtures of several folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Layers of the tests are so small that threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fewer_stages() -> Iterator[None]:
    """Rate control acts a quarter as often: short trainings spend nine tenths of their time on it."""
    from trainings import trained_with

    from gbnn_compress.training.schedule import Pacing

    with trained_with(pacing=Pacing(stages=4, checks=4)):
        yield


@pytest.fixture(scope="module")
def training_is_kept() -> Iterator[None]:
    """The trained file is written even where a few steps are worse than calibration, which is not run."""
    from gbnn_compress.training import choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "better", lambda trained, make, bench: choice.Choice(trained.result, {}))
        yield
