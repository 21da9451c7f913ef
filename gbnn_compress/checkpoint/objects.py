"""Checkpoints that are objects of the caller: a module, or a mapping of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.arrays import raw_bytes_of
from gbnn_compress.checkpoint.layouts import choose_network
from gbnn_compress.checkpoint.read import find_ties, only_tensors, read_checkpoint, refuse, settle
from gbnn_compress.checkpoint.select import dtype_name
from gbnn_compress.errors import CheckpointError, GbnnError
from gbnn_compress.types import Checkpoint

if TYPE_CHECKING:
    from typing import TypeGuard

    import torch

STATE_DICT = "checkpoint"
"""Name of a mapping of tensors, for messages and for the default output."""

TAKES = "a path, a torch.nn.Module or a mapping of tensors"


def read_any(given: Any, *, key: str | None = None, argument: str = "checkpoint") -> Checkpoint:
    """The state dict of a path, a module or a mapping of tensors.

    Args:
        given: The path, the module, which is not changed, or the mapping, which may be nested as a file may be.
        key: Network to take from a file or a mapping that holds several.
        argument: Name of the argument, for messages.

    Raises:
        CheckpointError: The checkpoint cannot be read, or holds no plain, dense tensors.
        GbnnError: The object is of another type, or `key` is given for a module.
    """
    check_type(given, argument=argument)
    if isinstance(given, str | Path):
        return read_checkpoint(given, key=key)
    if not isinstance(given, Mapping) and key is not None:
        raise GbnnError(f"`--key`: `{type(given).__name__}` is one network; leave the option out, or give a part of it")
    label = name_of_object(given)
    try:
        entries, notes = choose_network(given, key=key) if isinstance(given, Mapping) else (_state_dict(given), ())
        tensors, ignored = only_tensors(entries)
        ties = find_ties(tensors)
        tensors = settle(tensors, ties=ties)
    except CheckpointError as error:
        refuse(label, str(error), error.__cause__)
    sha256, size_bytes = digest(tensors)
    return Checkpoint(None, sha256, size_bytes, tensors, ties, (*notes, *ignored), label)


def check_type(given: Any, *, argument: str) -> None:
    """Refuse what is neither a path nor a module nor a mapping.

    Raises:
        GbnnError: The object is of another type.
    """
    if isinstance(given, str | Path | Mapping) or is_module(given):
        return
    way_out = f"; give an instance, such as {given.__name__}()" if isinstance(given, type) else ""
    got = given.__name__ if isinstance(given, type) else type(given).__name__
    raise GbnnError(f"`{argument}`: expected {TAKES}, got `{got}`{way_out}")


def is_module(given: object) -> TypeGuard[torch.nn.Module]:
    """Whether an object is a torch.nn.Module. Paths and mappings are answered without importing torch."""
    if given is None or isinstance(given, str | Path | Mapping):
        return False
    import torch

    return isinstance(given, torch.nn.Module)


def name_of_object(given: Any) -> str:
    """Name of a checkpoint for messages and the default output: the path, the module's class, or STATE_DICT."""
    if isinstance(given, str | Path):
        return str(given)
    return STATE_DICT if isinstance(given, Mapping) else type(given).__name__


def digest(tensors: Mapping[str, torch.Tensor]) -> tuple[str, int]:
    """SHA-256 of a state dict in memory, and the sum of its tensors' sizes in bytes, ties under each of their names.

    Hashed is, for each tensor in the order of the state dict, the UTF-8 text `NAME\\nDTYPE\\nSHAPE\\n`, such as
    `fc.weight\\nfloat32\\n10,64\\n`, followed by the values' bytes, little-endian and in C order.
    """
    hashed, size_bytes = hashlib.sha256(), 0
    for name, tensor in tensors.items():
        values = raw_bytes_of(tensor)
        shape = ",".join(map(str, tensor.shape))
        hashed.update(f"{name}\n{dtype_name(tensor)}\n{shape}\n".encode(errors="surrogatepass"))
        hashed.update(values)
        size_bytes += len(values)
    return hashed.hexdigest(), size_bytes


def _state_dict(module: torch.nn.Module) -> Mapping[str, Any]:
    """The state dict of a module.

    Raises:
        CheckpointError: The module's own code fails.
    """
    try:
        return dict(module.state_dict())
    except Exception as error:  # whatever the user's own module raises
        raise CheckpointError(f"gives no state dict ({type(error).__name__}: {error})") from error
