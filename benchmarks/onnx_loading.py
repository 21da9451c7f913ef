"""Memory and time of an ONNX model in ONNX Runtime, for both ways of loading it, each in a process of its own.

usage: python benchmarks/onnx_loading.py MODEL FOLD SIZE ...

FOLD is 1 or 0, the sizes are those of one input. JSON on stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_FOLDED = "optimization.constant_folding_max_output_size_in_bytes"
"""Session option: larger results of constants are computed in each run."""

CAP_BYTES = 65536

MOST_RUNS, MOST_SECONDS = 5, 5.0
"""The fastest of at most so many runs counts; no further run starts after so many seconds."""

PATIENCE_SECONDS = 900


def loading(path: Path, input_shape: Sequence[int], *, fold: bool) -> dict[str, float] | None:
    """Memory and time of a model on the CPU, for one input and on one thread.

    Args:
        path: The model.
        input_shape: Of one input, float32.
        fold: Whether the runtime computes at loading what depends on constants only, its default; if not, results
            above CAP_BYTES are computed in each run.

    Returns:
        `memory_bytes`, what the process takes beyond the runtime itself once the model has run, and `cpu_seconds`, the
        processor time of a run. None where that cannot be measured: not on Linux, or no process could be started.
    """
    words = [sys.executable, "-P", __file__, str(path), str(int(fold)), *map(str, input_shape)]
    try:
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        measured: dict[str, float] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return measured


def main(path: str, fold: str, *shape: str) -> None:
    """Load and run a model."""
    import numpy as np

    from gbnn_compress.onnx_files.check import runtime

    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if fold == "0":
        options.add_session_config_entry(LARGEST_FOLDED, str(CAP_BYTES))
    before = resident_bytes()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.zeros((1, *map(int, shape)), dtype=np.float32)}
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and sum(seconds) < MOST_SECONDS:
        start = time.process_time()
        session.run(None, feed)
        seconds.append(time.process_time() - start)
    print(json.dumps({"memory_bytes": resident_bytes() - before, "cpu_seconds": min(seconds)}))


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main(*sys.argv[1:])
