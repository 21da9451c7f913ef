"""How stored images become a network's inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.errors import DataError, GbnnError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# A short side up to this much longer than `image_size` has been resized already: crop only.
_CROP_ONLY_BELOW = 1.3


@dataclass(frozen=True)
class Preprocessing:
    """How a stored image becomes a network's input.

    The size (see `image_size`), x / 255, (x - mean) / std, float32 NCHW.

    Attributes:
        mean: For each channel, in units of x / 255.
        std: For each channel, > 0.
        image_size: Height and width of the input; None keeps the stored size. A stored image whose short side
            is at least this and less than 1.3 times this is only cropped at the centre; any other gets an
            antialiased bilinear resize and the crop.
        crop_fraction: In (0, 1]; larger images are resized to a short side of image_size / crop_fraction.

    Raises:
        GbnnError: A value out of range, or `mean` and `std` of different lengths.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | None
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.mean) != len(self.std):
            raise GbnnError(
                f"`--mean` and `--std` must have one number a channel each, got {len(self.mean)} and {len(self.std)}"
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
            n_channels: Of an image.
            spec: Where it comes from, for the message.

        Raises:
            DataError: They differ.
        """
        if n_channels != len(self.mean):
            raise DataError(
                f"`{spec}` has images with {n_channels} channel(s) and `--mean` {len(self.mean)} number(s),"
                " give one number a channel"
            )


def parse_numbers(text: str, *, option: str) -> tuple[float, ...]:
    """Read comma-separated finite numbers, such as `0.485,0.456,0.406`.

    Raises:
        GbnnError: Anything else; names `option`.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise GbnnError(f"`{option}` must be numbers separated by commas, such as 0.5,0.5,0.5, got `{text}`")
    return numbers


def preprocess(images: Sequence[np.ndarray], preprocessing: Preprocessing, *, spec: str) -> torch.Tensor:
    """Turn stored images into one batch of inputs.

    Args:
        images: At least one, each uint8 (H, W, C); left as they are.
        preprocessing: `mean` and `std` hold one number a channel.
        spec: Where the images come from, for messages.

    Returns:
        float32 (B, C, height, width), contiguous.

    Raises:
        DataError: Another number of channels than `preprocessing`, several sizes and no `image_size`, or too little
            memory for it.
    """
    import torch

    n_channels = len(preprocessing.mean)
    for image in images:
        preprocessing.require_channels(image.shape[2], spec=spec)
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1 and preprocessing.image_size is None:
        raise DataError(
            f"`{spec}` has images of different sizes ({sizes[0][0]} x {sizes[0][1]} and {sizes[-1][0]} x"
            f" {sizes[-1][1]}), give one `--image-size`"
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
            f" {preprocessing.image_size}, give a smaller `--image-size`"
        ) from None
    mean, std = (torch.tensor(values).view(n_channels, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    # In place: the batch is ours, and memory traffic is most of the cost.
    return batch.div_(255.0).sub_(mean).div_(std)


def _fit(images: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, image_size, image_size), still 0 to 255."""
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
        top, left = (round((side - size) / 2) for side in batch.shape[2:])  # halves as torchvision's CenterCrop
        batch = batch[:, :, top : top + size, left : left + size]
    return _contiguous_float(batch)


def _contiguous_float(batch: torch.Tensor) -> torch.Tensor:
    import torch

    # Cast and transpose in one pass; `contiguous` is left for a cropped float32, which `to` returns as it is.
    return batch.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
