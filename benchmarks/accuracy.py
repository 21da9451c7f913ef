"""Accuracy, agreement and calibration against ratio on real checkpoints, data-free; predicted damage beside it.

usage: python benchmarks/accuracy.py CASE RATIO [RATIO ...] --checkpoint FILE --data SPEC [SPEC ...] [--limit N]

CASE is resnet20, resnet56 or efficientnet_lite0. Several data sets count as one. Prints rows of a Markdown table.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

import gbnn_compress
from gbnn_compress.data.datasets import load_data
from gbnn_compress.predict.bench import Bench, open_bench
from gbnn_compress.predict.evaluation import evaluate_compression
from gbnn_compress.predict.models import read_model

NETWORKS = Path(__file__).parent / "networks.py"
HEADER = (
    "| network | ratio | bits a weight | drop | agreement | logit KL | predicted drop | predicted agreement "
    "| NLL before | mean | MC | ECE before | mean | MC |\n" + "|---" * 14 + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=["resnet20", "resnet56", "efficientnet_lite0"])
    parser.add_argument("ratios", nargs="+", type=float)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    print(HEADER)
    for ratio in options.ratios:
        print(row(options, ratio), flush=True)


def row(options: argparse.Namespace, ratio: float) -> str:
    checkpoint = read_model(Path(options.checkpoint))
    bench = bench_of(options, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.gbnn.safetensors"
        report = gbnn_compress.compress(options.checkpoint, target_ratio=ratio, output=path)
        evaluation, damage, _ = evaluate_compression(bench, checkpoint, read_model(path), seed=0)
    predicted = report["damage"]
    metrics = [f"{evaluation[kind][name]:.4f}" for name in ("nll", "ece") for kind in ("before", "mean", "after")]
    cells = [
        options.case,
        f"{report['ratio']:.2f}",
        f"{report['bits_per_weight']:.2f}",
        f"{damage['drop']:.2f}",
        f"{100 * damage['agreement']:.2f} %",
        f"{damage['logit_kl']:.4f}",
        f"{predicted['drop']:.2f}",
        f"{100 * predicted['agreement']:.2f} %",
        *metrics,
    ]
    return "| " + " | ".join(cells) + " |"


def bench_of(options: argparse.Namespace, checkpoint: object) -> Bench:
    """The network on all data sets together, cut to the limit."""
    imagenet = options.case == "efficientnet_lite0"
    preprocessing = {"mean": (0.498,) * 3, "std": (0.502,) * 3, "image_size": 224} if imagenet else {}
    evaluation = gbnn_compress.Evaluation(data=options.data[0], samples=options.samples, **preprocessing)
    bench = open_bench(checkpoint, evaluation, f"{NETWORKS}:{options.case}")
    parts = [load_data(spec) for spec in options.data]
    images = np.concatenate([part.images[: len(part)] for part in parts])[: options.limit]
    labels = np.concatenate([part.labels for part in parts])[: options.limit]
    return bench.on(dataclasses.replace(parts[0], images=images, labels=labels), option="--data")


if __name__ == "__main__":
    main()
