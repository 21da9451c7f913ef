"""Training to a target: the network, its data and rate control around variational fine-tuning.

With labels, training is Bayesian: each step draws weights, and the file has the noise that helps most. Without them the
network learns to give the checkpoint's outputs at the posterior mean, unless the recipe asks for noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.loaders import Batches
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.running import copied
from gbnn_compress.recipe import Recipe, TrainingSettings
from gbnn_compress.report import words
from gbnn_compress.target.encode import Result
from gbnn_compress.target.forecast import find_safe_ratio
from gbnn_compress.target.prepared import Prepared
from gbnn_compress.training.batch_norm import settle_batch_norm
from gbnn_compress.training.batches import TrainingData
from gbnn_compress.training.encoder import SizeFitting, Trainer
from gbnn_compress.training.goal import Goal
from gbnn_compress.training.goals import find_goal, goal_on
from gbnn_compress.training.loaded import LoadedData, held_out, loaded_data
from gbnn_compress.training.loop import FineTuning, Progress, TrainingOutcome
from gbnn_compress.training.objective import runs_bfloat16
from gbnn_compress.training.schedule import Pacing, Schedule
from gbnn_compress.training.shared_weights import SharedWeights
from gbnn_compress.training.start import start_from
from gbnn_compress.training.state import StateFile
from gbnn_compress.training.validation import (
    Validation,
    choose_noise,
    fitted_temperature,
    mean_answers,
    mean_score,
    read_validation,
)

MOST_HELD_OUT = 2000
"""Most inputs of `--data` that are held out as validation data; otherwise a tenth."""

NOT_HELD_OUT = "no `--val-data`, and `--data` has one batch that cannot be split: it served as validation data, too"

HELD_OUT = (
    "no `--val-data`: a held-out part of `--data` served as validation data; a checkpoint trained on these inputs is"
    " overconfident there"
)

NORM_BATCHES = 40
"""Batches over which batch-norm statistics are averaged at the end."""

MOST_HASTE = 2.0
"""Largest factor by which the learning rate is raised where there are few steps."""


def training_benches(data: Bench, validation: Bench | None, *, seed: int) -> tuple[Bench, Bench]:
    """The network on data for training, and on validation data: those given, or a held-out part of the training data.

    Args:
        data: The network on the data for training.
        validation: The network on validation data, if they are given.
        seed: Of the part that is held out.

    Raises:
        DataError: Too few inputs.
    """
    if validation is not None:
        return data, validation
    if isinstance(data.data, Batches):
        parts: Iterable[Dataset | Batches] = held_out(data.data, at_most=MOST_HELD_OUT)
    else:
        parts = _images_held_out(data.images, seed=seed)
    train, held = (data.on(part, option="--data") for part in parts)
    return train, held


def _images_held_out(images: Dataset, *, seed: int) -> list[Dataset]:
    order = np.random.default_rng(seed).permutation(len(images))
    held = max(min(len(order) // 10, MOST_HELD_OUT), 1)
    if len(order) < 4:
        raise DataError(f"`--data` has {words.counted(len(order), 'input')}: too few to train on")
    return [images.take(np.sort(part)) for part in (order[held:], order[:held])]


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes:
        result: The file.
        validation: The validation data in memory, with the checkpoint's outputs.
    """

    result: Result
    validation: Validation


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
    on_progress: Callable[[str], None],
    state: StateFile,
    restart: bool,
    pacing: Pacing | None = None,
    fitting: SizeFitting | None = None,
    calibrated: Callable[[float], Result] | None = None,
) -> Trained:
    """Fine-tune a checkpoint into a file of the target ratio.

    Args:
        prepared: The checkpoint, ready for any ratio.
        train: Its network on the training data.
        validation: The same network on validation data.
        recipe: The configuration.
        epochs: Passes over the training data.
        target_ratio: Of the file, >= 1.
        ratio_of: `artifact` (bytes of the floating tensors over bytes of the file) or `parameters`.
        seed: Of shuffling, augmentation and posterior draws.
        on_progress: Called with one line of text after each epoch and when training does not go as usual.
        state: Keeps the state after each epoch; training continues from it.
        restart: Whether to start over even if there is a state.
        pacing: When rate control acts; default `Pacing()`.
        fitting: How the size comes close to the target; default `SizeFitting()`.
        calibrated: Makes the file of a ratio without training, which training without labels starts from; None starts
            from the checkpoint.

    Raises:
        GbnnError: Bad data, another file where the state belongs, or a loss that is not finite in the first epoch.
    """
    _check_names(prepared, train)
    read = None if isinstance(train.data, Dataset) else _loaded(train, seed=seed)
    goal = find_goal(prepared.kind, train, read)
    data = TrainingData(train, recipe.finetune, seed, goal) if read is None else read
    held = read_validation(validation, goal_on(validation, goal))
    trainer = Trainer(
        prepared=prepared,
        recipe=recipe,
        network=copied(train.network),
        names=train.fit.names,
        shared=_shared(prepared, train),
        target_ratio=target_ratio,
        ratio_of=ratio_of,
        safe_ratio=find_safe_ratio(prepared),
        facts=_facts(recipe.finetune, epochs),
        fitting=fitting or SizeFitting(),
    )
    begun = not goal.labelled and calibrated is not None and _begun(trainer, calibrated)
    schedule = _schedule(recipe, goal, epochs=epochs, data=data, device=train.device, pacing=pacing or Pacing())
    schedule = replace(schedule, coded=begun)
    tuning = FineTuning(
        trainer.network,
        trainer.shared,
        schedule,
        trainer,
        seed=seed,
        on_progress=on_progress,
        keep=state.write,
        start=state.read(restart=restart),
        goal=goal,
        teacher=train.network,
    )
    outcome = tuning.run(data.batches, after_epoch=lambda progress: on_progress(_line(progress, trainer, held)))
    notes = [_held_out_note(train, validation, goal)] if validation.option == "--data" else []
    notes += trainer.untrained()
    if outcome.steps < schedule.steps:
        notes.append(_stopped(outcome, schedule, state))
        trainer = replace(trainer, facts=_facts(recipe.finetune, outcome.steps // schedule.steps_an_epoch))
    fold_temperature = recipe.finetune.fold_temperature
    if fold_temperature is None:
        fold_temperature = validation.option != "--data"
    result = _finished(trainer, data, held, goal, fold_temperature=fold_temperature, seed=seed)
    unfinished = outcome.interrupted and outcome.steps < schedule.steps
    last = {} if outcome.last is None else {**outcome.last.losses, "bits_per_weight": outcome.last.bits_per_weight}
    return Trained(replace(result, notes=tuple(notes), training=last, unfinished=unfinished), held)


def progress_line(progress: Progress, *, score: str, target_ratio: float) -> str:
    """One line of text on an epoch.

    Args:
        progress: The progress after it.
        score: How good the posterior-mean network is, in words.
        target_ratio: Of the final file.
    """
    return (
        f"epoch {progress.epoch}/{progress.epochs}: loss = {words.losses(progress.losses)}, "
        f"{progress.bits_per_weight:.2f} bits per weight; {target_ratio / progress.relative_size:.3g}x now; {score}; "
        f"{words.seconds(progress.seconds_left)} left"
    )


def _begun(trainer: Trainer, calibrated: Callable[[float], Result]) -> bool:
    """Start from a calibrated file; False if there can be none."""
    try:
        begun = calibrated(trainer.first_ratio())
    except GbnnError:  # said again, as a note, when the trained file is compared
        return False
    start_from(trainer, begun.cut)
    return True


def _loaded(train: Bench, *, seed: int) -> LoadedData:
    assert isinstance(train.data, Batches)
    return loaded_data(train.data, device=train.device, seed=seed, option=train.option)


def _held_out_note(train: Bench, validation: Bench, goal: Goal) -> str:
    """The warning that there are no validation data; labels are what a checkpoint is overconfident about."""
    if isinstance(train.data, Batches) and validation.data is train.data:
        return NOT_HELD_OUT
    return HELD_OUT if goal.has_targets else HELD_OUT.partition(";")[0]


def _check_names(prepared: Prepared, bench: Bench) -> None:
    """Refuse a network whose tensors are not those of the checkpoint: shared weights could not be handed in."""
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


def _line(progress: Progress, trainer: Trainer, held: Validation) -> str:
    return progress_line(progress, score=mean_score(trainer, held), target_ratio=trainer.target_ratio)


def _shared(prepared: Prepared, train: Bench) -> SharedWeights:
    tensors, names = prepared.checkpoint.tensors, prepared.selection.shared
    return SharedWeights(tensors, names, device=train.device, own=train.fit.names)


def _facts(settings: TrainingSettings, epochs: int) -> dict[str, Any]:
    """The manifest's entry on training."""
    return {"training": {"epochs": epochs, "beta": settings.beta, "warm_up": settings.warm_up}}


def _schedule(
    recipe: Recipe,
    goal: Goal,
    *,
    epochs: int,
    data: TrainingData | LoadedData,
    device: torch.device,
    pacing: Pacing,
) -> Schedule:
    settings = recipe.finetune
    faster = settings.precision == "auto" and goal.classifier and runs_bfloat16(device)
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
        noisy=settings.noise and (goal.labelled or recipe.noise is not None),
        half=settings.precision == "bfloat16" or faster,
        pacing=pacing,
    )


def _stopped(outcome: TrainingOutcome, schedule: Schedule, state: StateFile) -> str:
    """The warning that training did not reach its last epoch."""
    way_out = "lower `finetune.learning_rate`"
    if outcome.interrupted:
        way_out = f"the same command {f'continues after epoch {state.epoch}' if state.epoch else 'starts over'}"
    done = outcome.steps / schedule.steps_an_epoch
    return f"training stopped after {done:.1f} of {schedule.epochs} epochs; {way_out}"


def _finished(
    trainer: Trainer,
    data: TrainingData | LoadedData,
    held: Validation,
    goal: Goal,
    *,
    fold_temperature: bool,
    seed: int,
) -> Result:
    """The final file: its size fitted, statistics settled, noise and temperature chosen, damage measured."""
    trainer.fit()
    if goal.in_training_mode:
        batches = itertools.islice(data.batches(0, whole=True), NORM_BATCHES)
        settle_batch_norm(trainer.network, trainer.mean_weights(), batches, goal=goal)
    choose_noise(trainer, held, seed=seed)
    damage = held.damage(mean_answers(trainer, held))
    folded = fitted_temperature(trainer, held, seed=seed) if fold_temperature else {}
    return trainer.filled(damage=damage, **folded)
