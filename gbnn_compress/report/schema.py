"""The reports of `compress`, `report`, `plan`, `evaluate`, `diff` and `export`, as types.

docs/reports.md gives the unit and the meaning of every key. Keys are only added while `SCHEMA` stays the same.

Annotations are not postponed here: with `from __future__ import annotations` a TypedDict would not know which of its
keys are required.
"""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

SCHEMA = 1
"""The value of `schema` in every report."""


class CheckpointEntry(TypedDict):
    """The checkpoint that a file was made from; a path and the candidates only where the checkpoint was opened."""

    path: NotRequired[str | None]
    sha256: str
    bytes: int
    parameters: int
    architecture: str | None
    notes: list[str]
    architecture_candidates: NotRequired[list[str]]


class ArtifactEntry(TypedDict):
    """The file; its path only in the report of `compress`."""

    path: NotRequired[str]
    sha256: str
    bytes: int


class BankEntry(TypedDict):
    """Number of components, in the file and before merging."""

    components: int
    components_before_merging: int


class WeightCounts(TypedDict):
    """Floating values by how they are stored; together all of the checkpoint."""

    shared: int
    blended: int
    outliers: int
    unshared: int


def total_values(weights: WeightCounts) -> int:
    """Number of floating values of the checkpoint, ties once."""
    return weights["shared"] + weights["blended"] + weights["outliers"] + weights["unshared"]


class SectionBytes(TypedDict):
    """Bytes of each section of a file; together all of its bytes."""

    bank: int
    index_maps: int
    outliers: int
    unshared: int
    header: int


class LayerEntry(TypedDict):
    """One shared tensor."""

    name: str
    shape: list[int]
    parameters: int
    bytes: int
    bits_per_weight: float
    relative_rmse: float
    components: int


class ComparedOutput(TypedDict):
    """One output of a network that is no classifier, compared with the reference's."""

    relative_error: float | None


class OutputMeasures(TypedDict):
    """Measures of a network that is no classifier."""

    relative_error: NotRequired[float | None]
    cosine: NotRequired[float | None]
    outputs: NotRequired[dict[str, ComparedOutput]]
    loss: NotRequired[float]
    metric: NotRequired[float]


class ChangedNumber(TypedDict):
    """The value of a measure of the user."""

    before: float | None
    after: float


class DamageEntry(TypedDict):
    """Predicted or measured damage."""

    drop: float | None
    agreement: float | None
    logit_kl: float | None
    measured: bool
    safe_ratio: float | None
    relative_error: NotRequired[float | None]
    cosine: NotRequired[float | None]
    outputs: NotRequired[dict[str, ComparedOutput]]
    metric: NotRequired[ChangedNumber]
    loss: NotRequired[ChangedNumber]
    assumes: NotRequired[str]


class Summary(TypedDict):
    """Four measures of predicted probabilities."""

    accuracy: float
    nll: float
    ece: float
    brier: float


class Measures(Summary):
    """All measures of predicted probabilities."""

    adaptive_ece: float
    coverage_at_5_percent_risk: float


class EvaluationEntry(TypedDict):
    """Measures before and after compression."""

    data: str
    samples: int
    before: Summary | OutputMeasures
    after: Summary | OutputMeasures
    mean: Summary | OutputMeasures


class LastEpoch(TypedDict):
    """Means over the last epoch of a training."""

    cross_entropy: NotRequired[float]
    loss: NotRequired[float]
    distillation: float
    divergence: float
    bits_per_weight: float


class TrainingEntry(TypedDict):
    """Settings of a training; the last epoch and the comparison only in the report of `compress`.

    `kept` is `trained` or `calibrated`: the better file of the two, whose scores by `measure` are beside.
    """

    epochs: int
    beta: float
    warm_up: NotRequired[float]
    last_epoch: NotRequired[LastEpoch]
    kept: NotRequired[str]
    measure: NotRequired[str]
    trained: NotRequired[float | None]
    calibrated: NotRequired[float | None]


class Timings(TypedDict):
    """Seconds by stage."""

    read: float
    fit: float
    merge: float
    finetune: float
    encode: float
    total: float


class Report(TypedDict):
    """An artifact: what `report` prints, and `compress` with paths, candidates, timings and the last epoch."""

    schema: int
    checkpoint: CheckpointEntry
    artifact: ArtifactEntry
    target_ratio: float | None
    max_drop: float | None
    ratio_of: str
    target_met: bool
    floating_bytes: int
    ratio: float
    parameter_ratio: float
    bits_per_weight: float
    bank: BankEntry
    weights: WeightCounts
    sections: SectionBytes
    layers: list[LayerEntry]
    not_shared: list[str]
    not_calibrated: NotRequired[list[str]]
    task: str | None
    damage: DamageEntry
    evaluation: EvaluationEntry | None
    warnings: list[str]
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]
    max_error: NotRequired[float]
    temperature: NotRequired[float]
    training: NotRequired[TrainingEntry]
    timings: NotRequired[Timings]


class EnsembleReport(TypedDict):
    """An ensemble: what `ensemble` and `report` print, and `compress` with a target, an evaluation and timings."""

    schema: int
    artifact: ArtifactEntry
    members: list[Report]
    floating_bytes: int
    ratio: float
    ratio_to_one: float
    sections: SectionBytes
    container_bytes: int
    warnings: list[str]
    checkpoint: NotRequired[CheckpointEntry]
    target_ratio: NotRequired[float]
    target_met: NotRequired[bool]
    evaluation: NotRequired[EvaluationEntry | None]
    timings: NotRequired[Timings]


class Rate(TypedDict):
    """Predicted size and damage of one codebook."""

    ratio: float
    bytes: int
    components: int
    drop: float | None
    agreement: float | None
    logit_kl: float | None
    relative_error: float


class PlannedRate(Rate):
    """Predicted size and damage at one target."""

    target_ratio: float


class TensorEntry(TypedDict):
    """One tensor of a checkpoint, and how it will be stored."""

    name: str
    shape: Sequence[int]
    dtype: str
    kind: str
    tied_to: str | None


class PlanReport(TypedDict):
    """What `plan` predicts."""

    schema: int
    checkpoint: CheckpointEntry
    tensors: list[TensorEntry]
    floating_bytes: int
    rates: list[PlannedRate]
    safe_ratio: float | None
    task: str | None
    assumes: str | None
    target_ratio: float | None
    with_data: bool
    max_drop: float | None
    ratio_of: str
    epochs: int
    memory_bytes: int
    warnings: list[str]
    timings: Timings


class Detected(TypedDict):
    """How well one score separates two sets of inputs."""

    auroc: float
    fpr95: float


class Detection(Detected):
    """How well predictive entropy separates two sets of inputs, and the other scores within."""

    max_probability: Detected
    mutual_information: NotRequired[Detected]


class ScaledMeasures(Measures):
    """Measures at a fitted temperature."""

    ood: NotRequired[Detection]


class EvaluationReport(Measures):
    """What `evaluate` measures."""

    schema: int
    model: str
    data: str
    inputs: int
    reference: str | None
    samples: int
    seed: int | None
    members: NotRequired[int]
    folded_temperature: NotRequired[float]
    folded_temperatures: NotRequired[list[float]]
    ood: NotRequired[Detection]
    notes: NotRequired[list[str]]
    warnings: list[str]
    agreement: NotRequired[float]
    logit_kl: NotRequired[float]
    temperature: NotRequired[float]
    scaled: NotRequired[ScaledMeasures]
    metric: NotRequired[ChangedNumber]
    loss: NotRequired[ChangedNumber]


class OutputEvaluationReport(TypedDict):
    """What `evaluate` measures of a network that is no classifier."""

    schema: int
    model: str
    data: str
    inputs: int
    reference: str | None
    samples: int
    seed: int | None
    members: NotRequired[int]
    task: str
    relative_error: NotRequired[float | None]
    cosine: NotRequired[float | None]
    outputs: NotRequired[dict[str, ComparedOutput]]
    mean: NotRequired[OutputMeasures]
    metric: NotRequired[ChangedNumber]
    loss: NotRequired[ChangedNumber]
    notes: NotRequired[list[str]]
    warnings: list[str]


class TensorDifference(TypedDict):
    """One tensor of two networks."""

    name: str
    shapes: list[list[int]]
    relative_rmse: float | None
    max_error: float | None


class DiffReport(TypedDict):
    """Two networks side by side."""

    schema: int
    models: list[str]
    bytes: list[int]
    tensors: list[TensorDifference]
    only_in_first: list[str]
    only_in_second: list[str]
    agreement: NotRequired[float]
    logit_kl: NotRequired[float]
    metrics: NotRequired[list[Summary]]
    relative_error: NotRequired[float | None]
    cosine: NotRequired[float | None]
    outputs: NotRequired[dict[str, ComparedOutput]]
    metric: NotRequired[ChangedNumber]
    loss: NotRequired[ChangedNumber]
    warnings: NotRequired[list[str]]


class OnnxEntry(TypedDict):
    """An ONNX file."""

    path: str
    bytes: int
    dense_bytes: int
    opset: int
    weights: str
    artifact_bytes: NotRequired[int]


class CheckEntry(TypedDict):
    """The comparison of an ONNX file with its network."""

    inputs: int
    largest_relative_difference: float
    onnxruntime: str


class OnnxInput(TypedDict):
    """One input of an ONNX file; an axis of free size has a name."""

    name: str
    dtype: str
    shape: list[int | str]


class ExportReport(TypedDict):
    """What `export` wrote."""

    schema: int
    onnx: OnnxEntry
    samples: int | None
    seed: int | None
    input_shape: list[int] | None
    inputs: list[OnnxInput]
    outputs: list[str]
    members: NotRequired[int]
    temperature: NotRequired[float]
    temperatures: NotRequired[list[float]]
    notes: NotRequired[list[str]]
    check: CheckEntry
