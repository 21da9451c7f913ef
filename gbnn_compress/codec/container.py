"""The file: a safetensors container of byte sections, written atomically, verified when read."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import zstandard

from gbnn_compress.errors import ArtifactError, OutputError

FORMAT = "gbnn-compress"
VERSION = "0"
MANIFEST = "manifest"
SECTIONS = ("bank", "maps", "outliers", "values")


def pack(manifest: Mapping[str, Any], sections: Mapping[str, bytes]) -> bytes:
    """Serialise a manifest and the sections that are not empty.

    Each section's CRC-32 goes into the manifest (`crc32`), the manifest's own into the container's metadata.
    """
    filled = {name: data for name, data in sections.items() if data}
    described = {**manifest, "crc32": {name: zlib.crc32(data) for name, data in filled.items()}}
    blob = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(
        json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    )
    arrays = {name: np.frombuffer(data, dtype=np.uint8) for name, data in {**filled, MANIFEST: blob}.items()}
    # One entry only: safetensors writes several in no fixed order.
    return safetensors.numpy.save(arrays, metadata={FORMAT: f"{VERSION} {zlib.crc32(blob):08x}"})


def unpack(path: Path) -> tuple[dict[str, Any], dict[str, bytes], int]:
    """Read a file and check every checksum.

    Returns:
        The manifest, the sections (missing ones empty), and the size of the file in bytes.

    Raises:
        ArtifactError: The file is missing, foreign or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"`{path}`: expected an artifact, got {'a directory' if path.is_dir() else 'no such file'}")
    try:
        with safetensors.safe_open(path, framework="numpy") as handle:
            stamp = (handle.metadata() or {}).get(FORMAT)
            if stamp is None:
                raise ArtifactError(
                    f"`{path}` is not a gbnn-compress artifact but some other safetensors file; "
                    "compress it first: gbnn-compress FILE --target-ratio 8"
                )
            version, _, checksum = stamp.partition(" ")
            if version != VERSION:
                raise ArtifactError(
                    f"`{path}`: expected format version {VERSION}, got {version!r}: "
                    "read it with the gbnn-compress release that wrote it"
                )
            sections = {name: handle.get_tensor(name).tobytes() for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"`{path}` is not a gbnn-compress artifact, or a damaged one ({error}); a checkpoint is to be "
            "compressed first: gbnn-compress FILE --target-ratio 8"
        ) from None
    blob = sections.pop(MANIFEST, b"")
    if f"{zlib.crc32(blob):08x}" != checksum:
        raise _damaged(path, MANIFEST)
    try:
        manifest = json.loads(zstandard.ZstdDecompressor().decompress(blob))
        checksums = manifest.pop("crc32")
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        raise _damaged(path, MANIFEST) from None
    if not isinstance(checksums, dict) or set(checksums) != set(sections):
        raise _damaged(path, "the list of sections")
    for name, data in sections.items():
        if zlib.crc32(data) != checksums[name]:
            raise _damaged(path, name)
    return manifest, {name: sections.get(name, b"") for name in SECTIONS}, path.stat().st_size


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
    return ArtifactError(f"`{path}` is damaged: the checksum of `{what}` is wrong; copy or compress it again")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
