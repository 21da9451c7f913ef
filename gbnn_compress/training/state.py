"""The state of a training, kept after each epoch so that a killed run can continue.

One safetensors file beside the artifact holds the tensors. Its metadata hold the schema and two JSON texts: what the
run depends on, and how the tensors are nested. The file is written atomically, used only by the same run, and removed
when the artifact is complete.
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

from gbnn_compress.checkpoint.arrays import raw_bytes_of
from gbnn_compress.data.batches import tensors_in
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.loaders import Batches
from gbnn_compress.errors import OutputError
from gbnn_compress.files import write_atomically
from gbnn_compress.predict.bench import Bench
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.recipe import Recipe
from gbnn_compress.training import processes
from gbnn_compress.types import Bank, Posterior

SUFFIX = ".state.safetensors"

STATE_SCHEMA = 1
"""Version of the nested values in a state file, from `FineTuning` down. Raise it when they change."""

RUN, TREE, SCHEMA = "gbnn-compress training", "tree", "schema"
"""Keys of the metadata. A file without the first is not ours."""

LOOKED_AT = 16
"""Images of a data set, evenly spaced, whose pixels are part of its fingerprint; all labels are. Of other data, the
first batches."""

FROZEN = {kind.__name__: kind for kind in (Bank, Codebook, Posterior)}
"""Dataclasses that a state may hold; no other class is ever built from a file."""


@dataclass(frozen=True)
class Kept:
    """What a state file holds.

    Attributes:
        schema: As written; None in files that are older than schemas.
        run: What the run depends on.
        tree: The nested values, for `unpacked`; None in another schema.
        tensors: By the names that `tree` refers to; empty in another schema.
    """

    schema: str | None
    run: Mapping[str, Any]
    tree: Any
    tensors: Mapping[str, torch.Tensor]


@dataclass
class StateFile:
    """The state file of one run; the first of several processes reads and writes it.

    Attributes:
        path: The file, beside the artifact.
        run: What the run depends on, as JSON. The state of another run is not used.
        device: Where training runs.
        on_progress: Called with one line of text when the state is used, is not used, or cannot be written.
        epoch: The epoch whose state the file holds, 0 without one.
        epoch_read: The epoch that training continues after, 0 if it starts over.
    """

    path: Path
    run: Mapping[str, Any]
    device: torch.device
    on_progress: Callable[[str], None]
    epoch: int = 0
    epoch_read: int = 0

    def read(self, *, restart: bool) -> Mapping[str, Any] | None:
        """The state to continue from; None where there is none of this run and version, or with `restart`.

        Raises:
            OutputError: Another file is in its place.
        """
        kept = processes.from_first(read_kept(self.path) if processes.rank() == 0 else None)
        if kept is None or restart:
            return None
        if kept.schema != str(STATE_SCHEMA):
            self.on_progress(f"starting over: `{self.path.name}` was written by another version")
            return None
        wanted = json.loads(json.dumps(self.run))
        changed = sorted(key for key in {**kept.run, **wanted} if kept.run.get(key) != wanted.get(key))
        if changed:
            self.on_progress(f"starting over: `{self.path.name}` is of a run with other {', '.join(changed)}")
            return None
        state: Mapping[str, Any] = unpacked(kept.tree, kept.tensors, device=self.device)
        self.epoch = self.epoch_read = state["epoch"]
        self.on_progress(f"continuing after epoch {self.epoch} from `{self.path.name}`; --restart starts over")
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the kept state by a newer one. Training continues even where that fails."""
        if processes.rank() != 0:
            return
        tensors: dict[str, torch.Tensor] = {}
        tree = packed(state, tensors)
        metadata = {RUN: json.dumps(self.run), TREE: json.dumps(tree), SCHEMA: str(STATE_SCHEMA)}
        try:
            write_atomically(self.path, safetensors.torch.save(tensors, metadata))
        except OutputError as error:
            self.on_progress(f"the state of training is not kept: {error}")
            return
        self.epoch = state["epoch"]

    def remove(self) -> None:
        """Remove the file, where there is one."""
        if processes.rank() == 0:
            with suppress(OSError):
                self.path.unlink()


def read_kept(path: Path) -> Kept | None:
    """Read a state file of any schema; None where there is no file.

    Raises:
        OutputError: The file is not a state file, or is damaged.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            run, schema = json.loads(metadata[RUN]), metadata.get(SCHEMA)
            if schema != str(STATE_SCHEMA):
                return Kept(schema, run, None, {})
            # Copied: sums over tensors in a mapped file, which may be misaligned, do not always have the same order.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return Kept(schema, run, json.loads(metadata[TREE]), tensors)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise OutputError(
            f"cannot keep the state of training in `{path}`: another file is there, or a damaged one"
            f" ({error}); move it away, or choose another `-o`"
        ) from None


def state_path(artifact: Path) -> Path:
    """`x.gbnn.state.safetensors` beside `x.gbnn.safetensors`."""
    return artifact.with_suffix(SUFFIX)


def run_of(train: Bench, validation: Bench, *, facts: Mapping[str, Any], recipe: Recipe, epochs: int) -> dict[str, Any]:
    """Everything that the state after an epoch depends on, as JSON.

    Args:
        train: The network on the training data.
        validation: The same network on validation data.
        facts: The manifest's entries: the checkpoint's digest, target, seed and versions.
        recipe: The configuration, resolved.
        epochs: Of the whole run.
    """
    return {
        **facts,
        "recipe": recipe.model_dump(),
        "epochs": epochs,
        "arch": train.architecture,
        "preprocessing": None if train.preprocessing is None else asdict(train.preprocessing),
        "data": fingerprint(train.data),
        "val_data": fingerprint(validation.data),
        "device": train.device.type,
        "processes": processes.count(),
        **_use(train),
    }


def _use(bench: Bench) -> dict[str, Any]:
    """How the network is run, where that is not as usual. Functions are known by their names only."""
    names = {key: getattr(bench.use, key) for key in ("loss",)} | {"forward": bench.forward.function}
    found: dict[str, Any] = {key: _name(each) for key, each in names.items() if each is not None}
    return found if bench.forward.output is None else {**found, "output": bench.forward.output}


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def is_comparable(data: Dataset | Batches) -> bool:
    """Whether a fingerprint looks at the data, and not only at the number of batches."""
    return isinstance(data, Dataset) or next(tensors_in(data.first.value), None) is not None


def fingerprint(data: Dataset | Batches) -> str:
    """A digest of the data.

    Of images: the number of inputs, all labels, and the pixels of a few inputs. Of other data: the number of batches,
    and the tensors of the first of them.
    """
    if isinstance(data, Batches):
        return _fingerprint_of(data)
    digest = hashlib.sha256(str(len(data)).encode())
    digest.update(b"" if data.labels is None else data.labels.tobytes())
    for index in np.linspace(0, len(data) - 1, min(LOOKED_AT, len(data))).astype(int).tolist():
        image = data.images[index]
        digest.update(f"{image.shape}".encode() + image.tobytes())
    return digest.hexdigest()


def _fingerprint_of(data: Batches) -> str:
    digest, count = hashlib.sha256(), 0
    for batch in data:
        if count < LOOKED_AT:
            for tensor in tensors_in(batch.value):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(raw_bytes_of(tensor.detach().cpu().contiguous()))
        count += 1
    return hashlib.sha256(f"{count} {digest.hexdigest()}".encode()).hexdigest()


def packed(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A nested value as JSON, which refers to its arrays by name.

    Args:
        value: Dicts, lists, tuples, numbers, strings, tensors, numpy arrays and the dataclasses in FROZEN.
        tensors: Receives the tensors and arrays, by name.
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
    """The value that `packed` was given; tensors that were not on the CPU go to the device."""

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
