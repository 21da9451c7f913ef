"""Look-up of the torchvision or timm network that a state dict belongs to, by names and shapes of its tensors.

The shipped index `architectures.json` is built by `scripts/build_architecture_index.py`. A look-up imports neither
torch nor timm, and builds no network.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from gbnn_compress.data.names import bare, spellings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    Shape = tuple[int, ...]

INDEX_NAME = "architectures.json"

NEARLY_ALL = 0.99
"""Fraction of a checkpoint's values that a part of it must hold to be looked up on its own."""


@dataclass(frozen=True)
class ArchitectureMatch:
    """The networks of the index whose state dict has the given names and shapes.

    Attributes:
        names: Specifications such as `torchvision/resnet18`, sorted; empty if no network matches.
        n_classes: Number of classes; None if no network matches, or if it has no classifier.
    """

    names: tuple[str, ...]
    n_classes: int | None = None


@dataclass(frozen=True)
class _Index:
    """The index of architectures.

    Attributes:
        with_classifier: Signature -> specifications of networks with a classifier.
        without_classifier: Signature -> specifications of networks without a classifier by default.
        classifiers: Distinct sets of modules whose tensors have one row per class.
    """

    with_classifier: Mapping[str, tuple[str, ...]]
    without_classifier: Mapping[str, tuple[str, ...]]
    classifiers: tuple[tuple[str, ...], ...]


def find_architectures(shapes: Mapping[str, Shape]) -> ArchitectureMatch:
    """Look a state dict up in the shipped index.

    Names and shapes must match exactly, with two exceptions: the classifier may have any number of classes, and names
    may be wrapped. Names are looked up first as they are, then without the parts that wrappers add, then within the
    part of the checkpoint that holds nearly all of its values.

    Args:
        shapes: Name -> shape of each floating tensor of the state dict. Buffers and ties are included, integer tensors
            such as `num_batches_tracked` are not.

    Returns:
        Every network that fits. Often there are several, and they may compute different functions: `timm/resnet18` and
        `torchvision/resnet18` are the same network, but `timm/resnetblur18` with the same weights is another.
    """
    for read in (*spellings(list(shapes)), *_parts(shapes)):
        match = _find({spelled: shapes[name] for name, spelled in read.items()})
        if match.names:
            return match
    return ArchitectureMatch(names=())


def _parts(shapes: Mapping[str, Shape]) -> Iterator[dict[str, str]]:
    """Yield the names under a common prefix that holds nearly all values; the rest may be losses or statistics."""
    current = {name: name for name in shapes}
    total = sum(map(math.prod, shapes.values()))
    while current:
        sizes: dict[str, int] = {}
        for name, read in current.items():
            head, dot, _ = read.partition(".")
            sizes[head + dot] = sizes.get(head + dot, 0) + math.prod(shapes[name])
        prefix = max(sizes, key=lambda head: sizes[head])
        if not prefix.endswith(".") or sizes[prefix] < NEARLY_ALL * total:
            return
        current = {name: read.removeprefix(prefix) for name, read in current.items() if read.startswith(prefix)}
        yield current
        shortest = {name: bare(read) for name, read in current.items()}
        if len(set(shortest.values())) == len(shortest):
            yield shortest


def _find(shapes: Mapping[str, Shape]) -> ArchitectureMatch:
    """The networks that fit the names and shapes without renaming."""
    index = _load_index()
    names = set(index.without_classifier.get(signature(shapes, classifier=()), ()))
    numbers: set[int] = set()
    for classifier in index.classifiers:
        n_classes = number_of_classes(shapes, classifier=classifier)
        if n_classes is None:
            continue
        matches = index.with_classifier.get(signature(shapes, classifier=classifier), ())
        names.update(matches)
        numbers.update([n_classes] if matches else [])
    n_classes = numbers.pop() if len(numbers) == 1 else None
    return ArchitectureMatch(names=tuple(sorted(names)), n_classes=n_classes)


def number_of_classes(shapes: Mapping[str, Shape], *, classifier: Collection[str]) -> int | None:
    """The number of classes: the first dimension that all tensors of the classifier have.

    Args:
        shapes: Name -> shape of each floating tensor.
        classifier: Modules of the classifier, such as `("fc",)` or `("head", "head_dist")`.

    Returns:
        The number of classes; None if a module is missing or the first dimensions differ.
    """
    rows = {name: shape[0] if shape else 0 for name, shape in shapes.items() if _module(name) in classifier}
    complete = {_module(name) for name in rows} == set(classifier)
    distinct = set(rows.values())
    return distinct.pop() if complete and len(distinct) == 1 else None


def signature(shapes: Mapping[str, Shape], *, classifier: Collection[str]) -> str:
    """Hash names and shapes, independent of their order and of the number of classes.

    Args:
        shapes: Name -> shape of each floating tensor.
        classifier: Modules of the classifier. The first dimension of their tensors is replaced by 0.

    Returns:
        The first 12 hex digits of the SHA-256 of one line `name dim,dim,...` per tensor, sorted by name.
    """
    digest = hashlib.sha256()
    for name, shape in sorted(shapes.items()):
        dims = (0, *shape[1:]) if _module(name) in classifier else shape
        digest.update(f"{name} {','.join(map(str, dims))}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:12]


def _module(name: str) -> str:
    """The module that owns a tensor: `head.fc` for `head.fc.weight`."""
    return name.rpartition(".")[0]


@cache
def _load_index() -> _Index:
    """Read the shipped index, once per process."""
    text = resources.files(__package__).joinpath(INDEX_NAME).read_text(encoding="utf-8")
    content = json.loads(text)
    return _Index(
        with_classifier=_by_signature(content["with_classifier"]),
        without_classifier=_by_signature(content["without_classifier"]),
        classifiers=tuple(tuple(item.split()) for item in content["classifiers"]),
    )


def _by_signature(signatures: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Invert specification -> signature into signature -> specifications."""
    inverse: dict[str, tuple[str, ...]] = {}
    for name, digest in signatures.items():
        inverse[digest] = (*inverse.get(digest, ()), name)
    return inverse
