"""Forward passes of a network over batches, with checks of its outputs."""

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
    """Run a network on all batches, in evaluation mode and without gradients.

    Args:
        network: Maps images to a (B, C) tensor. It is not changed; each module keeps its mode.
        batches: Images float32 (B, channels, height, width) with labels int64 (B,) or None. Labels are only
            checked against the number of classes.
        option: The option that names the data, for messages.

    Returns:
        The network's outputs, float32 (N, C), on the CPU.

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
        raise DataError(f"`{option}` is empty, expected at least one input")
    return torch.cat(outputs)


def probabilities(network: torch.nn.Module, batches: Iterable[Batch], *, option: str = "--data") -> torch.Tensor:
    """Class probabilities: the softmax of `logits`.

    Args:
        network: Maps images to a (B, C) tensor. It is not changed.
        batches: Images float32 (B, channels, height, width) with labels int64 (B,) or None.
        option: The option that names the data, for messages.

    Returns:
        float64 (N, C) on the CPU.

    Raises:
        ArchitectureError: The network fails on the images, or its outputs are no finite logits of two or more classes.
        DataError: Wrong number of channels, labels beyond the network's classes, or no batch.
    """
    found = logits(network, batches, option=option)
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


def copied(network: torch.nn.Module) -> torch.nn.Module:
    """A deep copy, also of networks whose hooks compute a weight from others, as the old `weight_norm` does."""
    import torch

    made = (value for module in network.modules() for value in vars(module).values())
    memo = {id(value): value.detach() for value in made if isinstance(value, torch.Tensor) and not value.is_leaf}
    return copy.deepcopy(network, memo)


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
    if channels and int(channels[2]) == images.shape[1]:  # else torch has taken the batch axis for the channels
        return DataError(
            f"`{option}` has images with {channels[2]} channel(s), the network expects {channels[1]};"
            " give data of the kind that it was trained on"
        )
    return ArchitectureError(
        f"the network fails on a batch of shape {tuple(images.shape)} from `{option}`"
        f" ({type(error).__name__}: {message}); check `--arch` and the size of the inputs"
    )


def _check_output(output: object, images: torch.Tensor, *, option: str) -> None:
    import torch

    n_images, way_out = len(images), "give an `--arch` that is a classifier"
    if not isinstance(output, torch.Tensor):
        got = f"`{type(output).__name__}`"
        way_out = "give an `--arch` (models.py:callable) that returns only its logits"
    elif output.ndim != 2 or len(output) != n_images:
        got = f"shape {tuple(output.shape)}"
    elif not torch.isfinite(output).all():
        if not torch.isfinite(images).all():
            raise DataError(f"`{option}` has infinite or NaN values; give finite inputs")
        got = "infinite or NaN values"
    else:
        return
    raise ArchitectureError(
        f"the network must return finite logits of shape ({n_images}, classes) for {n_images} image(s),"
        f" got {got}; {way_out}"
    )


def check_labels(labels: torch.Tensor | None, n_classes: int, *, option: str) -> None:
    """Refuse labels that the network has no class for.

    Args:
        labels: int64 (N,), or None.
        n_classes: Number of the network's classes.
        option: The option that names the data, for messages.

    Raises:
        DataError: A label is `n_classes` or more.
    """
    if labels is None:
        return
    largest = int(labels.max())
    if largest >= n_classes:
        way_out = "; if they start at 1, subtract 1 from each" if largest == n_classes else ""
        raise DataError(
            f"`{option}`: expected labels in 0..{n_classes - 1} for a network with {n_classes} classes, got {largest}"
            f"{way_out}"
        )
