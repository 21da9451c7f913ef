"""Image files as 8-bit pixels."""

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
"""Pillow's modes that it converts to RGB without a change of range; it reads 16-bit colour files into these itself."""

_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})
"""Formats whose mode `I` holds 16 bits per pixel; of other formats nobody knows which number is white."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of a TIFF file, and a value of the second."""


@dataclass(frozen=True)
class FolderImages:
    """Image files, decoded when they are indexed.

    Attributes:
        paths: The files.
        n_channels: Of the images that are given: 3, grey ones with three equal channels, or 1.
    """

    paths: Sequence[Path]
    n_channels: int = 3

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int, /) -> np.ndarray:
        """One image, uint8 (H, W, n_channels).

        Raises:
            DataError: The file cannot be read in 8 bits, or one channel is wanted of a colour image.
        """
        path = self.paths[index]
        image = read_image(path)
        if self.n_channels == 3:
            return image
        if not is_grey(image):
            raise DataError(
                f"`{path}` is a colour image and the network reads one channel, expected grey: convert it,"
                " or give data of the kind that the network was trained on"
            )
        return np.ascontiguousarray(image[:, :, :1])

    def in_one_channel(self) -> FolderImages | None:
        """The same images in one channel; None if the first is a colour image, or they are so already."""
        if self.n_channels == 1 or not is_grey(read_image(self.paths[0])):
            return None
        return replace(self, n_channels=1)


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and its folders, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def is_grey(image: np.ndarray) -> bool:
    """Whether the channels of an image, uint8 (H, W, C), are equal."""
    return bool((image == image[:, :, :1]).all())


def read_image(path: Path) -> np.ndarray:
    """The pixels of an image file.

    16-bit files are scaled to 8 bits by their upper 8 bits. A grey image has three equal channels; transparency is left
    out.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: It cannot be read, or holds numbers without a known range.
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
        kind = "16-bit image whose white is 0" if sixteen_bits else "image of numbers without a known range"
        raise DataError(
            f"`{path}` is a {image.format} file of Pillow's mode `{image.mode}`, an {kind}, expected 8 or 16 bits per"
            " channel with black at 0: scale it to 8 bits, as your training did, and save that as PNG"
        )
    n_bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    return Image.fromarray((np.asarray(image).astype(np.int64) >> (n_bits - 8)).astype(np.uint8))
