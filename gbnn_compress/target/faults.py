"""What a file holds, compared with what it was meant to hold, in numbers."""

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
"""Steps that lambda gives weight and bias, by which a batch norm's output may differ."""


def find_faults(artifact: Artifact, meant: Tensors, *, relative_step: float) -> dict[str, str]:
    """The tensors that a file does not hold as they were meant.

    Values are finite; weights that the network divides by their norm have not vanished; tables serve as before; batch
    norms put out what they did, and what is kept bit for bit is the same.

    Args:
        artifact: As read from the file.
        meant: Name -> tensor, of the checkpoint, with the statistics that compressing corrected.
        relative_step: Step that a value of unit 1 had, from the lambda of the weights.

    Returns:
        Name -> what is wrong with it.
    """
    kinds = {info.name: info.kind for info in artifact.tensors}
    plain = [name for name, kind in kinds.items() if kind in ("unshared", "raw")]
    axes = {name: axes for name, axes in divided_weights(_shapes(meant)).items() if kinds[name] == "shared"}
    decoded = rebuild(artifact, names={*plain, *axes})
    found: dict[str, str] = dict.fromkeys(_vanished(decoded, meant, axes), "vanished parts that the network divides by")
    found |= dict.fromkeys(_infinite(artifact, decoded, meant), "values that are not finite")
    for name in plain:
        check = _CHECKS[kinds[name]]
        wrong = check(name, decoded[name], meant[name])
        found |= {name: wrong} if wrong else {}
    for norm in norms_of([name for name, kind in kinds.items() if kind == "unshared"]):
        if not _puts_out_the_same(norm, decoded, meant, relative_step):
            found |= dict.fromkeys(norm.values(), "a batch norm that puts out something else")
    return found


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _vanished(decoded: Tensors, meant: Tensors, axes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, apart in axes.items():
        if vanished_places(meant[name], decoded[name], axes=apart).size:
            yield name


def _infinite(artifact: Artifact, decoded: Tensors, meant: Tensors) -> Iterator[str]:
    """Shared tensors by their components, coded ones by their values."""
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
    return None if serves else "a table of other values"


_CHECKS: Mapping[str, Callable[[str, torch.Tensor, torch.Tensor], str | None]] = {
    "raw": _unlike,
    "unshared": _unfaithful,
}


def _puts_out_the_same(norm: Mapping[str, str], decoded: Tensors, meant: Tensors, relative_step: float) -> bool:
    """Whether a batch norm is the same, or nearly so where all of its vectors are there."""
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
