"""Networks of a harness as cases of `rate.py`: any network, inputs and outputs; the error of the outputs counts.

A harness is a Python file with `TASKS`, name -> a function that makes a task, and `CHECKPOINTS`, name -> a path,
absolute or below the folder of the harness (below `R + "/unpacked"` where the harness has `R`). A task has `net()`, the
network; `run(network)`, its outputs on the scored inputs, one tensor; `calibration()`, batches of other inputs; and
`forward(network, batch)`, a function of the class. `strict` is False where checkpoint and network differ in some
tensors. A harness may have `CASES`, name -> the fields of `TaskCase` that are not as here.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cases import Weights


@dataclass(frozen=True)
class TaskCase:
    """One network of a harness, and what to measure.

    Attributes:
        name: In `TASKS`.
        title: For people.
        inputs: `NAME:DTYPE:SHAPE` of each input, given to ours when it is data-free.
        calibration_inputs: Unused: the task says which; 0.
        choices: None: tasks are not trained.
        epsilon: Of the batch norms.
        folds: Whether NNCodec may fold batch norms: each follows its convolution at once.
        ratios: Targets of ours.
        span: Lowest and highest ratio at which NNCodec is scored.
    """

    name: str
    title: str
    inputs: tuple[str, ...] = ()
    calibration_inputs: int = 0
    choices: None = None
    epsilon: float = 1e-5
    folds: bool = False
    ratios: tuple[float, ...] = (8, 16)
    span: tuple[float, float] = (5, 40)

    def part_title(self, part: str) -> str:
        """What the network is scored on, for people."""
        return "outputs on the inputs of its task"


KNOWN: dict[str, dict[str, Any]] = {
    "crepe_tiny": {"title": "CREPE tiny, pitch", "inputs": ("x:float32:batch,1024",), "epsilon": 1e-3},
    "onet": {"title": "MTCNN's ONet, faces", "inputs": ("x:float32:batch,3,48,48",)},
    "silero": {"title": "Silero VAD, speech", "inputs": ("x:float32:batch,576",)},
    "minilm": {
        "title": "MiniLM, sentences",
        "inputs": ("input_ids:int64:batch,sequence", "attention_mask:int64:batch,sequence"),
        "ratios": (8, 12),
        "span": (6, 20),
    },
}
"""Fields of the networks of docs/results.md, for harnesses that have tasks of these names."""


def open_harness(path: Path) -> Any:
    """The harness as a module."""
    spec = importlib.util.spec_from_file_location("harness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoint_path(harness: Any, name: str) -> Path:
    """Where a network's weights are."""
    root = Path(harness.R) / "unpacked" if hasattr(harness, "R") else Path(harness.__file__).parent
    return root / harness.CHECKPOINTS[name]


def case_of(harness: Any, name: str) -> TaskCase:
    """The case of one of the harness's tasks."""
    own = getattr(harness, "CASES", {}).get(name, {})
    return TaskCase(**{"name": name, "title": name, **KNOWN.get(name, {}), **own})


class TaskNetwork(Weights):
    """A task's network with its weights and the outputs of the uncompressed network."""

    def __init__(self, harness: Any, case: TaskCase, cache: Path) -> None:
        super().__init__(checkpoint_path(harness, case.name), cache)
        self.case, self.task = case, harness.TASKS[case.name]()
        self.scored = f"harness {hashlib.sha256(Path(harness.__file__).read_bytes()).hexdigest()[:12]}"

    @cached_property
    def original(self) -> torch.Tensor:
        """The uncompressed network's outputs."""
        return self.task.run(self.network(self.checkpoint.tensors))

    def network(self, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """The network with these weights."""
        network = self.task.net()
        network.load_state_dict(tensors, strict=getattr(self.task, "strict", True))
        return network

    def options(self, *, calibrated: bool) -> dict[str, Any]:
        """Arguments of `compress`, without or with inputs."""
        arch = self.network(self.checkpoint.tensors)
        if not calibrated:
            return {"arch": arch, "inputs": self.case.inputs}
        return {"arch": arch, "data": self.task.calibration(), "forward": type(self.task).forward}

    def scores(self, decoded: Mapping[str, Any], *, calibrated: bool) -> dict[str, dict[str, float]]:
        """Relative error of the outputs: the norm of their change over their norm."""
        after = self.task.run(self.network(self.restored(decoded)))
        return {"all": {"error": relative_error(self.original, after)}}


def relative_error(before: torch.Tensor, after: torch.Tensor) -> float:
    """||after - before|| / ||before||, over all outputs together."""
    before, after = before.double(), after.double()
    return float((after - before).norm() / before.norm())
