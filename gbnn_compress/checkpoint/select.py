"""Sorting of a checkpoint's tensors: shared (assigned to components), unshared (coded by value), raw (kept exactly)."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from gbnn_compress.checkpoint.arrays import raw_bytes_of
from gbnn_compress.checkpoint.exact_tables import MOST_FRACTION, code_table, is_narrow, is_table
from gbnn_compress.errors import CheckpointError, GbnnError, listed
from gbnn_compress.format.checks import BITS, MOST_DIMENSIONS, RAW_BYTES
from gbnn_compress.format.manifest import deflate
from gbnn_compress.format.vectors import EXACT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from gbnn_compress.types import Checkpoint


DOMINANT = 0.99
"""Fraction of a tensor's sum of squares that one value may have before a warning says so."""

SUSPECT_SIZE = 100
"""Smallest number of values of a tensor for that warning; in smaller tensors one large value is not suspicious."""


@dataclass(frozen=True)
class Selection:
    """Names of a checkpoint's tensors by kind, without ties, in the file's order.

    Attributes:
        shared: Floating tensors with two or more dimensions, whose weights are assigned to components.
        unshared: Other floating tensors, each value of which is coded by itself.
        raw: All other tensors, kept bit for bit: integers, booleans, complex numbers, 8-bit floats, empty tensors,
            tables, masks of one infinity and one finite value, and what `--keep` names.
        tables: The tables among raw; and among unshared, if `with_coded_tables` moved them there.
    """

    shared: tuple[str, ...]
    unshared: tuple[str, ...]
    raw: tuple[str, ...]
    tables: tuple[str, ...] = ()


def select(checkpoint: Checkpoint, *, keep: Sequence[str] = ()) -> Selection:
    """Sort the tensors of a checkpoint by kind.

    Args:
        checkpoint: The checkpoint, as read.
        keep: Patterns of names, such as `head.*`, of tensors that are kept bit for bit.

    Raises:
        CheckpointError: No tensor can be shared, a tensor cannot be stored, or a floating tensor other than a mask
            holds NaN or Inf.
        GbnnError: A pattern matches no tensor.
    """
    kept = set(matching(keep, checkpoint.tensors, option="--keep"))
    kept = {checkpoint.ties.get(name, name) for name in kept}
    names: dict[str, list[str]] = {"shared": [], "unshared": [], "raw": []}
    for name, tensor in checkpoint.tensors.items():
        if name.encode(errors="replace").decode() != name:
            raise CheckpointError(
                f"`{checkpoint.name}`: tensor {name!r} has a name that is not valid Unicode; rename it"
            )
        if name == "__metadata__":
            raise CheckpointError(f"`{checkpoint.name}`: safetensors files cannot hold a tensor `{name}`; rename it")
        if tensor.dim() > MOST_DIMENSIONS:
            raise CheckpointError(
                f"`{checkpoint.name}`: tensor `{name}`: expected at most {MOST_DIMENSIONS} dimensions, got "
                f"{tensor.dim()}; remove the tensor"
            )
        if dtype_name(tensor) not in RAW_BYTES:
            raise CheckpointError(
                f"`{checkpoint.name}`: tensor `{name}`: expected a floating, integer, boolean or complex dtype, got "
                f"{dtype_name(tensor)}; convert the tensor, or remove it"
            )
        if name not in checkpoint.ties:
            names["raw" if name in kept else _kind(tensor)].append(name)
    for kind in ("shared", "unshared"):
        masks = [name for name in names[kind] if not _is_finite(name, checkpoint.tensors[name], checkpoint)]
        names[kind] = [name for name in names[kind] if name not in masks]
        names["raw"] += masks
    tables = _tables(names, checkpoint.tensors)
    for kind in ("shared", "unshared"):
        names[kind] = [name for name in names[kind] if name not in tables]
    names["raw"] = [name for name in checkpoint.tensors if name in {*names["raw"], *tables}]
    if not names["shared"] and kept:
        raise GbnnError(f"`--keep` {listed(keep)}: no tensor is left to compress; give narrower patterns")
    if not names["shared"]:
        raise CheckpointError(
            f"`{checkpoint.name}` has no tensor to share: expected a floating tensor with two or more dimensions, "
            f"got none among {len(checkpoint.tensors)}{_kept_dtype(checkpoint, names['raw'])}; "
            "is this a state dict of a network?"
        )
    shared, unshared, raw = (tuple(names[kind]) for kind in ("shared", "unshared", "raw"))
    return Selection(shared, unshared, raw, tables)


def matching(patterns: Sequence[str], names: Iterable[str], *, option: str) -> list[str]:
    """The names that match any of some patterns (`*`, `?`, `[...]`), in order.

    Raises:
        GbnnError: A pattern matches no name.
    """
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = [name for name in known if name.startswith(pattern.rstrip("*?."))]
            near = near or difflib.get_close_matches(pattern, known, n=3, cutoff=0.4) or known
            raise GbnnError(f"`{option} {pattern}` matches no tensor; there are {listed(near, most=3)}")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def with_coded_tables(selection: Selection, tensors: Mapping[str, torch.Tensor], *, file_bytes: float) -> Selection:
    """Move tables to the unshared tensors if exact tables would take more than MOST_FRACTION of the file.

    Args:
        selection: Result of `select`.
        tensors: The state dict.
        file_bytes: Approximate size of the file in bytes.
    """
    exact_bytes = len(deflate(b"".join(raw_bytes_of(tensors[name]) for name in selection.tables)))
    if exact_bytes <= MOST_FRACTION * file_bytes:
        return selection
    coded = {name for name in selection.tables if code_table(tensors[name]).mode != EXACT}
    unshared, raw = {*selection.unshared, *coded}, tuple(name for name in selection.raw if name not in coded)
    return replace(selection, unshared=tuple(name for name in tensors if name in unshared), raw=raw)


def _tables(names: Mapping[str, Sequence[str]], tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Tables among the tensors that would otherwise be shared or unshared.

    At least one matrix must stay shared. If all are tables, small matrices are taken as weights; if all of these are
    narrow, narrow ones are, too.
    """
    coded = {*names["shared"], *names["unshared"]}
    found = [name for name in tensors if name in coded and is_table(name, tensors[name])]
    vectors = tuple(name for name in found if name in names["unshared"])
    narrow = tuple(name for name in found if is_narrow(tensors[name]))
    for tables in (tuple(found), narrow):
        if set(names["shared"]) - set(tables):
            return tables
    return vectors


def _kept_dtype(checkpoint: Checkpoint, raw: Sequence[str]) -> str:
    """For a message: the first tensor with two or more dimensions that is raw because of its dtype."""
    for name in raw:
        tensor = checkpoint.tensors[name]
        if tensor.dim() >= 2 and tensor.numel():
            return f" (`{name}` is {dtype_name(tensor)} and kept bit for bit: convert weights to float16 or wider)"
    return ""


def outlier_warnings(checkpoint: Checkpoint, selection: Selection) -> list[str]:
    """A warning for each shared tensor in which one value outweighs all others and not all others are zero."""
    found = ((name, checkpoint.tensors[name].detach().flatten()) for name in selection.shared)
    return [
        f"`{name}`: one value, {float(values[values.abs().argmax()]):.3g}, has over 99 % of the sum of squares, so the"
        f" {len(values) - 1:,} others are quantised coarsely: check the checkpoint"
        for name, values in found
        if len(values) >= SUSPECT_SIZE and _dominated(values)
    ]


def _dominated(values: torch.Tensor) -> bool:
    """Whether one value has more than DOMINANT of the sum of squares."""
    low, high = values.aminmax()
    largest = max(-float(low), float(high))
    if largest == 0:
        return False
    total = 0.0
    for part in values.split(1 << 20):
        total += float((part / largest).float().square().sum())
        if total * DOMINANT >= 1:
            return False
    return int(values.count_nonzero()) > 1


def dtype_name(tensor: torch.Tensor) -> str:
    """Name of a tensor's dtype without the module, such as `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def floating_bytes(tensors: Mapping[str, torch.Tensor], ties: Mapping[str, str]) -> int:
    """Size of all floating tensors at their stored dtype in bytes. Buffers are included; ties count once."""
    return sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in tensors.items()
        if name not in ties and tensor.is_floating_point()
    )


def floating_values(tensors: Mapping[str, torch.Tensor], ties: Mapping[str, str]) -> int:
    """Number of values in all floating tensors; ties count once."""
    return sum(t.numel() for name, t in tensors.items() if name not in ties and t.is_floating_point())


def floating_shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each floating tensor, ties included, as `find_architectures` takes them."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()}


def _kind(tensor: torch.Tensor) -> str:
    if dtype_name(tensor) not in BITS or math.prod(tensor.shape) == 0:
        return "raw"
    return "shared" if tensor.dim() >= 2 else "unshared"


def _is_finite(name: str, tensor: torch.Tensor, checkpoint: Checkpoint) -> bool:
    """Whether all values of a tensor are finite.

    Raises:
        CheckpointError: Values are not finite, and the tensor is no mask.
    """
    bad = sum(int((~part.isfinite()).sum()) for part in tensor.detach().flatten().split(1 << 22))
    if bad and not _is_mask(tensor.detach()):
        raise CheckpointError(
            f"`{checkpoint.name}`: tensor `{name}`: expected finite values, got {bad} NaN or Inf among "
            f"{tensor.numel()} values; repair the checkpoint, or remove the tensor"
        )
    return not bad


def _is_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds infinity of one sign and at most one finite value, as attention masks do."""
    low, high = (float(end) for end in tensor.aminmax())  # both are NaN if any value is
    if math.isinf(low) == math.isinf(high):
        return math.isinf(low) and low == high
    infinite = low if math.isinf(low) else high
    finite = high if math.isinf(low) else low
    return all(bool(((part == infinite) | (part == finite)).all()) for part in tensor.flatten().split(1 << 22))
