"""A trial run on the first batch: whether the network takes the data, and what kind of outputs it returns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.batches import Batch, arguments, read_batch, tensors_in
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError, listed, one_line
from gbnn_compress.predict.running import evaluating

if TYPE_CHECKING:
    import torch

    from gbnn_compress.predict.bench import Bench

SAME = 1e-3
"""Largest difference of two runs on the same inputs, relative to the largest output, that is rounding."""


@dataclass(frozen=True)
class Trial:
    """What a run on the first batch says of a network.

    Attributes:
        columns: C if the outputs that count are one floating (N, C) tensor, else 0.
        images: Whether the inputs are images: of a data set of images, or floating (N, 1 or 3, H, W).
        labelled: Whether the data have integer labels that fit one floating output (N, C >= 2, ...).
    """

    columns: int
    images: bool
    labelled: bool


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
    lone = next(iter(outputs.values())) if len(outputs) == 1 else None
    columns = lone.shape[1] if lone is not None and lone.dim() == 2 and len(lone) == batch.size else 0
    return Trial(columns, _are_images(bench, batch), _fits(bench, batch, lone))


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
    with evaluating(bench.network), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            outputs = bench.forward(bench.network, batch.on(bench.device))
        except GbnnError:
            raise
        except Exception as error:  # whatever the user's own network or function raises
            raise refusal(error, batch, option=bench.option, own=bench.forward.function is not None) from error
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


def refusal(error: Exception, batch: Batch, *, option: str, own: bool = False) -> GbnnError:
    """The one line that says that a network fails on a batch.

    Args:
        error: What the network or the user's function raised.
        batch: The batch.
        option: The option that names the data.
        own: Whether the user's own `forward` was called.
    """
    message = one_line(error)
    channels = re.search(r"to have (\d+) channels, but got (\d+) channels", message)
    first = next(tensors_in(batch.inputs), None)
    if channels and first is not None and first.dim() == 4 and int(channels[2]) == first.shape[1]:
        return DataError(
            f"`{option}` has images with {channels[2]} channel(s), the network expects {channels[1]};"
            " give data of the kind that it was trained on"
        )
    what = "`--forward` fails" if own else "the network fails"
    way_out = "check the function" if own else "check `--arch` and the size of the inputs"
    return ArchitectureError(f"{what} on a batch {described(batch.inputs)} from `{option}` ({message}); {way_out}")


def described(inputs: Any) -> str:
    """Inputs in words: their shape, or the shape and dtype of each by name."""
    import torch

    if isinstance(inputs, torch.Tensor):
        dtype = "" if inputs.dtype == torch.float32 else f" and dtype {_dtype(inputs)}"
        return f"of shape {tuple(inputs.shape)}{dtype}"
    if isinstance(inputs, Mapping):
        tensors = {key: each for key, each in inputs.items() if isinstance(each, torch.Tensor)}
        said = (f"{key} {_dtype(each)} {tuple(each.shape)}" for key, each in tensors.items())
        return f"of {listed(said)}" if tensors else f"of {listed(inputs)}"
    return f"of type `{type(inputs).__name__}`"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
        again = other.get(name)
        same = again is not None and again.shape == tensor.shape
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if not same or (tensor.numel() and float((again - tensor).abs().max()) > SAME * max(largest, 1e-30)):  # type: ignore[operator]
            raise ArchitectureError(
                f"`{option}`: the network returns another `{name}` when it is run again on the same inputs, so it keeps"
                " state between calls; give a function with `--forward` that resets it first"
            )


def _are_images(bench: Bench, batch: Batch) -> bool:
    import torch

    inputs = batch.inputs
    if isinstance(bench.data, Dataset):
        return True
    return (
        isinstance(inputs, torch.Tensor)
        and inputs.is_floating_point()
        and inputs.dim() == 4
        and inputs.shape[1] in (1, 3)
    )


def _fits(bench: Bench, batch: Batch, output: torch.Tensor | None) -> bool:
    """Whether the data have integer labels for the classes on axis 1 of an output."""
    import torch

    if output is None or output.dim() < 2 or output.shape[1] < 2:
        return False
    if isinstance(bench.data, Dataset):
        return bench.data.labels is not None and output.dim() == 2
    targets = batch.targets
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        return False
    shape = (output.shape[0], *output.shape[2:])
    return targets.shape == shape and int(targets.min()) >= 0 and int(targets.max()) < output.shape[1]
