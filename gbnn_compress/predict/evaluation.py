"""Checkpoints and artifacts on data: accuracy, calibration, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import require_seed
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
"""A single one of fewer inputs is over two points of accuracy."""


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
    bench = open_bench(loaded, as_evaluation(data, samples=samples), arch)
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
