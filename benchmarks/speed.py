"""How fast: the mixture's fit, coding with contexts, an artifact to a ready module, and `--help`, beside peers.

usage: python benchmarks/speed.py --cache DIR [--jobs NAME ...] [--faiss-python PATH] [--nncodec-python PATH]
           [--table FILE.md] [--plot FILE.png]

Each job runs in a process of its own, on one thread, and leaves a file in the cache, so that a run continues where
another stopped; remove the file to measure anew. Seconds are the processor's where other work may run beside, medians
of three where they are short. faiss and NNCodec have environments of their own; without them their rows say so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import speed_report

JOBS = (
    *("help", "load", "compress-resnet101-50", "compress-vit_b_16-50"),
    *("fit-ours-30000", "fit-ours-1000000", "fit-ours-10000000", "fit-ours-100000000"),
    *("fit-start-30000", "fit-sklearn-30000", "fit-sklearn-100000", "fit-minibatch-1000000", "fit-faiss-1000000"),
    *("code-ours-matrix", "code-ours-kernels", "code-zstd-matrix", "code-zstd-kernels"),
    *("code-nncodec-matrix", "code-nncodec-kernels"),
)


def main() -> None:
    options = parsed()
    options.cache.mkdir(parents=True, exist_ok=True)
    for job in options.jobs:
        file = options.cache / f"{job}.json"
        if not file.exists():
            result = measured(job, options)
            print(f"{job}: {result}", file=sys.stderr, flush=True)
            if "missing" not in result:
                file.write_text(json.dumps(result))
    results = {job: json.loads(file.read_text()) for job in JOBS if (file := options.cache / f"{job}.json").exists()}
    table = speed_report.tables(results)
    print(table)
    if options.table:
        options.table.write_text(table)
    if options.plot:
        speed_report.plot(results, options.plot)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=JOBS)
    parser.add_argument("--faiss-python", type=Path)
    parser.add_argument("--nncodec-python", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def measured(job: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run `speed_jobs.py` on a job; the interpreter of faiss or NNCodec is handed on to it."""
    peers = {"faiss": options.faiss_python, "nncodec": options.nncodec_python}
    peer = next((name for name in peers if name in job), None)
    if peer and peers[peer] is None:
        return {"missing": f"give `--{peer}-python`"}
    command = [sys.executable, str(Path(__file__).with_name("speed_jobs.py")), job, *([peers[peer]] if peer else [])]
    run = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ONE_THREAD}
    )
    return json.loads(run.stdout)


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


if __name__ == "__main__":
    main()
