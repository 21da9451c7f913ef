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
"""Adam's, for latent weights that must change their minds within a stage."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the data, >= 1.
        steps_an_epoch: Batches of one pass.
        ramp: Share of the steps over which the ratio rises.
        learning_rate: Of latent weights, in steps of the bank (the median gap of its means).
        bank_learning_rate: Of the components' means, in the same steps.
        plain_learning_rate: Of norms and biases, and of log deviations.
        distillation: a, in [0, 1].
        beta: Weight of the divergence; 1 is Bayes' rule.
        warm_up: Share of the steps over which beta rises from zero.
        dataset_size: N.
        only_bank: Whether latent weights stay as they are (the paper's setting).
        noisy: Whether steps draw from the posterior.
        half: Whether layers run in bfloat16.
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

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.epochs * self.steps_an_epoch

    @property
    def rising(self) -> int:
        """Steps over which the ratio rises."""
        return max(round(self.ramp * self.steps), 1)

    def beta_at(self, step: int) -> float:
        """Weight of the divergence at a step; nothing without draws, which alone could hold against it."""
        if not self.noisy:
            return 0.0
        return self.beta * min(step / max(self.warm_up * self.steps, 1), 1.0)


class Optimisers:
    """Adam for all that is trained; each group's rate in the unit of what it trains, falling by a cosine."""

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
        """Train the bank that there is now, and latent weights in its steps."""
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
        """A half cosine from the full rate to zero."""
        factor = 0.5 * (1 + math.cos(math.pi * step / self._schedule.steps))
        for optimiser in self._all():
            for group in optimiser.param_groups:
                group["lr"] = factor * group["rate"]

    def step(self, loss: torch.Tensor) -> None:
        """Follow the gradient of a loss; of several processes, that of the mean of their losses."""
        for optimiser in self._all():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        processes.average_(self._gradients())
        for optimiser in self._all():
            optimiser.step()
        self._shared.keep_order()

    def state(self) -> list[dict[str, Any]]:
        """What `restore` needs: the rates and moments of each optimiser."""
        return [
            {"rates": [group["rate"] for group in optimiser.param_groups], "moments": optimiser.state_dict()["state"]}
            for optimiser in self._all()
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from a state, with the parameters that belong to it."""
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
    """Shared tensors that a network does not train: its buffers, and parameters that need no gradient."""
    trained = {name for name, p in network.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {name for name in shared.latent if shared.own.get(name) not in trained}


def _adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.0, betas=BETAS)
