"""Foreign checkpoint files, opened here and nowhere else.

Nothing in a file is ever run: pickles go through `torch.load(weights_only=True)`. Tensors stay memory-mapped
where the format allows it, so that reading costs at most about one copy of the weights. What a file holds
decides how it is read; its extension only earns a note where the two disagree.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import mmap
import re
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gbnn_compress.errors import CheckpointError
from gbnn_compress.types import Checkpoint
from gbnn_compress.weights.paged import PagedTensors, in_pages, map_file
from gbnn_compress.weights.pickles import check_pickles

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    Kind = Literal["safetensors", "torch zip", "torch legacy"]
    Notes = tuple[str, ...]

SAFETENSORS_SUFFIXES = (".safetensors",)
TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin")
# Averaged weights first, as timm does.
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module"),
    *("weights", "params", "parameters"),
)
PREFIXES = ("module.", "_orig_mod.", "model.")
# The update counter that torch.optim.swa_utils.AveragedModel puts beside its prefixed weights.
AVERAGING_COUNTER = "n_averaged"
TRAINING_STATE = re.compile(r"optim|sched|scaler|callback|^amp|^rng", re.IGNORECASE)
EXPECTED = "a .safetensors file, or .pth, .pt, .th or .bin as torch.save writes them"
RESAVE = "save the weights alone with torch.save(model.state_dict(), 'weights.pth')"
DAMAGED = "is a damaged or cut short {} file ({}): download or save it again"
MAX_NAMED = 5
MAX_DEPTH = 32
# Archives are stored, not compressed, and views seldom overlap: what goes far beyond is made to fill the memory.
FREE_BYTES, MOST_UNPACKED, MOST_VIEWED = 1 << 26, 200, 8
# A magic number, a version, facts of the system, the weights, and the keys of what follows.
LEGACY_PICKLES = 5
MAX_REASON = 120


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a state dict from a `.safetensors` or PyTorch file.

    Nested state dicts and prefixed names are unwrapped, entries that are no tensors left out; notes say so.

    Args:
        path: The file. Both PyTorch formats (zip, and the legacy one from before 1.6) are read.

    Returns:
        The tensors at their own dtype on the CPU, contiguous and detached; mostly views of the mapped file.

    Raises:
        CheckpointError: If there is no such file, it is damaged or of another kind, needs code to be run, or
            holds no tensors or tensors that are not plain dense ones. One line, which names the file.
    """
    path = Path(path)
    try:
        size_bytes = _file_size(path)
        kind = _sniff(path)
        loaded, pages = _load_safetensors(path) if kind == "safetensors" else (_load_torch(path, kind=kind), None)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        entries, unwrapped = _unwrap(loaded)
        tensors, ignored = _only_tensors(entries)
        del loaded, entries
        ties = _find_ties(tensors)
        tensors, ties, stripped = _strip_prefixes(_settle(tensors, ties=ties), ties)
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror or error}") from error
    except CheckpointError as error:
        raise _error(path, str(error)) from error.__cause__
    notes = (*_misnamed(path, kind), *unwrapped, *ignored, *stripped)
    kept = tensors if pages is None else PagedTensors(tensors, pages)
    return Checkpoint(path, sha256=sha256, size_bytes=size_bytes, tensors=kept, ties=ties, notes=notes)


def _error(path: Path, text: str) -> CheckpointError:
    """Makes the one line that the user reads, whatever characters the file put into it."""
    line = f"`{path}` {text}"
    return CheckpointError("".join(letter if letter.isprintable() else " " for letter in line))


def _listed(names: Iterable[object]) -> str:
    """Names the first few in backticks."""
    quoted = [f"`{name}`" for name in names]
    more = f" and {len(quoted) - MAX_NAMED} more" if len(quoted) > MAX_NAMED else ""
    return ", ".join(quoted[:MAX_NAMED]) + more


def _file_size(path: Path) -> int:
    """Returns the size of a regular, non-empty file."""
    if "\0" in str(path) or not path.exists():
        raise CheckpointError(f"does not exist: expected {EXPECTED}")
    if path.is_dir():
        raise CheckpointError("is a directory: name the checkpoint file in it, such as model.safetensors")
    if not path.is_file():
        raise CheckpointError("is no regular file: copy the checkpoint to a file first")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise CheckpointError("is empty (0 bytes): download or save it again")
    return size_bytes


def _sniff(path: Path) -> Kind:
    """Tells the format by the first bytes."""
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(b"PK\x03\x04"):
        return "torch zip"
    # A header's length in eight bytes, the upper four of them 0, then JSON. Asked before the pickle, whose
    # first two bytes are a possible length.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if re.match(rb"\x80[\x02-\x05]", head):
        return "torch legacy"
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError("is a Git LFS pointer, not the weights: fetch the file with git lfs pull")
    if path.name.endswith(".index.json"):
        raise CheckpointError("is the list of a checkpoint's shards: merge them into one .safetensors file")
    raise CheckpointError(f"is of another kind or cut short: expected {EXPECTED}")


def _misnamed(path: Path, kind: Kind) -> Notes:
    """Notes an extension that promises the other format."""
    held, other = ("safetensors", TORCH_SUFFIXES) if kind == "safetensors" else ("PyTorch", SAFETENSORS_SUFFIXES)
    if path.suffix.lower() not in other:
        return ()
    return (f"The file is named {path.suffix} but holds {held} data, and was read as that.",)


def _load_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], mmap.mmap]:
    """Maps a safetensors file, in the order of its bytes; its large tensors are in the pages that come with them.

    Ties that `safetensors.torch.save_model` left out and wrote into the metadata (tied name -> stored name)
    follow at the end.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
            metadata = file.metadata() or {}
        pages = map_file(path)
        start = 8 + int.from_bytes(pages[:8], "little")
        tensors = in_pages(pages, tensors, start=start)
    except OSError:
        raise
    except Exception as error:
        raise CheckpointError(DAMAGED.format("safetensors", _reason(error))) from error
    tied = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors and name not in tensors}
    return tensors | tied, pages


def _load_torch(path: Path, *, kind: Kind) -> Any:
    """Reads a `torch.save` file without running anything that it names."""
    import torch

    # torch believes a `.safetensors` in a name; such a file is passed open, which excludes mapping it.
    mapped = kind == "torch zip" and _check_archive(path) and path.suffix.lower() not in SAFETENSORS_SUFFIXES
    if kind == "torch legacy":
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_pickles(content, count=LEGACY_PICKLES)
    with (
        warnings.catch_warnings(),
        torch.serialization.safe_globals(_harmless_globals()),
        path.open("rb") as file,
    ):
        warnings.simplefilter("ignore")
        try:
            source: Any = path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except OSError:
            raise
        except Exception as error:
            raise _load_failure(error) from error


def _check_archive(path: Path) -> bool:
    """Refuses zip files that `torch.save` did not write; says whether the file can be mapped."""
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
        raise CheckpointError(DAMAGED.format("PyTorch", _reason(error))) from error
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _check_unpacked(unpacked: int, size_bytes: int) -> None:
    """Refuses archives that hold out of all proportion more than they are long."""
    if unpacked > FREE_BYTES + MOST_UNPACKED * size_bytes:
        raise CheckpointError(f"unpacks from {size_bytes:,} into {unpacked:,} bytes, as no weights do: {RESAVE}")


def _harmless_globals() -> list[Any]:
    """Returns what training scripts put beside weights and cannot run code: options and numpy scalars."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *dict.fromkeys(dtypes), *((scalar, name) for name in names)]


def _load_failure(error: Exception) -> CheckpointError:
    """Says in one line why `torch.load` refused a file."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code is not None:
        return CheckpointError(f"holds a pickled `{code[1]}`, which needs code to be run: instead, {RESAVE}")
    if "Weights only load failed" in str(error):
        return CheckpointError(f"holds a damaged pickle, or other things than weights: {RESAVE}")
    return CheckpointError(DAMAGED.format("PyTorch", _reason(error)))


def _reason(error: Exception) -> str:
    """Returns the first sentence of a foreign error's message, cut to a bearable length."""
    sentence = re.split(r"\. |\n", f"{error}".strip())[0].rstrip(".")
    return textwrap.shorten(sentence, MAX_REASON, placeholder=" ...") or type(error).__name__


def _unwrap(loaded: Any, *, depth: int = 0) -> tuple[Mapping[Any, Any], Notes]:
    """Descends to the innermost state dict and notes each step."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"nests state dicts more than {MAX_DEPTH} deep, or in themselves: {RESAVE}")
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"holds a `{type(loaded).__name__}`, expected a state dict: {RESAVE}")
    nested = [key for key, value in loaded.items() if isinstance(value, Mapping) and _holds_tensors(value, set())]
    key = _choose(loaded, nested=nested)
    if key is None:
        return loaded, ()
    left = [other for other in nested if other != key and not TRAINING_STATE.search(str(other))]
    aside = f", left {_listed(left)}" if left else ""
    entries, notes = _unwrap(loaded[key], depth=depth + 1)
    return entries, (f"Took the state dict under `{key}`{aside}.", *notes)


def _choose(loaded: Mapping[Any, Any], *, nested: list[Any]) -> Any:
    """Picks the entry that holds the state dict; None where `loaded` is one itself."""
    known = [key for key in WRAPPERS if key in nested]
    if known:
        return known[0]
    candidates = [key for key in nested if not TRAINING_STATE.search(str(key))]
    if not candidates or any(_is_tensor(value) for value in loaded.values()):
        return None
    if len(candidates) > 1:
        raise CheckpointError(f"holds several state dicts, {_listed(candidates)}: save one of them alone")
    return candidates[0]


def _is_tensor(value: object) -> bool:
    """Tells a tensor of any kind."""
    import torch

    return isinstance(value, torch.Tensor)


def _holds_tensors(value: Mapping[Any, Any], seen: set[int], *, depth: int = 0) -> bool:
    """Tells whether a mapping holds named tensors at any bearable depth; looks into none twice."""
    if id(value) in seen or depth > MAX_DEPTH:
        return False
    seen.add(id(value))
    named = [item for key, item in value.items() if isinstance(key, str)]
    return any(_is_tensor(item) for item in named) or any(
        _holds_tensors(item, seen, depth=depth + 1) for item in named if isinstance(item, Mapping)
    )


def _only_tensors(entries: Mapping[Any, Any]) -> tuple[dict[str, torch.Tensor], Notes]:
    """Leaves out, with a note, whatever is no named tensor; refuses tensors that are not dense."""
    tensors = {name: value for name, value in entries.items() if isinstance(name, str) and _is_tensor(value)}
    packed = [name for name in entries if str(name).endswith("_packed_params")]
    if packed:
        raise CheckpointError(f"holds quantised weights, {_listed(packed)}: save it before quantisation")
    if not tensors:
        raise CheckpointError(f"holds no tensors, expected a state dict: {RESAVE}")
    for name, tensor in tensors.items():
        _check_dense(name, tensor)
    _check_held(tensors)
    ignored = [name for name in entries if name not in tensors]
    return tensors, (f"Ignored entries that are not tensors: {_listed(ignored)}.",) if ignored else ()


def _check_dense(name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor that has no plain dense values."""
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
    """Refuses tensors that are views of far fewer values than they have, which would be made when they are copied."""
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    most, needed = FREE_BYTES + MOST_VIEWED * sum(held.values()), 0
    for name, tensor in tensors.items():
        needed += tensor.numel() * tensor.element_size()
        if needed > most:
            what = f"tensor `{name}` of shape {tuple(tensor.shape)} does not fit in memory"
            raise CheckpointError(f"{what}: it repeats the few values that the file holds")


def _find_ties(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Maps each name to the first one with the same memory, dtype, shape and strides."""
    first: dict[object, str] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        kept = first.setdefault(place, name)
        if kept != name and tensor.numel() > 0:
            ties[name] = kept
    return ties


def _settle(tensors: Mapping[str, torch.Tensor], *, ties: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Detaches every tensor and makes it contiguous; ties go on sharing their memory."""
    settled: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        try:
            settled[name] = settled[ties[name]] if name in ties else tensor.detach().contiguous()
        except (RuntimeError, MemoryError) as error:
            shape = tuple(tensor.shape)
            raise CheckpointError(f"tensor `{name}` of shape {shape} does not fit in memory") from error
    return settled


def _strip_prefixes(
    tensors: dict[str, torch.Tensor], ties: dict[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, str], Notes]:
    """Strips wrappers' prefixes, again and again, while every name carries one."""
    notes: list[str] = []
    others = [name for name in tensors if name != AVERAGING_COUNTER]
    if AVERAGING_COUNTER in tensors and others and all(name.startswith("module.") for name in others):
        tensors = {name: tensors[name] for name in others}
        notes.append(f"Ignored `{AVERAGING_COUNTER}`, the counter of averaged weights.")
    while (prefix := _shared_prefix(tensors)) is not None:
        start = len(prefix)
        tensors = {name[start:]: tensor for name, tensor in tensors.items()}
        ties = {name[start:]: kept[start:] for name, kept in ties.items()}
        notes.append(f"Stripped the prefix `{prefix}` from every name.")
    return tensors, ties, tuple(notes)


def _shared_prefix(names: Iterable[str]) -> str | None:
    """Returns the wrapper's prefix that all names carry."""
    names = list(names)
    shared = (prefix for prefix in PREFIXES if all(name.startswith(prefix) and name != prefix for name in names))
    return next(shared, None)
