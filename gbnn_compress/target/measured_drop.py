"""The smallest file whose accuracy, measured on labelled data, stays within so many points of the checkpoint's."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict import metrics
from gbnn_compress.rate.control import codebook_at
from gbnn_compress.target.encode import Cut, Result, assign
from gbnn_compress.target.forecast import find_safe_ratio, predicted_cut

if TYPE_CHECKING:
    import torch

    from gbnn_compress.predict.bench import Bench
    from gbnn_compress.target.prepared import Prepared

OCTAVES = 2.0
"""Steps of log2(lambda) from the predicted cut until the limit lies between two candidates; a file shrinks by about a
quarter over one."""

RESOLUTION = 0.15
"""Of log2(lambda) in the end; a file shrinks by two or three percent over it."""

CANDIDATES = 10
"""Files that are tried at most."""


def meet_measured_drop(prepared: Prepared, bench: Bench, *, max_drop: float) -> Result:
    """Bisection on log2(lambda), every candidate encoded, read back and measured at its posterior mean.

    Args:
        prepared: The checkpoint.
        bench: Its network, on labelled data for choices.
        max_drop: Accuracy points that may be lost on these.

    Returns:
        The coarsest candidate within `max_drop`; the finest one where none is.
    """
    before, safe_ratio = bench.run(prepared.checkpoint.tensors), find_safe_ratio(prepared)

    def attempt(place: float) -> tuple[float, Cut]:
        book, exponent = codebook_at(prepared.problem, 2.0**place)
        cut = Cut(prepared, book, exponent, assign(prepared, book), safe_ratio)
        damage = metrics.damage(before, _mean_probabilities(bench, cut.encoded()), bench.labels)
        return damage.drop, replace(cut, assigned=replace(cut.assigned, damage=damage))

    place = math.log2(predicted_cut(prepared, max_drop=max_drop)[0].penalty)
    inside = outside = best = None
    for _ in range(CANDIDATES):
        drop, candidate = attempt(place)
        if drop <= max_drop:
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


def _mean_probabilities(bench: Bench, encoded: bytes) -> torch.Tensor:
    """float64 (N, C), of the posterior mean of an artifact that is not written yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.gbnn.safetensors"
        path.write_bytes(encoded)
        return bench.predict(read_artifact(path), samples=0).probabilities
