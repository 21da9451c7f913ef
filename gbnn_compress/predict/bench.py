"""One network and one data set, to run several sets of weights on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.architectures import default_preprocessing, load_weights
from gbnn_compress.data.datasets import Dataset, load_data
from gbnn_compress.data.preprocessing import Preprocessing
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError
from gbnn_compress.predict.draws import sampler
from gbnn_compress.predict.models import OpenedNetwork, dense, open_network
from gbnn_compress.predict.monte_carlo import monte_carlo
from gbnn_compress.predict.prediction import Prediction, average
from gbnn_compress.predict.running import check_labels, logits, probabilities, require_classes
from gbnn_compress.types import Artifact, Checkpoint, Fit

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate on, and how.

    Attributes:
        data: Data specification.
        samples: Posterior draws of an artifact; their probabilities are averaged.
        mean: Overrides the architecture's preprocessing; so do the next two.
        std: Divisor by channel.
        image_size: Height and width.
        device: `auto`, `cpu`, `cuda`, ...
    """

    data: str
    samples: int = 16
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    device: str = "auto"


def as_evaluation(data: str | Evaluation, *, samples: int) -> Evaluation:
    """An `Evaluation` as it is, or one of a data specification."""
    return data if isinstance(data, Evaluation) else Evaluation(data, samples=samples)


def open_bench(
    model: Checkpoint | Artifact,
    evaluation: Evaluation,
    arch: str | None = None,
    *,
    labels: bool | None = True,
    option: str = "--data",
) -> Bench:
    """Open a model's network and the data of an evaluation.

    Args:
        model: The weights.
        evaluation: What to evaluate on, and how.
        arch: Specification of the network; default: what the artifact records or the index finds.
        labels: Whether the data must have labels; None: they may.
        option: Where the data come from, for messages.

    Raises:
        GbnnError: Bad data or architecture.
    """
    opened = open_network(model, arch)
    return Bench(opened, load_data(evaluation.data, labels=labels), evaluation, option=option)


class Bench:
    """One network and one data set, to run several sets of weights on."""

    def __init__(self, opened: OpenedNetwork, data: Dataset, evaluation: Evaluation, *, option: str = "--data") -> None:
        """Put a network and data together.

        Args:
            opened: The network; other benches may share it, as each run loads its weights first.
            data: The inputs.
            evaluation: How to preprocess them, how many draws, and where to run.
            option: Where the data come from, for messages.

        Raises:
            GbnnError: The evaluation or the data do not fit.
        """
        if evaluation.samples < 1:
            raise GbnnError(f"`--samples`: expected at least 1, got {evaluation.samples}")
        self.evaluation = evaluation
        self.architecture, self.fit = opened.spec, opened.fit
        self.device = device_named(evaluation.device)
        self.network = opened.on(self.device)
        self._use(data, option=option)

    @property
    def labels(self) -> Any:
        """int64 (N,)."""
        return self.data.labels

    def on(self, data: Dataset, *, option: str) -> Bench:
        """The same network on other data."""
        other = copy.copy(self)
        other._use(data, option=option)
        return other

    def require_fitting(self, model: Checkpoint | Artifact, *, name: str, option: str) -> None:
        """Refuse weights of another network.

        Raises:
            ArchitectureError: Their names or shapes are others.
        """
        try:
            self._load(dense(model))
        except ArchitectureError as error:
            raise ArchitectureError(f"`{option} {name}`: {error}") from None

    def require_usable(self) -> None:
        """Refuse data that the network cannot be run on, or that has labels it has no class for.

        Raises:
            GbnnError: Of one input, or of the labels.
        """
        import torch

        n_classes = logits(self.network, [(self.inputs(at_most=1), None)], option=self.option).shape[1]
        require_classes(n_classes, option=self.option)
        if self.data.labels is not None:
            check_labels(torch.as_tensor(self.data.labels), n_classes, option=self.option)

    def predict(self, model: Checkpoint | Artifact, *, samples: int | None = None, seed: int = 0) -> Prediction:
        """A checkpoint's own prediction, or an artifact's over its posterior draws.

        Args:
            model: Of this network.
            samples: Draws; 0 for the posterior mean, None for the evaluation's number.
            seed: Of the first draw.
        """
        if isinstance(model, Checkpoint):
            return average([self.run(model.tensors)])
        source = sampler(model, self.network, load=self._load)
        draws = self.evaluation.samples if samples is None else samples
        return monte_carlo(source, self._batches(), samples=draws, seed=seed, option=self.option)

    def probabilities(self, model: Checkpoint | Artifact, *, seed: int) -> torch.Tensor:
        """float64 (N, C): a checkpoint's own, or the mean over an artifact's posterior draws."""
        return self.predict(model, seed=seed).probabilities

    def run(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float64 (N, C), probabilities of one set of weights."""
        self._load(tensors)
        return probabilities(self.network, self._batches(), option=self.option)

    def inputs(self, *, at_most: int) -> torch.Tensor:
        """float32 (N, ...), a fixed choice from all inputs (they may be sorted by class), preprocessed, on the CPU."""
        import torch

        return torch.cat([images for images, _ in self.data.sample(at_most).batches(self.preprocessing)])

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> Fit:
        return load_weights(self.network, tensors, spec=self.architecture)

    def _batches(self) -> Iterator[Any]:
        return self.data.batches(self.preprocessing)

    def _use(self, data: Dataset, *, option: str) -> None:
        """Take data, preprocessed as is usual for the architecture but for what was given instead."""
        self.data, self.option = self._in_its_channels(data), option
        self.preprocessing = self._preprocessing(self.data, "mean", "std", "image_size")
        self.preprocessing.require_channels(self.data.n_channels, spec=data.spec)

    def _in_its_channels(self, data: Dataset) -> Dataset:
        """Grey images that are given in three channels in one, where the network runs on one only, or asks for it."""
        grey = data.in_one_channel()
        if grey is None:
            return data
        refusal = self._refusal_of(data)
        wants_others = isinstance(refusal, DataError)  # and not, say, another size
        return grey if refusal and (wants_others or not self._refusal_of(grey)) else data

    def _preprocessing(self, data: Dataset, *options: str) -> Preprocessing:
        """What is usual for the architecture, but for those of some options that were given."""
        usual = default_preprocessing(self.architecture, n_channels=data.n_channels)
        given = {key: getattr(self.evaluation, key) for key in options}
        return replace(usual, **{key: value for key, value in given.items() if value is not None})

    def _refusal_of(self, data: Dataset) -> GbnnError | None:
        """Why the network, whatever its weights, does not run on the first image; None if it does."""
        import numpy as np

        batches = data.take(np.arange(1)).batches(self._preprocessing(data, "image_size"))
        try:
            logits(self.network, [(images, None) for images, _ in batches])
        except GbnnError as error:
            return error
        return None


def device_named(name: str) -> torch.device:
    """The device of `--device`; `auto` is a GPU where torch sees one.

    Raises:
        GbnnError: There is none of that name here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise GbnnError(f"`--device`: expected auto, cpu or a device that torch sees here, got `{name}`") from None
