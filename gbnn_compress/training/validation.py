"""What validation data decide: the amount of posterior noise and the temperature. And the damage, measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gbnn_compress.predict import metrics
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.prediction import average
from gbnn_compress.predict.running import check_labels, evaluating, logits, run_with
from gbnn_compress.predict.temperature import fit_temperature, temperature_fact
from gbnn_compress.training.encoder import Trainer
from gbnn_compress.types import Damage

MOST_INPUTS, MOST_PIXELS = 2000, 25_000_000
"""Most validation inputs that are used, and most pixels of them all: they stay in memory."""

DRAWS = 8
"""Posterior draws of a Monte-Carlo prediction."""

NOISE_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Candidates for the posterior noise of the file, over the noise of training, which follows from the tied curvature."""

RUN_AT_ONCE = 128
"""Inputs of one forward pass."""


@dataclass(frozen=True)
class Validation:
    """Validation data in memory.

    Attributes:
        inputs: float32 (N, channels, height, width), on the CPU.
        labels: int64 (N,).
        before: float64 (N, classes), the checkpoint's log probabilities.
    """

    inputs: torch.Tensor
    labels: np.ndarray
    before: torch.Tensor


def read_validation(bench: Bench) -> Validation:
    """Read validation data, a fixed random part where there are too many, and run the checkpoint on them.

    Raises:
        DataError: A label beyond the network's classes.
    """
    pixels = bench.inputs(at_most=1)[0, 0].numel()
    at_most = min(MOST_INPUTS, max(MOST_PIXELS // pixels, 1))
    inputs, labels = bench.inputs(at_most=at_most), np.asarray(bench.data.sample(at_most).labels)
    before = log_probabilities(bench.network, inputs)
    check_labels(torch.from_numpy(labels), before.shape[1], option=bench.option)
    return Validation(inputs, labels, before)


def mean_accuracy(trainer: Trainer, validation: Validation) -> float:
    """Accuracy of the posterior-mean network, in [0, 1]."""
    return metrics.accuracy(_mean_probabilities(trainer, validation), validation.labels)


def choose_noise(trainer: Trainer, validation: Validation, *, seed: int) -> None:
    """Scale the posterior noise to the least NLL of Monte-Carlo predictions.

    Training weighs noise on inputs that it fits. On other inputs the network is overconfident, and more noise helps.
    """
    trained, scores = trainer.shared.coding.noise, dict[float, float]()
    for factor in NOISE_FACTORS:
        trainer.shared.set_noise(trained * factor)
        scores[factor] = metrics.nll(_monte_carlo(trainer, validation.inputs, seed=seed), validation.labels)
        if scores[factor] > min(scores.values()):
            break
    trainer.shared.set_noise(trained * min(scores, key=lambda factor: scores[factor]))


def measured_damage(trainer: Trainer, validation: Validation) -> Damage:
    """How far the posterior-mean network's predictions differ from the checkpoint's."""
    return metrics.damage(validation.before.exp(), _mean_probabilities(trainer, validation), validation.labels)


def fitted_temperature(trainer: Trainer, validation: Validation, *, seed: int) -> dict[str, Any]:
    """The manifest's entry for the temperature of least NLL."""
    predicted = _monte_carlo(trainer, validation.inputs, seed=seed)
    return temperature_fact(fit_temperature(predicted, torch.from_numpy(validation.labels)))


def log_probabilities(network: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """float64 (N, classes), of a network with its own weights, in evaluation mode."""
    return logits(network, [(part, None) for part in inputs.split(RUN_AT_ONCE)]).double().log_softmax(dim=1)


def _mean_probabilities(trainer: Trainer, validation: Validation) -> torch.Tensor:
    return _logits(trainer, trainer.mean_weights(), validation.inputs).log_softmax(dim=1).exp()


def _monte_carlo(trainer: Trainer, inputs: torch.Tensor, *, seed: int) -> torch.Tensor:
    """float64 (N, classes), probabilities averaged over draws."""
    shared = trainer.shared
    generator, ids = torch.Generator(device=shared.device).manual_seed(seed), shared.ids()
    draws = (_logits(trainer, shared.weights(ids, generator), inputs).softmax(dim=1) for _ in range(DRAWS))
    return average(draws).probabilities


@torch.no_grad()
def _logits(trainer: Trainer, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """float64 (N, classes) on the CPU, in evaluation mode; the network's mode stays."""
    network, device = trainer.network, trainer.shared.device
    with evaluating(network):
        outputs = [run_with(network, weights, part.to(device)) for part in inputs.split(RUN_AT_ONCE)]
    return torch.cat(outputs).double().cpu()
