"""Predictions for a codebook without encoding a file: size, damage and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from gbnn_compress.predict.differences import OutputDifference, as_json, left_out_note, lost_warnings
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.control import predicted_bytes, solve_damage, solve_size
from gbnn_compress.rate.damage import (
    SAFE_DROP,
    WARN_DROP,
    WARN_ERROR,
    layer_error,
    predict_damage,
    relative_error,
)
from gbnn_compress.rate.rate_problem import codebook_at
from gbnn_compress.report.schema import PlannedRate, Rate
from gbnn_compress.target.prepared import Prepared
from gbnn_compress.types import Damage

MARGIN = 0.998
"""Fraction of the budget that each attempt aims for."""

NO_FORECAST = dict.fromkeys(("drop", "agreement", "logit_kl"))
"""The predicted damage of a network that is not known to be a classifier: None for each number."""

CURVE_OCTAVES = range(-6, 7)
"""Points of the rate-distortion curve, in octaves of lambda relative to the chosen cut."""


def codebook_of_size(prepared: Prepared, size_bytes: float) -> tuple[Codebook, int]:
    """The finest codebook whose file is predicted to have at most `size_bytes`, and its grid's exponent."""
    problem = prepared.problem
    return solve_size(problem, partial(predicted_bytes, problem), limit=size_bytes)


def feedback_gain(prepared: Prepared) -> float:
    """Factor by which error feedback reduces the squared error of outputs; 1 without inputs."""
    return 1.0 if prepared.calibration is None else prepared.calibration.gain


def predicted_damage(prepared: Prepared, book: Codebook) -> Damage:
    """Predicted accuracy drop (points), agreement and logit KL (nats) of a classifier with a codebook."""
    # How much feedback on noise helps on real inputs is not known, so the prediction counts no gain.
    known = prepared.calibration is not None and not prepared.calibration.synthetic
    base = prepared.unrescued
    book = replace(book, distortion=book.distortion * _importances(base) / _importances(prepared))
    error = relative_error(book, typical=prepared.typical) / (feedback_gain(prepared) if known else 1.0)
    return predict_damage(error, n_classes=prepared.n_classes)


def predicted_cut(prepared: Prepared, *, max_drop: float) -> tuple[Codebook, int]:
    """The coarsest codebook whose predicted drop is at most `max_drop` points, and its grid's exponent."""
    base = prepared.unrescued
    return solve_damage(base.problem, lambda book: predicted_damage(base, book).drop, limit=max_drop)


def find_safe_ratio(prepared: Prepared) -> float | None:
    """The largest ratio whose predicted drop is at most SAFE_DROP points; None if the drop cannot be predicted."""
    if not prepared.kind.has_forecast:
        return None
    book, exponent = predicted_cut(prepared, max_drop=SAFE_DROP)
    return prepared.floating_bytes / predicted_bytes(prepared.unrescued.problem, book, exponent)


def damage_facts(
    prepared: Prepared,
    book: Codebook,
    measured: Damage | OutputDifference | None,
    *,
    safe_ratio: float | None,
    warnings: Sequence[str],
    inputs: str,
    further: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest's entries on damage. Lost points are recorded only for known or assumed classifiers.

    Args:
        prepared: The checkpoint.
        book: The codebook of the file.
        measured: Damage measured on inputs; None to predict it.
        safe_ratio: Predicted safe ratio; None if it cannot be predicted.
        warnings: Warnings to record, to which those on the damage are added.
        inputs: The inputs that the damage was measured on, for messages.
        further: Further entries of `damage`, which are not rounded because a target is compared with them.
    """
    damage = measured or (predicted_damage(prepared, book) if prepared.kind.has_forecast else None)
    facts: dict[str, Any] = {**NO_FORECAST, "measured": measured is not None, "safe_ratio": safe_ratio}
    if isinstance(damage, Damage):
        facts |= asdict(damage)
        if measured is None and prepared.kind.assumes is not None:
            facts["assumes"] = prepared.kind.assumes
        found = damage_warnings(damage.drop, safe_ratio, measured=measured is not None, assumes=facts.get("assumes"))
    elif isinstance(damage, OutputDifference):
        facts |= as_json(damage)
        note = left_out_note(damage)
        found = [*lost_warnings(damage, inputs=inputs), *([note] if note else [])]
    else:
        facts["relative_error"] = layer_error(layer_errors(prepared, book))
        found = layer_warnings(facts["relative_error"])
    return {
        "components_before_merging": prepared.problem.mixture_size,
        "damage": {**{key: _recorded(value) for key, value in facts.items()}, **(further or {})},
        "warnings": [*warnings, *found],
    }


def _recorded(value: Any) -> Any:
    """A float rounded to three significant digits; None for infinity and NaN, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _recorded(each) for key, each in value.items()}
    if type(value) is not float:
        return value
    return float(f"{value:.3g}") if np.isfinite(value) else None


def layer_errors(prepared: Prepared, book: Codebook) -> np.ndarray:
    """Predicted relative output error of each shared tensor, noise power over signal power, float64 (T,)."""
    return np.asarray(book.distortion / prepared.typical / _importances(prepared))


def _importances(prepared: Prepared) -> np.ndarray:
    """Cost factor of each shared tensor's errors, relative to the cost that its norm predicts, float64 (T,)."""
    return np.array([prepared.importances.get(posterior.name, 1.0) for posterior in prepared.posteriors])


def damage_warnings(drop: float, safe_ratio: float | None, *, measured: bool, assumes: str | None = None) -> list[str]:
    """A warning of an accuracy drop in points; none up to WARN_DROP."""
    if drop <= WARN_DROP:
        return []
    if measured:
        return [f"measured accuracy drop of {drop:.1f} points; ask for a smaller ratio"]
    condition = f" if this is an {assumes}" if assumes else ""
    return [
        f"predicted accuracy drop of {drop:.0f} points{condition}: the predicted safe ratio is about"
        f" {safe_ratio:.2g}x; evaluate the file before use, or ask for a smaller ratio"
    ]


def layer_warnings(error: float) -> list[str]:
    """A warning of a predicted relative output error of the layers; none up to WARN_ERROR."""
    if error <= WARN_ERROR:
        return []
    return [
        f"predicted relative output error of the layers: {error:.2g} on average; its effect on this network is not"
        " known; test the file before use, or ask for a smaller ratio"
    ]


def planned_rate(prepared: Prepared, ratio: float) -> PlannedRate:
    """Predicted bytes, components and damage at one target ratio."""
    book, exponent = codebook_of_size(prepared, MARGIN * prepared.floating_bytes / ratio)
    return {"target_ratio": float(ratio), **_predicted_rate(prepared, book, exponent)}


def rate_curve(prepared: Prepared, size_bytes: int) -> dict[int, Rate]:
    """Predicted bytes, components and damage along the merge path.

    Args:
        prepared: The checkpoint.
        size_bytes: Size of the file; the curve goes through the cut with this predicted size.

    Returns:
        Octaves of lambda above that cut's -> prediction. Empty if lost points cannot be predicted.
    """
    if not prepared.kind.has_forecast:
        return {}
    cut = codebook_of_size(prepared, size_bytes)
    around = {octaves: codebook_at(prepared.problem, cut[0].penalty * 2.0**octaves) for octaves in CURVE_OCTAVES}
    return {octaves: _predicted_rate(prepared, *codebook) for octaves, codebook in {**around, 0: cut}.items()}


def _predicted_rate(prepared: Prepared, book: Codebook, exponent: int) -> Rate:
    size = predicted_bytes(prepared.problem, book, exponent)
    damage = predicted_damage(prepared, book) if prepared.kind.has_forecast else None
    return {
        "ratio": prepared.floating_bytes / size,
        "bytes": round(size),
        "components": len(book.bank.means),
        "drop": None if damage is None else damage.drop,
        "agreement": None if damage is None else damage.agreement,
        "logit_kl": None if damage is None else damage.logit_kl,
        "relative_error": layer_error(layer_errors(prepared, book)),
    }
