"""Comparison of an ONNX file, run in ONNX Runtime, with the outputs of its network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from gbnn_compress.errors import OutputError
from gbnn_compress.onnx_files.external import give_external
from gbnn_compress.onnx_files.samples import DEVIATION, ENTROPY, MUTUAL_INFORMATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

TOLERANCE = 1e-4
"""Largest relative difference that passes."""


def runtime() -> Any:
    """The module `onnxruntime` without its telemetry, which the wheels of 1.32 otherwise start on import."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def run_onnx(
    path: Path, feeds: Iterable[Mapping[str, np.ndarray]], *, tensors: Mapping[str, torch.Tensor] | None = None
) -> list[dict[str, np.ndarray]]:
    """Outputs of a model on the CPU.

    Args:
        path: The file.
        feeds: For each run, the inputs by name. Inputs that the model lacks are left out.
        tensors: Decoded tensors by name, for a file whose weights are external data.

    Returns:
        For each run, the outputs by name.

    Raises:
        OutputError: ONNX Runtime cannot load or run the file.
    """
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if tensors is not None:
        give_external(options, path.read_bytes(), tensors)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        known = {value.name for value in session.get_inputs()}
        runs = [session.run(names, {name: each for name, each in feed.items() if name in known}) for feed in feeds]
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        reason = " ".join(str(error).split())
        raise OutputError(
            f"nothing written: ONNX Runtime cannot run the network ({reason}); please report this, with the network"
        ) from error
    return [dict(zip(names, each, strict=True)) for each in runs]


def largest_over_runs(got: Sequence[Mapping[str, np.ndarray]], expected: Sequence[Mapping[str, np.ndarray]]) -> float:
    """`largest_difference` over all runs, whose outputs may differ in shape.

    Args:
        got: For each run, arrays by output name.
        expected: The same.
    """
    for mine, its in zip(got, expected, strict=True):
        if any(mine[name].shape != its[name].shape for name in its):
            return float("inf")
    return largest_difference(_joined(got), _joined(expected))


def largest_difference(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Largest difference of an output, relative to its largest absolute value over all inputs.

    For entropy and mutual information the scale is at least 1 nat: both are differences of numbers of about 1 nat. The
    scale of a standard deviation `NAME.std` is that of the mean. Of integers and booleans, the fraction that differs
    counts.

    Args:
        got: Arrays by output name.
        expected: The same.

    Returns:
        Infinity where an output is of another shape, or is NaN or infinite where it should not be, or the reverse.
    """
    return max(_difference(got[name], expected[name], scale=_scale(name, expected)) for name in expected)


def require_equal(difference: float) -> None:
    """Refuse a file whose outputs differ from those of the network.

    Raises:
        OutputError: The difference is above TOLERANCE.
    """
    if not difference <= TOLERANCE:
        raise OutputError(
            f"nothing written: in ONNX Runtime the outputs differ by {difference:.1e} from those of the network,"
            f" more than {TOLERANCE:.0e}; if its outputs are not random, please report this, with the network"
        )


def _joined(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([each[name].reshape(-1) for each in runs]) for name in runs[0]}


def _scale(name: str, expected: Mapping[str, np.ndarray]) -> float:
    largest = _largest(expected[name])
    if name in (ENTROPY, MUTUAL_INFORMATION):
        return max(largest, 1.0)
    mean = expected.get(name.removesuffix(DEVIATION))
    return largest if mean is None else max(largest, _largest(mean))


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values, where=np.isfinite(values), out=np.zeros(values.shape)).max(initial=0.0))


def _difference(got: np.ndarray, expected: np.ndarray, *, scale: float) -> float:
    if got.shape != expected.shape:
        return float("inf")
    if not got.size:
        return 0.0
    if not np.issubdtype(expected.dtype, np.floating):
        return float(np.mean(got != expected))
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    difference = float(np.abs(got[finite].astype(np.float64) - expected[finite]).max(initial=0.0))
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))
