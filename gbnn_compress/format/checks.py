"""Checks of a manifest: tensors that can be rebuilt, facts that can be reported, sizes in proportion to the file.

Checksums protect against accidents only. Every number from a file is checked here before memory is allocated by it.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.manifest import MOST_NAME_CHARACTERS
from gbnn_compress.types import TensorInfo

RAW_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz"), 1),
    **dict.fromkeys(("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
"""Dtypes of raw tensors, and bytes per value. Empty tensors are raw at any dtype."""

BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}

FREE_VALUES, VALUES_PER_BYTE = 1 << 26, 1 << 10
"""A file of n bytes may hold FREE_VALUES + n * VALUES_PER_BYTE values, far more than any useful network."""

UNSHARED_COST = 16
"""Number of values that one unshared value counts as: decoding takes several float64 numbers for each."""

MOST_DIMENSIONS = 32

_FINITE = 1e300
"""Upper bound of the numbers in a report."""

_LIBRARIES = ("torchvision/", "timm/")
"""Prefixes of architectures that a file may name: any other could run arbitrary code."""


def check_infos(infos: Sequence[TensorInfo]) -> None:
    """Refuse tensors that `rebuild` cannot build.

    Raises:
        ValueError: A tensor is invalid.
    """
    seen: set[str | None] = set()
    for info in infos:
        _check_info(info, seen)
        seen.add(info.name)


@dataclass(frozen=True)
class Held:
    """What a file holds, as far as limits count it.

    Attributes:
        characters: Characters of the names of all tensors.
        values: Values, with unshared ones weighted by UNSHARED_COST.
        entries: Entries of frequency tables.
    """

    characters: int = 0
    values: int = 0
    entries: int = 0

    def with_tensors(self, infos: Sequence[TensorInfo], *, n_components: int) -> Held:
        """With one more network.

        Args:
            infos: Its tensors, checked.
            n_components: K; each shared tensor has a table with one entry per component.
        """
        n_tables = sum(info.kind == "shared" for info in infos)
        return Held(
            characters=self.characters + sum(len(info.name) for info in infos),
            values=self.values + sum(_cost(info) for info in infos),
            entries=self.entries + n_tables * (n_components + 1),
        )

    def require_fitting(self, size_bytes: int) -> None:
        """Refuse a file that would unpack into far more values than its size in bytes allows.

        Raises:
            ArtifactError: The file would unpack into too many values, or too long names.
        """
        if self.characters > MOST_NAME_CHARACTERS:
            raise ArtifactError(f"the names of its tensors have more than {MOST_NAME_CHARACTERS:,} characters")
        if max(self.values, self.entries) > FREE_VALUES + VALUES_PER_BYTE * size_bytes:
            raise ArtifactError(
                f"{size_bytes:,} bytes would unpack into {self.values:,} values and {self.entries:,} entries of tables,"
                " too many for a network; if you made the file, choose a smaller ratio"
            )


def check_facts(facts: Mapping[str, Any]) -> None:
    """Refuse facts that do not suffice for the report, a prediction or a posterior sample.

    Raises:
        LookupError: A fact is missing.
        ValueError: A fact has the wrong type, or text that is not valid Unicode.
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
    """Require exactly one of a ratio, a drop and an error."""
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
    outputs = damage.get("outputs", {})
    _require("damage.outputs", outputs, isinstance(outputs, dict) and all(map(_is_compared, outputs.values())))
    for key in ("metric", "loss"):
        _require(f"damage.{key}", damage.get(key), damage.get(key) is None or _is_changed(damage[key]))
    assumes, task = damage.get("assumes"), facts.get("task")
    _require("damage.assumes", assumes, assumes is None or isinstance(assumes, str))
    _require("task", task, task in (None, "classifier", "other"))
    blends = facts.get("blends", [])
    _require("blends", blends, isinstance(blends, list) and all(_is_count(k) for k in blends))
    missed = facts.get("not_calibrated", [])
    _require("not_calibrated", missed, _are_texts(missed))
    temperature = facts.get("temperature", 1.0)
    _require("temperature", temperature, _is_number(temperature) and temperature > 0)
    training = facts.get("training", {"epochs": 1, "beta": 1.0})
    numbers = _is_number(training["beta"]) and _is_number(training.get("warm_up", 0))
    _require("training", training, _is_count(training["epochs"]) and numbers)


def _check_info(info: TensorInfo, seen: set[str | None]) -> None:
    info.name.encode()  # refuses halves of surrogate pairs
    if info.name in seen:
        raise ValueError(f"`{info.name}` occurs twice")
    if info.name == "__metadata__":
        raise ValueError("a tensor is named `__metadata__`, which safetensors files reserve")
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
    """Number of values, with unshared ones weighted by UNSHARED_COST."""
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


def _is_compared(value: object) -> bool:
    """Whether a value is the entry of one output: its relative error."""
    if not isinstance(value, dict) or value.keys() != {"relative_error"}:
        return False
    return value["relative_error"] is None or _is_number(value["relative_error"])


def _is_changed(value: object) -> bool:
    """Whether a value is a number before and after."""
    if not isinstance(value, dict) or value.keys() != {"before", "after"}:
        return False
    return (value["before"] is None or _is_number(value["before"])) and _is_number(value["after"])
