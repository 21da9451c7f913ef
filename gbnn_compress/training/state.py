"""The state of a training, kept after each epoch so that a run killed at any moment goes on.

One safetensors file beside the artifact: the tensors, and two JSON texts in its metadata, what run it is of and how
the tensors hang together. Written atomically, believed only by the same run, removed when the artifact is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from gbnn_compress.data.datasets import Dataset
from gbnn_compress.errors import OutputError
from gbnn_compress.files import write_atomically
from gbnn_compress.predict.evaluation import Bench
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.recipe import Recipe
from gbnn_compress.training import processes
from gbnn_compress.types import Bank, Posterior

SUFFIX = ".state.safetensors"

RUN, TREE = "gbnn-compress training", "tree"
"""Keys of the metadata; the first is also how one of our files is told."""

LOOKED_AT = 16
"""Images of a data set, evenly spaced, whose pixels tell it from others; of the labels all do."""

FROZEN = {kind.__name__: kind for kind in (Bank, Codebook, Posterior)}
"""Values of several fields that a state may hold; nothing else is ever built from a file."""


@dataclass
class StateFile:
    """Where the state of one run is kept; with several processes, by the first of them.

    Attributes:
        path: The file, beside the artifact.
        run: What the run is of, as JSON; another run's state is not gone on from.
        device: Where training runs.
        on_progress: Called with one line of text when the state is used, is not used, or cannot be written.
        epoch: The epoch that the file holds, 0 without one.
    """

    path: Path
    run: Mapping[str, Any]
    device: torch.device
    on_progress: Callable[[str], None]
    epoch: int = 0

    def read(self, *, restart: bool) -> Mapping[str, Any] | None:
        """The state to go on from; None without one of this run, or when told to start over.

        Raises:
            OutputError: Another file is in its place.
        """
        found = processes.from_first(self._read() if processes.rank() == 0 else None)
        if found is None or restart:
            return None
        run, tree, tensors = found
        wanted = json.loads(json.dumps(self.run))
        changed = sorted(key for key in {**run, **wanted} if run.get(key) != wanted.get(key))
        if changed:
            self.on_progress(f"starting over: `{self.path.name}` is of a run with other {', '.join(changed)}")
            return None
        state: Mapping[str, Any] = unpacked(tree, tensors, device=self.device)
        self.epoch = state["epoch"]
        self.on_progress(f"continuing after epoch {self.epoch} from `{self.path.name}`; --restart starts over")
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep a state instead of the one before; where that fails, training goes on all the same."""
        if processes.rank() != 0:
            return
        tensors: dict[str, torch.Tensor] = {}
        tree = packed(state, tensors)
        metadata = {RUN: json.dumps(self.run), TREE: json.dumps(tree)}
        try:
            write_atomically(self.path, safetensors.torch.save(tensors, metadata))
        except OutputError as error:
            self.on_progress(f"the state of training is not kept: {error}")
            return
        self.epoch = state["epoch"]

    def remove(self) -> None:
        """Once it is of no more use."""
        if processes.rank() == 0:
            with suppress(OSError):
                self.path.unlink()

    def _read(self) -> tuple[dict[str, Any], Any, dict[str, torch.Tensor]] | None:
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                run, tree = json.loads(metadata[RUN]), json.loads(metadata[TREE])
                # Copied, as what lies askew in a mapped file is not always summed in the same order.
                return run, tree, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise OutputError(
                f"cannot keep the state of training in `{self.path}`: another file is there, or a damaged one"
                f" ({error}); move it away, or choose another `-o`"
            ) from None


def state_path(artifact: Path) -> Path:
    """`x.gbnn.state.safetensors` beside `x.gbnn.safetensors`."""
    return artifact.with_suffix(SUFFIX)


def run_of(train: Bench, validation: Bench, *, facts: Mapping[str, Any], recipe: Recipe, epochs: int) -> dict[str, Any]:
    """All that the state after an epoch depends on, as JSON.

    Args:
        train: The network on the training data.
        validation: The same network on data for choices.
        facts: What the manifest says: the checkpoint's digest, target, seed and versions.
        recipe: The configuration, resolved.
        epochs: Of the whole run.
    """
    return {
        **facts,
        "recipe": recipe.model_dump(),
        "epochs": epochs,
        "arch": train.architecture,
        "preprocessing": asdict(train.preprocessing),
        "data": fingerprint(train.data),
        "val_data": fingerprint(validation.data),
        "device": train.device.type,
        "processes": processes.count(),
    }


def fingerprint(data: Dataset) -> str:
    """A digest of the number of inputs, of all labels, and of the pixels of a few inputs."""
    digest = hashlib.sha256(str(len(data)).encode())
    digest.update(b"" if data.labels is None else data.labels.tobytes())
    for index in np.linspace(0, len(data) - 1, min(LOOKED_AT, len(data))).astype(int).tolist():
        image = data.images[index]
        digest.update(f"{image.shape}".encode() + image.tobytes())
    return digest.hexdigest()


def packed(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A nested value as JSON, its arrays put apart.

    Args:
        value: Dicts, lists, tuples, numbers, texts, tensors, numpy arrays and what FROZEN has.
        tensors: Filled with the tensors and arrays, by names that the JSON refers to.
    """
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}"
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "cpu": value.is_cpu}
    if isinstance(value, np.ndarray):
        return {"array": packed(torch.from_numpy(value), tensors)}
    if is_dataclass(value):
        inside = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"frozen": type(value).__name__, "fields": packed(inside, tensors)}
    if isinstance(value, Mapping):
        return {"dict": [[key, packed(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [packed(each, tensors) for each in value]}
    return {"value": value.item() if isinstance(value, np.generic) else value}


def unpacked(tree: Any, tensors: Mapping[str, torch.Tensor], *, device: torch.device) -> Any:
    """What `packed` was given; tensors that were not on the CPU come to the device."""

    def build(node: Any) -> Any:
        if "tensor" in node:
            return tensors[node["tensor"]] if node["cpu"] else tensors[node["tensor"]].to(device)
        if "array" in node:
            return build(node["array"]).numpy()
        if "frozen" in node:
            return FROZEN[node["frozen"]](**build(node["fields"]))
        if "dict" in node:
            return {key: build(each) for key, each in node["dict"]}
        if "list" in node:
            return [build(each) for each in node["list"]]
        return tuple(build(each) for each in node["tuple"]) if "tuple" in node else node["value"]

    return build(tree)
