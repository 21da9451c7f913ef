"""Forward passes of a network over batches, with checks of its outputs."""

from __future__ import annotations

import copy
import re
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from gbnn_compress.data.batches import Batch, copied_to, read_batch, tensors_in
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError, one_line
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.nesting import by_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    import torch

    AnyBatch = Batch | tuple[torch.Tensor, torch.Tensor | None]
    """A batch, or images float32 (B, channels, height, width) with labels int64 (B,) or None."""

IGNORED = -100
"""Label of positions that do not count."""

CLASS_AXIS = 1
"""Axis of a classifier's classes, as in torch's `cross_entropy`."""

LOGITS = "logits"
"""Name of a classifier's output among others, such as those of auxiliary heads."""


def logits(
    network: torch.nn.Module,
    batches: Iterable[AnyBatch],
    *,
    option: str = "--data",
    forward: Forward | None = None,
    positions: bool = False,
) -> torch.Tensor:
    """Run a classifier on all batches, in evaluation mode and without gradients.

    Args:
        network: Maps a batch to a (B, C) tensor. It is not changed; each module keeps its mode.
        batches: Batches, or images float32 (B, channels, height, width) with labels int64 (B,) or None. Labels are only
            checked against the number of classes.
        option: The option that names the data, for messages.
        forward: How the network is run, and which output counts. Default: it is called with the inputs.
        positions: Whether outputs may have further axes, (B, C, ...); then each position counts as an input.

    Returns:
        The network's outputs, float32 (N, C), on the CPU. Positions are in C order after the inputs.

    Raises:
        ArchitectureError: The output is no finite (B, C) tensor, or the network fails on the batch.
        DataError: Wrong number of channels, labels beyond the network's classes, or no batch.
    """
    import torch

    device, outputs, how = device_of(network), [], forward or Forward()
    with evaluating(network), torch.inference_mode():
        for given in batches:
            batch = given if isinstance(given, Batch) else read_batch(given)
            output = _logits(how, outputs_of(network, batch, forward=how, device=device, option=option))
            n_inputs = batch.size
            if positions and isinstance(output, torch.Tensor) and output.ndim > 2:
                output = class_rows(output)
                n_inputs = len(output)
            _check_output(output, batch.inputs, n_inputs, option=option)
            check_labels(class_labels(batch), output.shape[1], option=option)
            outputs.append(output.float().cpu())
    if not outputs:
        raise DataError(f"`{option}` is empty, expected at least one input")
    return torch.cat(outputs)


def outputs_of(
    network: torch.nn.Module, batch: Batch, *, forward: Forward, device: torch.device, option: str = "--data"
) -> Any:
    """The network's outputs for one batch, whole, on its device. The network gets copies, which it may change.

    Args:
        network: The network, in the mode in which it is to run.
        batch: The batch, on any device.
        forward: How the network is run.
        device: The network's device.
        option: The option that names the data, for messages.

    Raises:
        ArchitectureError: The network fails on the batch.
        DataError: Wrong number of channels.
    """
    try:
        return forward(network, read_batch(copied_to(batch.value, device)))
    except GbnnError:
        raise
    except Exception as error:  # whatever the user's own network raises
        raise _refusal(error, batch, option=option) from error


def device_of(network: torch.nn.Module) -> torch.device:
    """The device of the network's first tensor; the CPU if it has none."""
    import torch

    return next((tensor.device for tensor in chain(network.parameters(), network.buffers())), torch.device("cpu"))


def class_labels(batch: Batch) -> torch.Tensor | None:
    """The targets of a batch as labels, int64 (n,) in C order; None without targets of integers."""
    import torch

    targets = batch.targets
    if not isinstance(targets, torch.Tensor) or targets.dtype.is_floating_point or targets.dtype == torch.bool:
        return None
    return targets.long().flatten()


def probabilities(
    network: torch.nn.Module,
    batches: Iterable[AnyBatch],
    *,
    option: str = "--data",
    forward: Forward | None = None,
    positions: bool = False,
) -> torch.Tensor:
    """Class probabilities: the softmax of `logits`.

    Args:
        network: Maps a batch to a (B, C) tensor. It is not changed.
        batches: Batches, or images float32 (B, channels, height, width) with labels int64 (B,) or None.
        option: The option that names the data, for messages.
        forward: How the network is run, and which output counts. Default: it is called with the inputs.
        positions: Whether outputs may have further axes, (B, C, ...); then each position counts as an input.

    Returns:
        float64 (N, C) on the CPU.

    Raises:
        ArchitectureError: The network fails on the images, or its outputs are no finite logits of two or more classes.
        DataError: Wrong number of channels, labels beyond the network's classes, or no batch.
    """
    found = logits(network, batches, option=option, forward=forward, positions=positions)
    require_classes(found.shape[1], option=option)
    return found.double().softmax(dim=1)


def require_classes(n_outputs: int, *, option: str) -> None:
    """Refuse a network with a single output: its softmax is 1 for every input.

    Raises:
        ArchitectureError: The network has fewer than two outputs.
    """
    if n_outputs < 2:
        raise ArchitectureError(
            f"`{option}`: accuracy, NLL and ECE need a network with two or more classes, got one output per input;"
            " leave the data out, or compare the outputs of `to_module()` and the checkpoint yourself"
        )


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode inside the block, and restore each module's mode afterwards."""
    training = [module for module in network.modules() if module.training]
    if training:
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def run_with(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], images: torch.Tensor) -> Any:
    """The network's output with some weights replaced. The network itself is not changed.

    Args:
        network: The network; its mode is kept.
        weights: Name -> replacement of a parameter or buffer. Tensors tied to it are replaced, too.
        images: (B, channels, height, width), on the network's device.
    """
    from torch.func import functional_call

    with _lists_renewed(network):
        return functional_call(network, dict(weights), (images,))


def own_names(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The network's names of tensors that are known by the checkpoint's names, as `run_with` needs them.

    Args:
        network: The network.
        tensors: Name in the checkpoint -> a parameter or buffer of the network.

    Returns:
        Name in the checkpoint -> name in the network. Tensors that are not the network's keep their names.
    """
    named = chain(network.named_parameters(), network.named_buffers())
    places = {id(tensor): name for name, tensor in named}
    return {name: places.get(id(tensor), name) for name, tensor in tensors.items()}


def copied(network: torch.nn.Module, kept: Mapping[int, torch.Tensor] | None = None) -> torch.nn.Module:
    """A deep copy, also of networks whose hooks compute a weight from others, as the old `weight_norm` does.

    Args:
        network: The network; it is not changed.
        kept: id -> tensor that the copy shares with the network. Scripted modules copy all of theirs.
    """
    import torch

    made = (value for module in network.modules() for value in vars(module).values())
    memo = {id(value): value.detach() for value in made if isinstance(value, torch.Tensor) and not value.is_leaf}
    with torch.no_grad():  # with gradients, copies of a scripted module's tensors are no leaves
        return copy.deepcopy(network, {**memo, **(kept or {})})


@contextmanager
def _lists_renewed(network: torch.nn.Module) -> Iterator[None]:
    """Renew the weight lists of recurrent layers before each call; `functional_call` does not replace them."""
    import torch

    layers = [module for module in network.modules() if isinstance(module, torch.nn.RNNBase)]
    lists = [layer._flat_weights for layer in layers]
    hooks = [layer.register_forward_pre_hook(_renew_list) for layer in layers]
    try:
        yield
    finally:
        for layer, own, hook in zip(layers, lists, hooks, strict=True):
            layer._flat_weights = own
            hook.remove()


def _renew_list(layer: Any, inputs: object) -> None:
    layer._flat_weights = [getattr(layer, name, None) for name in layer._flat_weights_names]


def _logits(forward: Forward, outputs: Any) -> Any:
    """The one output that counts; all outputs if there are several, for `_check_output` to refuse."""
    import torch

    if isinstance(outputs, torch.Tensor) and forward.output is None:
        return outputs
    if not any(tensor.is_floating_point() for tensor in by_name(outputs).values()):
        return outputs
    chosen = list(forward.chosen(outputs).values())
    return chosen[0] if len(chosen) == 1 else outputs


def _refusal(error: Exception, batch: Batch, *, option: str) -> GbnnError:
    import torch

    images = batch.inputs
    if not isinstance(images, torch.Tensor):
        shapes = ", ".join(str(tuple(each.shape)) for each in tensors_in(images)) or "no tensor"
        return ArchitectureError(
            f"the network fails on a batch from `{option}` ({one_line(error)}; shapes: {shapes}); name the inputs after"
            " the arguments of its `forward`, or say how it is run (`--forward`)"
        )
    message = " ".join(str(error).split())
    channels = re.search(r"to have (\d+) channels, but got (\d+) channels", message)
    if channels and int(channels[2]) == images.shape[1]:  # else torch has taken the batch axis for the channels
        return DataError(
            f"`{option}` has images with {channels[2]} channel(s), the network expects {channels[1]};"
            " give data of the kind that it was trained on"
        )
    return ArchitectureError(
        f"the network fails on a batch of shape {tuple(images.shape)} from `{option}`"
        f" ({type(error).__name__}: {message}); check `--arch` and the size of the inputs"
    )


def _check_output(output: object, inputs: Any, n_inputs: int, *, option: str) -> None:
    import torch

    way_out = "give an `--arch` that is a classifier"
    if not isinstance(output, torch.Tensor):
        got = f"`{type(output).__name__}`"
        way_out = "give an `--arch` (models.py:callable) that returns only its logits"
    elif output.ndim != 2 or len(output) != n_inputs:
        got = f"shape {tuple(output.shape)}"
    elif not torch.isfinite(output).all():
        if not all(torch.isfinite(each).all() for each in tensors_in(inputs)):
            raise DataError(f"`{option}` has infinite or NaN values; give finite inputs")
        got = "infinite or NaN values"
    else:
        return
    raise ArchitectureError(
        f"the network must return finite logits of shape ({n_inputs}, classes) for {n_inputs} image(s),"
        f" got {got}; {way_out}"
    )


def check_labels(labels: torch.Tensor | None, n_classes: int, *, option: str) -> None:
    """Refuse labels that the network has no class for.

    Args:
        labels: int64 (N,), or None. IGNORED is no class, as in torch's `cross_entropy`.
        n_classes: Number of the network's classes.
        option: The option that names the data, for messages.

    Raises:
        DataError: A label is `n_classes` or more, or below 0.
    """
    if labels is None or not labels.numel():
        return
    labels = labels[labels != IGNORED]
    if labels.numel() and int(labels.min()) < 0:
        raise DataError(f"`{option}`: expected labels of 0 or above (or {IGNORED}: no label), got {int(labels.min())}")
    largest = int(labels.max()) if labels.numel() else -1
    if largest >= n_classes:
        way_out = "; if they start at 1, subtract 1 from each" if largest == n_classes else ""
        raise DataError(
            f"`{option}`: expected labels in 0..{n_classes - 1} for a network with {n_classes} classes, got {largest}"
            f"{way_out}"
        )


def class_rows(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, C, ...) with one row for each position, (B * ..., C)."""
    return logits if logits.dim() == CLASS_AXIS + 1 else logits.movedim(CLASS_AXIS, -1).flatten(0, -2)


def logits_among(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits of a classifier's outputs, one row for each position: those named `logits`, else the first."""
    return class_rows(outputs.get(LOGITS, next(iter(outputs.values()))))
