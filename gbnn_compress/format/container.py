"""The file: a safetensors container, verified on reading.

It has one tensor that holds the sections of a network; an ensemble has one such tensor for each of its networks.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
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

MEMBERS = "members"
"""Key of the metadata of an ensemble: the versions of its members, joined by commas."""

FEWEST_MEMBERS, MOST_MEMBERS = 2, 64


class Contents(NamedTuple):
    """What a file holds of one network.

    Attributes:
        sections: Name -> bytes of every section.
        size_bytes: Size of the file; of a member of an ensemble, of its tensor.
        version: Version of the format.
    """

    sections: dict[str, bytes]
    size_bytes: int
    version: int


def pack(sections: Mapping[str, bytes], *, version: int = 1) -> bytes:
    """Serialise the sections: their lengths and CRC-32s, then their bytes. A section not given is empty."""
    data = np.frombuffer(laid_out(sections, version), dtype=np.uint8)
    return safetensors.numpy.save({TENSOR: data}, metadata={FORMAT: str(version)})


def pack_members(members: Sequence[tuple[Mapping[str, bytes], int]]) -> bytes:
    """Serialise an ensemble: the sections and the version of each member, in order."""
    versions = ",".join(str(version) for _, version in members)
    header: dict[str, object] = {"__metadata__": {FORMAT: str(NEWEST), MEMBERS: versions}}
    parts, start = [], 0
    for number, (sections, version) in enumerate(members):
        parts.append(laid_out(sections, version))
        stop = start + len(parts[-1])
        header[f"{TENSOR}.{number}"] = {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        start = stop
    # Written here, because safetensors writes several tensors, and several entries of metadata, in no fixed order.
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def unpack(path: Path) -> Contents:
    """Read a file of one network and check every checksum.

    Raises:
        ArtifactError: The file is missing, of another format or damaged, or holds several networks.
    """
    found = unpack_members(path)
    if len(found) > 1:
        raise ArtifactError(
            f"`{path}` is an ensemble of {len(found)} networks, expected a file of one; take one of them in Python:"
            f" `gbnn_compress.load(...).members[0]`, or as dense weights: gbnn-compress decompress --member 0"
        )
    return found[0]


def unpack_members(path: Path) -> tuple[Contents, ...]:
    """Read a file of one network, or an ensemble, and check every checksum.

    Returns:
        The contents of each network.

    Raises:
        ArtifactError: The file is missing, of another format or damaged.
    """
    _check_file(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            version = _version(path, metadata)
            versions = [version] if MEMBERS not in metadata else _member_versions(path, version, metadata[MEMBERS])
            names = [TENSOR] if MEMBERS not in metadata else [f"{TENSOR}.{number}" for number in range(len(versions))]
            if list(handle.offset_keys()) != names:
                several = f"its header should name the tensors `{names[0]}` to `{names[-1]}`, in this order"
                raise _damaged(path, ONE_TENSOR if MEMBERS not in metadata else several)
            tensors = [handle.get_tensor(name) for name in names]
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"`{path}` is not a gbnn-compress artifact, or its header is damaged ({error}); compress a checkpoint "
            "first: gbnn-compress FILE --target-ratio 8"
        ) from None
    if any(data.dtype != np.uint8 or data.ndim != 1 for data in tensors):
        raise _damaged(path, ONE_TENSOR if MEMBERS not in metadata else "its header should name tensors of bytes")
    if MEMBERS not in metadata:
        try:
            sections = sections_of(tensors[0].data, version)
        except ArtifactError as error:
            raise _damaged(path, str(error)) from None
        return (Contents(sections, path.stat().st_size, version),)
    return tuple(_member(path, number, *each) for number, each in enumerate(zip(tensors, versions, strict=True)))


def _member(path: Path, number: int, data: np.ndarray, version: int) -> Contents:
    try:
        return Contents(sections_of(data.data, version), len(data), version)
    except ArtifactError as error:
        raise ArtifactError(f"{name_of_member(path, number)}: {error}; copy the file or make it again") from None


def name_of_member(path: Path, number: int) -> str:
    """A member of an ensemble, for messages."""
    return f"`{path}`, member {number}"


def _version(path: Path, metadata: Mapping[str, str]) -> int:
    version = metadata.get(FORMAT)
    if version is None:
        raise ArtifactError(
            f"`{path}` is not a gbnn-compress artifact but, by its header, another safetensors file; "
            "compress it first: gbnn-compress FILE --target-ratio 8"
        )
    versions = " or ".join(map(str, SECTIONS_BY_VERSION))
    if version not in versions.split(" or "):
        got = f"expected format version {versions}, got {version[:20]!r} in its header"
        raise ArtifactError(f"`{path}`: {got}: {_advice(version)}")
    return int(version)


def _member_versions(path: Path, version: int, members: str) -> list[int]:
    """The versions of the members of an ensemble, from the text in its header."""
    texts = members.split(",")
    known = all(text in map(str, SECTIONS_BY_VERSION) for text in texts)
    if version != NEWEST or not known or not FEWEST_MEMBERS <= len(texts) <= MOST_MEMBERS:
        raise _damaged(
            path,
            f"expected the versions of {FEWEST_MEMBERS} to {MOST_MEMBERS} members in a header of version {NEWEST}, got"
            f" {members[:20]!r} in one of version {version}",
        )
    return [int(text) for text in texts]


def laid_out(sections: Mapping[str, bytes], version: int) -> bytes:
    """The bytes of a network's tensor."""
    parts = [sections.get(name, b"") for name in SECTIONS_BY_VERSION[version]]
    table = b"".join(write_length(len(part)) + (_checksum(part) if part else b"") for part in parts)
    return b"".join([table, *parts])


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


def sections_of(data: memoryview, version: int) -> dict[str, bytes]:
    """Split the tensor's bytes into sections, and check them.

    Raises:
        ArtifactError: They are damaged; the message does not name the file.
    """
    lengths, checksums, position = [], [], 0
    names = SECTIONS_BY_VERSION[version]
    for _ in names:
        try:
            length, position = read_length(data, position)
        except ArtifactError as error:
            raise ArtifactError(f"the table of sections in its header is damaged ({error})") from None
        stop = position + (4 if length else 0)
        lengths.append(length)
        checksums.append(data[position:stop])
        position = stop
    if position + sum(lengths) != len(data):
        raise ArtifactError("the sections of its header do not add up to its size")
    sections = {}
    for name, length, checksum in zip(names, lengths, checksums, strict=True):
        sections[name] = bytes(data[position : position + length])
        position += length
        if length and _checksum(sections[name]) != checksum:
            raise ArtifactError(f"the checksum of `{name}` is wrong")
    return sections


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"`{path}` is damaged: {what}; copy or compress it again")
