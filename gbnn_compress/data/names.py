"""Matching of a checkpoint's tensor names with a network's, if wrappers have changed either of them.

Wrappers add a part to names: `module.` (DataParallel, AveragedModel), `_orig_mod.` (torch.compile), `model.` (Lightning
and many others). They may do so anywhere in a name, and repeatedly. No part is removed when a checkpoint is read; names
are matched here, when there is a network to compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Shape = tuple[int, ...]
    Shapes = Mapping[str, Shape]

WRAPPER_PARTS = frozenset(
    {
        *("module", "_orig_mod", "model"),
        *("_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    }
)
"""Parts of names that a wrapper may have added."""

OTHER_SHAPE = 1e6
"""Cost of a pair of names whose tensors have different shapes. Such pairs are chosen only as a last resort."""

NOT_IN_FRONT = 0.1
"""Cost of added parts that are not all in front of the name. Wrappers around the whole network are preferred."""

IMPOSSIBLE = 1e12
"""Cost of a pair of names that differ by more than added parts."""


def bare(name: str) -> str:
    """The name without wrappers' parts. The last part is always kept, because it names the tensor."""
    *modules, own = name.split(".")
    return ".".join([*(part for part in modules if part not in WRAPPER_PARTS), own])


def spellings(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield possible spellings of names that may be wrapped, most likely first.

    The order is: unchanged, without one or more wrappers' prefixes, without any wrapper's part.

    Args:
        names: Names of all tensors.

    Yields:
        Name -> spelling; all spellings are distinct.
    """
    current = {name: name for name in names}
    yield current
    while names and len(heads := {name.partition(".")[0] for name in current.values()}) == 1:
        (head,) = heads
        if head not in WRAPPER_PARTS or any("." not in name for name in current.values()):
            break
        current = {name: read.partition(".")[2] for name, read in current.items()}
        yield current
    shortest = {name: bare(name) for name in names}
    if len(set(shortest.values())) == len(names) and shortest != current:
        yield shortest


def match_names(tensors: Shapes, own: Shapes) -> dict[str, str]:
    """Match a checkpoint's tensors with a network's by their names.

    Names that differ only by wrappers' parts match. If several names match the same way, the pairs with the same shape
    and the fewest added parts are chosen. If this does not find the whole network, the network may be a part of the
    checkpoint under one common prefix of any name, such as `net.` or `backbone.`.

    Args:
        tensors: Name in the checkpoint -> shape.
        own: Name in the network -> shape.

    Returns:
        Name in the checkpoint -> name in the network, one to one, in the checkpoint's order. Shapes may differ if only
        the names match. Tensors without a counterpart, or with several that fit equally well, are left out.
    """
    if all(name in tensors for name in own):
        straight = {name: name for name in tensors if name in own}
        if all(tensors[name] == own[name] for name in straight):
            return straight
    found = _match_bare(tensors, own)
    if _is_complete(found, tensors, own):
        return found
    parts = [_match_part(prefix, tensors, own) for prefix in _prefixes(tensors, own)]
    whole = [part for part in parts if _is_complete(part, tensors, own)]
    if not whole and not found:
        whole = parts  # tensors are missing; the match within the prefix gives the better message
    return whole[0] if len(whole) == 1 else found


def rename(names: Iterable[str], matched: Mapping[str, str]) -> dict[str, str]:
    """Rename all tensors of a checkpoint for a network, even unmatched ones, which may be old names that it knows.

    Args:
        names: Names of all tensors of the checkpoint.
        matched: Result of `match_names`.

    Returns:
        Name in the checkpoint -> name for the network. From unmatched names the prefix is removed that all matched
        names have in front of their counterparts. All new names are distinct.
    """
    prefixes = {name.removesuffix(own) if name.endswith(own) else None for name, own in matched.items()}
    prefix = (prefixes.pop() if len(prefixes) == 1 else None) or ""
    result, taken = dict(matched), set(matched.values())
    for name in names:
        if name not in matched:
            read = name.removeprefix(prefix)
            while read in taken:
                read = f"{name}.{len(taken)}"  # a name that no network has
            result[name] = read
            taken.add(read)
    return result


def _match_bare(tensors: Shapes, own: Shapes) -> dict[str, str]:
    """Pairs of names that are equal without wrappers' parts."""
    groups: dict[str, list[str]] = {}
    for name in own:
        groups.setdefault(bare(name), []).append(name)
    alike: dict[str, list[str]] = {}
    for name in tensors:
        if (key := bare(name)) in groups:
            alike.setdefault(key, []).append(name)
    pairs = {name: mine for key, names in alike.items() for name, mine in _pair(names, groups[key], tensors, own)}
    return {name: pairs[name] for name in tensors if name in pairs}


def _pair(names: Sequence[str], mine: Sequence[str], tensors: Shapes, own: Shapes) -> Iterator[tuple[str, str]]:
    """Yield the pairs of the cheapest assignment. Squared costs prefer one wrapper around all to two around some."""
    if len(names) == len(mine) == 1:
        yield names[0], mine[0]
        return
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    costs = np.array([[_cost(name, other, tensors, own) for other in mine] for name in names])
    for row, column in zip(*linear_sum_assignment(costs), strict=True):
        least = costs[row, column]
        rivals = [other for other in range(len(names)) if other != row and costs[other, column] == least]
        if least < IMPOSSIBLE and (len(names) <= len(mine) or not rivals):
            yield names[row], mine[column]


def _cost(name: str, mine: str, tensors: Shapes, own: Shapes) -> float:
    longer, shorter = sorted((name.split("."), mine.split(".")), key=len, reverse=True)
    rest = iter(longer)
    if not all(part in rest for part in shorter):  # no subsequence: they differ by more than added parts
        return IMPOSSIBLE
    inside = longer[-len(shorter) :] != shorter
    return (len(longer) - len(shorter)) ** 2 + NOT_IN_FRONT * inside + OTHER_SHAPE * (tensors[name] != own[mine])


def _is_complete(found: Mapping[str, str], tensors: Shapes, own: Shapes) -> bool:
    held = {mine for name, mine in found.items() if tensors[name] == own[mine]}
    return all(name in held for name in own if not is_counter(name))


def is_counter(name: str) -> bool:
    """Whether a tensor counts training batches; checkpoints may lack it."""
    return name.endswith("num_batches_tracked")


def _prefixes(tensors: Shapes, own: Shapes) -> list[str]:
    """Prefixes of the network's first name in the checkpoint, without wrappers' parts."""
    first = next((bare(name) for name in own if not is_counter(name)), None)
    if first is None:
        return []
    found = (read.removesuffix(first) for name in tensors if (read := bare(name)).endswith(f".{first}"))
    return list(dict.fromkeys(found))


def _match_part(prefix: str, tensors: Shapes, own: Shapes) -> dict[str, str]:
    """Match the part of the checkpoint under a prefix with the network."""
    inside = {name: read.removeprefix(prefix) for name in tensors if (read := bare(name)).startswith(prefix)}
    if len(set(inside.values())) < len(inside):
        return {}
    found = _match_bare({read: tensors[name] for name, read in inside.items()}, own)
    return {name: found[read] for name, read in inside.items() if read in found}
