"""The smallest file within a limit that is measured on data: of an accuracy drop, a metric, or the error of outputs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.kind import OTHER
from gbnn_compress.errors import DataError
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict import metrics
from gbnn_compress.predict.evaluation import labelled
from gbnn_compress.predict.measuring import measure, metric_of, weights_of
from gbnn_compress.predict.output_evaluation import AFTER, BEFORE
from gbnn_compress.predict.running import IGNORED
from gbnn_compress.rate.control import solve_damage
from gbnn_compress.rate.damage import layer_error
from gbnn_compress.rate.rate_problem import codebook_at
from gbnn_compress.target.encode import Cut, Result, assign
from gbnn_compress.target.forecast import find_safe_ratio, layer_errors, predicted_cut

if TYPE_CHECKING:
    from gbnn_compress.predict.bench import Bench
    from gbnn_compress.predict.differences import OutputDifference
    from gbnn_compress.rate.codebook import Codebook
    from gbnn_compress.target.prepared import Prepared
    from gbnn_compress.types import Artifact, Damage

OCTAVES = 2.0
"""Step of log2(lambda) until the limit lies between two candidates. A file shrinks by about a quarter per octave."""

RESOLUTION = 0.15
"""Resolution of log2(lambda) at the end. A file shrinks by 2 to 3 % over it."""

CANDIDATES = 10
"""Largest number of files that are tried where the drop of a classifier is predicted first."""

UNPREDICTED_CANDIDATES = 14
"""Largest number of files that are tried otherwise; the first is further from the limit."""

FIRST_ERROR = 0.1
"""Predicted mean relative output error of the layers of the first file, for a limit of a metric."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one file.

    Attributes:
        amount: The number that the limit is for.
        damage: Damage for the report; None to predict it.
        facts: Further entries of the report's `damage`.
    """

    amount: float
    damage: Damage | OutputDifference | None
    facts: Mapping[str, Any] = field(default_factory=dict)


Measure = Callable[["Artifact"], Measurement]


def meet_measured_drop(prepared: Prepared, bench: Bench, *, max_drop: float) -> Result:
    """The smallest file within a drop: of the user's metric, in its own units, or else of accuracy, in points.

    Args:
        prepared: The checkpoint.
        bench: The network on the data to measure on: labelled, unless there is a metric.
        max_drop: Largest drop on these data.

    Returns:
        The coarsest candidate within `max_drop`; the finest candidate if none is.

    Raises:
        GbnnError: The metric fails.
    """
    if bench.metric is not None:
        first = _cut_at_error(prepared, FIRST_ERROR)
        return _met(prepared, _metric_drop(prepared, bench), first, limit=max_drop, candidates=UNPREDICTED_CANDIDATES)
    first = predicted_cut(prepared, max_drop=max_drop)[0]
    return _met(prepared, _accuracy_drop(prepared, bench), first, limit=max_drop, candidates=CANDIDATES)


def meet_measured_error(prepared: Prepared, bench: Bench, *, max_error: float) -> Result:
    """The smallest file within a relative error of the outputs.

    Args:
        prepared: The checkpoint.
        bench: The network on the data to measure on.
        max_error: Largest relative error on these data.

    Returns:
        The coarsest candidate within `max_error`; the finest candidate if none is.

    Raises:
        GbnnError: No output can be compared, or the checkpoint's outputs do not vary.
    """
    first = _cut_at_error(prepared, max_error)
    return _met(prepared, _output_error(prepared, bench), first, limit=max_error, candidates=UNPREDICTED_CANDIDATES)


def _met(prepared: Prepared, measured: Measure, first: Codebook, *, limit: float, candidates: int) -> Result:
    """Bisect log2(lambda). Each candidate is encoded, read back and measured at its posterior mean."""
    safe_ratio = find_safe_ratio(prepared)

    def attempt(place: float) -> tuple[float, Cut]:
        book, exponent = codebook_at(prepared.problem, 2.0**place)
        cut = Cut(prepared, book, exponent, assign(prepared, book), safe_ratio)
        found = measured(read_back(cut.encoded()))
        return found.amount, replace(
            cut, assigned=replace(cut.assigned, damage=found.damage, measured=dict(found.facts))
        )

    place = math.log2(first.penalty)
    inside = outside = best = None
    for _ in range(candidates):
        amount, candidate = attempt(place)
        if amount <= limit:
            inside, best = place, candidate
        else:
            outside = place
        if inside is None:
            place -= OCTAVES
        elif outside is None:
            place += OCTAVES
        elif outside - inside <= RESOLUTION:
            break
        else:
            place = (inside + outside) / 2
    chosen = best or candidate
    return Result(chosen.encoded(), chosen)


def _accuracy_drop(prepared: Prepared, bench: Bench) -> Measure:
    """Measures the accuracy drop of a classifier, in points."""
    labels = bench.required_labels()
    known = labels[labels != IGNORED]
    before = labelled(bench.predict(prepared.checkpoint), labels).probabilities

    def measured(artifact: Artifact) -> Measurement:
        after = labelled(bench.predict(artifact, samples=0), labels).probabilities
        damage = metrics.damage(before, after, known)
        return Measurement(damage.drop, damage)

    return measured


def _metric_drop(prepared: Prepared, bench: Bench) -> Measure:
    """Measures the drop of the user's metric; of networks that are no classifiers, the error of outputs as well."""
    before = metric_of(bench, weights_of(bench, prepared.checkpoint, samples=0))
    accuracy = _accuracy_drop(prepared, bench) if _has_labels(bench) else None

    def measured(artifact: Artifact) -> Measurement:
        after = metric_of(bench, weights_of(bench, artifact, samples=0))
        damage = _difference(prepared, bench, artifact) if accuracy is None else accuracy(artifact).damage
        return Measurement(before - after, damage, {"metric": {"before": before, "after": after}})

    return measured


def _output_error(prepared: Prepared, bench: Bench) -> Measure:
    """Measures the relative error of the outputs."""

    def measured(artifact: Artifact) -> Measurement:
        found = _difference(prepared, bench, artifact)
        if found.relative_error is None:
            raise DataError(
                f"`--max-error`: the outputs of the network do not vary on `{bench.evaluation.data}`, so their relative"
                " error is not defined; give other data, or `--target-ratio`"
            )
        exact = {"relative_error": found.relative_error} if math.isfinite(found.relative_error) else {}
        return Measurement(found.relative_error, found, exact)

    return measured


def _difference(prepared: Prepared, bench: Bench, artifact: Artifact) -> OutputDifference:
    models = {
        BEFORE: weights_of(bench, prepared.checkpoint, samples=0),
        AFTER: weights_of(bench, artifact, samples=0),
    }
    found = measure(bench.with_use(replace(bench.use, loss=None, metric=None)), models, reference=BEFORE)
    difference = found[AFTER].difference
    assert difference is not None
    return difference


def _has_labels(bench: Bench) -> bool:
    return bench.task != OTHER and bench.class_labels() is not None


def _cut_at_error(prepared: Prepared, error: float) -> Codebook:
    """The coarsest codebook whose predicted mean relative output error of the layers is at most `error`."""
    found, _ = solve_damage(prepared.problem, lambda book: layer_error(layer_errors(prepared, book)), limit=error)
    return found


def read_back(encoded: bytes) -> Artifact:
    """Decode the bytes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.gbnn.safetensors"
        path.write_bytes(encoded)
        return read_artifact(path)
