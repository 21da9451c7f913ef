"""What a model takes in ONNX Runtime by either way of loading it: memory and time, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_FOLDED = "optimization.constant_folding_max_output_size_in_bytes"
"""Session option: larger results of constants are computed anew in each run."""

CAP_BYTES = 65536

MOST_RUNS, MOST_SECONDS = 5, 5.0
"""Runs of which the fastest counts, and how long they may take together before there is no further one."""

PATIENCE_SECONDS = 900


def loading(path: Path, input_shape: Sequence[int], *, fold: bool) -> dict[str, float] | None:
    """Memory and time of a model on the CPU, for one input and on one thread.

    Args:
        path: The model.
        input_shape: Of one input, float32.
        fold: Whether the runtime computes at loading what depends on constants only, as it does unless told otherwise;
            without, results above CAP_BYTES are computed in each run.

    Returns:
        `memory_bytes`, what the process takes beyond the runtime itself once the model has run, and `cpu_seconds`, the
        processor time of a run: on one thread that is how long it takes where nothing else runs. None where that cannot
        be measured: not on Linux, or no other process could be started.
    """
    words = [sys.executable, "-P", "-m", __name__, str(path), str(int(fold)), *map(str, input_shape)]
    try:
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        measured: dict[str, float] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return measured


def runtime() -> Any:
    """The module `onnxruntime`, its telemetry off: in the wheels of 1.32 that starts on import, unless told before."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def main(path: str, fold: str, *shape: str) -> None:
    """Load and run a model; JSON on stdout."""
    import numpy as np

    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if fold == "0":
        options.add_session_config_entry(LARGEST_FOLDED, str(CAP_BYTES))
    before = _resident_bytes()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.zeros((1, *map(int, shape)), dtype=np.float32)}
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and sum(seconds) < MOST_SECONDS:
        start = time.process_time()
        session.run(None, feed)
        seconds.append(time.process_time() - start)
    result = {"memory_bytes": _resident_bytes() - before, "cpu_seconds": min(seconds)}
    sys.stdout.write(json.dumps(result))


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main(*sys.argv[1:])
