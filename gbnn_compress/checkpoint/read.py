"""Reading of checkpoints, from a file or a folder. No other module opens them.

Code in a file is never run. Names are kept as stored, including prefixes; `data/names.py` matches them with the names
of a network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.folders import Parts, check_shard, parts_of
from gbnn_compress.checkpoint.layouts import choose_network, named_tensors
from gbnn_compress.checkpoint.opening import FREE_BYTES, RESAVE, Opened, misnamed, open_file
from gbnn_compress.checkpoint.paged import PagedTensors
from gbnn_compress.checkpoint.quantised import check_not_quantised
from gbnn_compress.checkpoint.unread import Unread
from gbnn_compress.errors import CheckpointError, listed
from gbnn_compress.types import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    import torch

    Notes = tuple[str, ...]

# Views seldom overlap. A file whose tensors have far more bytes than it holds is made to exhaust memory.
MOST_VIEWED = 8
DIGEST_BYTES = 1 << 20


def read_checkpoint(path: str | Path, *, key: str | None = None) -> Checkpoint:
    """Read the state dict of one network from a `.safetensors` or PyTorch file, or from a Hugging Face folder.

    Nested state dicts are unwrapped, and entries that are no tensors are left out; `notes` says so. Names are not
    changed, except that a prefix chosen by `key` is removed.

    Args:
        path: A safetensors file, a PyTorch file (zip format, or the legacy format from before 1.6), or a folder with
            `model.safetensors`, `pytorch_model.bin` or an index of either.
        key: Network to take from a checkpoint that holds several: an entry of the wrapper (dotted if wrappers are
            nested), or a prefix of names.

    Returns:
        The checkpoint, with tensors at their stored dtype, on the CPU, contiguous and detached. Most of them are views
        of the mapped files.

    Raises:
        CheckpointError: The file or the key does not exist; the file is damaged, has an unknown format or needs code to
            be run; or it holds no tensors, several networks, or tensors that are not plain and dense. The message is
            one line that begins with the path.
    """
    path = Path(path)
    try:
        parts = parts_of(path)
        loaded, pages, aside = _load(parts)
        sha256, size_bytes = _digest(parts)
        entries, unwrapped = choose_network(loaded, key=key)
        tensors, ignored = only_tensors(entries)
        del loaded, entries
        ties = find_ties(tensors)
        tensors = settle(tensors, ties=ties)
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror or error}", error)
    except CheckpointError as error:
        refuse(path, str(error), error.__cause__)
    notes = (*aside, *unwrapped, *ignored)
    kept = PagedTensors(tensors, pages) if pages else tensors
    return Checkpoint(path, sha256=sha256, size_bytes=size_bytes, tensors=kept, ties=ties, notes=notes)


def refuse(path: str | Path, text: str, cause: BaseException | None) -> NoReturn:
    """Raise an error whose message is one line, whatever characters of the file are in the text.

    Raises:
        CheckpointError: Always.
    """
    line = f"`{path}` {text}"
    raise CheckpointError("".join(letter if letter.isprintable() else " " for letter in line)) from cause


def _load(parts: Parts) -> tuple[Any, list[Any], Notes]:
    """The content of the files, the mapped files, and notes. Shards are joined into one state dict."""
    if parts.index is None:
        (file,) = parts.files
        opened = open_file(file)
        return opened.loaded, [opened.pages] if opened.pages else [], misnamed(file, opened.kind)
    tensors: dict[str, torch.Tensor] = {}
    pages = []
    for file in parts.files:
        opened = _open_shard(file)
        check_shard(file, named_tensors(opened.loaded).keys() - opened.tied, parts)
        tensors |= opened.loaded
        pages += [opened.pages] if opened.pages else []
    return tensors, pages, ()


def _open_shard(file: Path) -> Opened:
    try:
        opened = open_file(file)
    except CheckpointError as error:
        raise CheckpointError(f"has a shard, `{file.name}`, that {error}") from error.__cause__
    if not isinstance(opened.loaded, Mapping):
        raise CheckpointError(f"has a shard, `{file.name}`, that holds a `{type(opened.loaded).__name__}`")
    return opened


def _digest(parts: Parts) -> tuple[str, int]:
    """SHA-256 of the files, concatenated in order of name, and the sum of their sizes in bytes."""
    digest, size_bytes = hashlib.sha256(), 0
    for file in parts.files:
        with file.open("rb") as opened:
            while block := opened.read(DIGEST_BYTES):
                digest.update(block)
                size_bytes += len(block)
    return digest.hexdigest(), size_bytes


def only_tensors(entries: Mapping[Any, Any]) -> tuple[dict[str, torch.Tensor], Notes]:
    """Leave out, with a note, whatever is no named tensor.

    Raises:
        CheckpointError: There are no tensors, or one is not plain and dense.
    """
    tensors = named_tensors(entries)
    if not tensors:
        check_not_quantised(entries, {})
        raise CheckpointError(f"holds no tensors, expected a state dict: {RESAVE}")
    for name, tensor in tensors.items():
        _check_dense(name, tensor)
    check_not_quantised(entries, tensors)
    _check_held(tensors)
    ignored = [name for name in entries if name not in tensors]
    _check_siblings(ignored, entries, tensors)
    return tensors, (f"Ignored entries that are not tensors: {listed(ignored)}.",) if ignored else ()


def _check_siblings(ignored: Iterable[Any], entries: Mapping[Any, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse numpy arrays among the tensors of a module: they belong to the network, but are no tensors."""
    modules = {name.rpartition(".")[0] for name in tensors} - {""}
    for name in ignored:
        if isinstance(name, str) and name.rpartition(".")[0] in modules and isinstance(entries[name], Unread):
            raise CheckpointError(f"holds `{name}` as a numpy value: convert it with torch.from_numpy and save again")


def _check_dense(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that is not plain and dense, or has no values."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise CheckpointError(f"tensor `{name}` is a {type(tensor).__name__}, expected a plain torch.Tensor")
    if tensor.is_meta:
        raise CheckpointError(f"tensor `{name}` has no values (meta device): save the model with its weights")
    if tensor.is_quantized:
        raise CheckpointError(f"tensor `{name}` is quantised ({tensor.dtype}): call .dequantize() first")
    if tensor.is_nested:
        raise CheckpointError(f"tensor `{name}` is nested: store its parts as dense tensors")
    if tensor.layout != torch.strided:
        only = "only dense tensors can be stored; call .to_dense() first"
        raise CheckpointError(f"tensor `{name}` is sparse ({tensor.layout}): {only}")


def _check_held(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse views with far more values than the file stores; a contiguous copy of them would exhaust memory."""
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    most, needed = FREE_BYTES + MOST_VIEWED * sum(held.values()), 0
    for name, tensor in tensors.items():
        needed += tensor.numel() * tensor.element_size()
        if needed > most:
            raise CheckpointError(
                f"tensor `{name}` of shape {tuple(tensor.shape)} does not fit in memory: it is a view that repeats the"
                " few values that the file holds; save it without repetition"
            )


def find_ties(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name of a tied tensor -> the first name with the same memory, dtype, shape and strides."""
    first: dict[object, str] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
        kept = first.setdefault(place, name)
        if kept != name and tensor.numel() > 0:
            ties[name] = kept
    return ties


def settle(tensors: Mapping[str, torch.Tensor], *, ties: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Detach every tensor, resolve lazy conjugation and negation, and make it contiguous; ties keep sharing memory."""
    settled: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        try:
            plain = tensor.detach().resolve_conj().resolve_neg()
            settled[name] = settled[ties[name]] if name in ties else plain.cpu().contiguous()
        except (RuntimeError, MemoryError) as error:
            shape = tuple(tensor.shape)
            raise CheckpointError(f"tensor `{name}` of shape {shape} does not fit in memory") from error
    return settled
