"""The better of two files of one size: the trained one, or the calibrated one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gbnn_compress.data.architectures import load_weights
from gbnn_compress.errors import GbnnError
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.running import copied
from gbnn_compress.predict.temperature import folded_temperature
from gbnn_compress.target.encode import Result
from gbnn_compress.target.measured_drop import read_back
from gbnn_compress.training import processes
from gbnn_compress.training.train import Trained
from gbnn_compress.training.validation import Validation, run_batch

TRAINED, CALIBRATED = "trained", "calibrated"


@dataclass(frozen=True)
class Choice:
    """The file that is written, and why.

    Attributes:
        result: The file, with the notes of training.
        facts: `kept`, `measure`, and the scores of both files: entries of the report's `training`.
    """

    result: Result
    facts: dict[str, Any]


def better(trained: Trained, make: Callable[[], Result], bench: Bench) -> Choice:
    """Measure both files on the validation data at the posterior mean, and choose.

    Args:
        trained: What training came to.
        make: Makes the file of the same target without training.
        bench: The network on the validation data; its weights stay as they are.

    Returns:
        The choice. It is the trained file, with a note, if the other one cannot be made.
    """
    validation = trained.validation
    try:
        calibrated = make()
    except GbnnError as error:
        note = f"not compared with calibration alone, which is not possible: {error}"
        return Choice(replace(trained.result, notes=(*trained.result.notes, note)), {})
    scores = [_score(result, validation, bench) for result in (trained.result, calibrated)]
    ours, other = processes.from_first(scores)
    kept = TRAINED if ours <= other else CALIBRATED
    facts = {"kept": kept, "measure": validation.measure, TRAINED: _finite(ours), CALIBRATED: _finite(other)}
    if kept == TRAINED:
        return Choice(trained.result, facts)
    note = (
        f"training came to {validation.said(ours)} on the validation data, calibration alone to"
        f" {validation.said(other)}: the calibrated file was written; train for more epochs, or with other data"
    )
    notes = (note, *trained.result.notes, *calibrated.notes)
    return Choice(replace(calibrated, notes=notes, training=trained.result.training), facts)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _score(result: Result, validation: Validation, bench: Bench) -> float:
    artifact = read_back(result.encoded)
    network = copied(bench.network).to(bench.device)
    load_weights(network, rebuild(artifact), spec=bench.architecture)
    answers = [run_batch(validation.goal, network, batch, device=bench.device) for batch in validation.batches]
    return validation.score(answers, temperature=folded_temperature(artifact))
