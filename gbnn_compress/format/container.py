"""The file: a safetensors container of one tensor that holds the sections, verified on reading."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.bits import read_length, write_length

FORMAT = "gbnn-compress"
TENSOR = "data"
SECTIONS_BY_VERSION = {
    1: ("manifest", "bank", "maps", "outliers", "values"),
    2: ("manifest", "bank", "values", "outliers", "maps"),
}
"""Sections in the order of the file."""

SECTIONS = SECTIONS_BY_VERSION[1]
NEWEST = max(SECTIONS_BY_VERSION)
MOST_HEADER_BYTES = 1 << 20
ONE_TENSOR = "its header should name one tensor of bytes"


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        sections: Name -> bytes of every section.
        size_bytes: Size of the file.
        version: Version of the format.
    """

    sections: dict[str, bytes]
    size_bytes: int
    version: int


def pack(sections: Mapping[str, bytes], *, version: int = 1) -> bytes:
    """Serialise the sections: their lengths and CRC-32s, then their bytes. A section not given is empty."""
    parts = [sections.get(name, b"") for name in SECTIONS_BY_VERSION[version]]
    table = b"".join(write_length(len(part)) + (_checksum(part) if part else b"") for part in parts)
    data = np.frombuffer(b"".join([table, *parts]), dtype=np.uint8)
    # One tensor only: safetensors writes several in no fixed order.
    return safetensors.numpy.save({TENSOR: data}, metadata={FORMAT: str(version)})


def unpack(path: Path) -> Contents:
    """Read a file and check every checksum.

    Raises:
        ArtifactError: The file is missing, of another format or damaged.
    """
    _check_file(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as handle:
            version = (handle.metadata() or {}).get(FORMAT)
            if version is None:
                raise ArtifactError(
                    f"`{path}` is not a gbnn-compress artifact but, by its header, another safetensors file; "
                    "compress it first: gbnn-compress FILE --target-ratio 8"
                )
            versions = " or ".join(map(str, SECTIONS_BY_VERSION))
            if version not in versions.split(" or "):
                got = f"expected format version {versions}, got {version[:20]!r} in its header"
                raise ArtifactError(f"`{path}`: {got}: {_advice(version)}")
            if list(handle.keys()) != [TENSOR]:
                raise _damaged(path, ONE_TENSOR)
            data = handle.get_tensor(TENSOR)
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"`{path}` is not a gbnn-compress artifact, or its header is damaged ({error}); compress a checkpoint "
            "first: gbnn-compress FILE --target-ratio 8"
        ) from None
    if data.dtype != np.uint8 or data.ndim != 1:
        raise _damaged(path, ONE_TENSOR)
    return Contents(sections_of(path, data.data, int(version)), path.stat().st_size, int(version))


def _check_file(path: Path) -> None:
    """Refuse a path that is no file, and a file with a header so long that reading it would take long."""
    try:
        if not path.is_file():
            kind = "a directory" if path.is_dir() else "no such file"
            raise ArtifactError(f"`{path}`: expected an artifact, got {kind}")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ArtifactError(f"`{path}` cannot be read: {error.strerror or error}") from None
    if length > MOST_HEADER_BYTES:
        raise ArtifactError(
            f"`{path}` is not a gbnn-compress artifact, or its header is damaged (its header is too long);"
            " compress a checkpoint first: gbnn-compress FILE --target-ratio 8"
        )


def _advice(version: str) -> str:
    newer = re.fullmatch("[1-9][0-9]{0,8}", version) and int(version) > NEWEST
    return "update gbnn-compress to read it" if newer else "read it with the gbnn-compress release that wrote it"


def sections_of(path: Path, data: memoryview, version: int) -> dict[str, bytes]:
    """Split the tensor's bytes into sections, and check them; `path` is for errors."""
    lengths, checksums, position = [], [], 0
    names = SECTIONS_BY_VERSION[version]
    for _ in names:
        try:
            length, position = read_length(data, position)
        except ArtifactError as error:
            raise _damaged(path, f"the table of sections in its header is damaged ({error})") from None
        stop = position + (4 if length else 0)
        lengths.append(length)
        checksums.append(data[position:stop])
        position = stop
    if position + sum(lengths) != len(data):
        raise _damaged(path, "the sections of its header do not add up to its size")
    sections = {}
    for name, length, checksum in zip(names, lengths, checksums, strict=True):
        sections[name] = bytes(data[position : position + length])
        position += length
        if length and _checksum(sections[name]) != checksum:
            raise _damaged(path, f"the checksum of `{name}` is wrong")
    return sections


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"`{path}` is damaged: {what}; copy or compress it again")
