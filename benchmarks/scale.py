"""Targets, time and memory on large networks with random weights; a Markdown table.

usage: python benchmarks/scale.py [NAME ...]      (default: all; each run in a process of its own)
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NETWORKS = (
    "torchvision/resnet18",
    "torchvision/resnet101",
    "torchvision/mobilenet_v2",
    "torchvision/vit_b_16",
    "timm/convnext_tiny",
)
RATIOS = (8, 50)


def main() -> None:
    print("| network | weights | target | ratio | seconds | peak memory | limit (1.5 x weights + 1 GB) | strict load |")
    print("|---" * 8 + "|")
    for name in sys.argv[1:] or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint.pth"
            make(name, checkpoint)
            for ratio in RATIOS:
                run = subprocess.run(
                    [sys.executable, __file__, "--one", name, str(checkpoint), str(ratio)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                print(row(name, ratio, json.loads(run.stdout)), flush=True)


def make(name: str, path: Path) -> None:
    import torch

    from gbnn_compress.data.architectures import build_network

    torch.manual_seed(0)
    torch.save(build_network(name).state_dict(), path)


def one(name: str, checkpoint: str, ratio: str) -> None:
    start = time.perf_counter()
    import gbnn_compress

    out = Path(checkpoint).with_name("out.gbnn.safetensors")
    report = gbnn_compress.compress(checkpoint, target_ratio=float(ratio), output=out)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gbnn_compress.load(out).to_module(name)
    print(
        json.dumps(
            {"ratio": report["ratio"], "parameters": report["checkpoint"]["parameters"], "s": seconds, "peak": peak}
        )
    )


def row(name: str, ratio: int, result: dict) -> str:
    limit = 1.5 * 4 * result["parameters"] + 1e9
    cells = [
        name,
        f"{result['parameters'] / 1e6:.1f} M",
        f"{ratio}x",
        f"{result['ratio']:.2f}x",
        f"{result['s']:.1f}",
        f"{result['peak'] / 1e6:.0f} MB",
        f"{limit / 1e6:.0f} MB",
        "yes",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
