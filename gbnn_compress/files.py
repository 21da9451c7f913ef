"""Atomic writing of files, and early checks of whether they can be written."""

from __future__ import annotations

import glob
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gbnn_compress.errors import OutputError

STALE_SECONDS = 3600
"""Age from which a temporary file counts as left over; writing and verifying a file takes less than an hour."""

MOST_PREFIX = 50
"""Largest number of characters of a file's name in the names of its temporary files."""


def write_atomically(path: Path, data: bytes, *, verify: Callable[[Path], None] | None = None) -> None:
    """Write to a temporary file beside `path`, sync it, verify it, and move it to `path`.

    If `path` is a link, its target is replaced. A replaced file passes its permissions on to the new file. Temporary
    files of earlier runs that were killed are removed.

    Args:
        path: Path of the file.
        data: Content of the file.
        verify: Called with the path of the temporary file. If it raises, `path` is not changed.

    Raises:
        OutputError: The folder does not exist or cannot be written, or the disk is full; `path` is not changed.
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
    """Whether two paths refer to the same file, which need not exist."""
    with suppress(OSError):
        if a.exists() and b.exists():
            return a.samefile(b)
    return os.path.realpath(a) == os.path.realpath(b)


def refuse_inputs(path: Path, *specifications: str | Path | None, option: str) -> None:
    """Refuse an output that the same run reads.

    Args:
        path: The output.
        specifications: What the run reads: paths, or specifications that name a file (`npz:FILE`, `FILE.py:callable`).
        option: The option that names the output, for the message.

    Raises:
        OutputError: One of the specifications names the file at `path`.
    """
    for specification in map(str, filter(None, specifications)):
        named = (specification, specification.partition(":")[2], specification.rpartition(":")[0])
        if any(each and Path(each).is_file() and same_file(path, Path(each)) for each in named):
            raise OutputError(f"cannot write `{option} {path}`: this command reads that file; choose another one")


def require_writable(path: Path) -> None:
    """Check that a file can be written at `path`.

    Raises:
        OutputError: The folder does not exist or is not writable; or `path` is no file, or is write-protected.
    """
    try:
        reason = _obstacle(path, Path(os.path.realpath(path)))
    except OSError as error:  # for example a name that is too long, or a folder without read permission
        reason = error.strerror or str(error)
    if reason:
        raise OutputError(f"cannot write `{path}`: {reason}")


def _obstacle(path: Path, target: Path) -> str:
    """The reason why a file cannot be written; empty if it can. `target` is `path` with all links resolved."""
    folder = target.parent
    if target.is_symlink():
        return "it is a link that refers to itself; remove it"
    if not folder.is_dir():
        return f"the folder `{folder if path.is_symlink() else path.parent}` does not exist; create it first"
    if target.exists() and not target.is_file():
        return f"it is {'a directory' if target.is_dir() else 'a device or a pipe'}; name a file"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no permission to write in `{folder if path.is_symlink() else path.parent}`; choose another folder"
    if target.exists() and not os.access(target, os.W_OK):
        return "it is write-protected; remove it, or choose another name"
    return ""


def _temporary_prefix(target: Path) -> str:
    """Prefix of temporary names, before eight random characters and `.tmp`; shortened to stay within name limits."""
    return f".{target.name[:MOST_PREFIX]}."


def _remove_stale(target: Path) -> None:
    """Remove temporary files that are so old that the run that made them must have been killed."""
    for path in target.parent.glob(f"{glob.escape(_temporary_prefix(target))}????????.tmp"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Sync a folder so that the new name survives a crash. Some systems cannot sync folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
