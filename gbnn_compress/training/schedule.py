"""How long and how fast to train, and the optimisers that follow."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gbnn_compress.training import processes

if TYPE_CHECKING:
    from gbnn_compress.training.shared_weights import SharedWeights

BETAS = (0.9, 0.99)
"""Of Adam. The second moment forgets quickly, as latent weights have to turn round within a stage."""


@dataclass(frozen=True)
class Pacing:
    """When rate control acts during training.

    Attributes:
        stages: Stages in which the ratio rises; rate control makes a new codebook for each.
        checks: Size checks after the rise. Each corrects lambda by the ratio of actual to wanted size: weights gather
            at the thresholds as they learn, and the size comes to follow lambda^-1 or steeper. Corrections by lambda's
            effect at fixed weights (`SizeFitting.size_power`) oscillated until ResNet-20 at 50x had lost five points.
        settled: Fraction of the steps after which thresholds stay, as long as the size allows it. Later steps are too
            small to bring weights back over a threshold that moved: cross-entropy at 50x rose from .38 to .50 as the
            learning rates fell.
        accepted: Actual over wanted size that needs no correction once thresholds have settled. Outside of it, lambda
            alone changes, by the root of the ratio. Thresholds that also followed means and members threw LeNet-5 at
            200x to 350x and back to 100x, or lost in the last epoch what the three before had gained.
    """

    stages: int = 16
    checks: int = 16
    settled: float = 0.75
    accepted: tuple[float, float] = (0.9, 1.015)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the data, >= 1.
        steps_an_epoch: Batches per pass.
        ramp: Fraction of the steps over which the ratio rises.
        learning_rate: Of latent weights, in steps of the bank (the median gap of its means).
        bank_learning_rate: Of the components' means, in the same steps.
        plain_learning_rate: Of unshared tensors, and of log deviations.
        distillation: a, in [0, 1].
        beta: Weight of the divergence; 1 is Bayes' rule.
        warm_up: Fraction of the steps over which beta rises from zero.
        dataset_size: N.
        only_bank: Whether latent weights stay fixed (the paper's setting).
        noisy: Whether steps draw from the posterior.
        half: Whether layers run in bfloat16.
        pacing: When rate control acts.
        coded: Whether there is a codebook of the target before the first step. The ratio then does not rise.
    """

    epochs: int
    steps_an_epoch: int
    ramp: float
    learning_rate: float
    bank_learning_rate: float
    plain_learning_rate: float
    distillation: float
    beta: float
    warm_up: float
    dataset_size: int
    only_bank: bool
    noisy: bool
    half: bool
    pacing: Pacing = Pacing()
    coded: bool = False

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.steps_an_epoch

    @property
    def rising(self) -> int:
        """Steps over which the ratio rises."""
        return 0 if self.coded else max(round(self.ramp * self.steps), 1)

    def beta_at(self, step: int) -> float:
        """Weight of the divergence at a step. It is 0 without draws, as then nothing would resist the divergence."""
        if not self.noisy:
            return 0.0
        return self.beta * min(step / max(self.warm_up * self.steps, 1), 1.0)

    def stage_at(self, step: int) -> float | None:
        """How far the ratio rises, in (0, 1], in the stage that begins with a step; None where none begins."""
        if self.coded:
            return None
        length = max(self.rising // self.pacing.stages, 1)
        begins = step == 0 or (step <= self.rising and step % length == 0)
        return min((step + length) / self.rising, 1.0) if begins else None

    def has_settled(self, step: int) -> bool:
        """Whether thresholds stay where they are from this step on."""
        return self.coded or step > self._last_unsettled

    def checks_size(self, step: int) -> bool:
        """Whether a size check is due at a step."""
        interval = max((self._last_unsettled - self.rising) // self.pacing.checks, 1)
        return step > self.rising and (step - self.rising) % interval == 0

    @property
    def _last_unsettled(self) -> int:
        return round(self.pacing.settled * self.steps)


class Optimisers:
    """Adam for everything that is trained; the rate of each group has the unit of its parameters and falls by a cosine.

    The bank's optimiser is replaced whenever there is a new bank.
    """

    def __init__(self, network: torch.nn.Module, shared: SharedWeights, schedule: Schedule) -> None:
        self._shared, self._schedule = shared, schedule
        self._fixed = fixed(network, shared)
        named = network.named_parameters()
        replaced = set(shared.own.values())
        plain = [p for name, p in named if name not in replaced and p.requires_grad]
        self._plain = _adam([{"params": plain, "rate": schedule.plain_learning_rate}]) if plain else None
        self._latent = _adam([{"params": [latent], "rate": 0.0} for latent in shared.latent.values()])
        self._bank: torch.optim.Optimizer | None = None

    def watch_bank(self) -> None:
        """Train the current bank, and latent weights at rates in its steps."""
        coding, schedule = self._shared.coding, self._schedule
        step = float(coding.means.detach().diff().median()) if len(coding.means) > 1 else 1.0
        self._bank = _adam(
            [
                {"params": [coding.means], "rate": schedule.bank_learning_rate * step},
                {"params": [coding.log_sigmas], "rate": schedule.bank_learning_rate},
            ]
        )
        for group, posterior in zip(self._latent.param_groups, coding.posteriors, strict=True):
            stays = schedule.only_bank or posterior.name in self._fixed
            group["rate"] = 0.0 if stays else schedule.learning_rate * step * posterior.scale

    def set_rates(self, step: int) -> None:
        """Set the learning rates of a step: a half cosine from the full rate to zero."""
        factor = 0.5 * (1 + math.cos(math.pi * step / self._schedule.steps))
        for optimiser in self._all():
            for group in optimiser.param_groups:
                group["lr"] = factor * group["rate"]

    def step(self, loss: torch.Tensor) -> None:
        """Follow the gradient of a loss; several processes follow that of their mean loss."""
        for optimiser in self._all():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        processes.average_(self._gradients())
        for optimiser in self._all():
            optimiser.step()
        self._shared.keep_order()

    def state(self) -> list[dict[str, Any]]:
        """The rates and moments of each optimiser, for `restore`."""
        return [
            {"rates": [group["rate"] for group in optimiser.param_groups], "moments": optimiser.state_dict()["state"]}
            for optimiser in self._all()
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Continue from a state; the shared weights are restored already."""
        self.watch_bank()
        for optimiser, kept in zip(self._all(), state, strict=True):
            groups = optimiser.state_dict()["param_groups"]
            rated = [{**group, "rate": rate} for group, rate in zip(groups, kept["rates"], strict=True)]
            optimiser.load_state_dict({"state": copy.deepcopy(kept["moments"]), "param_groups": rated})

    def _gradients(self) -> list[torch.Tensor]:
        parameters = (p for optimiser in self._all() for group in optimiser.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    def _all(self) -> list[torch.optim.Optimizer]:
        return [optimiser for optimiser in (self._plain, self._latent, self._bank) if optimiser is not None]


def fixed(network: torch.nn.Module, shared: SharedWeights) -> set[str]:
    """Shared tensors that a network does not train: its buffers, and parameters without `requires_grad`."""
    trained = {name for name, p in network.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {name for name in shared.latent if shared.own.get(name) not in trained}


def _adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.0, betas=BETAS)
