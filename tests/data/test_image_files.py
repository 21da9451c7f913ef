"""Image files of every mode, as the 8-bit copy of each would be."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbnn_compress.data.image_files import FolderImages, read_image
from gbnn_compress.errors import DataError

SIXTEEN = np.random.default_rng(0).integers(0, 65536, (6, 8)).astype(np.uint16)
GREY = (SIXTEEN >> 8).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def written_png(path: Path, pixels: np.ndarray, *, colour_type: int) -> Path:
    """A 16-bit PNG of uint16 (H, W, C), which Pillow itself writes in grey only."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def written_tiff(
    path: Path, pixels: np.ndarray, *, order: str, bits: int, photometric: int, sample_format: int
) -> Path:
    """An uncompressed grey TIFF of one strip: `order` `<` or `>`."""
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    data = pixels.tobytes()
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0")
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_greys_are_scaled_to_eight_bits(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(SIXTEEN).save(path)
    np.testing.assert_array_equal(read_image(path), repeated(GREY))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiffs_of_either_byte_order(tmp_path, order):
    pixels = SIXTEEN.astype(f"{order}u2")
    path = written_tiff(tmp_path / "x.tif", pixels, order=order, bits=16, photometric=1, sample_format=1)
    np.testing.assert_array_equal(read_image(path), repeated(GREY))


def test_twelve_bit_tiffs_are_scaled_by_their_own_range(tmp_path):
    twelve = SIXTEEN >> 4
    first, second = twelve[:, ::2], twelve[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    path = tmp_path / "x.tif"
    written_tiff(path, packed.reshape(6, -1), order="<", bits=12, photometric=1, sample_format=1)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<HHII", 256, 4, 1, 12), struct.pack("<HHII", 256, 4, 1, 8)))
    np.testing.assert_array_equal(read_image(path), repeated(GREY))


def test_grey_maps_of_sixteen_bits(tmp_path):
    path = tmp_path / "x.ppm"
    path.write_bytes(b"P5 8 6 65535\n" + SIXTEEN.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(path), repeated(GREY))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_and_transparency(tmp_path, colour_type, channels):
    pixels = np.random.default_rng(2).integers(0, 65536, (6, 8, channels)).astype(np.uint16)
    found = read_image(written_png(tmp_path / "x.png", pixels, colour_type=colour_type))
    eight = (pixels >> 8).astype(np.uint8)
    np.testing.assert_array_equal(found, repeated(eight[:, :, 0]) if channels == 2 else eight[:, :, :3])


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGB", "png"), ("RGBA", "png"), ("CMYK", "tif")],
)
def test_eight_bit_modes_are_as_pillow_converts_them(tmp_path, mode, suffix):
    path = tmp_path / f"x.{suffix}"
    image = Image.fromarray(COLOUR).convert(mode)
    image.save(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (SIXTEEN.astype(np.int32), "I"),
        (SIXTEEN.astype(np.int32) // 257, "I"),
        ((SIXTEEN / 65535).astype(np.float32), "F"),
        (SIXTEEN.astype(np.float32), "F"),
    ],
)
def test_error_numbers_without_a_known_range(tmp_path, pixels, mode):
    path = tmp_path / "x.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(
        DataError, match=f"x.tif` is a TIFF file of Pillow's mode `{mode}`, .*save that as PNG"
    ) as error:
        read_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("photometric", "sample_format", "words"), [(0, 1, "with white at 0"), (1, 2, "with an unknown range")]
)
def test_error_sixteen_bits_that_are_no_brightness(tmp_path, photometric, sample_format, words):
    path = tmp_path / "x.tif"
    written_tiff(path, SIXTEEN, order="<", bits=16, photometric=photometric, sample_format=sample_format)
    with pytest.raises(DataError, match=words):
        read_image(path)


def test_one_channel_of_grey_images_whatever_their_mode(tmp_path):
    for mode in ("1", "L", "LA", "RGB", "RGBA"):
        Image.fromarray(GREY).convert(mode).save(tmp_path / f"{mode}.png")
    Image.fromarray(SIXTEEN).save(tmp_path / "sixteen.png")
    paths = sorted(tmp_path.iterdir())
    images = FolderImages(paths).in_one_channel()
    assert images is not None
    assert len(images) == 6
    for path, image in zip(paths, images, strict=True):
        expected = GREY if path.stem != "1" else np.asarray(Image.fromarray(GREY).convert("1").convert("L"))
        np.testing.assert_array_equal(image, expected[:, :, np.newaxis])
    assert images.in_one_channel() is None


def test_colour_has_no_single_channel(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert FolderImages(paths[::-1]).in_one_channel() is None
    images = FolderImages(paths).in_one_channel()
    assert images is not None
    with pytest.raises(DataError, match=r"b.png`: expected a grey image for a network with one input channel"):
        images[1]
