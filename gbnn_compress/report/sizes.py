"""The report on an artifact, from the contents of its file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np

from gbnn_compress.data.kind import FACT, is_known_classifier
from gbnn_compress.format.counts import id_counts
from gbnn_compress.report.schema import (
    SCHEMA,
    CheckpointEntry,
    DamageEntry,
    EnsembleReport,
    LayerEntry,
    Report,
    SectionBytes,
    WeightCounts,
    total_values,
)
from gbnn_compress.types import Artifact, Ensemble, TensorInfo

GUESSED = "predicted accuracy drop"
"""First words of a warning about predicted accuracy points."""


def report(artifact: Artifact) -> Report:
    """The report, without timings and paths."""
    facts = artifact.facts
    weights, dense_bytes = weight_counts(artifact), floating_bytes(artifact)
    made: Report = {
        "schema": SCHEMA,
        "checkpoint": cast(CheckpointEntry, dict(facts["checkpoint"])),
        "artifact": {"sha256": artifact.sha256, "bytes": artifact.size_bytes},
        "target_ratio": facts["target_ratio"],
        "max_drop": facts["max_drop"],
        "ratio_of": facts["ratio_of"],
        "target_met": _is_met(artifact, weights),
        "floating_bytes": dense_bytes,
        "ratio": dense_bytes / artifact.size_bytes,
        "parameter_ratio": parameter_ratio(artifact, weights),
        "bits_per_weight": 8 * artifact.sections["index_maps"] / max(weights["shared"], 1),
        "bank": {
            "components": len(artifact.bank.means),
            "components_before_merging": facts["components_before_merging"],
        },
        "weights": weights,
        "sections": {
            "bank": artifact.sections["bank"],
            "index_maps": artifact.sections["index_maps"],
            "outliers": artifact.sections["outliers"],
            "unshared": artifact.sections["unshared"],
            "header": artifact.sections["header"],
        },
        "layers": layers(artifact),
        "not_shared": [info.name for info in artifact.tensors if info.kind in ("unshared", "raw")],
        "task": facts.get(FACT),
        "damage": _damage(artifact),
        "evaluation": None,
        "warnings": _warnings(artifact),
        "recipe": dict(facts["recipe"]),
        "seed": facts["seed"],
        "versions": dict(facts["versions"]),
    }
    if facts.get("max_error") is not None:
        made["max_error"] = facts["max_error"]
    if "not_calibrated" in facts:
        made["not_calibrated"] = list(facts["not_calibrated"])
    if "temperature" in facts:
        made["temperature"] = facts["temperature"]
    if "training" in facts:
        made["training"] = facts["training"]
    return made


def report_of(ensemble: Ensemble) -> Report | EnsembleReport:
    """The report on a file of any number of networks."""
    return report(ensemble.members[0]) if len(ensemble.members) == 1 else ensemble_report(ensemble)


def ensemble_report(ensemble: Ensemble) -> EnsembleReport:
    """The report on an ensemble, without timings and paths.

    The bytes of the members and of the container add up to the file.
    """
    members = [report(member) for member in ensemble.members]
    dense_bytes = sum(each["floating_bytes"] for each in members)
    container = ensemble.size_bytes - sum(member.size_bytes for member in ensemble.members)
    totals = {name: sum(member.sections[name] for member in ensemble.members) for name in members[0]["sections"]}
    totals["header"] += container
    return {
        "schema": SCHEMA,
        "artifact": {"sha256": ensemble.sha256, "bytes": ensemble.size_bytes},
        "members": members,
        "floating_bytes": dense_bytes,
        "ratio": dense_bytes / ensemble.size_bytes,
        "ratio_to_one": members[0]["floating_bytes"] / ensemble.size_bytes,
        "sections": cast(SectionBytes, totals),
        "container_bytes": container,
        "warnings": [
            *(f"member {number}: {warning}" for number, each in enumerate(members) for warning in each["warnings"]),
            *_equal_members(ensemble.members),
        ],
    }


def _equal_members(members: Sequence[Artifact]) -> Iterator[str]:
    """A warning for each pair of members that predict the same."""
    for (first, a), (second, b) in combinations(enumerate(members), 2):
        if _exact(a) == _exact(b) and all(map(np.array_equal, _arrays(a), _arrays(b))):
            yield f"members {first} and {second} are the same network: their average is no better than one of them"


def _exact(member: Artifact) -> tuple[Any, ...]:
    """What of a member's predictions is not in `_arrays`."""
    return member.tensors, member.raw, member.facts.get("temperature")


def _arrays(member: Artifact) -> Iterator[np.ndarray]:
    """All arrays that the posterior mean of a member is made of."""
    yield member.bank.means
    yield member.scales
    for each in member.maps:
        yield each.ids
        yield each.outliers
    yield from member.values.values()


def described(artifact: Artifact) -> str:
    """An artifact's network in a few words, for lists."""
    checkpoint = artifact.facts["checkpoint"]
    return f"{checkpoint['architecture'] or 'architecture not recorded'}, {checkpoint['parameters']:,} parameters"


def _has_guess(artifact: Artifact) -> bool:
    """Whether a file predicts accuracy points for a network not known as a classifier, as files of 0.1 do."""
    damage = artifact.facts["damage"]
    return damage["drop"] is not None and not damage["measured"] and not is_known_classifier(artifact.facts)


def _damage(artifact: Artifact) -> DamageEntry:
    """The damage that the file states, without predictions for unknown networks."""
    damage = cast(DamageEntry, dict(artifact.facts["damage"]))
    if not _has_guess(artifact):
        return damage
    errors = np.minimum(artifact.relative_rmse, 1.0)
    return {
        **damage,
        "drop": None,
        "agreement": None,
        "logit_kl": None,
        "safe_ratio": None,
        "relative_error": float(errors.mean()) if len(errors) else 0.0,
    }


def _warnings(artifact: Artifact) -> list[str]:
    warnings = list(artifact.facts["warnings"])
    if not _has_guess(artifact):
        return warnings
    return [warning for warning in warnings if not warning.startswith(GUESSED)]


def _is_met(artifact: Artifact, weights: WeightCounts) -> bool:
    """Whether the file meets its target."""
    facts = artifact.facts
    if facts["max_drop"] is not None:
        drop = metric_drop(facts["damage"])
        return drop is not None and bool(drop <= facts["max_drop"])
    if facts["target_ratio"] is None:
        error = facts["damage"].get("relative_error")
        return error is not None and bool(error <= facts["max_error"])
    by_bytes = facts["ratio_of"] == "artifact"
    ratio = floating_bytes(artifact) / artifact.size_bytes if by_bytes else parameter_ratio(artifact, weights)
    return meets(ratio, facts["target_ratio"])


def meets(ratio: float, target: float) -> bool:
    """Whether a ratio reaches its target, but for rounding."""
    return ratio >= target * (1 - 1e-12)


def metric_drop(damage: Mapping[str, Any]) -> float | None:
    """The drop that `max_drop` limits: of the user's metric, in its own units, or else of accuracy, in points."""
    metric = damage.get("metric")
    if metric is None or metric["before"] is None:
        drop: float | None = damage["drop"]
        return drop
    return float(metric["before"] - metric["after"])


def floating_bytes(artifact: Artifact) -> int:
    """Bytes of all floating tensors of the checkpoint at their stored dtype, ties once."""
    return sum(_bytes(info) for info in artifact.tensors if info.kind != "tied" and "float" in info.dtype)


def weight_counts(artifact: Artifact) -> WeightCounts:
    """Numbers of shared, blended, outlier and unshared values; together all floating values."""
    outliers = sum(len(index_map.outliers) for index_map in artifact.maps)
    in_maps = sum(len(index_map.ids) for index_map in artifact.maps)
    blends = artifact.facts.get("blends", [])
    blended = sum(int(np.isin(index_map.ids, blends).sum()) for index_map in artifact.maps) if blends else 0
    unshared = sum(
        math.prod(info.shape)
        for info in artifact.tensors
        if info.kind == "unshared" or (info.kind == "raw" and "float" in info.dtype)
    )
    shared = in_maps - outliers - blended
    return {"shared": shared, "blended": blended, "outliers": outliers, "unshared": unshared}


def n_values(artifact: Artifact) -> int:
    """Floating values of the checkpoint, ties once."""
    return total_values(weight_counts(artifact))


def parameter_ratio(artifact: Artifact, weights: WeightCounts) -> float:
    """2 x floating values / (2 x components + 2 x outliers + unshared values), the paper's measure."""
    live = len(artifact.bank.means)
    return 2 * total_values(weights) / (2 * live + 2 * weights["outliers"] + weights["unshared"])


def layers(artifact: Artifact) -> list[LayerEntry]:
    """One entry per shared tensor; their bytes add up to the sections `index_maps` and `outliers`."""
    infos = {info.name: info for info in artifact.tensors}
    escape = len(artifact.bank.means)
    costs = [
        bits / 8 + artifact.table_bytes / len(artifact.maps) + index_map.outliers.nbytes
        for index_map, bits in zip(artifact.maps, artifact.map_bits.tolist(), strict=True)
    ]
    parts = _apportion(np.array(costs), artifact.sections["index_maps"] + artifact.sections["outliers"])
    return [
        {
            "name": index_map.name,
            "shape": list(infos[index_map.name].shape),
            "parameters": len(index_map.ids),
            "bytes": size,
            "bits_per_weight": 8 * size / len(index_map.ids),
            "relative_rmse": float(error),
            "components": int(np.count_nonzero(id_counts(index_map.ids, escape + 1)[:escape])),
        }
        for index_map, size, error in zip(artifact.maps, parts, artifact.relative_rmse, strict=True)
    ]


def _apportion(costs: np.ndarray, total: int) -> list[int]:
    """Whole bytes that add up to `total`, in proportion to `costs`."""
    edges = np.rint(np.cumsum(costs) / costs.sum() * total).astype(np.int64) if costs.sum() else np.zeros(len(costs))
    return [int(size) for size in np.diff(edges, prepend=0)]


def _bytes(info: TensorInfo) -> int:
    match = re.search(r"\d+", info.dtype)
    return math.prod(info.shape) * (int(match.group()) if match else 8) // 8
