"""The jobs of `speed.py`: each prints one JSON object.

usage: python benchmarks/speed_jobs.py JOB [INTERPRETER OF A PEER]
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
"""Iterations after which the points themselves are asked, where they are few."""

MAPS = {"matrix": ((1536, 2048), 33, 0.02), "kernels": ((512, 512, 3, 3), 33, 0.02)}


def main(job: str, *peer: str) -> None:
    warnings.simplefilter("ignore")
    kind, *rest = job.split("-")
    result = {"fit": fit, "code": code, "load": load, "help": show_help}[kind](*rest, *peer)
    print(json.dumps(result))


def seconds(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


# Fits


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


def likelihood(mixture: Mixture, points: np.ndarray) -> float:
    """Mean over points, nats."""
    from gbnn_compress.gaussian.mixture import expectation

    parts = np.array_split(points, max(1, len(points) // 5000))
    return float(sum(len(part) * expectation(mixture, part, np.ones(len(part)))[1] for part in parts) / len(points))


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
    from gbnn_compress.gaussian.mixture import fit_mixture
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
        "likelihood_of_cells": expected(points, counts, mixture),
        "likelihood": likelihood(mixture, scored),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def pooled(cells: Any) -> tuple[np.ndarray, np.ndarray]:
    from gbnn_compress.rate.cells import nearest_cells, pooled_points

    return pooled_points(nearest_cells(cells, limit=1000.0), log_sigma_weight=SCALED, resolution=RESOLUTION)


def first_mixture(tensor: Any, posterior: Any) -> Mixture:
    """Where ours starts."""
    from gbnn_compress.gaussian.mixture import initial_mixture
    from gbnn_compress.rate.cells import build_cells

    points, counts = pooled(build_cells({"w": tensor}, [posterior], resolution=2 * RESOLUTION))
    return initial_mixture(points, counts, n_components=K, floor=FLOOR)


def expected(points: np.ndarray, counts: np.ndarray, mixture: Mixture) -> float:
    from gbnn_compress.gaussian.mixture import expectation

    return expectation(mixture, points, counts)[1]


def sklearn(points: np.ndarray) -> dict[str, Any]:
    """Its own start (k-means): seconds of a fit of one iteration and of each more, and the likelihood before each."""
    from sklearn.mixture import GaussianMixture

    def timed(iterations: int) -> float:
        settings = {"reg_covar": FLOOR, "max_iter": iterations, "tol": 0.0, "random_state": 0}
        return seconds(lambda: GaussianMixture(K, **settings).fit(points))

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
    took = seconds(lambda: model.fit(points))
    return {"seconds": took, "likelihood": float(model.score(points))}


def minibatch(points: np.ndarray) -> tuple[float, np.ndarray]:
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(K, random_state=0, n_init=1)
    return seconds(lambda: model.fit(points)), model.labels_


def faiss(points: np.ndarray, python: str) -> tuple[float, np.ndarray]:
    """20 rounds on all points, in faiss's own environment."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/points.npy", points.astype(np.float32))
        worker = Path(__file__).with_name("faiss_worker.py")
        subprocess.run([python, str(worker), folder, str(K)], check=True, stdout=sys.stderr)
        return json.loads(Path(f"{folder}/result.json").read_text())["seconds"], np.load(f"{folder}/labels.npy")


def clusters(points: np.ndarray, labels: np.ndarray) -> Mixture:
    """The mixture that clusters stand for: their shares, means and covariances."""
    from gbnn_compress.gaussian.density import floor_eigenvalues

    _, labels = np.unique(labels, return_inverse=True)
    count = np.bincount(labels)
    x, y = points.T

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(labels, weights=values) / count

    means = np.stack([mean(x), mean(y)], axis=1)
    dx, dy = (points - means[labels]).T
    covariances = np.stack([mean(dx * dx), mean(dx * dy), mean(dx * dy), mean(dy * dy)], axis=1).reshape(-1, 2, 2)
    return Mixture(count / len(points), means, floor_eigenvalues(covariances, floor=FLOOR))


# Codes


def index_map(name: str) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Ids, shape and components' means: Laplace weights whose rows, columns and kernels differ in scale."""
    shape, size, width = MAPS[name]
    random = np.random.RandomState(7)
    taps = int(np.prod(shape[2:]))
    rows, columns = (np.exp(0.5 * random.normal(size=length)) for length in shape[:2])
    scale = width * rows[:, None] * columns * np.exp(0.3 * random.normal(size=shape[:2]))
    x = random.laplace(size=(*shape[:2], taps)) + 0.5 * random.normal(size=(*shape[:2], 1))
    means = np.linspace(-1, 1, size)
    ids = np.rint((scale[..., None] * x + 1) / (means[1] - means[0]))
    return np.clip(ids, 0, size - 1).astype(np.uint8).ravel(), shape, means


def code(which: str, name: str, *peer: str) -> dict[str, Any]:
    ids, shape, means = index_map(name)
    size_bytes, encode, decode = {"ours": contexts, "zstd": zstd, "nncodec": nncodec}[which](ids, shape, means, *peer)
    return {"symbols": len(ids), "bytes": size_bytes, "encode_seconds": encode, "decode_seconds": decode}


def contexts(ids: np.ndarray, shape: tuple[int, ...], means: np.ndarray) -> tuple[int, float, float]:
    from gbnn_compress.codec.contexts import whole_values
    from gbnn_compress.codec.symbols import decode_maps, encode_maps

    values = whole_values(means)
    tables, stream = encode_maps([ids], [shape], values)
    assert tables[0].rule is not None
    decoded: list[np.ndarray] = []

    def decode() -> None:
        decode_maps(stream, tables, [shape], values, consume=lambda _, part: decoded.append(part))

    encode_seconds = median(lambda: encode_maps([ids], [shape], values))
    decode_seconds = median(decode)
    assert np.array_equal(decoded[0], ids)
    return len(stream), encode_seconds, decode_seconds


def zstd(ids: np.ndarray, shape: tuple[int, ...], means: np.ndarray) -> tuple[int, float, float]:
    import zstandard

    plain = ids.tobytes()
    coder, decoder = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    packed = coder.compress(plain)
    encode = seconds(lambda: coder.compress(plain))
    return len(packed), encode, median(lambda: decoder.decompress(packed))


def nncodec(ids: np.ndarray, shape: tuple[int, ...], means: np.ndarray, python: str) -> tuple[int, float, float]:
    """The same integers as weights, quantised by NNCodec's own step; so its time holds the quantisation."""
    import peers

    qp = -16
    step = (4 + qp % 4) * 2.0 ** (qp // 4 - 2)
    tensor = ((ids.astype(np.float32) - len(means) // 2) * np.float32(step)).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/in.npz", weight=tensor)
        command = [python, str(peers.WORKER), f"{folder}/in.npz", folder, json.dumps({"qp": qp, "use_dq": False})]
        subprocess.run(command, check=True, stdout=sys.stderr)
        result = json.loads(Path(f"{folder}/result.json").read_text())
        with np.load(f"{folder}/decoded.npz") as decoded:
            same = np.allclose(decoded["weight"], tensor, atol=step / 4)
        print(f"NNCodec: the same integers came back: {same}", file=sys.stderr)
        return Path(f"{folder}/bitstream.nnc").stat().st_size, result["encode_seconds"], result["decode_seconds"]


def median(action: Callable[[], Any]) -> float:
    return statistics.median(seconds(action) for _ in range(3))


# Loading and help


def load() -> dict[str, Any]:
    """ResNet-101 with random weights at 8x, into a module that is built already."""
    import torch
    from safetensors.torch import load_file, save_file
    from torchvision.models import resnet101

    import gbnn_compress

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = resnet101()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(network.state_dict(), folder / "net.pth")
        save_file(network.state_dict(), folder / "net.safetensors")
        artifact = folder / "net.gbnn.safetensors"
        gbnn_compress.compress(
            folder / "net.pth",
            target_ratio=8,
            output=artifact,
            settings={"feedback": False},
            arch="torchvision/resnet101",
        )
        ways = {
            "gbnn_compress.load + to_module": lambda: gbnn_compress.load(artifact).to_module(network),
            "safetensors + load_state_dict": lambda: network.load_state_dict(load_file(folder / "net.safetensors")),
            "torch.load + load_state_dict": lambda: network.load_state_dict(
                torch.load(folder / "net.pth", weights_only=True)
            ),
        }
        files = (artifact, folder / "net.safetensors", folder / "net.pth")
        return {
            way: {"seconds": median(action), "bytes": file.stat().st_size}
            for (way, action), file in zip(ways.items(), files, strict=True)
        }


def show_help() -> dict[str, Any]:
    """Of a warm file cache: the first call is left out."""
    walls, busy = [], []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        command = [str(Path(sys.executable).with_name("gbnn-compress")), "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        walls.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall_seconds": statistics.median(walls[1:]), "seconds": statistics.median(busy[1:])}


if __name__ == "__main__":
    main(*sys.argv[1:])
