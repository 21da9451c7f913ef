"""What a manifest may say: tensors that can be rebuilt, facts that can be reported, sizes that the file can answer for.

Checksums protect from accidents only. Nothing is allocated by a number from a file before it has been looked at here.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from gbnn_compress.errors import ArtifactError
from gbnn_compress.types import TensorInfo

RAW_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz"), 1),
    **dict.fromkeys(("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
"""Dtypes that a raw tensor may have (a shareable one is raw when it is empty), and the bytes of a value."""

BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}

FREE_VALUES, VALUES_PER_BYTE = 1 << 26, 1 << 10
"""A file of n bytes may hold FREE_VALUES + n * VALUES_PER_BYTE values: far more than any network that still works."""

UNSHARED_COST = 16
"""Values that an unshared one counts as: it is worked on as several float64 numbers."""

MOST_DIMENSIONS = 32

_FINITE = 1e300
"""Numbers of a report are smaller."""

_LIBRARIES = ("torchvision/", "timm/")
"""Architectures that a file may name: any other would run code of the file's choosing."""


def check_infos(infos: Sequence[TensorInfo]) -> None:
    """Refuse tensors that `rebuild` could not build.

    Raises:
        ValueError: One of them.
    """
    seen: set[str | None] = set()
    for info in infos:
        _check_info(info, seen)
        seen.add(info.name)


def check_size(infos: Sequence[TensorInfo], *, n_components: int, size_bytes: int) -> None:
    """Refuse a file that would unpack into out of all proportion.

    Args:
        infos: Its tensors, checked.
        n_components: K; each shared tensor has a table of them.
        size_bytes: Of the file.

    Raises:
        ArtifactError: It would.
    """
    shared = [info for info in infos if info.kind == "shared"]
    values = sum(_cost(info) for info in infos)
    most = FREE_VALUES + VALUES_PER_BYTE * size_bytes
    if max(values, len(shared) * (n_components + 1)) > most:
        raise ArtifactError(
            f"{size_bytes:,} bytes that unpack into {values:,} values and {len(shared):,} tables of {n_components:,} "
            "components are no network; if you made the file, ask for a smaller ratio"
        )


def check_facts(facts: Mapping[str, Any]) -> None:
    """Refuse facts that the report, a prediction or a posterior sample could not be made from.

    Raises:
        LookupError: One is missing.
        ValueError: One is not of its kind, or holds what is no text.
    """
    json.dumps(facts, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
    checkpoint, damage = facts["checkpoint"], facts["damage"]
    for name in ("checkpoint", "damage", "recipe", "versions"):
        _require(name, facts[name], isinstance(facts[name], dict))
    for key in ("bytes", "parameters"):
        _require(f"checkpoint.{key}", checkpoint[key], _is_count(checkpoint[key]))
    _require("checkpoint.notes", checkpoint["notes"], _are_texts(checkpoint["notes"]))
    architecture = checkpoint["architecture"]
    named = isinstance(architecture, str) and architecture.startswith(_LIBRARIES)
    _require("checkpoint.architecture", architecture, architecture is None or named)
    for key in ("drop", "agreement", "logit_kl", "safe_ratio"):
        _require(f"damage.{key}", damage[key], damage[key] is None or _is_number(damage[key]))
    _require("damage.measured", damage["measured"], isinstance(damage["measured"], bool))
    _require("warnings", facts["warnings"], _are_texts(facts["warnings"]))
    _require("seed", facts["seed"], _is_number(facts["seed"]) and type(facts["seed"]) is int)
    before = facts["components_before_merging"]
    _require("components_before_merging", before, _is_count(before))
    _check_target(facts)
    _require("noise", facts["noise"], _is_number(facts["noise"]) and facts["noise"] >= 0)
    _check_optional(facts)


def _check_target(facts: Mapping[str, Any]) -> None:
    """A ratio, a drop or an error, the others are null."""
    targets = [facts["target_ratio"], facts["max_drop"], facts.get("max_error")]
    given = [target for target in targets if target is not None]
    if len(given) != 1:
        raise ValueError("expected one of `target_ratio`, `max_drop` and `max_error`")
    _require("target", targets, _is_number(given[0]))
    _require("ratio_of", facts["ratio_of"], facts["ratio_of"] in ("artifact", "parameters"))


def _check_optional(facts: Mapping[str, Any]) -> None:
    damage = facts["damage"]
    for key in ("relative_error", "cosine"):
        _require(f"damage.{key}", damage.get(key), damage.get(key) is None or _is_number(damage[key]))
    assumes, task = damage.get("assumes"), facts.get("task")
    _require("damage.assumes", assumes, assumes is None or isinstance(assumes, str))
    _require("task", task, task in (None, "classifier", "other"))
    blends = facts.get("blends", [])
    _require("blends", blends, isinstance(blends, list) and all(_is_count(k) for k in blends))
    temperature = facts.get("temperature", 1.0)
    _require("temperature", temperature, _is_number(temperature) and temperature > 0)
    training = facts.get("training", {"epochs": 1, "beta": 1.0})
    numbers = _is_number(training["beta"]) and _is_number(training.get("warm_up", 0))
    _require("training", training, _is_count(training["epochs"]) and numbers)


def _check_info(info: TensorInfo, seen: set[str | None]) -> None:
    info.name.encode()  # refuses halves of surrogate pairs
    if info.name in seen:
        raise ValueError(f"`{info.name}` is there twice")
    if info.name == "__metadata__":
        raise ValueError("a tensor is called `__metadata__`, which safetensors files have another use for")
    shape = list(info.shape)
    if len(shape) > MOST_DIMENSIONS or math.prod(max(size, 1) for size in shape) >= 1 << 48:
        raise ValueError(f"`{info.name}` has the shape {reprlib.repr(shape)}")
    if info.kind == "shared" and len(shape) < 2:
        raise ValueError(f"`{info.name}` is shared and has the shape {shape}")
    if info.kind in ("shared", "unshared") and (info.dtype not in BITS or 0 in shape):
        raise ValueError(f"`{info.name}` is coded and has the dtype {info.dtype} and the shape {shape}")
    if (info.kind == "tied") != (info.tied_to in seen):
        raise ValueError(f"`{info.name}` is tied to {reprlib.repr(info.tied_to)}")


def _cost(info: TensorInfo) -> int:
    """Values, of which some weigh more."""
    return math.prod(info.shape) * (UNSHARED_COST if info.kind == "unshared" else 1)


def _require(name: str, value: Any, holds: bool) -> None:
    if not holds:
        raise ValueError(f"`{name}` is {reprlib.repr(value)}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _FINITE


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
