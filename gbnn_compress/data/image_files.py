"""Reading of image files as 8-bit pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})
"""Modes that Pillow converts to RGB without a change of range. Pillow reads 16-bit colour files into these modes."""

_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})
"""Formats whose mode `I` holds 16 bits per pixel. In other formats the value of white is not known."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Two tags of a TIFF file, and a value of the second tag."""


@dataclass(frozen=True)
class FolderImages:
    """Image files that are decoded when they are indexed.

    Attributes:
        paths: The files.
        n_channels: Number of channels of the decoded images: 3 (equal channels for grey images) or 1.
    """

    paths: Sequence[Path]
    n_channels: int = 3

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int, /) -> np.ndarray:
        """One image, uint8 (H, W, n_channels).

        Raises:
            DataError: The file cannot be read in 8 bits, or is a colour image although `n_channels` is 1.
        """
        path = self.paths[index]
        image = read_image(path)
        if self.n_channels == 3:
            return image
        if not is_grey(image):
            raise DataError(
                f"`{path}`: expected a grey image for a network with one input channel, got a colour image: convert it,"
                " or give data of the kind that the network was trained on"
            )
        return np.ascontiguousarray(image[:, :, :1])

    def in_one_channel(self) -> FolderImages | None:
        """The same images with one channel; None if they have one already, or if the first is a colour image."""
        if self.n_channels == 1 or not is_grey(read_image(self.paths[0])):
            return None
        return replace(self, n_channels=1)


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and its subfolders, sorted, without hidden files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def is_grey(image: np.ndarray) -> bool:
    """Whether all channels of an image, uint8 (H, W, C), are equal."""
    return bool((image == image[:, :, :1]).all())


def read_image(path: Path) -> np.ndarray:
    """Read the pixels of an image file.

    Of 16-bit values the upper 8 bits are kept. Grey images get three equal channels. Transparency is ignored.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: The file cannot be read, or the range of its values is not known.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(_in_eight_bits(image, path).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"`{path}` cannot be read as an image ({one_line(error)}), remove it") from error


def _in_eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """The image in one of `_EIGHT_BIT_MODES`."""
    from PIL import Image

    if image.mode in _EIGHT_BIT_MODES:
        return image
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS)
    if not sixteen_bits or tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        kind = "16-bit image with white at 0" if sixteen_bits else "image with an unknown range of values"
        raise DataError(
            f"`{path}` is a {image.format} file of Pillow's mode `{image.mode}`, an {kind}, expected 8 or 16 bits per"
            " channel with black at 0: scale it to 8 bits, as your training did, and save that as PNG"
        )
    n_bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    return Image.fromarray((np.asarray(image).astype(np.int64) >> (n_bits - 8)).astype(np.uint8))
