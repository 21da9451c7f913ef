"""Run a network over batches."""

from __future__ import annotations

import copy
import re
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from gbnn_compress.errors import ArchitectureError, DataError, GbnnError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    import torch

    # Images float32 (B, channels, height, width), labels int64 (B,) or None.
    Batch = tuple[torch.Tensor, torch.Tensor | None]


def logits(network: torch.nn.Module, batches: Iterable[Batch], *, option: str = "--data") -> torch.Tensor:
    """The network's outputs over all batches, in evaluation mode and without gradients.

    Args:
        network: Maps images to a (B, C) tensor; left as it was, modes included.
        batches: Images float32 (B, channels, height, width) with labels int64 (B,) or None; labels are only
            checked against the number of classes.
        option: The option that the batches come from, for messages.

    Returns:
        float32 (N, C) on the CPU.

    Raises:
        ArchitectureError: The output is no finite (B, C) tensor, or the network fails on the images.
        DataError: Wrong number of channels, labels beyond the network's classes, or no batch.
    """
    import torch

    device = next((tensor.device for tensor in chain(network.parameters(), network.buffers())), torch.device("cpu"))
    outputs = []
    with evaluating(network), torch.inference_mode():
        for images, labels in batches:
            output = _forward(network, images.to(device), option=option)
            check_labels(labels, output.shape[1], option=option)
            outputs.append(output.float().cpu())
    if not outputs:
        raise DataError(f"`{option}` gave no batch, expected at least one input")
    return torch.cat(outputs)


def probabilities(network: torch.nn.Module, batches: Iterable[Batch], *, option: str = "--data") -> torch.Tensor:
    """The softmax of `logits`, whose arguments and errors it has.

    Returns:
        float64 (N, C) on the CPU.

    Raises:
        ArchitectureError: The network tells no classes apart.
    """
    found = logits(network, batches, option=option)
    require_classes(found.shape[1], option=option)
    return found.double().softmax(dim=1)


def require_classes(n_outputs: int, *, option: str) -> None:
    """Refuse a network whose single output would have the probability 1, whatever it is.

    Raises:
        ArchitectureError: It has one output.
    """
    if n_outputs < 2:
        raise ArchitectureError(
            f"`{option}`: the network gives one number for each input, and accuracy, NLL and ECE need two or more"
            " classes; leave the data out, or compare the outputs of `to_module()` and the checkpoint yourself"
        )


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each module's own mode afterwards."""
    training = [module for module in network.modules() if module.training]
    if training:
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def run_with(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], images: torch.Tensor) -> Any:
    """The network's output with other weights in place of its own, which stay.

    Args:
        network: In whatever mode it is.
        weights: Some of its parameters and buffers by name; those tied to them follow.
        images: (B, channels, height, width), on the network's device.
    """
    from torch.func import functional_call

    with _lists_renewed(network):
        return functional_call(network, dict(weights), (images,))


def own_names(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What a network calls its own tensors, for `run_with`.

    Args:
        network: Whose they are.
        tensors: Its parameters and buffers by names of a checkpoint.

    Returns:
        Name in the checkpoint -> name in the network; the same for what is not the network's.
    """
    named = chain(network.named_parameters(), network.named_buffers())
    places = {id(tensor): name for name, tensor in named}
    return {name: places.get(id(tensor), name) for name, tensor in tensors.items()}


def copied(network: torch.nn.Module) -> torch.nn.Module:
    """A deep copy, also where hooks make a weight from others (the old `weight_norm`): they will make it anew."""
    import torch

    made = (value for module in network.modules() for value in vars(module).values())
    memo = {id(value): value.detach() for value in made if isinstance(value, torch.Tensor) and not value.is_leaf}
    return copy.deepcopy(network, memo)


@contextmanager
def _lists_renewed(network: torch.nn.Module) -> Iterator[None]:
    """Recurrent layers read their weights from a list of their own, which `functional_call` does not change."""
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


def _forward(network: torch.nn.Module, images: torch.Tensor, *, option: str) -> torch.Tensor:
    try:
        output = network(images)
    except Exception as error:  # whatever the user's own network raises
        raise _refusal(error, images, option=option) from error
    _check_output(output, images, option=option)
    return output


def _refusal(error: Exception, images: torch.Tensor, *, option: str) -> GbnnError:
    message = " ".join(str(error).split())
    channels = re.search(r"to have (\d+) channels, but got (\d+) channels", message)
    if channels and int(channels[2]) == images.shape[1]:  # and not the batch, taken for channels
        return DataError(
            f"`{option}` gives images with {channels[2]} channel(s) and the network expects {channels[1]},"
            " give data of the kind that it was trained on"
        )
    return ArchitectureError(
        f"the network fails on a batch of shape {tuple(images.shape)} from `{option}`"
        f" ({type(error).__name__}: {message}), check `--arch` and the inputs' size"
    )


def _check_output(output: object, images: torch.Tensor, *, option: str) -> None:
    import torch

    n_images, way_out = len(images), "give an `--arch` that is a classifier"
    if not isinstance(output, torch.Tensor):
        got = f"`{type(output).__name__}`"
        way_out = "give an `--arch` (models.py:callable) that returns its logits alone"
    elif output.ndim != 2 or len(output) != n_images:
        got = f"shape {tuple(output.shape)}"
    elif not torch.isfinite(output).all():
        if not torch.isfinite(images).all():
            raise DataError(f"`{option}` has values that are infinite or NaN, give finite inputs")
        got = "values that are infinite or NaN"
    else:
        return
    raise ArchitectureError(
        f"the network must return finite logits of shape ({n_images}, classes) for {n_images} image(s),"
        f" got {got}; {way_out}"
    )


def check_labels(labels: torch.Tensor | None, n_classes: int, *, option: str) -> None:
    """Refuse labels, int64 (N,) or none, that the network has no class for.

    Raises:
        DataError: There is one.
    """
    if labels is None:
        return
    largest = int(labels.max())
    if largest >= n_classes:
        way_out = "; if they start at 1, subtract 1 from each" if largest == n_classes else ""
        raise DataError(
            f"`{option}` has label {largest} and the network {n_classes} classes,"
            f" labels must lie in 0..{n_classes - 1}{way_out}"
        )
