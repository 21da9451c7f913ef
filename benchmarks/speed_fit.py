"""Fits of 256 components to points, ours and those of peers, for `speed_jobs.py`."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from timing import processor_seconds

from gbnn_compress.types import Mixture

K, ROWS, SCALED = 256, 1000, 0.1
FLOOR = (1 / K) ** 2
RESOLUTION = K
"""Cells a unit of mu / s_t: as wide as a component at least is, so that their likelihood is that of the points."""

MOST_ITERATIONS = {"ours": 300, "sklearn": 25}
SCORED = 30_000
"""Points that a likelihood is taken on."""

TIMED_ITERATIONS = 4
"""Of scikit-learn, besides the first: fits of one each would count an E step twice."""

SAME_START, USUAL = 5, 20
SCORED_STEPS = (SAME_START, 6, 7, USUAL, 75, 80, 90)
"""Iterations after which the points themselves are asked, where they are few: about where likelihoods are equal."""


def weights(size: int) -> tuple[Any, Any]:
    """A tensor of Laplace weights and its posterior, log sigma apart for each row."""
    import torch

    from gbnn_compress.types import Posterior

    random = np.random.default_rng(0)
    log_sigma = 0.3 * random.normal(size=ROWS)
    tensor = torch.from_numpy(random.laplace(size=(ROWS, size // ROWS)).astype(np.float32))
    return tensor, Posterior("w", 1.0, log_sigma)


def points_of(tensor: Any, posterior: Any, *, most: int) -> np.ndarray:
    """float64 (n, 2), the weights as the mixture sees them: sigma on its levels."""
    from gbnn_compress.rate.cells import LEVELS, row_blocks, sigma_levels

    columns = max(1, most // ROWS)
    tensor = tensor[:, :columns]
    parts = []
    for rows, x in row_blocks(tensor, posterior):
        y = np.broadcast_to(SCALED * LEVELS[sigma_levels(posterior, rows, x)], x.shape)
        parts.append(np.stack([x.ravel(), y.ravel()], axis=1))
    return np.concatenate(parts)


def likelihood(mixture: Mixture, points: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Mean over points, nats."""
    from gbnn_compress.mixture.em import expectation

    return expectation(mixture, points, np.ones(len(points)) if counts is None else counts)[1]


def fit(which: str, size: str, *peer: str) -> dict[str, Any]:
    tensor, posterior = weights(int(size))
    scored = points_of(tensor, posterior, most=SCORED)
    if which == "ours":
        return ours(tensor, posterior, scored)
    points = points_of(tensor, posterior, most=int(size))
    if which == "sklearn":
        return sklearn(points)
    if which == "start":
        return sklearn_from(first_mixture(tensor, posterior), points)
    if which == "minibatch":
        took, labels = minibatch(points)
    else:
        took, labels = faiss(points, *peer)
    return {"seconds": took, "likelihood": likelihood(clusters(points, labels), scored)}


def ours(tensor: Any, posterior: Any, scored: np.ndarray) -> dict[str, Any]:
    from gbnn_compress.mixture.em import fit_mixture
    from gbnn_compress.rate.cells import build_cells

    start = time.process_time()
    cells = build_cells({"w": tensor}, [posterior], resolution=2 * RESOLUTION)
    built = time.process_time()
    points, counts = pooled(cells)
    ready = time.process_time()
    most = MOST_ITERATIONS["ours"] if tensor.numel() < 1e7 else USUAL

    def fitted(steps: int) -> tuple[Mixture, list[float]]:
        return fit_mixture(points, counts, n_components=K, floor=FLOOR, max_iterations=steps, tolerance=0.0)

    mixture, trace = fitted(most)
    done = time.process_time()
    steps = SCORED_STEPS if tensor.numel() <= SCORED else ()
    return {
        "cells_seconds": built - start,
        "pool_seconds": ready - built,
        "iteration_seconds": (done - ready) / len(trace),
        "cells": len(points),
        "trace": trace,
        "scores": {step: likelihood(fitted(step)[0], scored) for step in steps},
        "likelihood_of_cells": likelihood(mixture, points, counts),
        "likelihood": likelihood(mixture, scored),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def pooled(cells: Any) -> tuple[np.ndarray, np.ndarray]:
    from gbnn_compress.rate.cells import nearest_cells, pooled_points

    return pooled_points(nearest_cells(cells, limit=1000.0), log_sigma_weight=SCALED, resolution=RESOLUTION)


def first_mixture(tensor: Any, posterior: Any) -> Mixture:
    """Where ours starts."""
    from gbnn_compress.mixture.em import initial_mixture
    from gbnn_compress.rate.cells import build_cells

    points, counts = pooled(build_cells({"w": tensor}, [posterior], resolution=2 * RESOLUTION))
    return initial_mixture(points, counts, n_components=K, floor=FLOOR)


def sklearn(points: np.ndarray) -> dict[str, Any]:
    """Its own start (k-means): seconds of a fit of one iteration and of each more, and the likelihood before each."""
    from sklearn.mixture import GaussianMixture

    def timed(iterations: int) -> float:
        settings = {"reg_covar": FLOOR, "max_iter": iterations, "tol": 0.0, "random_state": 0}
        return processor_seconds(lambda: GaussianMixture(K, **settings).fit(points))

    one, several = timed(1), timed(1 + TIMED_ITERATIONS)
    model, trace = GaussianMixture(K, reg_covar=FLOOR, warm_start=True, max_iter=1, tol=0.0, random_state=0), []
    for _ in range(MOST_ITERATIONS["sklearn"] + 1 if len(points) <= 30_000 else 1):
        model.fit(points)
        trace.append(float(model.lower_bound_))
    return {"trace": trace, "first_seconds": one, "iteration_seconds": (several - one) / TIMED_ITERATIONS}


def sklearn_from(start: Mixture, points: np.ndarray) -> dict[str, Any]:
    """From our start, as many iterations; k-means is left out."""
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        len(start.weights),
        reg_covar=FLOOR,
        max_iter=SAME_START,
        tol=0.0,
        weights_init=start.weights / start.weights.sum(),
        means_init=start.means,
        precisions_init=np.linalg.inv(start.covariances),
    )
    took = processor_seconds(lambda: model.fit(points))
    return {"seconds": took, "likelihood": float(model.score(points))}


def minibatch(points: np.ndarray) -> tuple[float, np.ndarray]:
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(K, random_state=0, n_init=1)
    return processor_seconds(lambda: model.fit(points)), model.labels_


def faiss(points: np.ndarray, python: str) -> tuple[float, np.ndarray]:
    """20 rounds on all points, in faiss's own environment."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/points.npy", points.astype(np.float32))
        worker = Path(__file__).with_name("faiss_worker.py")
        subprocess.run([python, str(worker), folder, str(K)], check=True, stdout=sys.stderr)
        return json.loads(Path(f"{folder}/result.json").read_text())["seconds"], np.load(f"{folder}/labels.npy")


def clusters(points: np.ndarray, labels: np.ndarray) -> Mixture:
    """The mixture that clusters stand for: their shares, means and covariances."""
    from gbnn_compress.mixture.density import floor_eigenvalues

    _, labels = np.unique(labels, return_inverse=True)
    count = np.bincount(labels)
    x, y = points.T

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(labels, weights=values) / count

    means = np.stack([mean(x), mean(y)], axis=1)
    dx, dy = (points - means[labels]).T
    covariances = np.stack([mean(dx * dx), mean(dx * dy), mean(dx * dy), mean(dy * dy)], axis=1).reshape(-1, 2, 2)
    return Mixture(count / len(points), means, floor_eigenvalues(covariances, floor=FLOOR))
