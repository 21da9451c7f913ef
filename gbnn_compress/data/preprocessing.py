"""Preprocessing of stored images into a network's inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.errors import DataError, GbnnError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# An image whose short side is less than this factor above `image_size` counts as resized and is only cropped.
_CROP_ONLY_BELOW = 1.3


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a stored image x: resize and crop, then (x / 255 - mean) / std, as float32 NCHW.

    Attributes:
        mean: Mean of each channel, in units of x / 255.
        std: Standard deviation of each channel, > 0, in units of x / 255.
        image_size: Height and width of the input, in pixels; None keeps the stored size. A stored image whose short
            side is at least `image_size` and less than 1.3 times `image_size` is only cropped at the centre. Any other
            image gets an antialiased bilinear resize before the crop.
        crop_fraction: In (0, 1]. Larger images are resized to a short side of image_size / crop_fraction.

    Raises:
        GbnnError: A value is out of range, or `mean` and `std` have different lengths.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | None
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.mean) != len(self.std):
            raise GbnnError(
                f"`--mean` and `--std` must have one number per channel each, got {len(self.mean)} and {len(self.std)}"
            )
        if not all(value > 0 for value in self.std):
            raise GbnnError(f"`--std` must be above 0, got {', '.join(map(str, self.std))}")
        if self.image_size is not None and self.image_size < 1:
            raise GbnnError(f"`--image-size` must be at least 1, got {self.image_size}")
        if not 0 < self.crop_fraction <= 1:
            raise GbnnError(f"`crop_fraction` must lie in (0, 1], got {self.crop_fraction}")

    def require_channels(self, n_channels: int, *, spec: str) -> None:
        """Refuse images with another number of channels.

        Args:
            n_channels: Number of channels of an image.
            spec: Data specification, for the message.

        Raises:
            DataError: The number of channels differs from that of `mean`.
        """
        if n_channels != len(self.mean):
            raise DataError(
                f"`{spec}` has images with {n_channels} channel(s), `--mean` has {len(self.mean)} number(s);"
                " give one number per channel"
            )


def parse_numbers(text: str, *, option: str) -> tuple[float, ...]:
    """Read comma-separated finite numbers, such as `0.485,0.456,0.406`.

    Raises:
        GbnnError: The text is anything else; the message names `option`.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise GbnnError(f"`{option}` must be numbers separated by commas, such as 0.5,0.5,0.5, got `{text}`")
    return numbers


def preprocess(images: Sequence[np.ndarray], preprocessing: Preprocessing, *, spec: str) -> torch.Tensor:
    """Preprocess stored images into one batch of inputs.

    Args:
        images: At least one image, each uint8 (H, W, C); they are not changed.
        preprocessing: `mean` and `std` hold one number per channel.
        spec: Data specification, for messages.

    Returns:
        float32 (B, C, height, width), contiguous.

    Raises:
        DataError: The number of channels differs from that of `preprocessing`; or the images have several sizes and no
            `image_size` is given; or there is too little memory for `image_size`.
    """
    import torch

    n_channels = len(preprocessing.mean)
    for image in images:
        preprocessing.require_channels(image.shape[2], spec=spec)
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1 and preprocessing.image_size is None:
        raise DataError(
            f"`{spec}` has images of different sizes ({sizes[0][0]} x {sizes[0][1]} and {sizes[-1][0]} x"
            f" {sizes[-1][1]}); give `--image-size`"
        )
    try:
        if len(sizes) == 1:
            batch = _fit(np.stack(images), preprocessing)
        else:
            batch = torch.cat([_fit(image[np.newaxis], preprocessing) for image in images])
    except (MemoryError, RuntimeError) as error:
        if preprocessing.image_size is None or not (isinstance(error, MemoryError) or "allocate" in str(error)):
            raise
        raise DataError(
            f"`{spec}`: too little memory for {len(images)} inputs of {preprocessing.image_size} x"
            f" {preprocessing.image_size} pixels; give a smaller `--image-size`"
        ) from None
    mean, std = (torch.tensor(values).view(n_channels, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    # In place, because the batch is a copy, and memory traffic is most of the cost.
    return batch.div_(255.0).sub_(mean).div_(std)


def _fit(images: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """Resize and crop: uint8 (B, H, W, C) -> float32 (B, C, image_size, image_size) in 0..255."""
    import torch

    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    size = preprocessing.image_size
    if size is not None:
        height, width = batch.shape[2:]
        short = min(height, width)
        if not size <= short < _CROP_ONLY_BELOW * size:
            target = size if short < size else round(size / preprocessing.crop_fraction)
            shape = [side * target // short for side in (height, width)]
            batch = torch.nn.functional.interpolate(
                _contiguous_float(batch), size=shape, mode="bilinear", antialias=True
            )
        top, left = (round((side - size) / 2) for side in batch.shape[2:])  # rounds as torchvision's CenterCrop does
        batch = batch[:, :, top : top + size, left : left + size]
    return _contiguous_float(batch)


def _contiguous_float(batch: torch.Tensor) -> torch.Tensor:
    import torch

    # `to` casts and transposes in one pass. A cropped float32 it returns unchanged, which leaves that to `contiguous`.
    return batch.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
