"""Loading of a single file. Its format is detected from its first bytes, and no code that it names is run.

Pickles go through `torch.load(weights_only=True)`. Tensors stay memory-mapped if the format allows it, so that reading
needs at most about one copy of the weights in memory. The extension of the file does not matter; if it contradicts the
content, a note says so.
"""

from __future__ import annotations

import argparse
import io
import mmap
import re
import tempfile
import textwrap
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gbnn_compress.checkpoint.paged import in_pages, map_file
from gbnn_compress.checkpoint.pickles import check_pickles
from gbnn_compress.checkpoint.unread import stand_ins
from gbnn_compress.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Kind = Literal["safetensors", "torch zip", "torch legacy"]

SAFETENSORS_SUFFIXES = (".safetensors",)
TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt")
EXPECTED = "a .safetensors file, or .pth, .pt, .th, .bin or .ckpt as torch.save writes them"
RESAVE = "save only the weights with torch.save(model.state_dict(), 'weights.pth')"
DAMAGED = "is a damaged or truncated {} file ({}): download or save it again"
# Archives of torch.save are not compressed. An archive that unpacks into far more bytes is made to exhaust memory.
FREE_BYTES, MOST_UNPACKED = 1 << 26, 200
# A magic number, a version, facts of the system, the weights, and the keys of the storages that follow.
LEGACY_PICKLES = 5
DEFAULT_PROTOCOL = 2
MAX_REASON = 120
"""Largest number of characters of another library's message."""


@dataclass(frozen=True)
class Opened:
    """The content of a file.

    Attributes:
        loaded: The saved object. For a safetensors file: name -> tensor, in the order of their bytes.
        kind: Format of the file.
        pages: The mapped file if large tensors are views of it, else None.
        metadata: Metadata of a safetensors file; None for other formats.
        tied: Names that a safetensors file only lists in its metadata, as further names of stored tensors.
    """

    loaded: Any
    kind: Kind
    pages: mmap.mmap | None = None
    metadata: dict[str, str] | None = None
    tied: frozenset[str] = frozenset()


def open_file(path: Path) -> Opened:
    """Load a checkpoint file.

    Raises:
        OSError: The file cannot be read.
        CheckpointError: The path is no regular file, or the file is empty, damaged, of another format, or needs code to
            be run. The message continues a sentence that begins with the path.
    """
    _check_size(path)
    kind = sniff(path)
    if kind == "safetensors":
        return _load_safetensors(path)
    return Opened(_load_torch(path, kind=kind), kind)


def _check_size(path: Path) -> None:
    """Refuse paths that are no regular, non-empty file."""
    if "\0" in str(path) or not path.exists():
        raise CheckpointError(f"does not exist: expected {EXPECTED}")
    if not path.is_file():
        raise CheckpointError("is no regular file: copy the checkpoint to a file first")
    if path.stat().st_size == 0:
        raise CheckpointError("is empty (0 bytes): download or save it again")


def sniff(path: Path) -> Kind:
    """Detect the format of a file from its first bytes.

    Raises:
        CheckpointError: The format is not supported.
    """
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(b"PK\x03\x04"):
        return "torch zip"
    # The header's length in eight bytes, the upper four of which are 0, then JSON. This is checked before the pickle,
    # because the first two bytes of a pickle are a possible length.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if re.match(rb"\x80[\x02-\x05]", head):
        return "torch legacy"
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError("is a Git LFS pointer, not the weights: fetch the file with git lfs pull")
    raise CheckpointError(f"has an unknown format or is truncated: expected {EXPECTED}")


def misnamed(path: Path, kind: Kind) -> tuple[str, ...]:
    """A note if the file's extension is that of the other format."""
    held, other = ("safetensors", TORCH_SUFFIXES) if kind == "safetensors" else ("PyTorch", SAFETENSORS_SUFFIXES)
    if path.suffix.lower() not in other:
        return ()
    return (f"The file has the extension {path.suffix} but holds {held} data; it was read as {held}.",)


def _load_safetensors(path: Path) -> Opened:
    """Load a safetensors file, with tensors in the order of their bytes and large tensors as views of the mapped file.

    Ties that `safetensors.torch.save_model` left out and recorded in the metadata (tied name -> stored name) follow at
    the end.
    """
    import safetensors

    try:
        with _unicode(path) as name, safetensors.safe_open(name, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
            metadata = file.metadata() or {}
        pages = map_file(path)
        start = 8 + int.from_bytes(pages[:8], "little")
        tensors = in_pages(pages, tensors, start=start)
    except OSError:
        raise
    except Exception as error:
        raise CheckpointError(DAMAGED.format("safetensors", reason(error))) from error
    # `format` describes the file ("pt"). It names no tensor, even if a tensor is called `pt`.
    named = {name: kept for name, kept in metadata.items() if name not in tensors and name != "format"}
    tied = {name: tensors[kept] for name, kept in named.items() if kept in tensors}
    return Opened(tensors | tied, "safetensors", pages, metadata, frozenset(tied))


def _load_torch(path: Path, *, kind: Kind) -> Any:
    """Load a `torch.save` file without running any code that it names."""
    import torch

    # torch reads any file named `.safetensors` as one. Such a file is passed as an open file, which cannot be mapped.
    mapped = kind == "torch zip" and _check_archive(path) and path.suffix.lower() not in SAFETENSORS_SUFFIXES
    if kind == "torch legacy":
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_pickles(content, count=LEGACY_PICKLES)
    with (
        warnings.catch_warnings(),
        torch.serialization.safe_globals([argparse.Namespace, *stand_ins()]),
        path.open("rb") as file,
        _unicode(path) as name,
    ):
        warnings.simplefilter("ignore")
        try:
            source: Any = name if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except OSError:
            raise
        except Exception as error:
            raise _load_failure(error, protocol=_protocol(path, kind)) from error


@contextmanager
def _unicode(path: Path) -> Iterator[Path]:
    """A valid Unicode path of the file, as torch and safetensors need it: the path itself, or else a link."""
    if str(path).encode(errors="replace").decode() == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "file")
        link.symlink_to(path.resolve())
        yield link


def _check_archive(path: Path) -> bool:
    """Refuse zip files that `torch.save` did not write. Return whether the file can be mapped."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            inner = {member.filename.partition("/")[2]: member for member in members}
            if "constants.pkl" in inner:
                raise CheckpointError(f"is a TorchScript archive: load it with torch.jit.load and {RESAVE}")
            if "data.pkl" not in inner:
                raise CheckpointError(f"is a zip file that torch.save did not write: {RESAVE}")
            _check_unpacked(sum(member.file_size for member in members), path.stat().st_size)
            check_pickles(io.BytesIO(archive.read(inner["data.pkl"])), count=1)
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, zlib.error) as error:
        raise CheckpointError(DAMAGED.format("PyTorch", reason(error))) from error
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _check_unpacked(unpacked: int, size_bytes: int) -> None:
    """Refuse archives that unpack into far more bytes than they have."""
    if unpacked > FREE_BYTES + MOST_UNPACKED * size_bytes:
        raise CheckpointError(
            f"unpacks from {size_bytes:,} into {unpacked:,} bytes, far more than weights do: {RESAVE}"
        )


def _protocol(path: Path, kind: Kind) -> int:
    """The pickle protocol that the weights are written with, by their pickle's header."""
    if kind == "torch legacy":
        with path.open("rb") as file:
            return file.read(2)[1]
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        with archive.open(name) as pickled:
            head = pickled.read(2)
    return head[1] if head.startswith(b"\x80") and len(head) == 2 else 0


def _load_failure(error: Exception, *, protocol: int) -> CheckpointError:
    """The error that says in one line why `torch.load` refused a file."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code is not None:
        return CheckpointError(f"holds a pickled `{code[1]}`, which cannot be loaded without running code: {RESAVE}")
    if "Unsupported operand" in str(error) and protocol > DEFAULT_PROTOCOL:
        return CheckpointError(
            f"is written with pickle protocol {protocol}, which cannot be read without running code: save it with"
            f" torch.save's default, pickle_protocol={DEFAULT_PROTOCOL}"
        )
    if "Weights only load failed" in str(error):
        return CheckpointError(f"holds a damaged pickle, or objects that are no weights: {RESAVE}")
    return CheckpointError(DAMAGED.format("PyTorch", reason(error)))


def reason(error: Exception) -> str:
    """The first sentence of another library's error message, at most MAX_REASON characters."""
    sentence = re.split(r"\. |\n", f"{error}".strip())[0].rstrip(".")
    return textwrap.shorten(sentence, MAX_REASON, placeholder=" ...") or type(error).__name__
