"""Checkpoints and artifacts on data: accuracy, calibration, agreement."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gbnn_compress.checkpoint.architecture_index import find_architectures
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.checkpoint.select import floating_shapes
from gbnn_compress.data.architectures import build_network, default_preprocessing, load_weights
from gbnn_compress.data.datasets import Dataset, load_data
from gbnn_compress.data.preprocessing import Preprocessing
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError, listed, require_seed
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.format.container import FORMAT
from gbnn_compress.predict import metrics, temperature
from gbnn_compress.predict.detection import detection, spreads
from gbnn_compress.predict.draws import sampler
from gbnn_compress.predict.monte_carlo import monte_carlo
from gbnn_compress.predict.prediction import Prediction, at_temperature, average
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.reliability import reliability
from gbnn_compress.predict.running import check_labels, logits, probabilities, require_classes
from gbnn_compress.report import evaluation_page, words
from gbnn_compress.report.evaluation_page import EvaluationPage
from gbnn_compress.report.schema import SCHEMA, EvaluationEntry, EvaluationReport, ScaledMeasures
from gbnn_compress.report.templated import require_writable
from gbnn_compress.types import Artifact, Checkpoint, Fit, Reliability

if TYPE_CHECKING:
    import torch


FEW_INPUTS = 50
"""A single one of fewer inputs is over two points of accuracy."""

MOST_LEFT_OUT = 0.2
"""Share of a checkpoint's weights that a network may leave out without a warning."""


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
    key: str | None = None,
    ood: str | None = None,
    val_data: str | None = None,
    reference: str | Path | None = None,
    samples: int = 16,
    seed: int = 0,
    html: str | Path | None = None,
) -> EvaluationReport:
    """What the probabilities of a checkpoint or an artifact are worth.

    Args:
        model: A checkpoint, file or folder (evaluated as it is), or an artifact (averaged over posterior draws).
        data: Labelled data's specification, or an `Evaluation` that also says how to read it.
        arch: Specification of the network; default: what the artifact records or the index finds.
        key: Which network of the checkpoint, where it holds several: see `compress`.
        ood: Specification of out-of-distribution data to tell apart from `data`.
        val_data: Specification of labelled data to fit one temperature on, which neither trained nor judges it.
        reference: The checkpoint (or artifact, at its mean) that predictions are compared with.
        samples: Posterior draws of an artifact (an `Evaluation` has its own).
        seed: Of the first posterior draw.
        html: Where to write a page with reliability diagrams and histograms of the OOD scores.

    Returns:
        `{"schema", "model", "data", "inputs", "reference", "samples", "seed", "warnings"}` and
        `metrics.measures`: `accuracy`, `nll` (nats), `ece`, `brier`, `adaptive_ece`, `coverage_at_5_percent_risk`.
        With `ood`: `"ood": {"auroc", "fpr95"}` by predictive entropy, and the same in it by `max_probability` and, over
        several draws, `mutual_information`. With `reference`: `agreement` and `logit_kl` (nats). With `val_data`:
        `temperature`, and in `scaled` the measures and `ood` at it. `folded_temperature` where an artifact
        holds one; everything else is then measured with it applied. `notes` where the network left something out.

    Raises:
        GbnnError: Bad model, architecture or data.
    """
    if html is not None:
        require_writable(Path(html), model=Path(model))
    require_seed(seed)
    loaded = read_model(Path(model), key=key)
    bench = Bench(loaded, as_evaluation(data, samples=samples), arch)
    strange = None if ood is None else bench.on(load_data(ood, labels=False), option="--ood")
    held_out = None if val_data is None else bench.on(load_data(val_data), option="--val-data")
    compared = None if reference is None else read_model(Path(reference))
    if compared is not None:
        bench.require_fitting(compared, name=str(reference), option="--reference")

    inside = bench.predict(loaded, seed=seed)
    outside = None if strange is None else strange.predict(loaded, seed=seed)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "model": str(model),
        "data": bench.evaluation.data,
        "inputs": len(bench.labels),
        "reference": None if reference is None else str(reference),
        "samples": inside.samples,
        "seed": seed if isinstance(loaded, Artifact) else None,
    }
    if isinstance(loaded, Artifact) and temperature.FACT in loaded.facts:
        result["folded_temperature"] = temperature.folded_temperature(loaded)
    result |= _measures(inside, bench.labels, outside)
    if notes := extra_notes(bench.fit, spec=bench.architecture):
        result["notes"] = list(notes)
    result["warnings"] = [
        *left_out_warnings(bench.fit, loaded, spec=bench.architecture),
        *baseline_warnings(bench, result, name=words.name_of(model)),
    ]
    predictions = {"as it is": inside}
    if compared is not None:
        before = bench.predict(compared, samples=0).probabilities
        result["agreement"] = metrics.agreement(before, inside.probabilities)
        result["logit_kl"] = metrics.logit_kl(before, inside.probabilities)
    if held_out is not None:
        t = temperature.fit_temperature(held_out.predict(loaded, seed=seed).probabilities, held_out.labels)
        scaled_outside = None if outside is None else at_temperature(outside, t)
        result["temperature"] = t
        predictions["scaled"] = at_temperature(inside, t)
        result["scaled"] = _measures(predictions["scaled"], bench.labels, scaled_outside)
    if html is not None:
        shown = EvaluationPage(
            name=words.name_of(model),
            result=result,
            reliability={name: reliability(each.probabilities, bench.labels) for name, each in predictions.items()},
            ood=ood,
            spreads={} if outside is None else spreads(inside, outside),
            reference=None if reference is None else words.name_of(reference),
        )
        evaluation_page.write(shown, Path(html))
    return cast("EvaluationReport", result)


def _measures(inside: Prediction, labels: Any, outside: Prediction | None) -> ScaledMeasures:
    result: ScaledMeasures = {**metrics.measures(inside.probabilities, labels)}
    if outside is not None:
        result["ood"] = detection(inside, outside)
    return result


def evaluate_compression(
    bench: Bench, checkpoint: Checkpoint, artifact: Artifact, *, seed: int
) -> tuple[EvaluationEntry, dict[str, Any], dict[str, Reliability]]:
    """The report's `evaluation` and its measured `damage`, and what a reliability diagram shows.

    Args:
        bench: The network and the data.
        checkpoint: Before.
        artifact: After.
        seed: Of the first posterior draw.

    Returns:
        Metrics of the checkpoint (`before`), of the artifact by Monte-Carlo (`after`) and at the posterior mean
        (`mean`); drop (points), agreement and logit KL (nats) of the posterior mean; and the reliability of `before`
        and `after`.
    """
    before = bench.run(checkpoint.tensors)
    mean = bench.predict(artifact, samples=0).probabilities
    after = bench.probabilities(artifact, seed=seed)
    named = {"before": before, "after": after, "mean": mean}
    summaries = {name: metrics.summary(p, bench.labels) for name, p in named.items()}
    damage = {**asdict(metrics.damage(before, mean, bench.labels)), "measured": True}
    evaluation: EvaluationEntry = {
        "data": bench.evaluation.data,
        "samples": bench.evaluation.samples,
        "before": summaries["before"],
        "after": summaries["after"],
        "mean": summaries["mean"],
    }
    return evaluation, damage, {name: reliability(named[name], bench.labels) for name in ("before", "after")}


def baseline_warnings(bench: Bench, measured: Mapping[str, Any], *, name: str) -> list[str]:
    """What casts doubt on a measurement: few inputs, or a model that does no better there than one that knows nothing.

    Args:
        bench: The data.
        measured: `accuracy` and `nll`.
        name: Of the model.
    """
    import torch

    n_inputs, counts = len(bench.labels), torch.as_tensor(bench.labels).bincount()
    usual, kinds = float(counts.max()) / n_inputs, int(counts.count_nonzero())
    if n_inputs < FEW_INPUTS:
        return [f"`{bench.option}` has few inputs, {n_inputs}: one of them is {100 / n_inputs:.3g} points of accuracy"]
    reached = usual + 2 * math.sqrt(usual * (1 - usual) / n_inputs)  # two standard errors
    accuracy, nll, guessed, option = measured["accuracy"], measured["nll"], math.log(kinds), f"`{bench.option}`"
    if accuracy <= reached and accuracy < 1:
        share = f"{100 * accuracy:.1f} % of {option}"
        found = f"is right on {share}, hardly better than always giving the most frequent label"
    elif kinds > 1 and nll > guessed:
        found = f"has an NLL of {nll:.3g} nats on {option}, where guessing among {kinds} labels has {guessed:.3g}"
    else:
        return []
    return [f"{name} {found}: check labels, preprocessing (`--mean`, `--std`, `--image-size`) and `--arch`"]


def as_evaluation(data: str | Evaluation, *, samples: int) -> Evaluation:
    """An `Evaluation` as it is, or one of a data specification."""
    return data if isinstance(data, Evaluation) else Evaluation(data, samples=samples)


def read_model(path: Path, *, key: str | None = None) -> Checkpoint | Artifact:
    """Open a checkpoint (a file or a folder) or an artifact, told apart by what the file says of itself.

    Args:
        path: The file or folder.
        key: Which network of the checkpoint; ignored for an artifact, which holds one.

    Raises:
        GbnnError: Neither.
    """
    return read_artifact(path) if is_artifact(path) else read_checkpoint(path, key=key)


def extra_notes(fit: Fit, *, spec: str) -> tuple[str, ...]:
    """A sentence on what a network left out of a checkpoint, if there is something."""
    if not fit.extra:
        return ()
    return (f"`{spec}` has no {listed(fit.extra)}: kept in the file, not used by the network.",)


def left_out_warnings(fit: Fit, model: Checkpoint | Artifact, *, spec: str) -> list[str]:
    """What to warn of where a network leaves out more of a checkpoint than counters, heads and losses are."""
    sizes = {name: math.prod(shape) for name, shape in shapes_of(model).items()}
    left = sum(sizes.get(name, 0) for name in fit.extra) / max(sum(sizes.values()), 1)
    if left <= MOST_LEFT_OUT:
        return []
    found = f"`{spec}` has no tensor for {words.percent(left)} of the weights"
    return [f"{found} ({listed(fit.extra)}): what is said of the network is said without them; check `--arch`"]


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
        option: str = "--data",
    ) -> None:
        if evaluation.samples < 1:
            raise GbnnError(f"`--samples`: expected at least 1, got {evaluation.samples}")
        self.evaluation = evaluation
        self.architecture = architecture or known_architecture(model)
        self.device = device_named(evaluation.device)
        self.network = build_network(self.architecture, n_classes=find_architectures(shapes_of(model)).n_classes).to(
            self.device
        )
        self._use(load_data(evaluation.data, labels=labels), option=option)
        self.fit = self._load(dense(model))

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
