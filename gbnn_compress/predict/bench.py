"""A network with a data set, on which several sets of weights can be run."""

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
    """A data set, and the settings with which a network is evaluated on it.

    `mean`, `std` and `image_size` override the architecture's preprocessing; None keeps it.

    Attributes:
        data: Data specification.
        samples: Number of posterior draws of an artifact, >= 1. Their probabilities are averaged.
        mean: Mean of each channel, in units of x / 255.
        std: Standard deviation of each channel, in units of x / 255.
        image_size: Height and width of the inputs, in pixels.
        device: `auto`, or a device of torch such as `cpu` or `cuda`.
    """

    data: str
    samples: int = 16
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    device: str = "auto"


def as_evaluation(data: str | Evaluation, *, samples: int) -> Evaluation:
    """Return an `Evaluation` unchanged; make one of a data specification."""
    return data if isinstance(data, Evaluation) else Evaluation(data, samples=samples)


def open_bench(
    model: Checkpoint | Artifact,
    evaluation: Evaluation,
    arch: str | None = None,
    *,
    labels: bool | None = True,
    option: str = "--data",
) -> Bench:
    """Build a model's network and load the data of an evaluation.

    Args:
        model: The weights.
        evaluation: The data and the settings.
        arch: Specification of the network. Default: the one that the artifact records or the index finds.
        labels: Whether the data must have labels. None: labels are optional.
        option: The option that names the data, for messages.

    Raises:
        GbnnError: The data or the architecture are unknown or do not fit.
    """
    opened = open_network(model, arch)
    return Bench(opened, load_data(evaluation.data, labels=labels), evaluation, option=option)


class Bench:
    """A network with a data set, on which several sets of weights can be run."""

    def __init__(self, opened: OpenedNetwork, data: Dataset, evaluation: Evaluation, *, option: str = "--data") -> None:
        """Combine a network and a data set.

        Args:
            opened: The network. Several benches may share it, because each run loads its weights first.
            data: The inputs.
            evaluation: Preprocessing, number of draws and device.
            option: The option that names the data, for messages.

        Raises:
            GbnnError: A setting of the evaluation is out of range, or the data do not fit the network.
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
        """Labels of the data, int64 (N,), or None."""
        return self.data.labels

    def on(self, data: Dataset, *, option: str) -> Bench:
        """The same network on other data."""
        other = copy.copy(self)
        other._use(data, option=option)
        return other

    def require_fitting(self, model: Checkpoint | Artifact, *, name: str, option: str) -> None:
        """Check that a model's weights fit the network.

        Args:
            model: The weights.
            name: Name of the model, for messages.
            option: The option that names the model, for messages.

        Raises:
            ArchitectureError: Names or shapes of the tensors differ.
        """
        try:
            self._load(dense(model))
        except ArchitectureError as error:
            raise ArchitectureError(f"`{option} {name}`: {error}") from None

    def require_usable(self) -> None:
        """Check that the network runs on the first input and has a class for each label.

        Raises:
            GbnnError: The network fails on the input, has a single output, or lacks the class of a label.
        """
        import torch

        n_classes = logits(self.network, [(self.inputs(at_most=1), None)], option=self.option).shape[1]
        require_classes(n_classes, option=self.option)
        if self.data.labels is not None:
            check_labels(torch.as_tensor(self.data.labels), n_classes, option=self.option)

    def predict(self, model: Checkpoint | Artifact, *, samples: int | None = None, seed: int = 0) -> Prediction:
        """Predict with a checkpoint's weights, or average over posterior draws of an artifact.

        Args:
            model: Weights of this network.
            samples: Number of draws. 0: the posterior mean. None: the evaluation's number.
            seed: Seed of the first draw.
        """
        if isinstance(model, Checkpoint):
            return average([self.run(model.tensors)])
        source = sampler(model, self.network, load=self._load)
        draws = self.evaluation.samples if samples is None else samples
        return monte_carlo(source, self._batches(), samples=draws, seed=seed, option=self.option)

    def probabilities(self, model: Checkpoint | Artifact, *, seed: int) -> torch.Tensor:
        """Probabilities of `predict`, float64 (N, C)."""
        return self.predict(model, seed=seed).probabilities

    def run(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Probabilities of one set of weights, float64 (N, C)."""
        self._load(tensors)
        return probabilities(self.network, self._batches(), option=self.option)

    def inputs(self, *, at_most: int) -> torch.Tensor:
        """A fixed random sample of the preprocessed inputs, float32 (N, channels, height, width), on the CPU.

        The sample is random because data sets may be sorted by class.
        """
        import torch

        return torch.cat([images for images, _ in self.data.sample(at_most).batches(self.preprocessing)])

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> Fit:
        return load_weights(self.network, tensors, spec=self.architecture)

    def _batches(self) -> Iterator[Any]:
        return self.data.batches(self.preprocessing)

    def _use(self, data: Dataset, *, option: str) -> None:
        """Set the data and their preprocessing."""
        self.data, self.option = self._in_its_channels(data), option
        self.preprocessing = self._preprocessing(self.data, "mean", "std", "image_size")
        self.preprocessing.require_channels(self.data.n_channels, spec=data.spec)

    def _in_its_channels(self, data: Dataset) -> Dataset:
        """Grey images with three equal channels as images with one, if the network needs one channel."""
        grey = data.in_one_channel()
        if grey is None:
            return data
        refusal = self._refusal_of(data)
        wrong_channels = isinstance(refusal, DataError)  # not, for example, a wrong size
        return grey if refusal and (wrong_channels or not self._refusal_of(grey)) else data

    def _preprocessing(self, data: Dataset, *options: str) -> Preprocessing:
        """The architecture's preprocessing, with the named settings of the evaluation where they are given."""
        usual = default_preprocessing(self.architecture, n_channels=data.n_channels)
        given = {key: getattr(self.evaluation, key) for key in options}
        return replace(usual, **{key: value for key, value in given.items() if value is not None})

    def _refusal_of(self, data: Dataset) -> GbnnError | None:
        """The error that the network raises on the first image, whatever its weights; None if it runs."""
        import numpy as np

        batches = data.take(np.arange(1)).batches(self._preprocessing(data, "image_size"))
        try:
            logits(self.network, [(images, None) for images, _ in batches])
        except GbnnError as error:
            return error
        return None


def device_named(name: str) -> torch.device:
    """The device of `--device`; `auto` is the GPU if torch finds one, else the CPU.

    Raises:
        GbnnError: torch has no device of that name on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise GbnnError(f"`--device`: expected auto, cpu or a device that torch sees here, got `{name}`") from None
