"""The loop of training with a rate control of its own: when it is asked, and what a kept state holds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gbnn_compress.data.batches import Batch, read_batch
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.training.loop import FineTuning, Progress
from gbnn_compress.training.schedule import Pacing, Schedule
from gbnn_compress.training.shared_weights import SharedWeights
from gbnn_compress.types import Bank, Posterior

EPOCHS, STEPS = 4, 5
SHARED = ("0.weight",)


@dataclass
class FixedBank:
    """Adopts the same bank at every stage, and reports the sizes that it is given."""

    shared: SharedWeights
    size: float = 1.0
    fractions: list[float] = field(default_factory=list)

    def recode(self, fraction: float) -> None:
        self.fractions.append(fraction)
        rows = len(self.shared.latent["0.weight"])
        bank = Bank(np.linspace(-2, 2, 5), np.full(5, -2.0))
        book = Codebook(bank, np.array([[4.0, 4, 4, 4, 4, 0]]), penalty=1e-3, distortion=np.ones(1))
        posteriors = [Posterior("0.weight", 0.3, np.zeros(rows))]
        self.shared.adopt(book, posteriors, exponent=-4, noise=0.1, outliers={})

    def relative_size(self) -> float:
        return self.size


def schedule(*, pacing: Pacing = Pacing(stages=2, checks=2)) -> Schedule:  # noqa: B008
    options: dict[str, Any] = {"only_bank": False, "noisy": True, "half": False, "pacing": pacing}
    return Schedule(EPOCHS, STEPS, 0.4, 0.03, 0.01, 0.001, 0.5, 1.0, 0.3, 40, **options)


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        yield read_batch((torch.randn(8, 6, generator=generator), torch.arange(8) % 3))


class Run:
    """A small network and its training."""

    def __init__(self, *, size: float = 1.0, start: Any = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        self.shared = SharedWeights(self.network.state_dict(), SHARED, device=torch.device("cpu"))
        self.control, self.states, self.lines = FixedBank(self.shared, size), list[Any](), list[str]()
        self.tuning = FineTuning(
            self.network,
            self.shared,
            schedule(),
            self.control,
            seed=0,
            on_progress=self.lines.append,
            keep=self.states.append,
            start=start,
        )


def test_rate_control_is_asked_once_a_stage() -> None:
    run, progress = Run(), list[Progress]()
    outcome = run.tuning.run(batches, after_epoch=progress.append)
    assert run.control.fractions == [0.5, 1.0, 1.0]
    assert (outcome.steps, outcome.interrupted, outcome.last) == (EPOCHS * STEPS, False, progress[-1])
    assert [each.epoch for each in progress] == [1, 2, 3, 4]
    assert run.lines == []


def test_stages_and_checks_of_a_schedule() -> None:
    found = schedule()
    assert (found.steps, found.rising) == (20, 8)
    assert {step: found.stage_at(step) for step in range(20) if found.stage_at(step) is not None} == {
        0: 0.5,
        4: 1.0,
        8: 1.0,
    }
    assert [step for step in range(20) if found.checks_size(step)] == [11, 14, 17]
    assert [found.has_settled(step) for step in (15, 16)] == [False, True]


@pytest.mark.parametrize(("size", "grows"), [(1.0, 1.0), (1.1, 1.1**2.5), (0.95, 0.95**2)])
def test_lambda_follows_the_size_and_half_of_it_once_thresholds_have_settled(size: float, grows: float) -> None:
    run = Run(size=size)
    run.tuning.run(batches)
    assert run.shared.coding.book.penalty == pytest.approx(1e-3 * grows)


def test_a_continued_training_is_the_same_as_one_in_one_piece() -> None:
    whole = Run()
    whole.tuning.run(batches)
    start = copy.deepcopy(whole.states[1])
    later = Run(start=start)
    later.tuning.run(batches)
    assert [state["epoch"] for state in later.states] == [3, 4]
    assert torch.equal(later.shared.latent["0.weight"], whole.shared.latent["0.weight"])
    assert all(torch.equal(*both) for both in zip(later.network.parameters(), whole.network.parameters(), strict=True))
    assert later.states[-1]["losses"] == whole.states[-1]["losses"]
    before = whole.states[1]["shared"]["latent"]["0.weight"]
    assert torch.equal(start["shared"]["latent"]["0.weight"], before), "the state is copied"
    assert not torch.equal(later.shared.latent["0.weight"], before)
