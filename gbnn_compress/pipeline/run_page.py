"""The HTML page of a run: the content of the file, and facts that only the run knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gbnn_compress.mixture.plane import plane_of, reach
from gbnn_compress.rate.cells import log_sigmas, row_blocks
from gbnn_compress.report.page import Page
from gbnn_compress.report.schema import Report
from gbnn_compress.target.forecast import rate_curve
from gbnn_compress.target.prepared import Prepared
from gbnn_compress.types import Artifact, Mixture, Plane, Reliability


def run_page(
    prepared: Prepared,
    artifact: Artifact,
    report: Report,
    *,
    name: str,
    arch: str | None,
    reliability: Mapping[str, Reliability],
) -> Page:
    """Collect the content of the page.

    Args:
        prepared: The checkpoint.
        artifact: The artifact that was made from it.
        report: The report on the artifact.
        name: Title of the page.
        arch: The architecture that the user gave; None if none was given.
        reliability: Reliability of `before` and `after` from the evaluation; empty without.
    """
    return Page(
        name=name,
        report=report,
        plane=_plane(prepared, artifact),
        arch=arch,
        before=_unscaled(prepared),
        curve=rate_curve(prepared, artifact.size_bytes),
        reliability=reliability,
    )


def _plane(prepared: Prepared, artifact: Artifact) -> Plane:
    means = artifact.bank.means
    x_limit = reach(means, (index_map.ids for index_map in artifact.maps))
    return plane_of(_members(prepared, artifact), size=len(means), x_limit=x_limit)


def _members(prepared: Prepared, artifact: Artifact) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for posterior, index_map in zip(prepared.posteriors, artifact.maps, strict=True):
        start = 0
        for rows, x in row_blocks(prepared.checkpoint.tensors[posterior.name], posterior):
            y = np.broadcast_to(log_sigmas(posterior, rows, x), x.shape)
            yield index_map.ids[start : start + x.size], x.ravel(), y.ravel()
            start += x.size


def _unscaled(prepared: Prepared) -> Mixture | None:
    """The mixture with log sigma, without its weight, as the second coordinate."""
    mixture = prepared.problem.mixture
    if mixture is None:
        return None
    unit = np.array([1.0, 1 / prepared.problem.log_sigma_weight])
    return Mixture(mixture.weights, mixture.means * unit, mixture.covariances * unit * unit[:, None])
