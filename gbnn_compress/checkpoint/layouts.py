"""Choice of the network in a file that holds nested state dicts, loose tensors or several networks."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.opening import RESAVE
from gbnn_compress.data.names import bare
from gbnn_compress.errors import CheckpointError, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    Notes = tuple[str, ...]
    Entries = Mapping[Any, Any]
    Shape = tuple[int, ...]

# Averaged weights first, as in timm.
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module"),
    *("weights", "params", "parameters"),
)
TRAINING_STATE = re.compile(r"optim|sched|scaler|callback|^amp|^rng|rng_state|random_state", re.IGNORECASE)
AVERAGES = frozenset({"ema", "swa", "avg", "average", "averaged", "shadow", "momentum", "teacher"})
COPIES = AVERAGES | {"student", "online", "target", "copy", "old", "frozen"}
"""Words in a prefix that mark averages or earlier states of the weights under another prefix."""

SOURCES = frozenset({"source", "src"})
"""Words in a prefix beside which `target` marks no copy, as in translation and domain adaptation."""

NEARLY_ALL = 0.9
"""Fraction of all weights that copies of one network must hold together."""

SMALL = 10
"""A state dict with this many times fewer weights than another is no second network."""

MAX_LEFT = 12
"""Largest number of names in a note on what is left out."""

MAX_DEPTH = 32
"""Largest depth of nested state dicts."""


def choose_network(loaded: object, *, key: str | None) -> tuple[Entries, Notes]:
    """Descend to the state dict of one network, and note each step.

    Args:
        loaded: The content of a file.
        key: The user's choice: an entry of a wrapper (dotted if wrappers are nested), or a prefix of names; or None.

    Returns:
        The entries of the state dict, and one sentence per step. Names are as stored, without a chosen prefix.

    Raises:
        CheckpointError: There is no network, several, or none under the key. The message continues a sentence that
            begins with the path.
    """
    if key is None:
        entries, notes = _unwrap(loaded)
        _check_single(entries)
        return entries, notes
    mapping = _require_mapping(loaded)
    found = _find(mapping, key)
    before: Notes = ()
    if found is None:
        try:
            inner, before = _unwrap(mapping)
        except CheckpointError:  # several networks, none of which has the key
            inner, before = {}, ()
        found = _find(inner, key)
    if found is None:
        raise CheckpointError(f"holds no tensors under `--key {key}`: expected one of {listed(_keys(mapping), most=9)}")
    chosen, steps = found
    entries, notes = _unwrap(chosen)
    _check_single(entries, chosen=key)
    return entries, (*before, *steps, *notes)


def _require_mapping(loaded: object) -> Entries:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"holds a `{type(loaded).__name__}`, expected a state dict: {RESAVE}")
    return loaded


def _unwrap(loaded: object, *, depth: int = 0) -> tuple[Entries, Notes]:
    """Descend to the innermost state dict, and note each step."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"nests state dicts more than {MAX_DEPTH} deep, or in themselves: {RESAVE}")
    mapping = _require_mapping(loaded)
    key = _choose(mapping)
    if key is None:
        return mapping, ()
    entries, notes = _unwrap(mapping[key], depth=depth + 1)
    return entries, (_took(f"the state dict under `{key}`", mapping, {key}), *notes)


def _took(what: str, mapping: Entries, keys: set[Any]) -> str:
    """A note on what is taken and what is left: state dicts and tensors first, names with a common prefix as one."""
    rest: Iterable[Any] = (other for other in mapping if other not in keys)
    rest = sorted(rest, key=lambda other: not _has_tensors(mapping[other]))
    if len(keys) > 1:
        rest = dict.fromkeys(f"{other}".partition(".")[0] + "." * ("." in f"{other}") for other in rest)
    return f"Took {what}{f', left {listed(rest, most=MAX_LEFT)}' if rest else ''}."


def _choose(mapping: Entries) -> Any:
    """The entry that holds the state dict; None if `mapping` is one itself.

    Raises:
        CheckpointError: Several entries hold networks.
    """
    nested = [key for key, value in mapping.items() if isinstance(value, Mapping) and _has_tensors(value)]
    loose = named_tensors(mapping)
    networks = [key for key in nested if _n_weights(mapping[key])[1]]
    if not networks and not _n_weights(loose)[1]:
        networks = nested  # nothing has a weight matrix, so any entry with tensors is a candidate
    candidates = [key for key in networks if not TRAINING_STATE.search(str(key))]
    if _loose_are_the_network(loose, {key: mapping[key] for key in candidates}):
        return None
    known = [key for key in WRAPPERS if key in candidates]
    chosen = [key for key in known if all(_goes_with(mapping[key], mapping[other]) for other in candidates)]
    if chosen or len(candidates) == 1:
        return (chosen or candidates)[0]
    likeliest = min(candidates, key=lambda key: not _words(str(key)) & AVERAGES)
    raise CheckpointError(f"holds several networks, {listed(candidates)}: choose one with `--key {likeliest}`")


def _loose_are_the_network(loose: Mapping[str, torch.Tensor], nested: Mapping[Any, Entries]) -> bool:
    """Whether loose tensors are the network, and the nested state dicts beside them are not.

    Raises:
        CheckpointError: Both could be the network.
    """
    if not nested:
        return True
    if not _is_network_beside(loose, list(nested.values())):
        return False
    shapes = _matrix_shapes(loose)
    found = {key: _matrix_shapes(each) for key, each in nested.items() if not _words(str(key)) & AVERAGES}
    others = [key for key, each in found.items() if each.total() > 1 and not each <= shapes]
    if others:
        raise CheckpointError(
            f"holds a network, {listed(others)}, and loose tensors that could be another: choose the former with"
            f" `--key {others[0]}`, or save only the loose tensors"
        )
    return True


def _is_network_beside(loose: Mapping[str, torch.Tensor], nested: list[Entries]) -> bool:
    """Whether the loose tensors are more, and have more weights, than those of each nested state dict."""
    tensors, weights = _n_weights(loose)
    others = [_n_weights(each) for each in nested]
    return all(tensors > count and weights > size for count, size in others)


def _goes_with(chosen: Entries, other: Entries) -> bool:
    """Whether another state dict is a copy of the chosen one or of a part of it, or is much smaller."""
    shapes, others = _matrix_shapes(chosen), _matrix_shapes(other)
    return others <= shapes or SMALL * _n_weights(other)[1] <= _n_weights(chosen)[1]


def _matrix_shapes(value: Entries) -> Counter[Shape]:
    tensors = (tensor for tensor in _tensors_in(value) if _is_plain(tensor))
    return Counter(tuple(tensor.shape) for tensor in tensors if tensor.numel() > max((1, *tensor.shape)))


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor of any kind."""
    import torch

    return isinstance(value, torch.Tensor)


def mappings_in(value: object, *, named: bool) -> Iterator[Entries]:
    """Yield a mapping and every mapping nested in it, to MAX_DEPTH, outermost first, without repeats.

    Args:
        value: Whatever a file holds.
        named: Whether to look only into entries whose keys are text.
    """
    return _mappings_in(value, set(), named=named, depth=0)


def _mappings_in(value: object, seen: set[int], *, named: bool, depth: int) -> Iterator[Entries]:
    if not isinstance(value, Mapping) or id(value) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(value))
    yield value
    for name, item in value.items():
        if isinstance(name, str) or not named:
            yield from _mappings_in(item, seen, named=named, depth=depth + 1)


def named_tensors(mapping: Entries) -> dict[str, torch.Tensor]:
    """The tensors of a mapping whose keys are text."""
    return {name: value for name, value in mapping.items() if isinstance(name, str) and is_tensor(value)}


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Named tensors of a nested mapping."""
    return (tensor for mapping in mappings_in(value, named=True) for tensor in named_tensors(mapping).values())


def _has_tensors(value: object) -> bool:
    return is_tensor(value) or any(True for _ in _tensors_in(value))


def _n_weights(value: Entries) -> tuple[int, int]:
    """Count the tensors of a mapping without scalars, and the values in those of two dimensions or more."""
    tensors = [tensor for tensor in _tensors_in(value) if _is_plain(tensor) and tensor.numel() > 1]
    return len(tensors), sum(tensor.numel() for tensor in tensors if tensor.numel() > max(tensor.shape))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a shape; nested tensors have none."""
    return not tensor.is_nested


def _keys(mapping: Entries) -> list[str]:
    """Values that `--key` may have: entries with tensors, and prefixes of names."""
    entries = [str(key) for key, value in mapping.items() if isinstance(value, Mapping) and _has_tensors(value)]
    prefixes = dict.fromkeys(name.partition(".")[0] + "." for name in named_tensors(mapping) if "." in name)
    if not entries and not prefixes and len(mapping) == 1:
        return _keys(_require_mapping(next(iter(mapping.values()))))
    return [*entries, *prefixes]


def _find(mapping: Entries, key: str, *, depth: int = 0) -> tuple[Entries, Notes] | None:
    """The entry with the name of a dotted key, at any depth, else all tensors whose names have the key as a prefix."""
    if depth > MAX_DEPTH:
        return None
    inside = {str(name): value for name, value in mapping.items() if isinstance(value, Mapping)}
    plain = key.rstrip(".")
    if plain in inside and _has_tensors(inside[plain]):
        kept = {name for name in mapping if str(name) == plain}
        return inside[plain], (_took(f"the state dict under `{plain}`", mapping, kept),)
    for head, value in inside.items():
        if plain.startswith(f"{head}.") and (found := _find(value, plain[len(head) + 1 :], depth=depth + 1)):
            kept = {name for name in mapping if str(name) == head}
            return found[0], (_took(f"the state dict under `{head}`", mapping, kept), *found[1])
    prefix = f"{plain}."
    names = [name for name in mapping if isinstance(name, str) and name.startswith(prefix) and name != prefix]
    if not any(is_tensor(mapping[name]) for name in names):
        return None
    note = _took(f"the tensors under the prefix `{prefix}`", mapping, set(names))
    return {name.removeprefix(prefix): mapping[name] for name in names}, (note,)


def _check_single(entries: Entries, *, chosen: str | None = None) -> None:
    """Refuse a state dict of two networks under two prefixes, one of which is an average or a copy of the other.

    Copies have the same names and shapes of weight matrices, and together nearly all of the weights. Towers, generators
    with discriminators, actors with critics, and encoders with decoders are therefore accepted.
    """
    tensors = {name: tensor for name, tensor in named_tensors(entries).items() if _is_plain(tensor)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.numel() > 1}
    lead = _common_prefix(shapes)
    groups: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        head, dot, inner = name.removeprefix(lead).partition(".")
        groups.setdefault(head + dot, {})[_squeezed(inner)] = shape
    for prefix in sorted(groups, key=lambda prefix: not _words(prefix) & AVERAGES):
        alike = _alike(prefix, groups)
        if len(alike) > 1:
            key = ".".join(filter(None, ((chosen or "").rstrip("."), f"{lead}{prefix}")))
            named = listed(f"{lead}{other}" for other in alike)
            raise CheckpointError(f"holds several networks in one state dict, {named}: choose one with `--key {key}`")


def _alike(prefix: str, groups: Mapping[str, Mapping[str, Shape]]) -> list[str]:
    """Prefixes of all copies of the network under a prefix, this prefix included; fewer than 2 without copies."""
    wanted = _matrices(groups[prefix])
    if not wanted or len(groups[prefix]) < 2 or not _words(prefix) & COPIES:
        return []
    alike = [other for other, inner in groups.items() if _matrices(inner) == wanted]
    if any(_words(other) & SOURCES for other in alike):
        return []
    rest = {
        _squeezed(f"{other}{name}"): s
        for other, inner in groups.items()
        if other != prefix
        for name, s in inner.items()
    }
    if len(alike) == 1 and _matrices(rest) == wanted:
        return [prefix, "(no prefix)"]
    size = {other: sum(map(math.prod, _matrices(inner).values())) for other, inner in groups.items()}
    return alike if sum(size[other] for other in alike) >= NEARLY_ALL * sum(size.values()) else []


def _squeezed(name: str) -> str:
    """The name without wrappers' parts and dots; averages that are registered as buffers lose both."""
    return bare(name).replace(".", "")


def _matrices(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if len(shape) >= 2}


def _common_prefix(names: Iterable[str]) -> str:
    """The leading parts that all names have in common, each with its dot."""
    split = [name.split(".")[:-1] for name in names]
    lead = ""
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        lead += f"{parts[0]}."
    return lead


def _words(prefix: str) -> set[str]:
    """Lower-case words of a prefix in snake or camel case: `model` and `ema` for `modelEMA`."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", prefix)}
