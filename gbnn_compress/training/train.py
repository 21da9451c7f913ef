"""Training to a target: the network, its data and rate control around variational fine-tuning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import ArchitectureError, DataError
from gbnn_compress.predict import metrics
from gbnn_compress.predict.evaluation import Bench, Evaluation, as_evaluation
from gbnn_compress.predict.prediction import average
from gbnn_compress.predict.running import check_labels, copied, evaluating, logits, run_with
from gbnn_compress.predict.temperature import fit_temperature, temperature_fact
from gbnn_compress.recipe import Recipe, TrainingSettings
from gbnn_compress.report import words
from gbnn_compress.target.encode import Result
from gbnn_compress.target.forecast import find_safe_ratio
from gbnn_compress.target.prepared import Prepared
from gbnn_compress.training import processes
from gbnn_compress.training.augment import Augmentation, harmless
from gbnn_compress.training.batch_norm import settle_batch_norm
from gbnn_compress.training.encoder import Trainer
from gbnn_compress.training.loop import APART, Batch, FineTuning, Progress
from gbnn_compress.training.objective import runs_bfloat16
from gbnn_compress.training.schedule import Schedule
from gbnn_compress.training.shared_weights import SharedWeights
from gbnn_compress.training.state import StateFile
from gbnn_compress.types import Checkpoint

HELD_INPUTS, HELD_PIXELS = 2000, 25_000_000
"""Most inputs that choices are made on, and most of their pixels: they stay in memory."""

HELD_OUT = (
    "no `--val-data`: choices were made on a held-out part of `--data`, of which a checkpoint trained on it is too sure"
)

NORM_BATCHES = 40
"""Batches that batch-norm statistics are settled on."""

FEWEST_STEPS, SMALLEST_BATCH = 64, 16
"""An epoch has so many steps, by batches smaller than asked for, but not smaller than this."""

MOST_HASTE = 2.0
"""Factor by which the learning rate is raised at most where there are few steps."""

DRAWS = 8
"""Posterior draws by which the noise is chosen."""

NOISE_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""By how much noise is tried larger than it was in training: in training it is that of the tied curvature."""


def training_benches(
    checkpoint: Checkpoint, data: str | Evaluation, val_data: str | Evaluation | None, *, arch: str | None, seed: int
) -> tuple[Bench, Bench]:
    """The network on data for training, and on data for choices: those given, or a part held out.

    Raises:
        GbnnError: Bad data or architecture.
    """
    train = Bench(checkpoint, as_evaluation(data, samples=1), arch)
    if val_data is not None:
        given = as_evaluation(val_data, samples=1)
        return train, train.on(load_data(given.data), option="--val-data")
    order = np.random.default_rng(seed).permutation(len(train.data))
    held = max(min(len(order) // 10, HELD_INPUTS), 1)
    parts = (np.sort(part) for part in (order[held:], order[:held]))
    if len(order) < 4:
        raise DataError(f"`--data` has {words.counted(len(order), 'input')}: too few to train on")
    return tuple(train.on(train.data.take(part), option="--data") for part in parts)  # type: ignore[return-value]


def train_to_target(
    prepared: Prepared,
    train: Bench,
    validation: Bench,
    *,
    recipe: Recipe,
    epochs: int,
    target_ratio: float,
    ratio_of: str,
    seed: int,
    tell: Callable[[str], None],
    state: StateFile,
    restart: bool,
) -> Result:
    """Fine-tune a checkpoint into a file of the target ratio.

    Args:
        prepared: The checkpoint, ready for any ratio.
        train: Its network on the training data.
        validation: The same network on data for choices.
        recipe: The configuration.
        epochs: Passes over the training data.
        target_ratio: As for `compress`.
        ratio_of: As for `compress`.
        seed: Of shuffling, augmentation and posterior draws.
        tell: Called with a line whenever there is something to say.
        state: Where the state after each epoch is kept, and gone on from.
        restart: Whether to begin anew even so.

    Raises:
        GbnnError: Bad data, a state that cannot be kept where it should be, or a loss that is no longer finite.
    """
    _check_names(prepared, train)
    data = _Data(train, recipe.finetune, seed)
    held_inputs, held_labels = _held(validation)
    before = _log_probabilities(train.network, held_inputs)
    check_labels(torch.from_numpy(held_labels), before.shape[1], option=validation.option)
    trainer = Trainer(
        prepared=prepared,
        recipe=recipe,
        network=copied(train.network),
        names=train.fit.names,
        shared=SharedWeights(
            prepared.checkpoint.tensors, prepared.selection.shared, device=train.device, own=train.fit.names
        ),
        target_ratio=target_ratio,
        ratio_of=ratio_of,
        safe_ratio=find_safe_ratio(prepared),
        facts={"training": _facts(recipe.finetune, epochs)},
    )
    last: dict[str, Any] = {}

    def after_epoch(progress: Progress) -> None:
        last.update(progress.losses, bits_per_weight=progress.bits_per_weight)
        accuracy = metrics.accuracy(_mean(trainer, held_inputs).exp(), held_labels)
        tell(progress_line(progress, accuracy=accuracy, target_ratio=target_ratio))

    run = FineTuning(
        network=trainer.network,
        shared=trainer.shared,
        schedule=_schedule(recipe.finetune, epochs=epochs, data=data, device=train.device),
        recode=trainer.recode,
        relative_size=trainer.relative_size,
        tell=tell,
        keep=state.write,
    )
    outcome = run.run(data.batches, after_epoch=after_epoch, seed=seed, start=state.read(restart=restart))
    stopped, notes = outcome.steps < run.schedule.steps, []
    if validation.option == "--data":
        notes.append(HELD_OUT)
    notes += trainer.untrained()
    if stopped:
        epochs_done = outcome.steps / run.schedule.steps_an_epoch
        trainer = replace(trainer, facts={"training": _facts(recipe.finetune, int(epochs_done))})
        way_out = "lower `finetune.learning_rate`"
        if outcome.interrupted:
            way_out = f"the same command {f'goes on after epoch {state.epoch}' if state.epoch else 'starts over'}"
        notes.append(f"training stopped after {epochs_done:.1f} of {epochs} epochs; {way_out}")
    trainer.fit()
    settle_batch_norm(
        trainer.network,
        trainer.mean_weights(),
        (images for images, _ in itertools.islice(data.batches(0, whole=True), NORM_BATCHES)),
    )
    choose_noise(trainer, held_inputs, held_labels, seed=seed)
    damage = metrics.damage(before.exp(), _mean(trainer, held_inputs).exp(), held_labels)
    folded = {}
    if recipe.finetune.fold_temperature:
        predicted = _monte_carlo(trainer, held_inputs, seed=seed)
        folded = temperature_fact(fit_temperature(predicted, torch.from_numpy(held_labels)))
    result = trainer.filled(damage=damage, **folded)
    return replace(result, notes=tuple(notes), training=last, unfinished=stopped and outcome.interrupted)


def _facts(settings: TrainingSettings, epochs: int) -> dict[str, Any]:
    """What a file says of its training."""
    return {"epochs": epochs, "beta": settings.beta, "warm_up": settings.warm_up}


def _check_names(prepared: Prepared, bench: Bench) -> None:
    """Refuse a network whose tensors are not those of the checkpoint: its weights could not be handed in."""
    own, fit = bench.network.state_dict(keep_vars=True), bench.fit
    names = [name for name in prepared.selection.shared if name not in fit.names and name not in fit.extra]
    held = {name: own[mine] for name, mine in fit.names.items()}
    ties = ((name, other) for name, other in prepared.checkpoint.ties.items() if name not in fit.extra)
    names += [name for name, other in ties if held.get(name) is not held.get(other)]
    if names:
        raise ArchitectureError(
            f"`--epochs`: `{bench.architecture}` holds `{names[0]}` under another name, or apart from what it is tied"
            " to in the checkpoint; compress with `--epochs 0`"
        )


def choose_noise(trainer: Trainer, inputs: torch.Tensor, labels: np.ndarray, *, seed: int) -> None:
    """Scale the posterior noise to the least NLL of Monte-Carlo predictions on data for choices.

    Training weighs noise on images that it fits; on others, where the network is too sure, more of it does good.
    """
    shared, trained = trainer.shared, trainer.shared.coding.noise
    scores = {}
    for factor in NOISE_FACTORS:
        shared.set_noise(trained * factor)
        scores[factor] = metrics.nll(_monte_carlo(trainer, inputs, seed=seed), labels)
        if scores[factor] > min(scores.values()):
            break
    shared.set_noise(trained * min(scores, key=lambda factor: scores[factor]))


def progress_line(progress: Progress, *, accuracy: float, target_ratio: float) -> str:
    """One line on an epoch."""
    losses = progress.losses
    return (
        f"epoch {progress.epoch}/{progress.epochs}: loss = CE {losses['cross_entropy']:.3f}, distillation "
        f"{losses['distillation']:.3f}, KL {losses['divergence']:.2g} nats, {progress.bits_per_weight:.2f} bits a "
        f"weight; {target_ratio / progress.relative_size:.3g}x now; {100 * accuracy:.1f} % right on data for choices; "
        f"{words.seconds(progress.seconds_left)} left"
    )


class _Data:
    """Shuffled, augmented batches of the training data, on the network's device."""

    def __init__(self, bench: Bench, settings: TrainingSettings, seed: int) -> None:
        self._bench, self._seed = bench, seed
        few = max(len(bench.data) // FEWEST_STEPS, SMALLEST_BATCH)
        size = min(settings.batch_size, few, len(bench.data))
        self.batch_size = max(size // processes.count(), 1) * processes.count()
        self.steps = len(bench.data) // self.batch_size
        self.augmentation = Augmentation(shift=False, flip=False)
        classes = np.unique(bench.labels)
        if len(classes) < 2:
            raise DataError(f"`--data` has one class only ({classes[0]}), training needs at least two")
        some = np.sort(np.random.default_rng(seed).permutation(len(bench.data))[: 4 * self.batch_size])
        first = list(self._read(some, self.batch_size))
        outputs = _log_probabilities(bench.network, torch.cat([images for images, _ in first]))
        check_labels(torch.from_numpy(classes), outputs.shape[1], option="--data")
        if settings.augmentation == "auto":
            images, labels = (torch.cat(parts) for parts in zip(*first, strict=True))
            self.augmentation = harmless(
                lambda changed: _log_probabilities(bench.network, changed), images, labels.cpu()
            )

    def __len__(self) -> int:
        return len(self._bench.data)

    def batches(self, epoch: int, *, whole: bool = False) -> Iterator[Batch]:
        """All batches of an epoch, or of each the part of this process; what does not fill one is left out."""
        count, rank = (1, 0) if whole else (processes.count(), processes.rank())
        generator = torch.Generator().manual_seed(self._seed + APART * epoch)
        order = torch.randperm(len(self), generator=generator)[: self.steps * self.batch_size].numpy()
        if rank:
            generator.manual_seed(self._seed + APART * epoch + rank)
        for images, labels in self._read(order[rank::count], self.batch_size // count):
            yield self.augmentation(images, generator), labels

    def _read(self, chosen: np.ndarray, batch_size: int) -> Iterator[Batch]:
        bench = self._bench
        for images, labels in bench.data.take(chosen).batches(bench.preprocessing, batch_size=batch_size):
            assert labels is not None
            yield images.to(bench.device), labels.to(bench.device)


def _schedule(settings: TrainingSettings, *, epochs: int, data: _Data, device: torch.device) -> Schedule:
    half = settings.precision == "bfloat16" or (settings.precision == "auto" and runs_bfloat16(device))
    return Schedule(
        epochs=epochs,
        steps_an_epoch=data.steps,
        ramp=settings.ramp,
        learning_rate=settings.learning_rate * min(math.sqrt(1000 / (epochs * data.steps)), MOST_HASTE),
        bank_learning_rate=settings.bank_learning_rate,
        plain_learning_rate=settings.plain_learning_rate,
        distillation=settings.distillation,
        beta=settings.beta,
        warm_up=settings.warm_up,
        dataset_size=len(data),
        only_bank=settings.trained == "bank",
        noisy=settings.noise,
        half=half,
    )


def _held(validation: Bench) -> tuple[torch.Tensor, np.ndarray]:
    """Inputs for choices, on the CPU, and their labels."""
    pixels = validation.inputs(at_most=1)[0, 0].numel()
    at_most = min(HELD_INPUTS, max(HELD_PIXELS // pixels, 1))
    return validation.inputs(at_most=at_most), np.asarray(validation.data.sample(at_most).labels)


def _log_probabilities(network: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return logits(network, [(part, None) for part in inputs.split(128)]).double().log_softmax(dim=1)


def _mean(trainer: Trainer, inputs: torch.Tensor) -> torch.Tensor:
    """Log probabilities of the posterior-mean network."""
    return _run(trainer, trainer.mean_weights(), inputs).log_softmax(dim=1)


def _monte_carlo(trainer: Trainer, inputs: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Probabilities averaged over draws."""
    generator, ids = torch.Generator(device=trainer.shared.device).manual_seed(seed), trainer.shared.ids()
    draws = (_run(trainer, trainer.shared.weights(ids, generator), inputs).softmax(dim=1) for _ in range(DRAWS))
    return average(draws).probabilities


@torch.no_grad()
def _run(trainer: Trainer, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """float64 logits (N, C) on the CPU, in evaluation mode; the network's mode stays."""
    network, device = trainer.network, trainer.shared.device
    with evaluating(network):
        outputs = [run_with(network, weights, part.to(device)) for part in inputs.split(128)]
    return torch.cat(outputs).double().cpu()
