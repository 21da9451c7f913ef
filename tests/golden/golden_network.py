"""A tiny network with every kind of tensor, ready to encode; `python golden_network.py` records it.

The random numbers are those of numpy's legacy `RandomState`, whose stream is frozen.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gbnn_compress.checkpoint.arrays import bit_patterns
from gbnn_compress.format.artifact import encode_artifact, read_artifact
from gbnn_compress.format.ensembles import joined, members_of
from gbnn_compress.format.trellis import next_states
from gbnn_compress.format.vectors import RELATIVE, quantise
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.types import Artifact, Bank, IndexMap, TensorInfo

FOLDER = Path(__file__).parent
ARTIFACT = FOLDER / "version1.gbnn.safetensors"
EXPECTED = FOLDER / "version1.npz"
ARTIFACT_2 = FOLDER / "version2.gbnn.safetensors"
EXPECTED_2 = FOLDER / "version2.npz"
ENSEMBLE = FOLDER / "ensemble.gbnn.safetensors"
ENSEMBLE_OF = (ARTIFACT, ARTIFACT_2, ARTIFACT)

EXPONENT = -4
MEAN_CODES = (-41, -22, -9, -3, 0, 3, 8, 22, 41)

TENSORS = (
    TensorInfo("tête.weight", (8, 3, 3, 3), "float32", "shared"),
    TensorInfo("bn.weight", (8,), "float32", "unshared"),
    TensorInfo("bn.bias", (8,), "float32", "unshared"),
    TensorInfo("bn.running_mean", (8,), "float32", "unshared"),
    TensorInfo("bn.running_var", (8,), "float32", "unshared"),
    TensorInfo("bn.num_batches_tracked", (), "int64", "raw"),
    TensorInfo("half.weight", (10, 24), "float16", "shared"),
    TensorInfo("half.bias", (10,), "float16", "unshared"),
    TensorInfo("half.tied", (10, 24), "float16", "tied", "half.weight"),
    TensorInfo("constant.weight", (4, 5), "float32", "shared"),
    TensorInfo("constant.bias", (4,), "float32", "unshared"),
    TensorInfo("bf.weight", (6, 7), "bfloat16", "shared"),
    TensorInfo("bf.bias", (6,), "bfloat16", "unshared"),
    TensorInfo("double.weight", (3, 4), "float64", "shared"),
    TensorInfo("double.bias", (3,), "float64", "unshared"),
    TensorInfo("temperature", (), "float32", "unshared"),
    TensorInfo("mask", (2, 3), "bool", "raw"),
    TensorInfo("nothing", (0, 4), "float32", "raw"),
)

FACTS = {
    "checkpoint": {
        "sha256": "0123456789abcdef" * 4,
        "bytes": 4000,
        "parameters": 600,
        "architecture": None,
        "notes": [],
    },
    "recipe": {"n_components": 16, "em_iterations": 20, "log_sigma_weight": 0.1, "noise": 0.02},
    "seed": 0,
    "versions": {"gbnn-compress": "0.1.0"},
    "target_ratio": 2.0,
    "max_drop": None,
    "ratio_of": "artifact",
    "components_before_merging": 16,
    "noise": 0.02,
    "damage": {"drop": 1.5, "agreement": 0.97, "logit_kl": 0.01, "measured": False, "safe_ratio": 2.0},
    "warnings": [],
}


def encoder_input() -> dict[str, Any]:
    """The arguments of `encode_artifact`."""
    random = np.random.RandomState(2025)
    means = np.ldexp(np.array(MEAN_CODES, dtype=np.float64), EXPONENT)
    sigmas = np.array([-9, -8, -3, 0, 1, 0, -2, 5, 5]) / 8
    shared = [info for info in TENSORS if info.kind == "shared"]
    return {
        "tensors": TENSORS,
        "bank": Bank(means, sigmas),
        "exponent": EXPONENT,
        "scales": np.array([0.0625, 0.05078125, 1.0, 0.1015625, 31 * 2.0**-709]),
        "relative_rmse": np.array([0.125, 0.25, 0.0, 0.5, 0.0625]),
        "maps": [_map(info, means, random) for info in shared],
        "vectors": _vectors(random),
        "raw": [np.int64(12345).tobytes(), np.array([1, 0, 1, 1, 0, 0], dtype=bool).tobytes(), b""],
        "facts": FACTS,
    }


def encoder_input_2() -> dict[str, Any]:
    """The same with ids that follow the trellis in three tensors, one of them with a rule."""
    given, random = encoder_input(), np.random.RandomState(2026)
    followed = ("tête.weight", "half.weight", "double.weight")
    shapes = {info.name: info.shape for info in TENSORS}
    maps = [_on_trellis(m, shapes[m.name], random) if m.name in followed else m for m in given["maps"]]
    return {**given, "maps": maps}


def _on_trellis(given: IndexMap, shape: tuple[int, ...], random: np.random.RandomState) -> IndexMap:
    """Each weight the nearest component that its row's state allows; outliers stay."""
    ids = given.ids.astype(np.int64).reshape(shape[0], -1)
    rows = np.exp(random.normal(size=shape[0])) / 2
    wanted = len(MEAN_CODES) // 2 + rows[:, None] * random.laplace(size=ids.shape)
    states = np.zeros(shape[0], dtype=np.int64)
    for step, want in enumerate(wanted.T):
        parity = states % 2
        nearest = parity + 2 * np.clip(np.rint((want - parity) / 2).astype(np.int64), 0, 4 - parity)
        ids[:, step] = np.where(ids[:, step] == len(MEAN_CODES), len(MEAN_CODES), nearest)
        states = next_states(states, ids[:, step], escape=len(MEAN_CODES))
    return replace(given, ids=ids.astype(np.uint8).ravel(), trellis=True)


def _map(info: TensorInfo, means: np.ndarray, random: np.random.RandomState) -> IndexMap:
    """Nearest components of Laplacian weights; the two largest are outliers, but not in float32."""
    size = int(np.prod(info.shape))
    if info.name == "constant.weight":
        return IndexMap(info.name, np.full(size, 4, dtype=np.uint8), np.empty(0, dtype=np.uint32))
    x = random.laplace(size=size)
    if len(info.shape) == 4:
        # Kernels alike within themselves: ids that are worth coding by context.
        x = x / 8 + np.repeat(2 * random.laplace(size=size // 9), 9)
    ids = np.abs(x[:, None] - means).argmin(axis=1).astype(np.uint8)
    width = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[info.dtype]
    chosen = np.sort(np.argsort(-np.abs(x))[: 0 if width == 4 else 2])
    ids[chosen] = len(means)
    # Bit patterns of large finite values, not of the weights: this is about bits.
    return IndexMap(info.name, ids, random.randint(0, 1 << 14, size=len(chosen)).astype(f"u{width}"))


def _vectors(random: np.random.RandomState) -> list[Any]:
    gamma, beta, mean = random.rand(8) + 0.5, random.normal(size=8), random.normal(size=8) * 1e-3
    variance = np.exp2(random.normal(size=8))
    half, double = random.normal(size=10).astype(np.float16), random.normal(size=3)
    single = random.normal(size=6).astype(np.float32)
    temperature = np.array([1.5])

    def grid(values: np.ndarray, step: float, *, logarithmic: bool = False) -> Any:
        exact = values.astype(np.float32).view(np.uint32)
        return quantise(values, step=step, logarithmic=logarithmic, exact=exact)

    return [
        grid(gamma, 2.0**-5),
        grid(beta, 0.011),
        replace(grid(mean / np.sqrt(variance), 3e-5), mode=RELATIVE),
        grid(variance, 0.05, logarithmic=True),
        quantise(half.astype(np.float64), step=1e-9, logarithmic=False, exact=half.view(np.uint16)),
        grid(np.zeros(4), 0.1),
        quantise(single, step=1e-30, logarithmic=False, exact=(single.view(np.uint32) >> 16).astype(np.uint16)),
        quantise(double, step=1e-30, logarithmic=False, exact=double.view(np.uint64)),
        grid(temperature, 0.25),
    ]


def as_arrays(artifact: Artifact) -> dict[str, np.ndarray]:
    """Dense weights as numpy arrays, floating ones as bit patterns."""
    return {
        name: bit_patterns(tensor).reshape(tensor.shape)
        if tensor.is_floating_point() and tensor.numel()
        else tensor.numpy()
        for name, tensor in rebuild(artifact).items()
    }


def record(artifact: Path, expected: Path, given: dict[str, Any]) -> None:
    """Write a file and its weights, unless they are there: recorded bytes never change."""
    if not artifact.exists():
        artifact.write_bytes(encode_artifact(**given))
        np.savez_compressed(expected, **as_arrays(read_artifact(artifact)))


if __name__ == "__main__":
    record(ARTIFACT, EXPECTED, encoder_input())
    record(ARTIFACT_2, EXPECTED_2, encoder_input_2())
    if not ENSEMBLE.exists():
        ENSEMBLE.write_bytes(joined([members_of(path)[0] for path in ENSEMBLE_OF]))
