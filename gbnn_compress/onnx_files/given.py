"""The inputs that a file is traced and checked with: random images, made inputs, or data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.architectures import default_preprocessing
from gbnn_compress.data.batches import Batch, mapped, read_batch
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.loaders import labels_of
from gbnn_compress.data.made_inputs import InputSpec, made_batches
from gbnn_compress.errors import DataError, GbnnError
from gbnn_compress.onnx_files.call import INPUT, Call, call_of
from gbnn_compress.predict.bench import Bench, Evaluation
from gbnn_compress.predict.models import OpenedNetwork
from gbnn_compress.types import Fit

if TYPE_CHECKING:
    import torch

    from gbnn_compress.predict.forward import Forward

BATCH_SIZES = (16, 16, 16, 15, 1)
"""Batch sizes of the check; with a single input, exported networks may differ from their originals."""

TRACED = 2
"""Size of the batch that is traced: exporters take an axis of size 1 for a fixed one."""

MADE_BATCH_SIZES = (TRACED, 3, 8, 1)
"""The same for made inputs."""

N_CHECKED = sum(BATCH_SIZES)
"""Largest number of inputs in the check."""

BATCH = "batch"
"""Name of the first axis."""

MOST_BATCHES = 8
"""Largest number of batches of data in the check."""


@dataclass(frozen=True, eq=False)
class Given:
    """Inputs.

    Attributes:
        traced: The call that is traced. Its batch is small: graphs that hold the batch size may work for smaller ones.
        calls: The calls of the check, one per batch.
        batch: The batch of the first call.
        axes: Free axes of each input: axis -> name.
        option: The option that names the inputs, for messages.
        images: Whether the inputs are images whose shape is known, and not given as data or by name.
        required: Whether the file must have these free axes; else they are fixed if the exporter cannot free them.
        labelled: Whether there are labels.
    """

    traced: Call
    calls: tuple[Call, ...]
    batch: Batch
    axes: tuple[Mapping[int, str], ...]
    option: str
    images: bool = False
    required: bool = True
    labelled: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return self.calls[0].names


def random_images(module: torch.nn.Module, forward: Forward, *, shape: Sequence[int] | None, spec: str) -> Given:
    """Standard normal inputs of one shape, as preprocessed images approximately are.

    Args:
        module: The network.
        forward: The forward pass.
        shape: Shape of one input. None: that of the architecture's published weights.
        spec: Specification of the architecture.

    Raises:
        GbnnError: The shape is invalid, or not known.
    """
    import torch

    sizes = input_shape(shape, module, spec)
    inputs = torch.randn(N_CHECKED, *sizes, generator=torch.Generator().manual_seed(0))
    batches = [read_batch(batch) for batch in inputs.split(BATCH_SIZES)]
    calls = tuple(call_of(module, batch, forward) for batch in batches)
    axes = ({0: BATCH},)
    option = f"--input-shape {','.join(map(str, sizes))}"
    return Given(_first_of(calls[0], TRACED, axes), calls, batches[0], axes, option, images=True)


def made_inputs(module: torch.nn.Module, forward: Forward, specs: Sequence[InputSpec]) -> Given:
    """Inputs made from `--input`, in several batch sizes.

    Raises:
        GbnnError: The network has no such inputs, or does not run on those that were made.
    """
    specs = [replace(spec, dtype="float32") if "float" in spec.dtype else spec for spec in specs]
    lone = specs[0].name if len(specs) == 1 else INPUT
    run = forward if forward.function is not None else None
    batches = list(made_batches(specs, module, batch_sizes=MADE_BATCH_SIZES, run=run))
    calls = tuple(call_of(module, batch, forward, lone=lone) for batch in batches)
    free = {spec.name: spec.axes for spec in specs}
    return Given(calls[0], calls, batches[0], tuple(free[name] for name in calls[0].names), "--input")


def from_data(module: torch.nn.Module, forward: Forward, data: Any, *, spec: str) -> Given:
    """The first batches of data. Axes are free if their sizes differ between batches; the batch axis always is.

    Args:
        module: The network.
        forward: The forward pass.
        data: A specification, an `Evaluation` or an object that yields batches.
        spec: Specification of the architecture.

    Raises:
        GbnnError: The data cannot be read, or do not fit the network.
    """
    from gbnn_compress.data.loaders import load_data

    evaluation = data if isinstance(data, Evaluation) else Evaluation(data, device="cpu")
    loaded = load_data(evaluation.data, labels=None)
    bench = Bench(OpenedNetwork(module, spec, Fit({}, ())), loaded, evaluation)
    batches = _first_batches(bench)
    calls = [call_of(module, batch, forward) for batch in batches]
    if len({call.names for call in calls}) > 1:
        raise DataError(
            "`--data`: expected the same inputs in each batch, got"
            f" {' and '.join(str(list(names)) for names in dict.fromkeys(call.names for call in calls))}"
        )
    differing = _differing(calls)
    axes = tuple(
        {axis: _axis_name(name, axis, is_batch) for axis, is_batch in each.items()}
        for name, each in zip(calls[0].names, differing, strict=True)
    )
    images = isinstance(loaded, Dataset)
    required = any(not is_batch for each in differing for is_batch in each.values())
    return Given(
        _traced(calls, axes, module),
        (*calls, *_alone(calls[0], axes, module)),
        batches[0],
        axes,
        "--data",
        required=images or required,
        labelled=labels_of(batches[0]) is not None,
    )


def _first_batches(bench: Bench) -> list[Batch]:
    """The first batches, of up to N_CHECKED inputs; a first batch that is larger is cut."""
    import torch

    found: list[Batch] = []
    count = 0
    for batch in islice(bench.batches(), MOST_BATCHES):
        if not found and batch.size > N_CHECKED and isinstance(batch.inputs, torch.Tensor | Mapping):
            batch = cut(batch, N_CHECKED)
        if found and count + batch.size > N_CHECKED:
            break
        found.append(batch)
        count += batch.size
    return found


def cut(batch: Batch, length: int) -> Batch:
    """The first inputs of a batch: tensors whose first axis is as long as the batch are cut."""
    size = batch.size
    value = mapped(batch.value, lambda tensor: tensor[:length] if tensor.dim() and len(tensor) == size else tensor)
    return read_batch(value)


def _differing(calls: Sequence[Call]) -> list[dict[int, bool]]:
    """For each input, its free axes, and whether each is only the batch axis."""
    found: list[dict[int, bool]] = []
    for position, name in enumerate(calls[0].names):
        shapes = [tuple(call.tensors[position].shape) for call in calls]
        if len({len(shape) for shape in shapes}) > 1:
            raise DataError(f"`--data`: expected `{name}` with the same number of axes in each batch, got {shapes[:2]}")
        # In a list of inputs, axis 0 is no batch axis.
        sizes = [call.size for call in calls]
        batch = not any(part.isdecimal() for part in name.split(".")) and [shape[:1] for shape in shapes] == [
            (size,) for size in sizes
        ]
        axes = {axis: False for axis in range(len(shapes[0])) if len({shape[axis] for shape in shapes}) > 1}
        found.append({**axes, **({0: True} if batch else {})})
    return found


def _axis_name(name: str, axis: int, is_batch: bool) -> str:
    return BATCH if is_batch else f"{name}_{axis}".replace(".", "_")


def _traced(calls: Sequence[Call], axes: Sequence[Mapping[int, str]], module: torch.nn.Module) -> Call:
    """A small call whose free axes are longer than 1: two inputs of one of the given calls, if the network runs on it.

    A batch of one input is doubled.
    """

    def suits(call: Call) -> bool:
        return all(each.shape[axis] > 1 for each, free in zip(call.tensors, axes, strict=True) for axis in free)

    smallest_first = sorted(calls, key=lambda call: sum(each.numel() for each in call.tensors) / call.size)
    small = [_first_of(_doubled(call, axes) if call.size == 1 else call, TRACED, axes) for call in smallest_first]
    for call in (*small, *smallest_first):
        if suits(call) and _runs(call, module):
            return call
    return calls[0]


def _doubled(call: Call, axes: Sequence[Mapping[int, str]]) -> Call:
    import torch

    pairs = zip(call.tensors, axes, strict=True)
    return call.holding([torch.cat([each, each]) if free.get(0) == BATCH else each for each, free in pairs])


def _first_of(call: Call, length: int, axes: Sequence[Mapping[int, str]]) -> Call:
    """The first inputs of a call."""
    pairs = zip(call.tensors, axes, strict=True)
    return call.holding([each[:length] if free.get(0) == BATCH else each for each, free in pairs])


def _alone(call: Call, axes: Sequence[Mapping[int, str]], module: torch.nn.Module) -> list[Call]:
    """The first input alone, if the batch has more, and the network runs on it."""
    if call.size == 1 or not any(free.get(0) == BATCH for free in axes):
        return []
    single = _first_of(call, 1, axes)
    return [single] if _runs(single, module) else []


def _runs(call: Call, module: torch.nn.Module) -> bool:
    import torch

    from gbnn_compress.predict.running import evaluating

    try:
        with evaluating(module), torch.no_grad():
            call.copied().outputs(module)
    except Exception:  # whatever the user's own network raises
        return False
    return True


def input_shape(given: Sequence[int] | None, module: torch.nn.Module, spec: str) -> tuple[int, ...]:
    """Shape of one image: the given one, or that of the architecture's published weights.

    Raises:
        GbnnError: The given shape is invalid, or there are no published weights.
    """
    if given is not None:
        if not given or not all(size >= 1 for size in given):
            raise GbnnError(f"`--input-shape`: expected sizes of at least 1, such as 3,32,32, got {list(given)}")
        return tuple(given)
    kernels = [tensor for tensor in module.state_dict().values() if tensor.dim() == 4]
    channels = kernels[0].shape[1] if kernels else 3
    size = default_preprocessing(spec, n_channels=channels).image_size
    if size is None:
        raise GbnnError(f"`{spec}` has no published input size; give `--input-shape`, such as {channels},32,32")
    return channels, size, size
