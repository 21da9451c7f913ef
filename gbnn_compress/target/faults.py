"""Verification of a file: its decoded tensors are compared with the tensors that it is meant to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import raw_bytes_of, rounded, values
from gbnn_compress.checkpoint.exact_tables import is_faithful, is_table
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.rate.batch_norms import ROLES, BatchNorm, output_error
from gbnn_compress.rate.divided import divided_weights, vanished_places
from gbnn_compress.rate.posterior import value_unit
from gbnn_compress.rate.unshared import norms_of, statistics_unit, value_step

if TYPE_CHECKING:
    import torch

    from gbnn_compress.types import Artifact

    Tensors = Mapping[str, torch.Tensor]

MOST_STEPS = 3.0
"""Largest difference of a batch norm's output, in quantisation steps of its bias."""


def find_faults(artifact: Artifact, meant: Tensors, *, relative_step: float) -> dict[str, str]:
    """Find tensors that a file does not hold as intended.

    The checks: values are finite; weights that the network divides by their norm have not vanished; the values of
    tables are accurate enough; batch norms have the same outputs up to MOST_STEPS; raw tensors are equal bit for bit.

    Args:
        artifact: The artifact, as read from the file.
        meant: Name -> tensor of the checkpoint, with the statistics that compression corrected.
        relative_step: Quantisation step of an unshared value whose unit is 1.

    Returns:
        Name of a faulty tensor -> description of the fault.
    """
    kinds = {info.name: info.kind for info in artifact.tensors}
    unshared_or_raw = [name for name, kind in kinds.items() if kind in ("unshared", "raw")]
    axes = {name: axes for name, axes in divided_weights(_shapes(meant)).items() if kinds[name] == "shared"}
    decoded = rebuild(artifact, names={*unshared_or_raw, *axes})
    found: dict[str, str] = dict.fromkeys(_vanished(decoded, meant, axes), "vanished parts that the network divides by")
    found |= dict.fromkeys(_infinite(artifact, decoded, meant), "values that are not finite")
    for name in unshared_or_raw:
        check = _CHECKS[kinds[name]]
        wrong = check(name, decoded[name], meant[name])
        found |= {name: wrong} if wrong else {}
    for norm in norms_of([name for name, kind in kinds.items() if kind == "unshared"]):
        if not _has_same_output(norm, decoded, meant, relative_step):
            found |= dict.fromkeys(norm.values(), "a batch norm with other outputs")
    return found


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _vanished(decoded: Tensors, meant: Tensors, axes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, apart in axes.items():
        if vanished_places(meant[name], decoded[name], axes=apart).size:
            yield name


def _infinite(artifact: Artifact, decoded: Tensors, meant: Tensors) -> Iterator[str]:
    """Names of tensors with infinite or NaN values: shared tensors by their components, unshared by their values."""
    for info in artifact.tensors:
        if info.kind == "unshared" and not bool((decoded[info.name].isfinite() | ~meant[info.name].isfinite()).all()):
            yield info.name
    for index_map, scale in zip(artifact.maps, artifact.scales.tolist(), strict=True):
        centres = rounded(artifact.bank.means * scale, meant[index_map.name].dtype)
        if not bool(centres.isfinite().all()):
            yield index_map.name


def _unlike(name: str, decoded: torch.Tensor, meant: torch.Tensor) -> str | None:
    return None if raw_bytes_of(decoded) == raw_bytes_of(meant) else "other bits"


def _unfaithful(name: str, decoded: torch.Tensor, meant: torch.Tensor) -> str | None:
    serves = not is_table(name, meant) or is_faithful(values(meant), values(decoded))
    return None if serves else "a table with other values"


_CHECKS: Mapping[str, Callable[[str, torch.Tensor, torch.Tensor], str | None]] = {
    "raw": _unlike,
    "unshared": _unfaithful,
}


def _has_same_output(norm: Mapping[str, str], decoded: Tensors, meant: Tensors, relative_step: float) -> bool:
    """Whether a batch norm is equal bit for bit; or, if it has all of its vectors, has about the same outputs."""
    if all(_unlike(name, decoded[name], meant[name]) is None for name in norm.values()):
        return True
    if tuple(norm) not in (ROLES, ROLES[2:]):
        return False
    before, after = (_norm(norm, tensors) for tensors in (meant, decoded))
    size = before.mean.size
    unit = value_unit(norm["bias"], meant) if "bias" in norm else statistics_unit(size)
    return bool(output_error(before, after).max() <= MOST_STEPS * value_step(unit, relative_step))


def _norm(names: Mapping[str, str], tensors: Tensors) -> BatchNorm:
    mean, variance = (values(tensors[names[key]]) for key in ROLES[2:])
    weight = values(tensors[names["weight"]]) if "weight" in names else np.ones_like(mean)
    bias = values(tensors[names["bias"]]) if "bias" in names else np.zeros_like(mean)
    return BatchNorm(weight, bias, mean, variance)
