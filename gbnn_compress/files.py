"""Files of ours: written atomically, and refused early where they cannot be written."""

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
"""Nobody takes an hour from the first byte of a file to its last check."""

MOST_PREFIX = 50
"""Characters of a file's name in the names of its temporary files."""


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
