"""Evaluation of checkpoints and artifacts on data: accuracy, calibration and agreement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gbnn_compress.data.kind import OTHER
from gbnn_compress.data.loaders import load_data
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError, require_seed
from gbnn_compress.files import refuse_inputs
from gbnn_compress.predict import metrics, temperature
from gbnn_compress.predict.bench import Bench, as_evaluation, open_bench
from gbnn_compress.predict.detection import detection, spreads
from gbnn_compress.predict.models import arch_of, extra_notes, left_out_warnings, read_model
from gbnn_compress.predict.output_evaluation import (
    AFTER,
    changed_numbers,
    measured_outputs,
    output_measures,
    output_warnings,
    require_measurable,
)
from gbnn_compress.predict.prediction import Prediction, at_temperature, average
from gbnn_compress.predict.reliability import reliability
from gbnn_compress.predict.running import IGNORED
from gbnn_compress.predict.trial import settled
from gbnn_compress.predict.use import use_of
from gbnn_compress.report import evaluation_page, words
from gbnn_compress.report.evaluation_page import EvaluationPage
from gbnn_compress.report.schema import (
    SCHEMA,
    EvaluationEntry,
    EvaluationReport,
    OutputEvaluationReport,
    ScaledMeasures,
)
from gbnn_compress.report.templated import require_writable
from gbnn_compress.types import Artifact, Checkpoint, Ensemble, Model, Reliability

if TYPE_CHECKING:
    import numpy as np
    import torch

FEW_INPUTS = 50
"""With fewer inputs, each input is more than 2 points of accuracy, and a warning says so."""


def evaluate(
    model: Any,
    data: Any,
    *,
    arch: Any = None,
    key: str | None = None,
    task: str | None = None,
    ood: Any = None,
    val_data: Any = None,
    reference: Any = None,
    forward: Callable[[torch.nn.Module, Any], Any] | str | None = None,
    output: str | int | None = None,
    metric: Callable[[torch.nn.Module, Any], Any] | str | None = None,
    loss: Callable[[Any, Any], Any] | str | None = None,
    samples: int = 16,
    seed: int = 0,
    html: str | Path | None = None,
) -> EvaluationReport | OutputEvaluationReport:
    """Evaluate a checkpoint or an artifact on data: the probabilities of a classifier, the outputs of other networks.

    Probabilities, or outputs, of an artifact are averaged over posterior draws.

    Args:
        model: A checkpoint (file, folder, module or mapping), an artifact or an ensemble.
        data: Data specification or object, or an `Evaluation` that also says how to read the data. Classifiers need
            labels.
        arch: Specification of the network, a module, or a callable that makes one. Default: the one that the artifact
            records or the index finds. Of an ensemble, also a list with one for each member.
        key: Network to take from a checkpoint that holds several: an entry of the wrapper, or a prefix of names.
        task: `classifier` or `other`. Default: the task that the artifact records, or else what labels, the index of
            architectures and the outputs suggest.
        ood: Out-of-distribution data, to be detected by the uncertainty of a classifier's predictions.
        val_data: Labelled data to fit a classifier's temperature on. Use neither training data nor `data`.
        reference: The checkpoint or artifact that outputs are compared with; an artifact at its posterior mean. Other
            networks than classifiers need this, or a metric.
        forward: `f(network, batch) -> outputs`, where calling the network with the inputs does not fit; or text
            `path.py:callable`, as for `metric` and `loss`.
        output: Name or position of the one output that counts. Default: every floating output.
        metric: `g(network, data) -> float`, more is better.
        loss: `l(outputs, batch) -> scalar tensor`.
        samples: Number of posterior draws of an artifact; ignored if `data` is an `Evaluation`, which has its own.
        seed: Seed of the first posterior draw.
        html: Path of a page with reliability diagrams and histograms of the out-of-distribution scores, or with the
            measures of outputs.

    Returns:
        `schema`, `model`, `data`, `inputs`, `reference`, `samples`, `seed` and `warnings`. Of classifiers, the metrics
        `accuracy`, `nll` (nats), `ece`, `brier`, `adaptive_ece` and `coverage_at_5_percent_risk`, and:

        * With `ood`: `ood`, which holds `auroc` and `fpr95` of the predictive entropy, and both for
          `max_probability` and, with several draws, for `mutual_information`.
        * With `reference`: `agreement` and `logit_kl` (nats).
        * With `val_data`: `temperature`, and `scaled` with the metrics and `ood` at that temperature.
        * `members`, the number of networks, of an ensemble.
        * `folded_temperature` if the artifact holds a temperature, which is then applied in all metrics; of an ensemble
          `folded_temperatures`, one per member.

        Of other networks, `task`, and with `reference`: `relative_error`, `cosine` and `outputs` (the relative error of
        each output), and the same in `mean` for the posterior mean. Of both:

        * With `metric` or `loss`: `metric` and `loss`, each with its value `before` (of the reference) and `after`.
          Metrics are those of the posterior mean.
        * `notes` if the network has no place for some of the model's tensors.

    Raises:
        GbnnError: A model, the architecture or the data cannot be read or do not fit; a classifier has no labels;
            another network has neither reference nor metric.
    """
    evaluation = as_evaluation(data, samples=samples)
    named = (evaluation.data, ood, val_data, reference, arch, forward, metric, loss)
    paths = [each for each in named if isinstance(each, str | Path)]
    if html is not None:
        _require_page(Path(html), model, paths)
    require_seed(seed)
    loaded = read_model(model, key=key)
    use = use_of(forward=forward, output=output, metric=metric, loss=loss, task=task)
    bench = open_bench(loaded, evaluation, arch_of(model, arch), labels=None, use=use)
    compared = None if reference is None else read_model(reference, argument="reference")
    place = 0 if compared is None else _fitting(compared, bench, name=words.path_of(reference))
    bench = settled(bench, loaded)
    require_measurable(bench, loaded)
    runs_reference = (bench, *bench.others)[place]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "model": words.path_of(model),
        "data": bench.evaluation.data,
        "inputs": 0,
        "reference": None if reference is None else words.path_of(reference),
        "samples": 1 if isinstance(loaded, Checkpoint) else bench.evaluation.samples,
        "seed": None if isinstance(loaded, Checkpoint) else seed,
    }
    if isinstance(loaded, Ensemble):
        result["members"] = len(loaded.members)
    notes, left_out = _left_out(bench, loaded)
    if bench.task == OTHER:
        for option, given in (("--ood", ood), ("--val-data", val_data)):
            if given is not None:
                raise GbnnError(f"`{option}`: it needs the class probabilities of a classifier; leave it out")
        measured = _outputs(bench, loaded, compared, runs_reference, reference=reference, seed=seed)
        pictures: dict[str, Any] = {}
    else:
        measured, pictures = _classes(
            bench, loaded, compared, runs_reference, ood=ood, val_data=val_data, seed=seed, name=words.name_of(model)
        )
    result |= measured
    result["warnings"] = [*left_out, *measured["warnings"]]
    if notes:
        result["notes"] = list(notes)
    if html is not None:
        shown = EvaluationPage(
            name=words.name_of(model),
            result=result,
            ood=None if ood is None else words.path_of(ood),
            reference=None if reference is None else words.name_of(reference),
            **pictures,
        )
        evaluation_page.write(shown, Path(html))
    return cast("EvaluationReport", result)


def _fitting(compared: Model, bench: Bench, *, name: str) -> int:
    """The first member whose network the reference fits; 0 for a model of one network.

    Raises:
        GbnnError: There is none, or the reference is an ensemble.
    """
    if isinstance(compared, Ensemble):
        raise GbnnError(
            f"`--reference {name}`: expected one network, got an ensemble; name a checkpoint or a single file"
        )
    refusals = []
    for number, each in enumerate((bench, *bench.others)):
        try:
            each.require_fitting(compared, name=name, option="--reference")
        except ArchitectureError as error:
            refusals.append(error)
        else:
            return number
    raise refusals[0]


def _left_out(bench: Bench, model: Model) -> tuple[list[str], list[str]]:
    """Notes and warnings on tensors that a network has no place for."""
    members = bench.members(model) if isinstance(model, Ensemble) else [(bench, model)]
    notes, warnings = list[str](), list[str]()
    for own, each in members:
        notes += extra_notes(own.fit, spec=own.architecture)
        warnings += left_out_warnings(own.fit, each, spec=own.architecture)
    return list(dict.fromkeys(notes)), list(dict.fromkeys(warnings))


def _require_page(path: Path, model: Any, reads: Sequence[str | Path]) -> None:
    """Refuse a page that cannot be written, or that would overwrite what is read."""
    models = {"model": Path(model)} if isinstance(model, str | Path) else {}
    require_writable(path, **models)
    refuse_inputs(path, *reads, option="--html")


def _outputs(
    bench: Bench, model: Model, compared: Model | None, runs_reference: Bench, *, reference: Any, seed: int
) -> dict[str, Any]:
    """The measures of a network that is no classifier."""
    found = measured_outputs(bench, model, compared, seed=seed, reference_bench=runs_reference)
    n_inputs = found[AFTER].n_inputs
    name = "" if reference is None else words.name_of(reference)
    return {
        "inputs": bench.n_inputs if n_inputs is None else n_inputs,
        "task": OTHER,
        **output_measures(found),
        "warnings": output_warnings(found, inputs=f"`{bench.option}`", reference=name),
    }


def _classes(
    bench: Bench,
    model: Model,
    compared: Model | None,
    runs_reference: Bench,
    *,
    ood: Any,
    val_data: Any,
    seed: int,
    name: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The measures of a classifier, and what the page draws."""
    labels = bench.required_labels()
    strange = None if ood is None else bench.on(load_data(ood, labels=False, option="--ood"), option="--ood")
    held_out = None if val_data is None else bench.on(load_data(val_data, option="--val-data"), option="--val-data")

    inside = labelled(bench.predict(model, seed=seed), labels)
    outside = None if strange is None else strange.predict(model, seed=seed)
    known = labels[labels != IGNORED]
    result: dict[str, Any] = {"inputs": len(known), **_folded_temperatures(model)}
    result |= _measures(inside, known, outside)
    predictions = {"as it is": inside}
    result["warnings"] = baseline_warnings(bench, result, name=name, labels=known)
    before = None if compared is None else labelled(runs_reference.predict(compared, samples=0), labels).probabilities
    if before is not None:
        result["agreement"] = metrics.agreement(before, inside.probabilities)
        result["logit_kl"] = metrics.logit_kl(before, inside.probabilities)
    if held_out is not None:
        others = held_out.required_labels()
        t = temperature.fit_temperature(
            labelled(held_out.predict(model, seed=seed), others).probabilities, others[others != IGNORED]
        )
        scaled_outside = None if outside is None else at_temperature(outside, t)
        result["temperature"] = t
        predictions["scaled"] = at_temperature(inside, t)
        result["scaled"] = _measures(predictions["scaled"], known, scaled_outside)
    if bench.metric is not None or bench.loss is not None:
        result |= changed_numbers(measured_outputs(bench, model, compared, seed=seed, compare=False))
    pictures = {
        "reliability": {name: reliability(each.probabilities, known) for name, each in predictions.items()},
        "spreads": {} if outside is None else spreads(inside, outside),
    }
    return result, pictures


def _folded_temperatures(model: Model) -> dict[str, Any]:
    """The temperatures that a file holds: of one network, or of each member if any holds one."""
    if isinstance(model, Artifact) and temperature.FACT in model.facts:
        return {"folded_temperature": temperature.folded_temperature(model)}
    if isinstance(model, Ensemble) and any(temperature.FACT in member.facts for member in model.members):
        return {"folded_temperatures": [temperature.folded_temperature(member) for member in model.members]}
    return {}


def _measures(inside: Prediction, labels: Any, outside: Prediction | None) -> ScaledMeasures:
    result: ScaledMeasures = {**metrics.measures(inside.probabilities, labels)}
    if outside is not None:
        result["ood"] = detection(inside, outside)
    return result


def labelled(prediction: Prediction, labels: np.ndarray) -> Prediction:
    """A prediction without the rows whose label is IGNORED.

    Args:
        prediction: N rows.
        labels: int64 (N,).

    Raises:
        DataError: The numbers of rows and labels differ.
    """
    import torch

    if len(labels) != len(prediction.probabilities):
        raise DataError(f"expected one label per prediction, {len(prediction.probabilities)}, got {len(labels)}")
    kept = torch.from_numpy(labels != IGNORED)
    if kept.all():
        return prediction
    rows = ("probabilities", "entropy", "mutual_information")
    return replace(prediction, **{name: getattr(prediction, name)[kept] for name in rows})


def evaluate_compression(
    bench: Bench, checkpoint: Checkpoint, artifact: Artifact | Ensemble, *, seed: int
) -> tuple[EvaluationEntry, dict[str, Any], dict[str, Reliability]]:
    """Measure a checkpoint and its artifact on labelled data.

    Args:
        bench: The network and the data.
        checkpoint: The network before compression.
        artifact: The network after compression.
        seed: Seed of the first posterior draw.

    Returns:
        The report's `evaluation`: metrics of the checkpoint (`before`), of the artifact averaged over posterior draws
        (`after`) and at its posterior mean (`mean`). The report's `damage`: accuracy drop (points), agreement and
        logit KL (nats) at the posterior mean, and the user's metric and loss. The reliability of `before` and `after`.
    """
    labels = bench.required_labels()
    known = labels[labels != IGNORED]
    predictions = {
        "before": average([bench.run(checkpoint.tensors)]),
        "mean": bench.predict(artifact, samples=0),
        "after": bench.predict(artifact, seed=seed),
    }
    named = {name: labelled(each, labels).probabilities for name, each in predictions.items()}
    summaries = {name: metrics.summary(p, known) for name, p in named.items()}
    damage = {**asdict(metrics.damage(named["before"], named["mean"], known)), "measured": True}
    if bench.metric is not None or bench.loss is not None:
        damage |= changed_numbers(measured_outputs(bench, artifact, checkpoint, seed=seed, compare=False))
    evaluation: EvaluationEntry = {
        "data": bench.evaluation.data,
        "samples": bench.evaluation.samples,
        "before": summaries["before"],
        "after": summaries["after"],
        "mean": summaries["mean"],
    }
    return evaluation, damage, {name: reliability(named[name], known) for name in ("before", "after")}


def baseline_warnings(
    bench: Bench, measured: Mapping[str, Any], *, name: str, labels: np.ndarray | None = None
) -> list[str]:
    """Warn of a measurement that proves little: few inputs, or a model that is hardly better than guessing.

    Args:
        bench: The data.
        measured: Metrics of the model: `accuracy` and `nll` (nats).
        name: Name of the model, for messages.
        labels: int64 (N,) in 0..C-1. Default: those of the data.
    """
    import torch

    if labels is None:
        every = bench.required_labels()
        labels = every[every != IGNORED]
    n_inputs, counts = len(labels), torch.as_tensor(labels).bincount()
    most_frequent, n_labels = float(counts.max()) / n_inputs, int(counts.count_nonzero())
    if n_inputs < FEW_INPUTS:
        return [f"`{bench.option}` has only {n_inputs} inputs: each is {100 / n_inputs:.3g} points of accuracy"]
    reached = most_frequent + 2 * math.sqrt(most_frequent * (1 - most_frequent) / n_inputs)  # two standard errors
    accuracy, nll, guessed = measured["accuracy"], measured["nll"], math.log(n_labels)
    option = f"`{bench.option}`"
    if accuracy <= reached and accuracy < 1:
        found = (
            f"has an accuracy of {100 * accuracy:.1f} % on {option}, hardly better than always predicting the most"
            " frequent label"
        )
    elif n_labels > 1 and nll > guessed:
        found = f"has an NLL of {nll:.3g} nats on {option}, while guessing among {n_labels} labels gives {guessed:.3g}"
    else:
        return []
    return [f"{name} {found}: check labels, preprocessing (`--mean`, `--std`, `--image-size`) and `--arch`"]
