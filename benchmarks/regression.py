"""What the standard deviations of a compressed regression network say: near its data, in a gap, and beyond them.

usage: python benchmarks/regression.py [--seeds 5] [--ratio 16] [--table FILE.md] [--plot docs/uncertainty.png]

Inputs are numbers in -2 to 2, without those in -0.6 to 0.8; targets are sin(3x) + 0.3x plus noise of deviation 0.1. A
checkpoint (three hidden layers of 128) is trained on 256 of them. It is then compressed in three ways: calibrated;
trained without labels; and trained with the user's loss, the targets and posterior noise. Intervals of 90 % are
mean +- 1.645 sqrt(sd^2 + r^2): sd from `predict_with_uncertainty` with 64 draws, r from the errors of the checkpoint on
256 validation points. They are counted on 4,000 other points, and, where there are no data, on as many in the gap and
beyond. The plot shows the first seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rate_report import markdown
from torch import nn

import gbnn_compress

NOISE, DRAWS, Z90 = 0.1, 64, 1.645
GAP, END, FAR = (-0.6, 0.8), 2.0, 3.0
TRAIN, VALIDATION, TEST, EPOCHS = 256, 256, 4000, 80

Points = tuple[torch.Tensor, torch.Tensor]


def truth(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x) + 0.3 * x


def observed(x: torch.Tensor, random: torch.Generator) -> Points:
    """Inputs (N, 1) and noisy targets (N, 1)."""
    return x[:, None], truth(x[:, None]) + NOISE * torch.randn(len(x), 1, generator=random)


def points(n: int, seed: int, *, where: str = "data") -> Points:
    """Uniform on a region: among the `data`, in the `gap`, or `beyond` the data up to `FAR`."""
    random = torch.Generator().manual_seed(seed)
    x = FAR * (2 * torch.rand(20 * n, generator=random) - 1)
    inside, in_gap = x.abs() < END, (x > GAP[0]) & (x < GAP[1])
    chosen = {"data": inside & ~in_gap, "gap": in_gap, "beyond": ~inside}[where]
    return observed(x[chosen][:n], random)


def batches(data: Points) -> list[Points]:
    return list(zip(*(part.split(64) for part in data), strict=True))


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    hidden = [each for _ in range(2) for each in (nn.Linear(128, 128), nn.SiLU())]
    return nn.Sequential(nn.Linear(1, 128), nn.SiLU(), *hidden, nn.Linear(128, 1))


def trained(data: Points, seed: int) -> nn.Module:
    """The checkpoint: Adam on squared errors, 600 passes."""
    made = network(seed)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        for part in torch.randperm(len(data[0])).split(64):
            optimizer.zero_grad()
            nn.functional.mse_loss(made(data[0][part]), data[1][part]).backward()
            optimizer.step()
        schedule.step()
    return made.eval()


def loss(outputs: torch.Tensor, batch: Points) -> torch.Tensor:
    """Negative log-likelihood per input, up to a constant, in nats."""
    return nn.functional.mse_loss(outputs, batch[1]) / (2 * NOISE**2)


def ways(data: Points, validation: Points) -> dict[str, dict[str, Any]]:
    """Name of a row -> arguments of `compress`."""
    calibrated = {"data": batches(data)}
    taught = {**calibrated, "val_data": batches(validation), "epochs": EPOCHS}
    return {
        "calibrated": calibrated,
        f"{EPOCHS} epochs, no labels": taught,
        f"{EPOCHS} epochs, `loss`, `noise: 2`": {**taught, "loss": loss, "settings": {"noise": 2.0}},
    }


@dataclass(frozen=True)
class Row:
    """Measures of one file: by region, mean standard deviation and coverage; error of the mean among the data."""

    name: str
    ratio: float
    deviations: dict[str, float]
    coverage: dict[str, float]
    rms_error: float


def measured(name: str, ratio: float, predict: Any, residual: float) -> Row:
    """`predict(x)` gives mean and standard deviation, each (N, 1)."""
    deviations, coverage, errors = {}, {}, {}
    for region in ("data", "gap", "beyond"):
        x, y = points(TEST, 99, where=region)
        mean, deviation = predict(x)
        width = Z90 * (deviation.square() + residual**2).sqrt()
        deviations[region] = float(deviation.mean())
        coverage[region] = float(((y - mean).abs() <= width).double().mean())
        errors[region] = float((mean - truth(x)).square().mean().sqrt())
    return Row(name, ratio, deviations, coverage, errors["data"])


def rows(seed: int, ratio: float, folder: Path) -> tuple[list[Row], Path]:
    """Rows of one checkpoint, and its last file."""
    data, validation = points(TRAIN, 10 * seed + 1), points(VALIDATION, 10 * seed + 2)
    checkpoint = trained(data, seed)
    with torch.no_grad():
        residual = float((checkpoint(validation[0]) - validation[1]).square().mean().sqrt())

    @torch.no_grad()
    def plain(x: torch.Tensor) -> Points:
        return checkpoint(x), torch.zeros_like(x)

    found = [measured("checkpoint", 1.0, plain, residual)]
    for name, options in ways(data, validation).items():
        file = folder / f"{seed}.gbnn.safetensors"
        report = gbnn_compress.compress(checkpoint, target_ratio=ratio, output=file, **options)
        found.append(measured(name, report["ratio"], predictor(file), residual))
    return found, file


def predictor(file: Path) -> Any:
    compressed = gbnn_compress.load(file)
    compressed.to_module(network(0))

    def predict(x: torch.Tensor) -> Points:
        found = compressed.predict_with_uncertainty(x, samples=DRAWS)
        return found.mean, found.standard_deviation

    return predict


def table(found: Sequence[Sequence[Row]]) -> str:
    """Means over the seeds; of coverage among the data, the range too."""
    lines = []
    for same in zip(*found, strict=True):
        deviations = [f"{np.mean([row.deviations[region] for row in same]):.3f}" for region in same[0].deviations]
        inside = [100 * row.coverage["data"] for row in same]
        outside = [f"{100 * np.mean([row.coverage[region] for row in same]):.0f} %" for region in ("gap", "beyond")]
        coverage = f"{np.mean(inside):.1f} % ({min(inside):.1f} to {max(inside):.1f})"
        ratio, error = np.mean([row.ratio for row in same]), np.mean([row.rms_error for row in same])
        lines.append([same[0].name, f"{ratio:.1f}x", *deviations, f"{error:.3f}", coverage, *outside])
    header = ["file", "ratio", "sd, data", "sd, gap", "sd, beyond", "error, data"]
    return markdown([*header, "coverage, data", "coverage, gap", "coverage, beyond"], lines)


def plot(file: Path, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid = torch.linspace(-4, 4, 401)[:, None]
    mean, deviation = (each.squeeze(1).numpy() for each in predictor(file)(grid))
    x, (seen_x, seen_y) = grid.squeeze(1).numpy(), points(TRAIN, 1)
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 5.6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.fill_between(x, mean - 2 * deviation, mean + 2 * deviation, alpha=0.25, linewidth=0, label="mean ± 2 sd")
    above.plot(x, mean, label="mean of 64 draws")
    above.plot(x, truth(grid).squeeze(1).numpy(), "k--", linewidth=0.8, label="truth")
    above.scatter(seen_x, seen_y, s=6, color="0.3", alpha=0.6, linewidths=0, label="training data")
    above.set(ylabel="y", ylim=(-3, 3))
    above.legend(ncols=2, loc="upper left")
    below.plot(x, deviation)
    below.set(xlabel="x", ylabel="sd", ylim=0)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ratio", type=float, default=16)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found, files = zip(*(rows(seed, options.ratio, Path(folder)) for seed in range(options.seeds)), strict=True)
        print(text := table(found))
        if options.table:
            options.table.write_text(text + "\n", encoding="utf-8")
        if options.plot:
            plot(files[0], options.plot)


if __name__ == "__main__":
    main()
