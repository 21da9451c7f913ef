"""Writing of weights in the layout of their original checkpoint, so that its loader reads them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.arrays import raw_bytes_of
from gbnn_compress.checkpoint.folders import parts_of
from gbnn_compress.checkpoint.layouts import mappings_in, named_tensors
from gbnn_compress.checkpoint.opening import Opened, open_file
from gbnn_compress.checkpoint.read import refuse
from gbnn_compress.checkpoint.unread import Pickler
from gbnn_compress.data.names import match_names
from gbnn_compress.errors import CheckpointError, listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    Tensors = Mapping[str, torch.Tensor]


def open_original(path: Path) -> tuple[Path, Opened]:
    """Load the file whose layout is to be kept.

    Raises:
        CheckpointError: The file cannot be read, or is a folder.
    """
    try:
        if path.is_dir():
            raise CheckpointError("is a folder: `--like` takes one file; decompress to safetensors without it")
        parts_of(path)
        return path, open_file(path)
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror or error}", error)
    except CheckpointError as error:
        refuse(path, str(error), error.__cause__)


def laid_out(original: tuple[Path, Opened], weights: Tensors, *, sha256: str | None = None) -> bytes:
    """The bytes of the original file with an artifact's weights in place of its own.

    The weights replace those of the state dict that has all of their names. It may be nested at any depth. Its names
    may have one more prefix (if `--key` chose a network by a prefix), or differ by wrappers' parts. Of several such
    state dicts, the one with the nearest values is chosen. Everything else stays as it is, including ties and objects
    that were not loaded.

    Args:
        original: Result of `open_original`. Its tensors are overwritten.
        weights: Name -> tensor of the artifact.
        sha256: SHA-256 of the file that the artifact was made from. If the original is another file, names must be
            equal. None: not known.

    Raises:
        CheckpointError: A tensor is missing from the original or has another shape or dtype, or cannot be written.
    """
    path, opened = original
    try:
        places = _places(opened.loaded, weights, exactly=sha256 is not None and _digest(path) != sha256)
        if opened.kind == "safetensors":
            return _safetensors_bytes(opened, places, weights)
        _overwrite(places, weights)
        return _torch_bytes(opened)
    except CheckpointError as error:
        refuse(path, str(error), error.__cause__)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _places(loaded: object, weights: Tensors, *, exactly: bool) -> dict[str, torch.Tensor]:
    """Name in the artifact -> the tensor of the original that it replaces."""
    closest: list[str] | None = None
    found: list[dict[str, torch.Tensor]] = []
    for tensors in filter(None, map(named_tensors, mappings_in(loaded, named=False))):
        for read in [tensors] if exactly else _readings(tensors, weights):
            missing = [name for name in weights if name not in read or not _agree(read[name], weights[name])]
            if not missing:
                found.append(read)
            elif closest is None or len(missing) < len(closest):
                closest = missing
    if not found:
        few = f", such as {listed(closest or weights, most=1)}" if len(closest or weights) > 1 else ""
        named = "" if few else f" (`{(closest or list(weights))[0]}`)"
        raise CheckpointError(
            f"lacks {len(closest or weights)} of {len(weights)} tensors of the artifact{few}{named}, by name, shape and"
            " dtype: give the checkpoint that it was made from with `--like`"
        )
    return found[0] if len(found) == 1 else min(found, key=lambda read: _distance(read, weights))


def _distance(read: Tensors, weights: Tensors) -> float:
    """Summed squared differences of the floating matrices: the copy with the smallest sum is the artifact's."""
    floating = (name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.dim() >= 2)
    return sum(float((read[name].detach().float() - weights[name].float()).square().sum()) for name in floating)


def _agree(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.shape == other.shape and tensor.dtype == other.dtype


def _readings(tensors: Tensors, weights: Tensors) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a state dict with its names mapped to the artifact's, in each possible way."""
    yield dict(tensors)
    first = next(iter(weights))
    for name in tensors:
        if name.endswith(f".{first}"):
            start = len(name) - len(first)
            yield {other[start:]: each for other, each in tensors.items() if other.startswith(name[:start])}
    shapes, own = ({name: tuple(each.shape) for name, each in group.items()} for group in (weights, tensors))
    matched = match_names(shapes, own)
    yield {name: tensors[mine] for name, mine in matched.items()}


def _overwrite(places: Tensors, weights: Tensors) -> None:
    """Write the weights into the memory of the original's tensors, which keeps ties and views."""
    import torch

    for name, tensor in places.items():
        if name in weights:
            try:
                with torch.no_grad():
                    tensor.detach().copy_(weights[name])
            except RuntimeError as error:
                raise CheckpointError(
                    f"holds `{name}` as a view that repeats values, which `--like` cannot write into: decompress to"
                    " safetensors without it"
                ) from error
    for name, tensor in places.items():
        if name in weights and raw_bytes_of(_resolved(tensor)) != raw_bytes_of(_resolved(weights[name])):
            raise CheckpointError(
                f"holds `{name}` in memory that overlaps with other tensors, so `--like` cannot write all of them: "
                "decompress to safetensors without it"
            )


def _resolved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg()


def _torch_bytes(opened: Opened) -> bytes:
    import pickle

    import torch

    writer: Any = SimpleNamespace(Pickler=Pickler, dump=pickle.dump, __name__="pickle")
    file = io.BytesIO()
    try:
        torch.save(opened.loaded, file, pickle_module=writer, _use_new_zipfile_serialization=opened.kind == "torch zip")
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"holds objects that cannot be saved again ({type(error).__name__}): decompress to safetensors without"
            " `--like`"
        ) from error
    return file.getvalue()


def _safetensors_bytes(opened: Opened, places: Tensors, weights: Tensors) -> bytes:
    """A safetensors file with the original's names, order of tensors and metadata."""
    from safetensors.torch import save

    metadata = opened.metadata or {}
    new = {id(tensor): weights[name] for name, tensor in places.items() if name in weights}
    stored = {name: new.get(id(tensor), tensor) for name, tensor in opened.loaded.items() if name not in opened.tied}
    return save({name: tensor.contiguous().clone() for name, tensor in stored.items()}, metadata=metadata or None)
