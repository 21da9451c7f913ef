"""Noise that a component's members share against noise of each weight by itself, on one file.

usage: python benchmarks/noise.py --checkpoint FILE --data SPEC --calibration SPEC [--ratio 16] [--limit 4000]

Compresses ResNet-20 with inputs, nothing trained, and predicts by 16 draws of either kind. The deviation is the file's,
or the file's times the factor with the least NLL on the first half of the images; all rows are scored on the second.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

import gbnn_compress
from gbnn_compress.data.datasets import load_data
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict import metrics
from gbnn_compress.predict.bench import Bench, open_bench
from gbnn_compress.predict.prediction import average
from gbnn_compress.predict.rebuild import SharedTensor, rebuild, shared_tensors
from gbnn_compress.types import Artifact

ARCHITECTURE = f"{Path(__file__).parent / 'networks.py'}:resnet20"
SAMPLES = 16
FACTORS = (0.5, 1, 2, 4, 8, 16, 32, 64)

Draw = Callable[[Artifact, int, float], Mapping[str, torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--ratio", type=float, default=16)
    parser.add_argument("--limit", type=int, default=4000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.gbnn.safetensors"
        gbnn_compress.compress(
            options.checkpoint, target_ratio=options.ratio, output=path, arch=ARCHITECTURE, data=options.calibration
        )
        artifact = read_artifact(path)
    bench, data = open_bench(artifact, gbnn_compress.Evaluation(options.data), ARCHITECTURE), load_data(options.data)
    half = options.limit // 2
    choice, judge = (bench.on(data.take(part), option="--data") for part in np.arange(2 * half).reshape(2, half))
    print("| noise | deviation | accuracy | NLL | ECE |\n| --- | --- | --- | --- | --- |")
    print(row("none (posterior mean)", "–", judge.run(rebuild(artifact)), judge))
    for name, draw in (("shared by a component's members", shared), ("of each weight by itself", independent)):
        scores = dict(
            searched(lambda factor, draw=draw: metrics.nll(predict(choice, artifact, draw, factor), choice.labels))
        )
        best = min(scores, key=lambda factor: scores[factor])
        for factor in dict.fromkeys((1, best)):
            of = "the file's" if factor == 1 else f"{factor:g} times that"
            print(row(name, of, predict(judge, artifact, draw, factor), judge))


def searched(nll: Callable[[float], float]) -> Iterator[tuple[float, float]]:
    """Factors and their NLL, until it rises."""
    least = float("inf")
    for factor in FACTORS:
        score = nll(factor)
        yield factor, score
        if score > least:
            return
        least = score


def predict(bench: Bench, artifact: Artifact, draw: Draw, factor: float) -> torch.Tensor:
    return average(bench.run(draw(artifact, seed, factor)) for seed in range(SAMPLES)).probabilities


def shared(artifact: Artifact, seed: int, factor: float) -> Mapping[str, torch.Tensor]:
    """One draw a component and tensor, as the file means it."""
    facts = {**artifact.facts, "noise": factor * artifact.facts["noise"]}
    return rebuild(dataclasses.replace(artifact, facts=facts), seed=seed)


def independent(artifact: Artifact, seed: int, factor: float) -> Mapping[str, torch.Tensor]:
    """One draw a weight; outliers, which no draw shares, stay at their means. ResNet-20 has no ties."""
    generator = np.random.default_rng(seed)
    drawn = {tensor.name: scattered(tensor, generator, factor) for tensor in shared_tensors(artifact)}
    return {**rebuild(artifact), **drawn}


def scattered(tensor: SharedTensor, generator: np.random.Generator, factor: float) -> torch.Tensor:
    ids, deviations = tensor.ids.numpy(), np.append(tensor.deviations, 0.0)
    values = tensor.means[ids] + factor * deviations[ids] * generator.standard_normal(len(ids))
    flat = torch.from_numpy(values).to(tensor.dtype)
    flat[tensor.places] = tensor.outliers
    return flat.reshape(tensor.shape)


def row(noise: str, deviation: str, probabilities: torch.Tensor, bench: Bench) -> str:
    accuracy, nll, ece = (f(probabilities, bench.labels) for f in (metrics.accuracy, metrics.nll, metrics.ece))
    return f"| {noise} | {deviation} | {100 * accuracy:.2f} % | {nll:.4f} | {ece:.4f} |"


if __name__ == "__main__":
    main()
