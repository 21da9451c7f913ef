"""Builds `gbnn_compress/checkpoint/architectures.json` from the installed torchvision and timm.

Run it again when either is upgraded: `python scripts/build_architecture_index.py`. Networks are built on the
meta device, so no weight is allocated or downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torchvision
from torch.nn.modules.module import register_module_parameter_registration_hook

import gbnn_compress.checkpoint
from gbnn_compress.checkpoint.architecture_index import INDEX_NAME, signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Shapes = dict[str, tuple[int, ...]]
    Build = Callable[[int | None], torch.nn.Module]

DEFAULT_OUTPUT = Path(gbnn_compress.checkpoint.__path__[0]) / INDEX_NAME
# Two unlikely numbers: a dimension that follows from one to the other is the number of classes.
N_CLASSES = (7, 11)


def main() -> int:
    """Builds the index, writes it and prints what was skipped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--only", default="", help="only networks whose specification contains this")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    index, skipped = build_index(only=options.only)
    options.output.write_text(json.dumps(index, indent=0) + "\n", encoding="utf-8")
    for name, reason in sorted(skipped.items()):
        print(f"skipped {name}: {reason}")
    built = {*index["with_classifier"], *index["without_classifier"]}
    print(f"{len(built)} built, {len(skipped)} skipped, {options.output.stat().st_size} bytes")
    return 0


def build_index(*, only: str) -> tuple[dict[str, dict[str, str] | list[str]], dict[str, str]]:
    """Signs every network.

    Args:
        only: Part of the specifications to build; empty for all.

    Returns:
        The index, ready for JSON, and the reason for each network that could not be built.
    """
    with_classifier: dict[str, str] = {}
    without_classifier: dict[str, str] = {}
    classifiers: set[str] = set()
    skipped: dict[str, str] = {}
    for name, build in specifications():
        if only not in name:
            continue
        try:
            classifier, shapes = class_rows(build)
            default = state_dict_shapes(build, n_classes=None)
        except Exception as error:
            skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if classifier:
            with_classifier[name] = signature(shapes, classifier=classifier)
            classifiers.add(" ".join(classifier))
        if default.keys() != shapes.keys() or not classifier:
            without_classifier[name] = signature(default, classifier=())
        print(f"\r{len(with_classifier)} {name:60.60}", end="", file=sys.stderr)
    index: dict[str, dict[str, str] | list[str]] = {
        "versions": {"timm": timm.__version__, "torchvision": torchvision.__version__.partition("+")[0]},
        "classifiers": sorted(classifiers),
        "with_classifier": dict(sorted(with_classifier.items())),
        "without_classifier": dict(sorted(without_classifier.items())),
    }
    return index, skipped


def specifications() -> Iterator[tuple[str, Build]]:
    """Yields each specification and how to build it for a number of classes (None: its default)."""
    for name in sorted(torchvision.models.list_models(module=torchvision.models)):
        yield f"torchvision/{name}", torchvision_builder(name)
    for name in sorted(timm.list_models()):
        yield f"timm/{name}", timm_builder(name)


def torchvision_builder(name: str) -> Build:
    """Returns a function that builds a torchvision network without weights."""

    def build(n_classes: int | None) -> torch.nn.Module:
        options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
        return torchvision.models.get_model(name, weights=None, **options)

    return build


def timm_builder(name: str) -> Build:
    """Returns a function that builds a timm network without weights."""

    def build(n_classes: int | None) -> torch.nn.Module:
        options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
        return timm.create_model(name, pretrained=False, **options)

    return build


def class_rows(build: Build) -> tuple[tuple[str, ...], Shapes]:
    """Finds the modules whose tensors have a row for each class, by building for two numbers of classes.

    Args:
        build: Builds the network.

    Returns:
        The sorted modules, empty if the number of classes changes anything but their rows; and the shapes of
        the first build.
    """
    first, second = (state_dict_shapes(build, n_classes=number) for number in N_CLASSES)
    changed = [name for name in first if second.get(name) != first[name]]
    modules = {name.rpartition(".")[0] for name in changed}
    owned = [name for name in first if name.rpartition(".")[0] in modules]
    only_rows = first.keys() == second.keys() and all(
        (first[name][:1], second[name][:1]) == ((N_CLASSES[0],), (N_CLASSES[1],))
        and first[name][1:] == second[name][1:]
        for name in owned
    )
    return tuple(sorted(modules)) if only_rows else (), first


def state_dict_shapes(build: Build, *, n_classes: int | None) -> Shapes:
    """Returns the shape of each floating tensor of a network's state dict, built on the meta device."""
    try:
        with torch.device("meta"):
            network = build(n_classes)
    except NotImplementedError:
        # torchvision's RegNet computes its widths with tensors: there, only parameters may go to meta.
        hook: Any = parameter_on_meta  # torch types the hook as returning nothing, yet takes what it returns
        with register_module_parameter_registration_hook(hook):
            network = build(n_classes)
    tensors = network.state_dict().items()
    return {name: tuple(tensor.shape) for name, tensor in tensors if tensor.is_floating_point()}


def parameter_on_meta(_: torch.nn.Module, __: str, parameter: torch.nn.Parameter | None) -> object:
    """Replaces a parameter, before it is initialised, by one that takes no memory."""
    return None if parameter is None else torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)


if __name__ == "__main__":
    sys.exit(main())
