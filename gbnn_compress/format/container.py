"""The file: a safetensors container of one tensor that holds the sections, written atomically, verified when read."""

from __future__ import annotations

import glob
import os
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from gbnn_compress.errors import ArtifactError, OutputError
from gbnn_compress.format.bits import read_length, write_length

FORMAT = "gbnn-compress"
VERSION = "1"
TENSOR = "data"
SECTIONS = ("manifest", "bank", "maps", "outliers", "values")
MOST_HEADER_BYTES = 1 << 20
ONE_TENSOR = "its header should name one tensor of bytes"

STALE_SECONDS = 3600
"""Nobody takes an hour from the first byte of a file to its last check."""

MOST_PREFIX = 50
"""Characters of a file's name in the names of its temporary files."""


def pack(sections: Mapping[str, bytes]) -> bytes:
    """Serialise the sections: their lengths and CRC-32s, then their bytes. A section not given is empty."""
    parts = [sections.get(name, b"") for name in SECTIONS]
    table = b"".join(write_length(len(part)) + (_checksum(part) if part else b"") for part in parts)
    data = np.frombuffer(b"".join([table, *parts]), dtype=np.uint8)
    # One entry only: safetensors writes several in no fixed order.
    return safetensors.numpy.save({TENSOR: data}, metadata={FORMAT: VERSION})


def unpack(path: Path) -> tuple[dict[str, bytes], int]:
    """Read a file and check every checksum.

    Returns:
        The sections (missing ones empty), and the size of the file in bytes.

    Raises:
        ArtifactError: The file is missing, foreign or damaged.
    """
    _check_file(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as handle:
            version = (handle.metadata() or {}).get(FORMAT)
            if version is None:
                raise ArtifactError(
                    f"`{path}` is not a gbnn-compress artifact but, by its header, some other safetensors file; "
                    "compress it first: gbnn-compress FILE --target-ratio 8"
                )
            if version != VERSION:
                got = f"expected format version {VERSION}, got {version[:20]!r} in its header"
                raise ArtifactError(f"`{path}`: {got}: {_advice(version)}")
            if list(handle.keys()) != [TENSOR]:
                raise _damaged(path, ONE_TENSOR)
            data = handle.get_tensor(TENSOR)
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"`{path}` is not a gbnn-compress artifact, or its header is damaged ({error}); a checkpoint is to be "
            "compressed first: gbnn-compress FILE --target-ratio 8"
        ) from None
    if data.dtype != np.uint8 or data.ndim != 1:
        raise _damaged(path, ONE_TENSOR)
    return _sections(path, data.data), path.stat().st_size


def _check_file(path: Path) -> None:
    """Refuse what is no file, or has a header so long that it would take long to tell that it is none of ours."""
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
            f"`{path}` is not a gbnn-compress artifact, or its header is damaged (it begins as no header of ours does);"
            " a checkpoint is to be compressed first: gbnn-compress FILE --target-ratio 8"
        )


def _advice(version: str) -> str:
    newer = re.fullmatch("[1-9][0-9]{0,8}", version) and int(version) > int(VERSION)
    return "update gbnn-compress to read it" if newer else "read it with the gbnn-compress release that wrote it"


def _sections(path: Path, data: memoryview) -> dict[str, bytes]:
    """Cut the tensor's bytes into sections."""
    lengths, checksums, position = [], [], 0
    for _ in SECTIONS:
        try:
            length, position = read_length(data, position)
        except ArtifactError as error:
            raise _damaged(path, f"its header lists no sections ({error})") from None
        stop = position + (4 if length else 0)
        lengths.append(length)
        checksums.append(data[position:stop])
        position = stop
    if position + sum(lengths) != len(data):
        raise _damaged(path, "the sections of its header do not add up to its size")
    sections = {}
    for name, length, checksum in zip(SECTIONS, lengths, checksums, strict=True):
        sections[name] = bytes(data[position : position + length])
        position += length
        if length and _checksum(sections[name]) != checksum:
            raise _damaged(path, f"the checksum of `{name}` is wrong")
    return sections


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def write_atomically(path: Path, data: bytes, *, verify: Callable[[Path], None] | None = None) -> None:
    """Write to a temporary file beside `path`, sync, verify, and only then put it in place.

    Of a link it is the file that it names which is replaced. A file that is replaced leaves its permissions to the new
    one. What killed runs left of earlier tries is removed.

    Args:
        path: Where the file shall be.
        data: Its bytes.
        verify: Called with the temporary file; whatever it raises leaves `path` as it was.

    Raises:
        OutputError: The folder does not exist or cannot be written, or there is no room; `path` is as it was.
    """
    require_writable(path)
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        _remove_stale(target)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=_temporary_prefix(target), suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(temporary)
        temporary.chmod(mode)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write `{path}`: {error.strerror or error}; nothing was changed") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths, existing or not, name one file."""
    with suppress(OSError):
        if a.exists() and b.exists():
            return a.samefile(b)
    return os.path.realpath(a) == os.path.realpath(b)


def require_writable(path: Path) -> None:
    """Fail early when `path` cannot be written.

    Raises:
        OutputError: Its folder does not exist or is not writable, or it is no file, or a protected one.
    """
    try:
        reason = _obstacle(path, Path(os.path.realpath(path)))
    except OSError as error:  # a name too long, a folder that may not be looked into
        reason = error.strerror or str(error)
    if reason:
        raise OutputError(f"cannot write `{path}`: {reason}")


def _obstacle(path: Path, target: Path) -> str:
    """Why a file cannot be written, `path` by its name and `target` behind all links; empty if it can."""
    folder = target.parent
    if target.is_symlink():
        return "it is a link that leads back to itself; remove it"
    if not folder.is_dir():
        return f"the folder `{folder if path.is_symlink() else path.parent}` does not exist; make it first"
    if target.exists() and not target.is_file():
        return f"it is {'a directory' if target.is_dir() else 'a device or a pipe'}; name a file"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no permission to write in `{folder if path.is_symlink() else path.parent}`; choose another folder"
    if target.exists() and not os.access(target, os.W_OK):
        return "it is protected from writing; remove it, or choose another name"
    return ""


def _temporary_prefix(target: Path) -> str:
    """With eight random characters and `.tmp` after it; cut, for names may be as long as a folder takes."""
    return f".{target.name[:MOST_PREFIX]}."


def _remove_stale(target: Path) -> None:
    """Remove temporary files so old that the run which made them must have been killed."""
    for path in target.parent.glob(f"{glob.escape(_temporary_prefix(target))}????????.tmp"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name last; not everywhere can folders be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"`{path}` is damaged: {what}; copy or compress it again")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
