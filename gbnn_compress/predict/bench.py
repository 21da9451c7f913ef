"""A network with a data set, on which several sets of weights can be run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.architectures import default_preprocessing, load_weights
from gbnn_compress.data.batches import Batch, read_batch
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.kind import CLASSIFIER, OTHER
from gbnn_compress.data.loaders import Batches, load_data
from gbnn_compress.data.preprocessing import Preprocessing
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError, is_whole
from gbnn_compress.predict.draws import sampler
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.models import OpenedNetwork, dense, open_members, open_network
from gbnn_compress.predict.monte_carlo import monte_carlo
from gbnn_compress.predict.prediction import Prediction, across_members, average
from gbnn_compress.predict.running import check_labels, class_labels, copied, logits, probabilities, require_classes
from gbnn_compress.predict.use import Use
from gbnn_compress.types import Artifact, Checkpoint, Ensemble, Fit, Model

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Evaluation:
    """A data set, and the settings with which a network is evaluated on it.

    `mean`, `std` and `image_size` override the architecture's preprocessing; None keeps it.

    Attributes:
        data: Data specification, or an object that yields batches (`data.loaders.load_data`).
        samples: Number of posterior draws of an artifact, >= 1. Their probabilities are averaged.
        mean: Mean of each channel, in units of x / 255.
        std: Standard deviation of each channel, in units of x / 255.
        image_size: Height and width of the inputs, in pixels.
        device: `auto`, or a device of torch such as `cpu` or `cuda`.
    """

    data: Any
    samples: int = 16
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    device: str = "auto"


def as_evaluation(data: Any, *, samples: int) -> Evaluation:
    """Return an `Evaluation` unchanged; make one of a data specification or an object."""
    return data if isinstance(data, Evaluation) else Evaluation(data, samples=samples)


def open_bench(
    model: Model,
    evaluation: Evaluation,
    arch: Any = None,
    *,
    labels: bool | None = True,
    option: str = "--data",
    use: Use | None = None,
) -> Bench:
    """Build a model's network, or those of an ensemble, and load the data of an evaluation.

    Args:
        model: The weights.
        evaluation: The data and the settings.
        arch: Specification of the network, a module or a callable that makes one. Default: the one that the artifact
            records or the index finds. Of an ensemble, also a list with one for each member.
        labels: Whether images must have labels. None: labels are optional. Other data keep the targets that they have.
        option: The option that names the data, for messages.
        use: How the network is run and measured.

    Raises:
        GbnnError: The data or the architecture are unknown or do not fit.
    """
    networks = open_members(model, arch) if isinstance(model, Ensemble) else [open_network(model, arch)]
    data = load_data(evaluation.data, labels=labels, option=option)
    made = {id(opened): Bench(opened, data, evaluation, option=option, use=use) for opened in networks}
    first, *others = (made[id(opened)] for opened in networks)
    return first.with_others(others) if others else first


@dataclass(frozen=True)
class _Values:
    """The batches of a bench as the data yield them, again and again."""

    bench: Bench

    def __iter__(self) -> Iterator[Any]:
        return (batch.value for batch in self.bench.batches())

    def __call__(self) -> Iterator[Any]:
        """A new iterator, as the function returns it that the user gave as data."""
        return iter(self)


class Bench:
    """A network with a data set, on which several sets of weights can be run.

    Attributes:
        others: For an ensemble, the benches of the members after the first, on the same data. Members of one
            architecture share a bench.
    """

    data: Dataset | Batches
    others: tuple[Bench, ...] = ()

    def __init__(
        self,
        opened: OpenedNetwork,
        data: Dataset | Batches,
        evaluation: Evaluation,
        *,
        option: str = "--data",
        use: Use | None = None,
    ) -> None:
        """Combine a network and a data set.

        Args:
            opened: The network. Several benches may share it, because each run loads its weights first.
            data: The inputs.
            evaluation: Preprocessing, number of draws and device.
            option: The option that names the data, for messages.
            use: How the network is run and measured.

        Raises:
            GbnnError: A setting of the evaluation is out of range, or the data do not fit the network.
        """
        if not is_whole(evaluation.samples) or evaluation.samples < 1:
            raise GbnnError(f"`--samples`: expected at least 1, got {evaluation.samples}")
        self.evaluation = replace(evaluation, data=data.spec)
        self.use = use or Use()
        self.architecture, self.fit = opened.spec, opened.fit
        self.device = device_named(evaluation.device)
        self.network = opened.on(self.device)
        self._use(data, option=option)

    @property
    def labels(self) -> Any:
        """Labels of the data, int64 (N,), or None. Of data that are no images, all batches are read once."""
        return self.data.labels

    @property
    def forward(self) -> Forward:
        """The forward pass."""
        return self.use.forward

    @property
    def metric(self) -> Callable[[torch.nn.Module, Any], Any] | None:
        """`g(network, data) -> float` of the user, or None."""
        return self.use.metric

    @property
    def loss(self) -> Callable[[Any, Any], Any] | None:
        """`l(outputs, batch) -> scalar tensor` of the user, or None."""
        return self.use.loss

    @property
    def task(self) -> str | None:
        """`classifier`, `other`, or None if the task is not known."""
        return self.use.task

    @property
    def images(self) -> Dataset:
        """The data as a data set of images.

        Raises:
            DataError: The data are no images of a specification.
        """
        if isinstance(self.data, Dataset):
            return self.data
        raise DataError(f"`{self.option}`: expected images (such as npz:FILE with uint8 `x`), got `{self.data.spec}`")

    def batches(self, *, seed: int = 0) -> Iterator[Batch]:
        """All data in order, on the CPU. Images are preprocessed; their value is `images` or `(images, labels)`.

        Args:
            seed: Seed of the random generators that the user's data draw from. The same seed gives the same batches.
        """
        if isinstance(self.data, Batches):
            yield from self.data.pass_with(seed)
            return
        for images, labels in self._batches():
            yield read_batch(images if labels is None else (images, labels))

    @property
    def user_data(self) -> Any:
        """The data as the user's `metric` takes them: the user's object; of files, functions and parts, all batches."""
        data = self.data
        if isinstance(data, Batches) and data.chosen is None and isinstance(data.loader, Iterable):
            return data.loader
        return _Values(self)

    def with_task(self, task: str | None) -> Bench:
        """The same bench with a known task."""
        return self.with_use(replace(self.use, task=task))

    def with_use(self, use: Use) -> Bench:
        """The same bench, run and measured in another way."""
        other = copy.copy(self)
        other.use = use
        return other.with_others([each.with_use(use) for each in self.others])

    def with_others(self, others: Iterable[Bench]) -> Bench:
        """The same bench with those of an ensemble's further members."""
        other = copy.copy(self)
        other.others = tuple(others)
        return other

    def members(self, model: Ensemble) -> list[tuple[Bench, Artifact]]:
        """Each member of an ensemble with its bench."""
        return list(zip((self, *self.others), model.members, strict=True))

    def with_own_network(self) -> Bench:
        """The same bench with a copy of the network, whose weights other benches do not change."""
        other = copy.copy(self)
        other.network = copied(self.network)
        return other

    def on(self, data: Dataset | Batches, *, option: str) -> Bench:
        """The same network on other data."""
        other = copy.copy(self)
        other.evaluation = replace(self.evaluation, data=data.spec)
        other._use(data, option=option)
        return other.with_others([each.on(data, option=option) for each in self.others])

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
        """Check that a classifier runs on the first input and has a class for each label.

        Raises:
            GbnnError: The network fails on the input, has a single output, or lacks the class of a label.
        """
        import torch

        if self.task == OTHER:
            return
        first = read_batch(self.inputs(at_most=1)) if isinstance(self.data, Dataset) else self.data.first
        n_classes = self._logits([first]).shape[1]
        require_classes(n_classes, option=self.option)
        labels = self.class_labels()
        if labels is not None:
            check_labels(torch.as_tensor(labels), n_classes, option=self.option)

    def class_labels(self) -> np.ndarray | None:
        """Labels of the rows that `predict` returns, int64 (N,) with IGNORED where there is none; None without labels.

        Of outputs with more than two axes, each position has a label. All batches are read once.
        """
        import numpy as np

        if self.data.labels is not None or isinstance(self.data, Dataset):
            return self.data.labels
        if not self.data.has_targets or self.task != CLASSIFIER:
            return None
        found = [class_labels(batch) for batch in self.batches()]
        parts = [each.numpy() for each in found if each is not None]
        return np.concatenate(parts) if len(parts) == len(found) else None

    def required_labels(self) -> np.ndarray:
        """`class_labels` of data that must have labels.

        Raises:
            DataError: The data have no integer labels.
        """
        found = self.class_labels()
        if found is not None:
            return found
        if isinstance(self.data, Dataset):
            load_data(self.data.spec, labels=True, option=self.option)  # says what the file lacks
        raise DataError(
            f"`{self.option}`: a classifier is measured by integer labels, and `{self.data.spec}` has none; give"
            " labels, or compare outputs (`--task other` with `--reference`)"
        )

    @property
    def n_inputs(self) -> int:
        """Number of inputs. Data that are no images are read once."""
        return len(self.data) if isinstance(self.data, Dataset) else self.data.n_inputs

    def predict(self, model: Model, *, samples: int | None = None, seed: int = 0) -> Prediction:
        """Predict with a checkpoint's weights, or average over posterior draws of an artifact, or of all members.

        Args:
            model: Weights of this network.
            samples: Number of draws. 0: the posterior mean. None: the evaluation's number.
            seed: Seed of the first draw.
        """
        if isinstance(model, Ensemble):
            members = self.members(model)
            return across_members([bench.predict(each, samples=samples, seed=seed) for bench, each in members])
        if isinstance(model, Checkpoint):
            return average([self.run(model.tensors)])
        source = sampler(model, self.network, load=self._load)
        draws = self.evaluation.samples if samples is None else samples
        return monte_carlo(source, self.batches(), samples=draws, seed=seed, **self._running)

    def probabilities(self, model: Checkpoint | Artifact, *, seed: int) -> torch.Tensor:
        """Probabilities of `predict`, float64 (N, C)."""
        return self.predict(model, seed=seed).probabilities

    def run(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Probabilities of one set of weights, float64 (N, C)."""
        self._load(tensors)
        return probabilities(self.network, self.batches(), **self._running)

    @property
    def _running(self) -> dict[str, Any]:
        """How classifiers run; positions count only for networks that are known as classifiers."""
        return {"option": self.option, "forward": self.forward, "positions": self.task == CLASSIFIER}

    def _logits(self, batches: Iterable[Batch]) -> torch.Tensor:
        return logits(self.network, batches, **self._running)

    def inputs(self, *, at_most: int) -> torch.Tensor:
        """A fixed random sample of the preprocessed inputs, float32 (N, channels, height, width), on the CPU.

        The sample is random because data sets may be sorted by class.
        """
        import torch

        return torch.cat([images for images, _ in self.images.sample(at_most).batches(self._image_preprocessing)])

    def inputs_at(self, places: np.ndarray) -> torch.Tensor:
        """The preprocessed images at some positions, float32 (n, channels, height, width), on the CPU."""
        import torch

        data = self.images.take(places)
        return torch.cat([images for images, _ in data.batches(self._image_preprocessing)])

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> Fit:
        return load_weights(self.network, tensors, spec=self.architecture)

    def _batches(self) -> Iterator[Any]:
        return self.images.batches(self._image_preprocessing)

    @property
    def _image_preprocessing(self) -> Preprocessing:
        assert self.preprocessing is not None
        return self.preprocessing

    def _use(self, data: Dataset | Batches, *, option: str) -> None:
        """Set the data and, of images, their preprocessing."""
        self.data, self.option = data, option
        self.preprocessing: Preprocessing | None = None
        if isinstance(data, Batches):
            self.data = replace(data, option=option)
            return
        fitting = self._in_its_channels(data)
        self.data = fitting
        self.preprocessing = self._preprocessing(fitting, "mean", "std", "image_size")
        self.preprocessing.require_channels(fitting.n_channels, spec=data.spec)

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
