"""Which torchvision or timm network a state dict belongs to, by names and shapes alone.

The shipped index `architectures.json` is built ahead of time by `scripts/build_architecture_index.py`; a
look-up imports neither torch nor timm and constructs nothing.
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
"""Share of a checkpoint's values that a part of it must have to be looked up by itself."""


@dataclass(frozen=True)
class ArchitectureMatch:
    """The networks whose state dict has given names and shapes.

    Attributes:
        names: Specifications such as `torchvision/resnet18`, sorted; empty if none is known.
        n_classes: Rows of the classifier; None if no network matches, or if it has no classifier.
    """

    names: tuple[str, ...]
    n_classes: int | None = None


@dataclass(frozen=True)
class _Index:
    """The index as looked up.

    Attributes:
        with_classifier: Signature -> specifications of networks with a classifier.
        without_classifier: Signature -> specifications of networks whose default has none.
        classifiers: The distinct sets of modules whose tensors have a row for each class.
    """

    with_classifier: Mapping[str, tuple[str, ...]]
    without_classifier: Mapping[str, tuple[str, ...]]
    classifiers: tuple[tuple[str, ...], ...]


def find_architectures(shapes: Mapping[str, Shape]) -> ArchitectureMatch:
    """Looks a state dict up in the shipped index.

    Names and shapes must match exactly, except that the classifier may have any number of classes, and that names may
    be wrapped: they are looked up as they are, then without what wrappers put into them, then as the part of the
    checkpoint that nearly all of its values are in.

    Args:
        shapes: Shape of each *floating* tensor of the state dict by its name, buffers and ties included, integer
            tensors (such as `num_batches_tracked`) left out.

    Returns:
        Every network that fits. Several often do, and they may compute different things: `timm/resnet18` and
        `torchvision/resnet18` are one network, `timm/resnetblur18` with the same weights is another.
    """
    for read in (*spellings(list(shapes)), *_parts(shapes)):
        match = _find({spelled: shapes[name] for name, spelled in read.items()})
        if match.names:
            return match
    return ArchitectureMatch(names=())


def _parts(shapes: Mapping[str, Shape]) -> Iterator[dict[str, str]]:
    """Names under a common prefix, where what is beside them hardly counts (losses, statistics of a trainer)."""
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
    """The networks that fit names and shapes as they are."""
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
    """Returns the first dimension that all tensors of the classifier's modules share.

    Args:
        shapes: Shape of each floating tensor by name.
        classifier: Modules of the classifier, such as `("fc",)` or `("head", "head_dist")`.

    Returns:
        The number of classes; None if a module is missing or the first dimensions differ.
    """
    rows = {name: shape[0] if shape else 0 for name, shape in shapes.items() if _module(name) in classifier}
    complete = {_module(name) for name in rows} == set(classifier)
    distinct = set(rows.values())
    return distinct.pop() if complete and len(distinct) == 1 else None


def signature(shapes: Mapping[str, Shape], *, classifier: Collection[str]) -> str:
    """Hashes names and shapes, blind to their order and to the number of classes.

    Args:
        shapes: Shape of each floating tensor by name.
        classifier: Modules whose tensors count with a first dimension of 0.

    Returns:
        The first 12 hex digits of the SHA-256 over one line `name dim,dim,...` a tensor, sorted by name.
    """
    digest = hashlib.sha256()
    for name, shape in sorted(shapes.items()):
        dims = (0, *shape[1:]) if _module(name) in classifier else shape
        digest.update(f"{name} {','.join(map(str, dims))}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:12]


def _module(name: str) -> str:
    """Returns the module that owns a tensor: `head.fc` for `head.fc.weight`."""
    return name.rpartition(".")[0]


@cache
def _load_index() -> _Index:
    """Reads the shipped index once."""
    text = resources.files(__package__).joinpath(INDEX_NAME).read_text(encoding="utf-8")
    content = json.loads(text)
    return _Index(
        with_classifier=_by_signature(content["with_classifier"]),
        without_classifier=_by_signature(content["without_classifier"]),
        classifiers=tuple(tuple(item.split()) for item in content["classifiers"]),
    )


def _by_signature(signatures: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Turns specification -> signature into signature -> specifications."""
    inverse: dict[str, tuple[str, ...]] = {}
    for name, digest in signatures.items():
        inverse[digest] = (*inverse.get(digest, ()), name)
    return inverse
