"""Comparison of an ONNX file, run in ONNX Runtime, with the outputs of its network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from gbnn_compress.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

TOLERANCE = 1e-4
"""Largest relative difference that passes."""


def runtime() -> Any:
    """The module `onnxruntime` without its telemetry, which the wheels of 1.32 otherwise start on import."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def run_onnx(path: Path, batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a model on the CPU.

    Args:
        path: The file.
        batches: Inputs float32 (B, ...); B may differ between batches.

    Returns:
        Output name -> float32 (N, ...), over all batches.

    Raises:
        OutputError: ONNX Runtime cannot load or run the file.
    """
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        runs = [session.run(names, {session.get_inputs()[0].name: batch}) for batch in batches]
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        reason = " ".join(str(error).split())
        raise OutputError(
            f"nothing written: ONNX Runtime cannot run the network ({reason}); please report this, with the network"
        ) from error
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*runs, strict=True), strict=True)}


def largest_difference(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Largest difference of an output, relative to its largest absolute value over all inputs.

    For entropy and mutual information the scale is at least 1 nat: both are differences of numbers of about 1 nat.

    Args:
        got: Arrays by output name.
        expected: The same, with finite values.

    Returns:
        Infinity where an output is NaN, infinite or of another shape.
    """
    return max(_difference(got[name], expected[name], name=name) for name in expected)


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


def _difference(got: np.ndarray, expected: np.ndarray, *, name: str) -> float:
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    largest = float(np.abs(expected).max())
    scale = max(largest, 1.0) if name in ("entropy", "mutual_information") else largest
    difference = float(np.abs(got.astype(np.float64) - expected).max())
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))
