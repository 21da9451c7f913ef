"""Folders in the layout of Hugging Face's libraries: a checkpoint in one file, or in shards that an index lists."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.opening import SAFETENSORS_SUFFIXES, TORCH_SUFFIXES
from gbnn_compress.errors import CheckpointError, listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INDEX = ".index.json"
SINGLE_FILES = (
    *("model.safetensors", "diffusion_pytorch_model.safetensors"),
    *("pytorch_model.bin", "diffusion_pytorch_model.bin"),
)
"""Files in order of preference: safetensors before `.bin`. The index of a file takes precedence over the file."""

WANTED = "model.safetensors, pytorch_model.bin or an index of either (model.safetensors.index.json)"
SUFFIXES = (*SAFETENSORS_SUFFIXES, *TORCH_SUFFIXES)
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(safetensors|bin|pth?|ckpt)$", re.IGNORECASE)
MOST_INDEX_BYTES, MOST_SHARDS = 1 << 26, 10_000


@dataclass(frozen=True)
class Parts:
    """The tensor files of one checkpoint.

    Attributes:
        files: The files, sorted by name.
        index: Name of a tensor -> name of the file that holds it; None for a single file.
        listed_in: Name of the index file, for messages.
    """

    files: tuple[Path, ...]
    index: Mapping[str, str] | None = None
    listed_in: str = ""


def parts_of(path: Path) -> Parts:
    """The files that a checkpoint consists of.

    Args:
        path: A folder, or a single file.

    Raises:
        OSError: The folder or an index cannot be read.
        CheckpointError: The folder has no checkpoint or a bad index, or the file is an index or one of several shards.
            The message continues a sentence that begins with the path.
    """
    if not path.is_dir():
        _check_whole(path)
        return Parts((path,))
    for name in SINGLE_FILES:
        ending = name[name.rindex(".") :]
        indices = [path / f"{name}{INDEX}"] if (path / f"{name}{INDEX}").is_file() else []
        if name in ("model.safetensors", "pytorch_model.bin") and not indices and not (path / name).is_file():
            indices = sorted(path.glob(f"*{ending}{INDEX}"))
            indices = [each for each in indices if each.name.removesuffix(INDEX) not in SINGLE_FILES]
        if len(indices) > 1:
            raise CheckpointError(f"holds several indices, {listed(each.name for each in indices)}: keep one of them")
        if indices:
            return _shards(path, indices[0])
        if (path / name).is_file():
            return Parts((path / name,))
    beside = sorted(each.name for each in path.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
    raise CheckpointError(f"is a folder without {WANTED}: {_way_out(beside)}")


def _way_out(files: Sequence[str]) -> str:
    """What the user can do about a folder that holds these tensor files."""
    if any(SHARD.search(name) for name in files):
        return f"it has shards, {listed(files)}, but not their index: download the index, too"
    return f"name one of its files, {listed(files)}" if files else "name the checkpoint's file or folder"


def _check_whole(path: Path) -> None:
    """Refuse an index, and one of several shards, which is recognised by its name or by an index beside it."""
    if path.name.endswith(INDEX):
        raise CheckpointError(f"is the index of a checkpoint in shards: name its folder, `{path.parent}`")
    match = SHARD.search(path.name)
    if (match and int(match[1]) > 1) or (not match and _is_listed_with_others(path)):
        raise CheckpointError(f"is one of several shards of a checkpoint: name its folder, `{path.parent}`")


def _is_listed_with_others(path: Path) -> bool:
    for index in sorted(path.parent.glob(f"*{INDEX}"))[:2]:
        try:
            names = set(_read_index(index).values())
        except (CheckpointError, OSError):
            continue
        if path.name in names and len(names) > 1:
            return True
    return False


def _shards(folder: Path, index: Path) -> Parts:
    """The files that an index lists.

    Raises:
        CheckpointError: A file is missing, or is not in the folder.
    """
    weight_map = _read_index(index)
    names = sorted(set(weight_map.values()))
    for name in names:
        if name in (".", "..") or re.search(r"[/\\\0]", name):
            raise CheckpointError(f"has an index, `{index.name}`, that lists `{name}`: expected files in the folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"lacks {listed(missing)}, {'shards' if len(missing) > 1 else 'a shard'} that `{index.name}` lists:"
            " download the missing files"
        )
    return Parts(tuple(folder / name for name in names), weight_map, index.name)


def _read_index(index: Path) -> dict[str, str]:
    """Name of a tensor -> name of its file."""
    if index.stat().st_size > MOST_INDEX_BYTES:
        raise CheckpointError(f"has an index, `{index.name}`, of over {MOST_INDEX_BYTES:,} bytes: download it again")
    try:
        content = json.loads(index.read_bytes(), object_pairs_hook=_unique)
        weight_map = content["weight_map"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        said = f": {error}" if isinstance(error, _RepeatedError) else ""
        raise CheckpointError(f"has an index, `{index.name}`, that is damaged{said}; download it again") from error
    right = isinstance(weight_map, dict) and weight_map and all(isinstance(file, str) for file in weight_map.values())
    if not right or len(set(weight_map.values())) > MOST_SHARDS:
        raise CheckpointError(
            f"has an index, `{index.name}`, that lists no tensors: expected `weight_map` with a file name for each"
            " tensor name"
        )
    return dict(weight_map)


class _RepeatedError(ValueError):
    """A key occurs twice in a JSON object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise _RepeatedError(f"it lists `{twice}` twice")
    return found


def check_shard(file: Path, names: set[str], parts: Parts) -> None:
    """Refuse a shard whose tensors differ from those that the index lists.

    Args:
        file: One of the files of `parts`.
        names: Names of the tensors in the file.
        parts: All files of the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or not listed. The message continues a sentence that begins with the path.
    """
    if parts.index is None:
        return
    wanted = {name for name, place in parts.index.items() if place == file.name}
    for name in sorted(names - wanted):
        if name in parts.index:
            raise CheckpointError(
                f"holds the tensor `{name}` in `{file.name}`, which `{parts.listed_in}` places in"
                f" `{parts.index[name]}`: download it again"
            )
        raise CheckpointError(
            f"holds the tensor `{name}` in `{file.name}`, which `{parts.listed_in}` lacks: download it again"
        )
    for name in sorted(wanted - names):
        raise CheckpointError(
            f"lacks the tensor `{name}`, which `{parts.listed_in}` places in `{file.name}`: download it again"
        )
