"""A trial run on the first batch: whether the network takes the data, and what kind of outputs it returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.batches import Batch, arguments, read_batch, tensors_in
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.kind import check_task, settle_kind
from gbnn_compress.data.loaders import labels_of
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError, listed
from gbnn_compress.predict.alike import in_member, require_alike
from gbnn_compress.predict.models import match_of
from gbnn_compress.predict.outputs import is_same
from gbnn_compress.predict.running import evaluating, outputs_of
from gbnn_compress.predict.task import columns_of, is_images, recorded_task
from gbnn_compress.types import Artifact, Checkpoint, Ensemble, Model

if TYPE_CHECKING:
    import torch

    from gbnn_compress.predict.bench import Bench


@dataclass(frozen=True)
class Trial:
    """What a run on the first batch says of a network.

    Attributes:
        columns: C if the outputs that count are one floating (N, C) tensor, else 0.
        images: Whether the inputs are images: of a data set of images, or floating (N, 1 or 3, H, W).
        labelled: Whether the data have one integer label per input that fits one floating output (N, C >= 2).
        outputs: The outputs that count, by name, on the CPU.
    """

    columns: int
    images: bool
    labelled: bool
    outputs: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)


def settled(bench: Bench, model: Model) -> Bench:
    """Run a network on its first batch, and settle its task; of an ensemble, those of all members, which must agree.

    Args:
        bench: The network and the data.
        model: Weights of this network. An artifact may record the task, and the index may know the tensors.

    Returns:
        The same bench with the task `classifier` or `other`.

    Raises:
        GbnnError: The network does not run on the data, or the user's choice does not fit the outputs.
    """
    check_task(bench.task)
    if isinstance(model, Ensemble):
        return bench.with_task(_task_of_members(bench, model))
    return bench.with_task(_task(bench, model, try_first(bench)))


def _task_of_members(bench: Bench, model: Ensemble) -> str:
    """The task of all members.

    Raises:
        ArchitectureError: The outputs of two members differ in kind or shape.
    """
    tasks, outputs = [], []
    for number, (own, member) in enumerate(bench.members(model)):
        with in_member(number):
            trial = try_first(own)
            tasks.append(_task(own, member, trial))
            outputs.append(trial.outputs)
    return require_alike(tasks, outputs)


def _task(bench: Bench, model: Checkpoint | Artifact, trial: Trial) -> str:
    kind = settle_kind(
        bench.task,
        labels=trial.labelled,
        indexed_classes=match_of(model).n_classes,
        outputs=trial.columns,
        images=trial.images,
        tensors={},
        recorded=recorded_task(model.facts) if isinstance(model, Artifact) else None,
    )
    assert kind.task is not None
    return kind.task


def try_first(bench: Bench) -> Trial:
    """Run the network on the first batch, twice if the data are no images of a specification.

    Raises:
        GbnnError: The network fails, lacks an argument or the chosen output, returns NaN or Inf, or returns other
            outputs for the same inputs.
    """
    batch = first_batch(bench)
    outputs = run_first(bench, batch)
    if not isinstance(bench.data, Dataset):
        _check_same(outputs, run_first(bench, batch), option=bench.option)
    columns = columns_of(outputs, n_inputs=batch.size)
    images = isinstance(bench.data, Dataset) or is_images(batch)
    return Trial(columns, images, _fits(bench, batch, columns), outputs)


def first_batch(bench: Bench) -> Batch:
    """The first batch; of a data set of images, one image."""
    if isinstance(bench.data, Dataset):
        return read_batch(bench.inputs(at_most=1))
    return bench.data.first


def run_first(bench: Bench, batch: Batch) -> dict[str, torch.Tensor]:
    """The outputs that count for one batch, by name, on the CPU. Random draws of the network are seeded.

    Raises:
        GbnnError: The network fails, lacks an argument or the chosen output, or returns NaN or Inf.
    """
    import torch

    if bench.forward.function is None:
        check_arguments(bench.network, batch, option=bench.option)
    how: dict[str, Any] = {"forward": bench.forward, "device": bench.device, "option": bench.option}
    with evaluating(bench.network), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            outputs = outputs_of(bench.network, batch, **how)
        except GbnnError as error:
            raise _misnamed(bench, batch) or error from error.__cause__
    found = {name: tensor.detach().cpu() for name, tensor in bench.forward.chosen(outputs).items()}
    for name, tensor in found.items():
        _check_finite(name, tensor, batch, option=bench.option)
    return found


def check_arguments(network: torch.nn.Module, batch: Batch, *, option: str) -> None:
    """Refuse a batch that lacks an argument of the network's `forward`, or has one that it does not take.

    Raises:
        DataError: As described; the message names the arguments.
    """
    try:
        parameters = dict(inspect.signature(network.forward).parameters)
        args, kwargs = arguments(network, batch)
    except (TypeError, ValueError):  # a `forward` without a signature, such as a compiled one
        return
    named = [name for name, each in parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    strange = [name for name in kwargs if name not in named and not takes_any]
    given = {*named[: len(args)], *kwargs}
    lacking = [name for name in named if parameters[name].default is inspect.Parameter.empty and name not in given]
    whose, way_out = f"`forward` of `{type(network).__name__}`", "or give a function with `--forward`"
    if lacking:
        has = f"only {listed(kwargs)}" if kwargs else "one input per batch"
        raise DataError(
            f"`{option}`: {whose} needs {listed(lacking)}, but the data have {has}; add arrays of these names,"
            f" {way_out}"
        )
    if strange:
        raise DataError(
            f"`{option}`: {whose} does not take {listed(strange)}; it takes {listed(named, most=9)}; name the arrays"
            f" so, {way_out}"
        )


def _misnamed(bench: Bench, batch: Batch) -> DataError | None:
    """The error of a mapping none of whose names is an argument, and which the network does not take as one input."""
    if bench.forward.function is not None or not isinstance(batch.inputs, Mapping):
        return None
    args, _ = arguments(bench.network, batch)
    if not args:
        return None
    named = list(inspect.signature(bench.network.forward).parameters)
    return DataError(
        f"`{bench.option}`: `forward` of `{type(bench.network).__name__}` needs {listed(named)}, but the data have only"
        f" {listed(batch.inputs)}; name them so, or give a function with `--forward`"
    )


def _check_finite(name: str, tensor: torch.Tensor, batch: Batch, *, option: str) -> None:
    """Refuse outputs with NaN or Inf."""
    import torch

    bad = ~torch.isfinite(tensor)
    if not bad.any():
        return
    if any(each.is_floating_point() and not torch.isfinite(each).all() for each in tensors_in(batch.inputs)):
        raise DataError(f"`{option}` has infinite or NaN values; give finite inputs")
    per_input = tensor.dim() > 0 and len(tensor) == batch.size
    rows = bad.flatten(1).any(dim=1).nonzero().flatten().tolist() if per_input and tensor.dim() > 1 else []
    where = f"for input(s) {listed(rows, quote='')} of the first batch" if rows else "for the first batch"
    raise ArchitectureError(
        f"`{option}`: expected finite outputs, got infinite or NaN values in `{name}` {where}; leave such inputs out,"
        " choose another output with `--output`, or check `--arch`"
    )


def _check_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], *, option: str) -> None:
    """Refuse a network whose outputs depend on earlier calls."""
    for name, tensor in one.items():
        if not is_same(tensor, other.get(name)):
            raise ArchitectureError(
                f"`{option}`: the network returns another `{name}` when it is run again on the same inputs, so it keeps"
                " state between calls; give a function with `--forward` that resets it first"
            )


def _fits(bench: Bench, batch: Batch, columns: int) -> bool:
    """Whether the data have one integer label per input, each of which is one of the columns."""
    if columns < 2:
        return False
    if isinstance(bench.data, Dataset):
        return bench.data.labels is not None
    labels = labels_of(batch)
    return labels is not None and labels.min() >= 0 and labels.max() < columns
