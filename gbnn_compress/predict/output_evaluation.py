"""Evaluation of networks that are no classifiers: measures of outputs, by a reference, a loss, or a metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from gbnn_compress.data.kind import OTHER
from gbnn_compress.errors import GbnnError
from gbnn_compress.predict.differences import OutputDifference, left_out_note, lost_warnings
from gbnn_compress.predict.measuring import Measured, measure, weights_of
from gbnn_compress.report.schema import ChangedNumber, EvaluationEntry
from gbnn_compress.types import Artifact, Checkpoint, Ensemble, Model

if TYPE_CHECKING:
    from gbnn_compress.predict.bench import Bench

BEFORE, AFTER, MEAN = "before", "after", "mean"
"""Sets of weights: the reference; the model, averaged over posterior draws; the model at its posterior mean."""


def measured_outputs(
    bench: Bench,
    model: Model,
    reference: Model | None,
    *,
    seed: int,
    compare: bool = True,
    reference_bench: Bench | None = None,
) -> dict[str, Measured]:
    """Measure a model, and a reference if there is one.

    Args:
        bench: The network and the data.
        model: The weights.
        reference: The weights whose outputs the model's are compared with, at their posterior mean.
        seed: Seed of the first draw.
        compare: Whether outputs are compared; otherwise only metric and loss are measured.
        reference_bench: The network of the reference, if it is another one.

    Returns:
        The measures `after` and `mean`; with a reference, also `before`.

    Raises:
        GbnnError: There is neither a reference nor a metric; or a network, the loss or the metric fails.
    """
    if reference is None and bench.metric is None and bench.loss is None:
        raise GbnnError(
            f"`{bench.option}`: this network is no classifier, so accuracy, NLL and ECE do not apply; give the network"
            " that outputs are compared with (`--reference`) or a measure of your own (`--metric`), or `--task"
            " classifier` if it is one"
        )
    require_measurable(bench, model, reference)
    compare = compare and reference is not None
    after = weights_of(bench, model, samples=bench.evaluation.samples, seed=seed)
    models = {AFTER: after, MEAN: after.at_mean()}
    if reference is not None:
        models = {BEFORE: weights_of(reference_bench or bench, reference, samples=0), **models}
    return measure(bench, models, reference=BEFORE if compare else None)


def require_measurable(bench: Bench, *models: Model | None) -> None:
    """Refuse measures of the user that an ensemble does not have.

    Raises:
        GbnnError: A metric, which runs one network; or a loss of classifiers, whose logits are not averaged.
    """
    if not any(isinstance(model, Ensemble) for model in models):
        return
    for option, given in (("--metric", bench.metric), ("--loss", None if bench.task == OTHER else bench.loss)):
        if given is not None:
            raise GbnnError(
                f"`{option}`: it is measured on one network, not on an ensemble; leave it out, or measure the members'"
                " own files"
            )


def output_measures(found: Mapping[str, Measured]) -> dict[str, Any]:
    """The measures for `evaluate`.

    Args:
        found: From `measured_outputs`.

    Returns:
        `relative_error`, `cosine` and `outputs` of outputs averaged over draws, and in `mean` of the posterior mean;
        `metric` and `loss` before and after, as far as they were measured.
    """
    after, mean = found[AFTER], found[MEAN]
    compared = {} if after.difference is None else Measured(after.difference).as_json()
    at_mean = {} if mean.difference is None else {"mean": Measured(mean.difference).as_json()}
    return {**compared, **at_mean, **changed_numbers(found)}


def changed_numbers(found: Mapping[str, Measured]) -> dict[str, ChangedNumber]:
    """`metric` and `loss` before (None without a reference) and after, as far as they were measured."""
    numbers = {}
    for name in ("metric", "loss"):
        before, after = (None if key not in found else getattr(found[key], name) for key in (BEFORE, AFTER))
        if after is not None:
            numbers[name] = cast("ChangedNumber", {"before": before, "after": after})
    return numbers


def output_warnings(found: Mapping[str, Measured], *, inputs: str, reference: str) -> list[str]:
    """Warnings of outputs that are lost, and of outputs that could not be compared."""
    difference = found[AFTER].difference
    if difference is None:
        return []
    note = left_out_note(difference)
    return [*lost_warnings(_worse(difference, found[MEAN].difference), inputs=inputs, reference=reference)] + (
        [note] if note else []
    )


def evaluate_output_compression(
    bench: Bench, checkpoint: Checkpoint, artifact: Artifact | Ensemble, *, seed: int
) -> tuple[EvaluationEntry, dict[str, Any], list[str]]:
    """Measure an artifact against its checkpoint.

    Args:
        bench: The network and the data.
        checkpoint: The network before compression.
        artifact: The network after compression.
        seed: Seed of the first posterior draw.

    Returns:
        The report's `evaluation`: measures of the checkpoint (`before`), of the artifact averaged over posterior draws
        (`after`) and at its posterior mean (`mean`). The report's `damage`, at the posterior mean. Warnings.
    """
    found = measured_outputs(bench, artifact, checkpoint, seed=seed)
    evaluation = {
        "data": bench.evaluation.data,
        "samples": bench.evaluation.samples,
        **{name: each.as_json() for name, each in found.items()},
    }
    mean = found[MEAN]
    assert mean.difference is not None
    damage = {
        **dict.fromkeys(("drop", "agreement", "logit_kl", "safe_ratio")),
        "measured": True,
        **Measured(mean.difference).as_json(),
        **changed_numbers({BEFORE: found[BEFORE], AFTER: mean}),
    }
    warnings = output_warnings(found, inputs=f"`{bench.option}`", reference="the checkpoint")
    return cast("EvaluationEntry", evaluation), damage, warnings


def _worse(one: OutputDifference, other: OutputDifference | None) -> OutputDifference:
    """The difference with the larger relative error."""
    if other is None or other.relative_error is None or one.relative_error is None:
        return one
    return max((one, other), key=lambda each: each.relative_error or 0.0)
