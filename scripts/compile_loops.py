"""Compile all inner loops into numba's cache, which processes that start later load.

usage: python scripts/compile_loops.py
"""

import os
import tempfile
from pathlib import Path

os.environ["GBNN_COMPRESS_NUMBA"] = "1"


def main() -> None:
    """Compress a small network in both versions of the format, with and without calibration, and read its files."""
    import torch

    import gbnn_compress

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 24, 3), torch.nn.BatchNorm2d(24), torch.nn.Flatten(), torch.nn.Linear(24 * 36, 40)
    )
    # Rows of different scales, so that contexts pay.
    with torch.no_grad():
        for weight in (network[0].weight, network[3].weight):
            weight *= torch.exp(torch.randn(len(weight))).reshape(-1, *[1] * (weight.dim() - 1))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.gbnn.safetensors")
        for options in ({}, {"arch": network, "data": torch.randn(64, 3, 8, 8)}, {"settings": {"trellis": False}}):
            gbnn_compress.compress(network.state_dict(), target_ratio=8, output=file, progress=print, **options)
            gbnn_compress.load(file)


if __name__ == "__main__":
    main()
