"""Evaluation of checkpoints and artifacts on data: accuracy, calibration and agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import require_seed
from gbnn_compress.files import refuse_inputs
from gbnn_compress.predict import metrics, temperature
from gbnn_compress.predict.bench import Bench, Evaluation, as_evaluation, open_bench
from gbnn_compress.predict.detection import detection, spreads
from gbnn_compress.predict.models import extra_notes, left_out_warnings, read_model
from gbnn_compress.predict.prediction import Prediction, at_temperature
from gbnn_compress.predict.reliability import reliability
from gbnn_compress.report import evaluation_page, words
from gbnn_compress.report.evaluation_page import EvaluationPage
from gbnn_compress.report.schema import SCHEMA, EvaluationEntry, EvaluationReport, ScaledMeasures
from gbnn_compress.report.templated import require_writable
from gbnn_compress.types import Artifact, Checkpoint, Reliability

FEW_INPUTS = 50
"""With fewer inputs, each input is more than 2 points of accuracy, and a warning says so."""


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
    """Evaluate the probabilities of a checkpoint or an artifact on labelled data.

    The probabilities of an artifact are averaged over posterior draws.

    Args:
        model: A checkpoint (file or folder) or an artifact.
        data: Specification of labelled data, or an `Evaluation` that also says how to read the data.
        arch: Specification of the network. Default: the one that the artifact records or the index finds.
        key: Network to take from a checkpoint that holds several: an entry of the wrapper, or a prefix of names.
        ood: Specification of out-of-distribution data, to be detected by the uncertainty of the predictions.
        val_data: Specification of labelled data to fit a temperature on. Use neither training data nor `data`.
        reference: The checkpoint or artifact that predictions are compared with; an artifact at its posterior mean.
        samples: Number of posterior draws of an artifact; ignored if `data` is an `Evaluation`, which has its own.
        seed: Seed of the first posterior draw.
        html: Path of a page with reliability diagrams and histograms of the out-of-distribution scores.

    Returns:
        `schema`, `model`, `data`, `inputs`, `reference`, `samples`, `seed`, `warnings`, and the metrics `accuracy`,
        `nll` (nats), `ece`, `brier`, `adaptive_ece` and `coverage_at_5_percent_risk`. Further keys:

        * With `ood`: `ood`, which holds `auroc` and `fpr95` of the predictive entropy, and both for
          `max_probability` and, with several draws, for `mutual_information`.
        * With `reference`: `agreement` and `logit_kl` (nats).
        * With `val_data`: `temperature`, and `scaled` with the metrics and `ood` at that temperature.
        * `folded_temperature` if the artifact holds a temperature, which is then applied in all metrics.
        * `notes` if the network has no place for some of the model's tensors.

    Raises:
        GbnnError: A model, the architecture or the data cannot be read or do not fit.
    """
    evaluation = as_evaluation(data, samples=samples)
    if html is not None:
        require_writable(Path(html), model=Path(model))
        refuse_inputs(Path(html), evaluation.data, ood, val_data, reference, arch, option="--html")
    require_seed(seed)
    loaded = read_model(Path(model), key=key)
    bench = open_bench(loaded, evaluation, arch)
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
    """Measure a checkpoint and its artifact on labelled data.

    Args:
        bench: The network and the data.
        checkpoint: The network before compression.
        artifact: The network after compression.
        seed: Seed of the first posterior draw.

    Returns:
        The report's `evaluation`: metrics of the checkpoint (`before`), of the artifact averaged over posterior draws
        (`after`) and at its posterior mean (`mean`). The report's `damage`: accuracy drop (points), agreement and
        logit KL (nats) at the posterior mean. The reliability of `before` and `after`.
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
    """Warn of a measurement that proves little: few inputs, or a model that is hardly better than guessing.

    Args:
        bench: The data.
        measured: Metrics of the model: `accuracy` and `nll` (nats).
        name: Name of the model, for messages.
    """
    import torch

    n_inputs, counts = len(bench.labels), torch.as_tensor(bench.labels).bincount()
    most_frequent, n_labels = float(counts.max()) / n_inputs, int(counts.count_nonzero())
    if n_inputs < FEW_INPUTS:
        return [f"`{bench.option}` has only {n_inputs} inputs: each is {100 / n_inputs:.3g} points of accuracy"]
    reached = most_frequent + 2 * math.sqrt(most_frequent * (1 - most_frequent) / n_inputs)  # two standard errors
    accuracy, nll, guessed, option = measured["accuracy"], measured["nll"], math.log(n_labels), f"`{bench.option}`"
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
