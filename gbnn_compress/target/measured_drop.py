"""The smallest file whose measured accuracy drop on labelled data is at most a given number of points."""

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
"""Step of log2(lambda) until the limit lies between two candidates. A file shrinks by about a quarter per octave."""

RESOLUTION = 0.15
"""Resolution of log2(lambda) at the end. A file shrinks by 2 to 3 % over it."""

CANDIDATES = 10
"""Largest number of files that are tried."""


def meet_measured_drop(prepared: Prepared, bench: Bench, *, max_drop: float) -> Result:
    """Bisect log2(lambda). Each candidate is encoded, read back and measured at its posterior mean.

    Args:
        prepared: The checkpoint.
        bench: The network on labelled validation data.
        max_drop: Largest accuracy drop on these data, in points.

    Returns:
        The coarsest candidate within `max_drop`; the finest candidate if none is.
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
    """Probabilities at the posterior mean of an encoded artifact, float64 (N, C)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.gbnn.safetensors"
        path.write_bytes(encoded)
        return bench.predict(read_artifact(path), samples=0).probabilities
