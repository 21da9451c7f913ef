"""ONNX files of real architectures: size, agreement, and memory and latency of both ways to load them; Markdown.

usage: python benchmarks/onnx_files.py [NAME ...] [--forms mean codebook samples] [--ratio 8] [--samples 4]
           [--resnet20 resnet20_cifar10.pth]

Weights are random (seed 0), with the batch-norm statistics of noise; only ResNet-20's may be given. Compressed without
data. Memory is what a fresh process takes beyond the runtime itself once the model has run, latency the best of five
runs, one input and one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent

NETWORKS = {
    "resnet20": f"{HERE / 'networks.py'}:resnet20",
    "resnet18": "torchvision/resnet18",
    "resnet50": "torchvision/resnet50",
    "resnet101": "torchvision/resnet101",
    "mobilenet_v2": "torchvision/mobilenet_v2",
    "efficientnet_lite0": f"{HERE / 'networks.py'}:efficientnet_lite0",
    "convnext_atto": "timm/convnext_atto",
    "vit_tiny_patch16_224": "timm/vit_tiny_patch16_224",
    "vit_b_16": "torchvision/vit_b_16",
}

FOLDED_BYTES = "optimization.constant_folding_max_output_size_in_bytes"
"""Session option: larger results of constants are computed anew in each run."""

TITLES = ("network", "form", "MB", "of ids + unshared", "difference", "folded MB", "ms", "unfolded MB", "ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--forms", nargs="+", default=["mean", "codebook", "samples"])
    parser.add_argument("--ratio", type=float, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--resnet20", type=Path)
    options = parser.parse_args()
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}", flush=True)
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(name, Path(folder), options):
                print(f"| {' | '.join(row)} |", flush=True)


def rows(name, folder, options):
    import gbnn_compress

    checkpoint, artifact = folder / f"{name}.pth", folder / f"{name}.gbnn.safetensors"
    size = 32 if name == "resnet20" else 224
    if name == "resnet20" and options.resnet20:
        checkpoint = options.resnet20
    else:
        make(NETWORKS[name], checkpoint, size=size)
    gbnn_compress.compress(checkpoint, target_ratio=options.ratio, output=artifact)
    smallest = fixed_width_bytes(artifact)
    for form in options.forms:
        file, start = folder / f"{form}.onnx", time.perf_counter()
        result = gbnn_compress.export_onnx(
            artifact, file, weights=form, arch=NETWORKS[name], input_shape=(3, size, size), samples=options.samples
        )
        print(f"{name} {form}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        folded = measured(file, size, fold=True)
        unfolded = None if form == "mean" else measured(file, size, fold=False)
        file_bytes = result["onnx"]["bytes"]
        yield (
            name,
            form if form != "samples" else f"{options.samples} samples",
            f"{file_bytes / 1e6:.2f}",
            f"{file_bytes / smallest:.2f}",
            f"{result['check']['largest_relative_difference']:.1e}",
            *cells(folded),
            *cells(unfolded),
        )


def make(spec: str, path: Path, *, size: int) -> None:
    import torch

    from gbnn_compress.tasks import build_network

    torch.manual_seed(0)
    network = build_network(spec).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(torch.randn(8, 3, size, size))
    torch.save(network.eval().state_dict(), path)


def fixed_width_bytes(path: Path) -> int:
    """Ids at 2, 4, 8 or 16 bits, as few as a tensor's components need, and 4 bytes an unshared value."""
    import numpy as np

    from gbnn_compress.codec.artifact import read_artifact

    artifact = read_artifact(path)
    total = 4 * sum(values.size for values in artifact.values.values())
    for index_map in artifact.maps:
        bits = next(bits for bits in (2, 4, 8, 16) if len(np.unique(index_map.ids)) <= 1 << bits)
        total += -(-len(index_map.ids) * bits // 8)
    return total


def measured(file: Path, size: int, *, fold: bool) -> dict[str, float]:
    words = [sys.executable, __file__, "--load", str(file), str(size), str(int(fold))]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def load(file: str, size: str, fold: str) -> None:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if fold == "0":
        options.add_session_config_entry(FOLDED_BYTES, "65536")
    before = resident_bytes()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    image = np.zeros((1, 3, int(size), int(size)), np.float32)
    session.run(None, {"input": image})
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        session.run(None, {"input": image})
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"bytes": resident_bytes() - before, "seconds": min(seconds)}))


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def cells(measurement: dict[str, float] | None) -> tuple[str, str]:
    if measurement is None:
        return "–", "–"
    return f"{measurement['bytes'] / 1e6:.0f}", f"{1000 * measurement['seconds']:.0f}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(*sys.argv[2:])
    else:
        main()
