"""What validation data decide: the amount of posterior noise and the temperature. And the damage, measured on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gbnn_compress.data.batches import Batch, copied_to, read_batch
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.errors import ArchitectureError
from gbnn_compress.predict import differences, metrics
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.differences import OutputDifference
from gbnn_compress.predict.nesting import by_name, put_back
from gbnn_compress.predict.prediction import average
from gbnn_compress.predict.running import check_labels, class_rows, evaluating, require_classes
from gbnn_compress.predict.temperature import fit_temperature, temperature_fact
from gbnn_compress.rate.damage import drop_at
from gbnn_compress.training.encoder import Trainer
from gbnn_compress.training.goal import Goal, require_finite
from gbnn_compress.types import Damage

MOST_INPUTS, MOST_PIXELS = 2000, 25_000_000
"""Most validation inputs that are used, and most pixels of them all: they stay in memory."""

MOST_VALUES = 25_000_000
"""Most numbers in the outputs on validation data of any other kind; the first batch is always used."""

DRAWS = 8
"""Posterior draws of a Monte-Carlo prediction."""

NOISE_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Candidates for the posterior noise of the file, over the noise of training, which follows from the tied curvature."""

ALLOWED = 0.02
"""Fraction of the user's loss that noise may cost."""

HARMLESS_FACTORS = (1.0, 0.5, 0.25, 0.125, 1 / 16, 1 / 32, 1 / 64, 0.0)
"""The same where nothing says that noise helps."""

RUN_AT_ONCE = 128
"""Inputs of one forward pass."""


@dataclass(frozen=True)
class Validation:
    """Validation data in memory, with the checkpoint's outputs.

    Attributes:
        goal: What the network is trained towards.
        batches: On the CPU.
        before: The checkpoint's outputs on each batch, on the CPU.
        option: The option that names the data, for messages.
    """

    goal: Goal
    batches: tuple[Batch, ...]
    before: tuple[Any, ...]
    option: str

    @property
    def measure(self) -> str:
        """What decides which file is better: `nll`, `loss`, `logit_kl` or `relative_error`."""
        if self.goal.labelled:
            return "nll"
        if self.goal.loss is not None:
            return "loss"
        return "logit_kl" if self.goal.classifier else "relative_error"

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,), of all positions of all batches."""
        return torch.cat([batch.targets.reshape(-1) for batch in self.batches]).numpy()

    @cached_property
    def before_probabilities(self) -> torch.Tensor:
        """The checkpoint's, float64 (N, C)."""
        return self.probabilities(self.before)

    def logits(self, answers: Sequence[Any]) -> torch.Tensor:
        """float64 (N, C), of a classifier's outputs on each batch."""
        return torch.cat([class_rows(self.goal.logits(answer)).double() for answer in answers])

    def probabilities(self, answers: Sequence[Any]) -> torch.Tensor:
        """float64 (N, C), of a classifier's outputs on each batch."""
        return self.logits(answers).log_softmax(dim=1).exp()

    def score(self, answers: Sequence[Any], *, temperature: float = 1.0) -> float:
        """How bad outputs are, by `measure`; infinite if they are not finite.

        Args:
            answers: A network's outputs on each batch.
            temperature: Of its probabilities.
        """
        if self.measure == "loss":
            found = self._mean_loss(answers)
        elif self.measure == "nll":
            logits = self.logits(answers) / temperature
            found = self.nll(logits.log_softmax(dim=1).exp()) if bool(logits.isfinite().all()) else float("inf")
        else:
            return self.distance(self.before, answers)
        return found if np.isfinite(found) else float("inf")

    def distance(self, before: Sequence[Any], after: Sequence[Any]) -> float:
        """KL (nats) or relative error between the outputs of two networks; infinite if the second's are not finite."""
        if not self.goal.classifier:
            return difference(self.goal, before, after, option=self.option).relative_error or 0.0
        first, second = (self.logits(each).log_softmax(dim=1) for each in (before, after))
        found = float((first.exp() * (first - second)).sum(dim=1).mean())
        return found if np.isfinite(found) else float("inf")

    def said(self, value: float) -> str:
        """A score in words."""
        if self.measure == "relative_error":
            return f"relative error {value:.3g}"
        return {"nll": f"NLL {value:.3f}", "loss": f"loss {value:.4g}", "logit_kl": f"KL {value:.3g} nats"}[
            self.measure
        ]

    def damage(self, answers: Sequence[Any]) -> Damage | OutputDifference:
        """How far outputs are from the checkpoint's.

        Args:
            answers: A network's outputs on each batch.
        """
        if not self.goal.classifier:
            return difference(self.goal, self.before, answers, option=self.option)
        before, after = self.before_probabilities, self.probabilities(answers)
        if self.goal.labelled:
            known = self.labels >= 0
            return metrics.damage(before[known], after[known], self.labels[known])
        agreement = metrics.agreement(before, after)
        return Damage(drop_at(agreement), agreement, metrics.logit_kl(before, after))

    def nll(self, probabilities: torch.Tensor) -> float:
        """NLL of probabilities, float64 (N, C), at positions that have a label; labels below 0 do not count."""
        known = self.labels >= 0
        return metrics.nll(probabilities[known], self.labels[known])

    def _mean_loss(self, answers: Sequence[Any]) -> float:
        sizes = [batch.size for batch in self.batches]
        losses = [float(self.goal.loss_of(*pair)) for pair in zip(answers, self.batches, strict=True)]
        return float(np.average(losses, weights=sizes))


def read_validation(bench: Bench, goal: Goal) -> Validation:
    """Read validation data, a part where there are too many, and run the checkpoint on them.

    Raises:
        GbnnError: A label beyond the network's classes, or outputs that are not finite.
    """
    images = isinstance(bench.data, Dataset)
    batches, before, n_inputs, n_values = list[Batch](), list[Any](), 0, 0
    for batch in image_batches(bench, goal) if images else bench.batches():
        answer = run_batch(goal, bench.network, batch, device=bench.device)
        counted = {"logits": goal.logits(answer)} if goal.classifier else goal.forward.chosen(answer)
        require_finite(counted, option=bench.option)
        n_inputs, n_values = n_inputs + batch.size, n_values + sum(each.numel() for each in by_name(answer).values())
        if not images and batches and (n_inputs > MOST_INPUTS or n_values > MOST_VALUES):
            break
        _check_classes(goal, answer, batch, option=bench.option)
        batches.append(batch)
        before.append(answer)
    return Validation(goal, tuple(batches), tuple(before), bench.option)


def image_batches(bench: Bench, goal: Goal) -> Iterator[Batch]:
    """Images, a fixed random part where there are too many, with the labels if they are targets."""
    pixels = bench.inputs(at_most=1)[0, 0].numel()
    at_most = min(MOST_INPUTS, max(MOST_PIXELS // pixels, 1))
    inputs, labels = bench.inputs(at_most=at_most).split(RUN_AT_ONCE), bench.images.sample(at_most).labels
    if labels is None or not goal.labelled:
        yield from map(read_batch, inputs)
        return
    yield from map(read_batch, zip(inputs, torch.as_tensor(labels).split(RUN_AT_ONCE), strict=True))


def mean_score(trainer: Trainer, validation: Validation) -> str:
    """How good the posterior-mean network is, in words."""
    answers = mean_answers(trainer, validation)
    if validation.measure == "nll":
        known = validation.labels >= 0
        accuracy = metrics.accuracy(validation.probabilities(answers)[known], validation.labels[known])
        return f"validation accuracy {100 * accuracy:.1f} %"
    return f"validation {validation.said(validation.score(answers))}"


def choose_noise(trainer: Trainer, validation: Validation, *, seed: int) -> None:
    """Set the posterior noise of the file.

    With labels it has the least NLL of Monte-Carlo predictions: training weighs noise on inputs that it fits, and on
    other inputs the network is overconfident, so that more noise helps. With a loss, and a recipe that asks for noise,
    it is the most that costs at most `ALLOWED` of the loss: the loss of an average of draws hardly depends on noise.
    Otherwise nothing says that noise helps: it changes outputs by no more than compression did.
    """
    trained, scores = trainer.shared.coding.noise, dict[float, float]()
    asked = trainer.recipe.noise is not None
    if validation.measure != "nll" and not (validation.measure == "loss" and asked):
        if not asked:
            _choose_harmless(trainer, validation, seed=seed)
        return
    most = None
    if validation.measure == "loss":
        plain = validation.score(mean_answers(trainer, validation))
        most = plain + ALLOWED * abs(plain)
    for factor in NOISE_FACTORS:
        trainer.shared.set_noise(trained * factor)
        scores[factor] = _monte_carlo_score(trainer, validation, seed=seed)
        if scores[factor] > (min(scores.values()) if most is None else most):
            break
    least = min(scores, key=lambda factor: scores[factor])
    allowed = [factor for factor, score in scores.items() if most is not None and score <= most]
    trainer.shared.set_noise(trained * max(allowed, default=least))


def _choose_harmless(trainer: Trainer, validation: Validation, *, seed: int) -> None:
    """The largest noise with which a draw is no further from the mean than the mean is from the checkpoint."""
    trained, shared = trainer.shared.coding.noise, trainer.shared
    middle = mean_answers(trainer, validation)
    most = validation.distance(validation.before, middle)
    for factor in HARMLESS_FACTORS:
        shared.set_noise(trained * factor)
        generator = torch.Generator(device=shared.device).manual_seed(seed)
        drawn = answers_of(trainer, validation, shared.weights(shared.ids(), generator))
        if validation.distance(middle, drawn) <= most:
            return


def fitted_temperature(trainer: Trainer, validation: Validation, *, seed: int) -> dict[str, Any]:
    """The manifest's entry for the temperature of least NLL; none without labels."""
    if validation.measure != "nll":
        return {}
    known = validation.labels >= 0
    predicted = _monte_carlo_probabilities(trainer, validation, seed=seed)
    return temperature_fact(fit_temperature(predicted[known], torch.from_numpy(validation.labels[known])))


def mean_answers(trainer: Trainer, validation: Validation) -> list[Any]:
    """Outputs of the posterior-mean network on each batch."""
    return answers_of(trainer, validation, trainer.mean_weights())


def answers_of(trainer: Trainer, validation: Validation, weights: Mapping[str, torch.Tensor]) -> list[Any]:
    """Outputs on each batch with weights handed in."""
    run = (
        run_batch(validation.goal, trainer.network, batch, weights=weights, device=trainer.shared.device)
        for batch in validation.batches
    )
    return list(run)


def _monte_carlo_score(trainer: Trainer, validation: Validation, *, seed: int) -> float:
    """NLL or loss of outputs averaged over draws."""
    if validation.measure == "nll":
        return validation.nll(_monte_carlo_probabilities(trainer, validation, seed=seed))
    return validation.score([_averaged(each) for each in zip(*_draws(trainer, validation, seed=seed), strict=True)])


def _monte_carlo_probabilities(trainer: Trainer, validation: Validation, *, seed: int) -> torch.Tensor:
    """float64 (N, C), probabilities averaged over draws."""
    draws = _draws(trainer, validation, seed=seed)
    return average(validation.logits(answers).softmax(dim=1) for answers in draws).probabilities


def _draws(trainer: Trainer, validation: Validation, *, seed: int) -> Iterator[list[Any]]:
    """Outputs of each draw on each batch."""
    shared = trainer.shared
    generator, ids = torch.Generator(device=shared.device).manual_seed(seed), shared.ids()
    for _ in range(DRAWS):
        yield answers_of(trainer, validation, shared.weights(ids, generator))


def _averaged(draws: Sequence[Any]) -> Any:
    """A nesting with its floating tensors averaged."""
    found = [by_name(draw) for draw in draws]
    means = {
        name: torch.stack([each[name].double() for each in found]).mean(dim=0).to(tensor.dtype)
        for name, tensor in found[0].items()
        if tensor.is_floating_point()
    }
    return put_back(draws[0], means)


@torch.no_grad()
def run_batch(
    goal: Goal,
    network: torch.nn.Module,
    batch: Batch,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    device: torch.device,
) -> Any:
    """The whole outputs on a batch, on the CPU, in evaluation mode; the network's mode stays."""
    with evaluating(network):
        return copied_to(goal.run(network, batch.on(device), weights), torch.device("cpu"))


def difference(goal: Goal, before: Iterable[Any], after: Iterable[Any], *, option: str) -> OutputDifference:
    """Relative error over all outputs that count, and their mean cosine.

    Args:
        goal: Says which outputs count.
        before: The checkpoint's outputs on each batch.
        after: Another network's.
        option: The option that names the data, for messages.

    Raises:
        DataError: No output has the same shape in both networks.
    """
    chosen = (map(goal.forward.chosen, outputs) for outputs in (before, after))
    found = differences.compared(zip(*chosen, strict=True))
    differences.require_compared(found, option=option)
    return found


def _check_classes(goal: Goal, answer: Any, batch: Batch, *, option: str) -> None:
    """Refuse labels that a classifier has no class for, or that do not fit its outputs."""
    if not goal.classifier:
        return
    logits = goal.logits(answer)
    if logits.dim() < 2:
        raise ArchitectureError(f"`{option}`: expected logits (N, classes), got shape {tuple(logits.shape)}")
    require_classes(logits.shape[1], option=option)
    if goal.labelled:
        check_labels(batch.targets.reshape(-1), logits.shape[1], option=option)
