"""A segmentation network (torchvision's LR-ASPP) 6 times smaller: python examples/segmentation.py [WEIGHTS] [FOLDER]

WEIGHTS is the state dict of `lraspp_mobilenet_v3_large` as torchvision publishes it; by default the weights are random,
which shows only that it runs. FOLDER holds images (jpg, png) to calibrate and to measure on; by default they are made.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.transforms.functional import convert_image_dtype, normalize

import gbnn_compress

SIDE, MEAN, STD = 128, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(folder: str | None) -> torch.Tensor:
    """Preprocessed, float32 (N, 3, 128, 128); without a folder, 96 random smooth ones."""
    if folder is None:
        coarse = torch.rand(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return normalize(interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1), MEAN, STD)
    files = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    pixels = [convert_image_dtype(decode_image(str(file), ImageReadMode.RGB)) for file in files]
    return normalize(torch.cat([interpolate(each[None], (SIDE, SIDE), mode="bilinear") for each in pixels]), MEAN, STD)


def main(weights: str | None = None, folder: str | None = None) -> None:
    """Compress on two thirds of the images, and measure on the others."""
    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).eval()
    if weights:
        network.load_state_dict(torch.load(weights, weights_only=True))
    seen, unseen = images(folder).tensor_split([64])

    def same_class(compressed: torch.nn.Module, data: DataLoader) -> float:
        pairs = [(compressed(batch)["out"].argmax(1), network(batch)["out"].argmax(1)) for batch in data]
        return torch.cat([(a == b).flatten() for a, b in pairs]).double().mean().item()

    report = gbnn_compress.compress(
        network,
        target_ratio=6,
        data=DataLoader(seen, 16),
        eval_data=DataLoader(unseen, 16),
        metric=same_class,
        samples=2,
    )
    print(f"{report['artifact']['path']}: {report['artifact']['bytes']:,} bytes, {report['ratio']:.1f}x smaller")
    print(f"relative error of the outputs {report['damage']['relative_error']:.3f}")
    print(f"pixels of the same class {report['damage']['metric']['after']:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
