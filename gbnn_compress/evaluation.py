"""Checkpoints and artifacts on data: accuracy, calibration, agreement."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.codec.artifact import read_artifact
from gbnn_compress.codec.container import FORMAT
from gbnn_compress.errors import ArchitectureError, GbnnError
from gbnn_compress.output.sizes import SCHEMA
from gbnn_compress.tasks import (
    Dataset,
    Preprocessing,
    build_network,
    default_preprocessing,
    load_data,
    load_weights,
)
from gbnn_compress.types import Artifact, Checkpoint
from gbnn_compress.variational import metrics
from gbnn_compress.variational.predict import logits
from gbnn_compress.weights.architecture import find_architectures
from gbnn_compress.weights.checkpoint import read_checkpoint
from gbnn_compress.weights.rebuild import rebuild
from gbnn_compress.weights.select import floating_shapes

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


def evaluate(
    model: str | Path,
    data: str | Evaluation,
    *,
    arch: str | None = None,
    ood: str | None = None,
    samples: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy, NLL, ECE and Brier score of a checkpoint or an artifact, and OOD AUROC.

    Args:
        model: A checkpoint (evaluated as it is) or an artifact (averaged over posterior draws).
        data: Data specification, or an `Evaluation` that also says how to read it.
        arch: Specification of the network; default: what the artifact records or the index finds.
        ood: Specification of out-of-distribution data; inputs are ranked by predictive entropy.
        samples: Posterior draws of an artifact (an `Evaluation` has its own).
        seed: Of the first posterior draw.

    Returns:
        `{"schema", "model", "samples", "accuracy", "nll", "ece", "brier"}`, and `"ood": {"auroc"}` with `ood`.

    Raises:
        GbnnError: Bad model, architecture or data.
    """
    loaded = read_model(Path(model))
    evaluation = as_evaluation(data, samples=samples)
    bench = Bench(loaded, evaluation, arch)
    probabilities = bench.probabilities(loaded, seed=seed)
    result = {
        "schema": SCHEMA,
        "model": str(model),
        "samples": evaluation.samples if isinstance(loaded, Artifact) else 1,
        **metrics.summary(probabilities, bench.labels),
    }
    if ood is not None:
        outside = bench.on(load_data(ood, labels=False), option="--ood").probabilities(loaded, seed=seed)
        scores = (metrics.predictive_entropy(p) for p in (probabilities, outside))
        result["ood"] = {"auroc": metrics.auroc(*scores)}
    return result


def evaluate_compression(
    bench: Bench, checkpoint: Checkpoint, artifact: Artifact, *, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report's `evaluation` and its measured `damage`.

    Args:
        bench: The network and the data.
        checkpoint: Before.
        artifact: After.
        seed: Of the first posterior draw.

    Returns:
        Metrics of the checkpoint (`before`), of the artifact by Monte-Carlo (`after`) and at the posterior mean
        (`mean`); and drop (points), agreement and logit KL (nats) of the posterior mean.
    """
    before = bench.probabilities(checkpoint, seed=seed)
    mean = bench.run(rebuild(artifact))
    after = bench.probabilities(artifact, seed=seed)
    named = {"before": before, "after": after, "mean": mean}
    summaries = {name: metrics.summary(p, bench.labels) for name, p in named.items()}
    damage = {
        "drop": 100 * (summaries["before"]["accuracy"] - summaries["mean"]["accuracy"]),
        "agreement": metrics.agreement(before, mean),
        "logit_kl": metrics.logit_kl(before, mean),
        "measured": True,
    }
    return {"data": bench.evaluation.data, "samples": bench.evaluation.samples, **summaries}, damage


def diff(
    first: str | Path,
    second: str | Path,
    *,
    data: str | Evaluation | None = None,
    arch: str | None = None,
    samples: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Two checkpoints or artifacts side by side.

    Args:
        first: The reference.
        second: The other.
        data: For agreement and metrics; labels are optional. As for `evaluate`.
        arch: As for `evaluate`.
        samples: As for `evaluate`.
        seed: Of the first posterior draw.

    Returns:
        `bytes` of both files, `tensors` (relative error and largest error of each common tensor),
        `only_in_first`, `only_in_second`, and with data `agreement`, `logit_kl` (posterior means) and the metrics.

    Raises:
        GbnnError: Bad model, architecture or data.
    """
    paths = (Path(first), Path(second))
    models = tuple(read_model(path) for path in paths)
    a, b = (dense(model) for model in models)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "models": [str(path) for path in paths],
        "bytes": [path.stat().st_size for path in paths],
        "tensors": [_tensor_difference(name, a[name], b[name]) for name in a if name in b],
        "only_in_first": [name for name in a if name not in b],
        "only_in_second": [name for name in b if name not in a],
    }
    if data is None:
        return result
    bench = Bench(models[0], as_evaluation(data, samples=samples), arch, labels=None)
    p, q = bench.run(a), bench.run(b)
    result |= {"agreement": metrics.agreement(p, q), "logit_kl": metrics.logit_kl(p, q)}
    if bench.data.labels is not None:
        drawn = [bench.probabilities(model, seed=seed) for model in models]
        result["metrics"] = [metrics.summary(each, bench.labels) for each in drawn]
    return result


def as_evaluation(data: str | Evaluation, *, samples: int) -> Evaluation:
    """An `Evaluation` as it is, or one of a data specification."""
    return data if isinstance(data, Evaluation) else Evaluation(data, samples=samples)


def read_model(path: Path) -> Checkpoint | Artifact:
    """Open a checkpoint or an artifact, told apart by what the file says of itself.

    Raises:
        GbnnError: Neither.
    """
    return read_artifact(path) if is_artifact(path) else read_checkpoint(path)


def is_artifact(path: Path) -> bool:
    """Whether a file is a safetensors container that names our format."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return f'{{"__metadata__":{{"{FORMAT}":'.encode() in file.read(64)
    except OSError:
        return False


def dense(model: Checkpoint | Artifact) -> Mapping[str, torch.Tensor]:
    """The state dict of a checkpoint, or the posterior mean of an artifact."""
    return rebuild(model) if isinstance(model, Artifact) else model.tensors


def shapes_of(model: Checkpoint | Artifact) -> dict[str, tuple[int, ...]]:
    """Shapes of the floating tensors."""
    if isinstance(model, Checkpoint):
        return floating_shapes(model.tensors)
    return {info.name: info.shape for info in model.tensors if "float" in info.dtype}


def known_architecture(model: Checkpoint | Artifact) -> str:
    """The one architecture that fits a model.

    Raises:
        ArchitectureError: None or several do.
    """
    recorded = model.facts["checkpoint"]["architecture"] if isinstance(model, Artifact) else None
    names = (recorded,) if recorded else find_architectures(shapes_of(model)).names
    if len(names) == 1:
        return names[0]
    found = f"several fit ({', '.join(names[:6])})" if names else "no torchvision or timm network fits its tensors"
    raise ArchitectureError(
        f"the network is not known: {found}; name it with `--arch`, such as torchvision/resnet18 or models.py:resnet20"
    )


class Bench:
    """One network and one data set, to run several sets of weights on."""

    def __init__(
        self,
        model: Checkpoint | Artifact,
        evaluation: Evaluation,
        architecture: str | None,
        *,
        labels: bool | None = True,
    ) -> None:
        if evaluation.samples < 1:
            raise GbnnError(f"`--samples`: expected at least 1, got {evaluation.samples}")
        self.evaluation = evaluation
        self.architecture = architecture or known_architecture(model)
        self.device = _device(evaluation.device)
        self.network = build_network(self.architecture, n_classes=find_architectures(shapes_of(model)).n_classes).to(
            self.device
        )
        self.data = load_data(evaluation.data, labels=labels)
        self.option = "--data"
        load_weights(self.network, dense(model), spec=self.architecture)

    @property
    def labels(self) -> Any:
        """int64 (N,)."""
        return self.data.labels

    def on(self, data: Dataset, *, option: str) -> Bench:
        """The same network on other data."""
        other = copy.copy(self)
        other.data, other.option = data, option
        return other

    def probabilities(self, model: Checkpoint | Artifact, *, seed: int) -> torch.Tensor:
        """float64 (N, C): a checkpoint's own, or the mean over an artifact's posterior draws."""
        if isinstance(model, Checkpoint):
            return self.run(model.tensors)
        draws = self.evaluation.samples
        return sum(self.run(rebuild(model, seed=seed + draw)) for draw in range(draws)) / draws  # type: ignore[return-value]

    def run(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float64 (N, C), probabilities of one set of weights."""
        load_weights(self.network, tensors, spec=self.architecture)
        return logits(self.network, self._batches(), option=self.option).double().softmax(dim=1)

    def inputs(self, *, at_most: int) -> torch.Tensor:
        """float32 (N, ...), a fixed choice from all inputs (they may be sorted by class), preprocessed, on the CPU."""
        import torch

        return torch.cat([images for images, _ in self.data.sample(at_most).batches(self.preprocessing)])

    def _batches(self) -> Iterator[Any]:
        return self.data.batches(self.preprocessing)

    @property
    def preprocessing(self) -> Preprocessing:
        """The architecture's, with what was given instead."""
        usual = default_preprocessing(self.architecture, n_channels=self.data.n_channels)
        given = {key: getattr(self.evaluation, key) for key in ("mean", "std", "image_size")}
        return replace(usual, **{key: value for key, value in given.items() if value is not None})


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise GbnnError(f"`--device`: expected auto, cpu or a device that torch sees here, got `{name}`") from None


def _tensor_difference(name: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
    import torch

    if a.shape != b.shape:
        return {
            "name": name,
            "shapes": [list(a.shape), list(b.shape)],
            "relative_rmse": None,
            "max_error": None,
        }
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    difference, reference = (b.to(wide) - a.to(wide)).abs(), a.to(wide).abs()
    norm = float((reference**2).sum().sqrt())
    error = float((difference**2).sum().sqrt())
    return {
        "name": name,
        "shapes": [list(a.shape)],
        "relative_rmse": error / norm if norm else (0.0 if error == 0 else None),
        "max_error": float(difference.max()) if difference.numel() else 0.0,
    }
