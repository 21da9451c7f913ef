"""ONNX files of real architectures by the command line: size, agreement, and memory and time of both ways to load them.

usage: python benchmarks/onnx_files.py [NAME ...] [--forms mean codebook samples] [--ratio 8] [--samples 4]
           [--resnet20 resnet20_cifar10.pth] [--folder FOLDER]

Weights are random (seed 0), with the batch-norm statistics of noise; only ResNet-20's may be given. Compressed without
data. With a folder, the artifacts there are used again. Markdown on stdout, one line a file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from onnx_loading import loading

HERE = Path(__file__).parent

NETWORKS = {
    "resnet20": f"{HERE / 'networks.py'}:resnet20",
    "resnet18": "torchvision/resnet18",
    "resnet50": "torchvision/resnet50",
    "resnet101": "torchvision/resnet101",
    "mobilenet_v2": "torchvision/mobilenet_v2",
    "efficientnet_lite0": f"{HERE / 'networks.py'}:efficientnet_lite0",
    "convnext_atto": "timm/convnext_atto",
    "convnext_tiny": "timm/convnext_tiny",
    "vit_tiny": "timm/vit_tiny_patch16_224",
    "vit_small": "timm/vit_small_patch16_224",
    "vit_b_16": "torchvision/vit_b_16",
}

TITLES = ("network", "form", "MB", "of ids + unshared", "difference", "folded MB", "ms", "unfolded MB", "ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--forms", nargs="+", default=["mean", "codebook", "samples"])
    parser.add_argument("--ratio", type=float, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--resnet20", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.names:
            for row in rows(name, folder, options):
                print(f"| {' | '.join(row)} |", flush=True)


def rows(name, folder, options):
    size = 32 if name == "resnet20" else 224
    artifact = folder / f"{name}.gbnn.safetensors"
    if not artifact.exists():
        compress(name, artifact, size=size, options=options)
    smallest = fixed_width_bytes(artifact)
    for form in options.forms:
        result, loaded = exported(artifact, form, NETWORKS[name], size=size, samples=options.samples)
        file_bytes = result["onnx"]["bytes"]
        yield (
            name,
            form if form != "samples" else f"{options.samples} samples",
            f"{file_bytes / 1e6:.3g}",
            f"{file_bytes / smallest:.2f}",
            f"{result['check']['largest_relative_difference']:.1e}",
            *cells(loaded["folded"]),
            *cells(loaded["not_folded"]),
        )


def compress(name, artifact, *, size, options):
    checkpoint = artifact.with_name(f"{name}.pth")
    if name == "resnet20" and options.resnet20:
        checkpoint = options.resnet20
    else:
        make(NETWORKS[name], checkpoint, size=size)
    command("compress", checkpoint, "--target-ratio", options.ratio, "-o", artifact)
    if checkpoint != options.resnet20:
        checkpoint.unlink()


def exported(artifact, form, spec, *, size, samples):
    file, report = artifact.with_name("model.onnx"), artifact.with_name("model.json")
    words = ["--weights", form, "--arch", spec, "--input-shape", f"3,{size},{size}", "--samples", samples]
    command("export", artifact, "-o", file, *words, "--json", report)
    result = json.loads(report.read_text())
    loaded = {
        "folded": loading(file, result["input_shape"], fold=True),
        # Dense weights have nothing to fold.
        "not_folded": None if form == "mean" else loading(file, result["input_shape"], fold=False),
    }
    file.unlink()
    report.unlink()
    return result, loaded


def command(*words):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "gbnn_compress_cli.main", *map(str, words)], capture_output=True, text=True
    )
    print(f"{' '.join(map(str, words))}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        sys.exit(done.stderr)


def make(spec: str, path: Path, *, size: int) -> None:
    import torch

    from gbnn_compress.data.architectures import build_network

    torch.manual_seed(0)
    network = build_network(spec).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.dim() > 1 and not tensor.any():  # torchvision's ViT starts with logits of 0
                tensor.normal_(std=0.02)
        network(torch.randn(8, 3, size, size))
    torch.save(network.eval().state_dict(), path)


def fixed_width_bytes(path: Path) -> int:
    """Ids at 2, 4, 8 or 16 bits, as few as a tensor's components need, and 4 bytes an unshared value."""
    import numpy as np

    from gbnn_compress.format.artifact import read_artifact

    artifact = read_artifact(path)
    total = 4 * sum(values.size for values in artifact.values.values())
    for index_map in artifact.maps:
        bits = next(bits for bits in (2, 4, 8, 16) if len(np.unique(index_map.ids)) <= 1 << bits)
        total += -(-len(index_map.ids) * bits // 8)
    return total


def cells(measurement: dict[str, float] | None) -> tuple[str, str]:
    if measurement is None:
        return "–", "–"
    return f"{measurement['memory_bytes'] / 1e6:.0f}", f"{1000 * measurement['cpu_seconds']:.0f}"


if __name__ == "__main__":
    main()
