"""The jobs of `speed.py`: each prints one JSON object.

usage: python benchmarks/speed_jobs.py JOB [INTERPRETER OF A PEER]
"""

from __future__ import annotations

import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from speed_code import code
from speed_fit import fit
from timing import median_processor_seconds

COMPILE = Path(__file__).parents[1] / "scripts" / "compile_loops.py"


def main(job: str, *peer: str) -> None:
    warnings.simplefilter("ignore")
    kind, *rest = job.split("-")
    jobs = {"fit": fit, "code": code, "load": load, "help": show_help, "compress": compress}
    result = jobs[kind](*rest, *peer)
    print(json.dumps(result))


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
            way: {"seconds": median_processor_seconds(action), "bytes": file.stat().st_size}
            for (way, action), file in zip(ways.items(), files, strict=True)
        }


def compress(network: str, ratio: str) -> dict[str, Any]:
    """The whole command on a torchvision network with random weights, data-free, the faster of two runs.

    Compilation is left out: a small network is compressed before.
    """
    import torch

    from gbnn_compress.data.architectures import build_network

    torch.manual_seed(0)
    runs = []
    with tempfile.TemporaryDirectory() as name:
        file, artifact = Path(name, "net.pth"), Path(name, "net.gbnn.safetensors")
        torch.save(build_network(f"torchvision/{network}").state_dict(), file)
        subprocess.run([sys.executable, str(COMPILE)], check=True, stdout=subprocess.DEVNULL)
        command = [
            str(Path(sys.executable).with_name("gbnn-compress")),
            "compress",
            "-q",
            str(file),
            "--target-ratio",
            ratio,
        ]
        for _ in range(2):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([*command, "-o", str(artifact)], check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            runs.append({"seconds": busy, "wall_seconds": time.perf_counter() - start})
            digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return {**min(runs, key=lambda run: run["seconds"]), "peak_bytes": peak, "sha256": digest}


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
