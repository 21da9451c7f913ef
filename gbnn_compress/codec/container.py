"""The file: a safetensors container of one tensor that holds the sections, written atomically, verified when read."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from gbnn_compress.codec.bits import read_length, write_length
from gbnn_compress.errors import ArtifactError, OutputError

FORMAT = "gbnn-compress"
VERSION = "1"
TENSOR = "data"
SECTIONS = ("manifest", "bank", "maps", "outliers", "values")


def pack(sections: Mapping[str, bytes]) -> bytes:
    """Serialise the sections: their lengths and CRC-32s, then their bytes. A section not given is empty."""
    parts = [sections.get(name, b"") for name in SECTIONS]
    table = b"".join(write_length(len(part)) + (_checksum(part) if part else b"") for part in parts)
    data = np.frombuffer(table + b"".join(parts), dtype=np.uint8)
    # One entry only: safetensors writes several in no fixed order.
    return safetensors.numpy.save({TENSOR: data}, metadata={FORMAT: VERSION})


def unpack(path: Path) -> tuple[dict[str, bytes], int]:
    """Read a file and check every checksum.

    Returns:
        The sections (missing ones empty), and the size of the file in bytes.

    Raises:
        ArtifactError: The file is missing, foreign or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"`{path}`: expected an artifact, got {'a directory' if path.is_dir() else 'no such file'}")
    try:
        with safetensors.safe_open(path, framework="numpy") as handle:
            version = (handle.metadata() or {}).get(FORMAT)
            if version is None:
                raise ArtifactError(
                    f"`{path}` is not a gbnn-compress artifact but some other safetensors file; "
                    "compress it first: gbnn-compress FILE --target-ratio 8"
                )
            if version != VERSION:
                raise ArtifactError(
                    f"`{path}`: expected format version {VERSION}, got {version!r}: "
                    "read it with the gbnn-compress release that wrote it"
                )
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"`{path}` is not a gbnn-compress artifact, or a damaged one ({error}); a checkpoint is to be "
            "compressed first: gbnn-compress FILE --target-ratio 8"
        ) from None
    if set(tensors) != {TENSOR} or tensors[TENSOR].dtype != np.uint8 or tensors[TENSOR].ndim != 1:
        raise _damaged(path, "it should hold one tensor of bytes")
    return _sections(path, tensors[TENSOR].tobytes()), path.stat().st_size


def _sections(path: Path, data: bytes) -> dict[str, bytes]:
    """Cut the tensor's bytes into sections."""
    lengths, checksums, position = [], [], 0
    for _ in SECTIONS:
        length, position = read_length(data, position)
        stop = position + (4 if length else 0)
        lengths.append(length)
        checksums.append(data[position:stop])
        position = stop
    if position + sum(lengths) != len(data):
        raise _damaged(path, "its sections do not add up to its size")
    sections = {}
    for name, length, checksum in zip(SECTIONS, lengths, checksums, strict=True):
        sections[name] = data[position : position + length]
        position += length
        if length and _checksum(sections[name]) != checksum:
            raise _damaged(path, f"the checksum of `{name}` is wrong")
    return sections


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def write_atomically(path: Path, data: bytes, *, verify: Callable[[Path], None] | None = None) -> None:
    """Write to a temporary file beside `path`, sync, verify, and only then put it in place.

    Args:
        path: Where the file shall be.
        data: Its bytes.
        verify: Called with the temporary file; whatever it raises leaves `path` as it was.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    require_writable(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise OutputError(f"cannot write `{path}`: {error.strerror}") from None
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write `{path}`: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths, existing or not, name one file."""
    return a.samefile(b) if a.exists() and b.exists() else a.absolute() == b.absolute()


def require_writable(path: Path) -> None:
    """Fail early when `path` cannot be written.

    Raises:
        OutputError: Its folder does not exist or is not writable, or it is a directory.
    """
    if not path.parent.is_dir():
        raise OutputError(f"cannot write `{path}`: the folder `{path.parent}` does not exist; make it first")
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "a device or a pipe"
        raise OutputError(f"cannot write `{path}`: it is {kind}; name a file")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write `{path}`: no permission to write in `{path.parent}`")


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"`{path}` is damaged: {what}; copy or compress it again")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
