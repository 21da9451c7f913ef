"""A checkpoint's network with the user's inputs, or with synthetic ones: calibration, and where sigma comes from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from types import NoneType
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.select import Selection
from gbnn_compress.data.batches import Batch, MadeBatches, read_batch
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.errors import ArchitectureError, GbnnError, one_line
from gbnn_compress.predict.bench import device_named
from gbnn_compress.predict.models import OpenedNetwork, open_network
from gbnn_compress.predict.running import check_labels, copied, logits

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from gbnn_compress.calibration.calibrated import Calibration
    from gbnn_compress.predict.bench import Bench
    from gbnn_compress.types import Checkpoint, Fit

MOST_WEIGHTS = 16_000_000
"""Shared weights of the largest network that is looked at on noise: compressing it takes about a minute more."""

BATCH_PIXELS = 400_000
"""Height times width times number of the images of a batch."""

MOST_IMAGES = 10_000
"""Images that are used: a bound on time, as each passes through both networks for every file that is tried."""

MOST_PIXELS = 6_500_000
"""Height times width times number of the inputs by which sigma is found."""

MOST_BATCHES = 256
"""Batches of data of any kind that are used."""

MOST_INPUTS = 2048
"""Inputs by which sigma is found."""


def calibration_on(
    bench: Bench, checkpoint: Checkpoint, selection: Selection, *, synthetic: bool = False
) -> Calibration:
    """Survey the network on the user's inputs; labels are not looked at.

    Args:
        bench: The network with the checkpoint's weights, on the inputs.
        checkpoint: As read.
        selection: Its tensors by kind.
        synthetic: Whether the inputs are made up.

    Raises:
        GbnnError: The network does not run on the inputs.
    """
    from gbnn_compress.calibration.calibrated import calibrate

    network = bench.network.to(calibration_device(bench.evaluation.device))
    names = _names(network, checkpoint, selection, bench.fit)
    try:
        return calibrate(
            network, _batches(bench), names=names, forward=bench.forward, synthetic=synthetic, option=bench.option
        )
    except GbnnError:
        raise
    except Exception as error:  # whatever the user's own network raises
        raise ArchitectureError(
            f"the network fails on `{bench.option}` ({type(error).__name__}: {one_line(error)}); check `--arch`,"
            " `--forward` and the inputs"
        ) from error


def calibration_device(name: str) -> torch.device:
    """Where calibration runs for a `--device`: the CPU for `auto`, so that files are the same everywhere."""
    return device_named("cpu" if name == "auto" else name)


def _batches(bench: Bench) -> Iterable[Batch]:
    """The inputs that calibration may use.

    Images come in random order, in batches of about BATCH_PIXELS that are made when they are asked for. Batches that
    are in memory come in random order, because data may be sorted; those of a loader come in its order.
    """
    if isinstance(bench.data, Dataset):
        return _image_batches(bench)
    loader = bench.data.loader
    if not isinstance(loader, NoneType | list | tuple | Mapping) and not hasattr(loader, "__array__"):
        return islice(bench.batches(), MOST_BATCHES)
    batches = list(bench.batches())
    order = np.random.RandomState(0).permutation(len(batches))[:MOST_BATCHES]
    return [batches[i] for i in order]


def _image_batches(bench: Bench) -> MadeBatches:
    """Preprocessed images, at most MOST_IMAGES, in batches of equal size but for the last."""
    pixels = bench.inputs(at_most=1)[0, 0].numel()
    total = min(bench.n_inputs, MOST_IMAGES, MOST_BATCHES * max(1, BATCH_PIXELS // pixels))
    order = np.random.RandomState(0).permutation(bench.n_inputs)[:total]
    count = max(1, -(-total * pixels // BATCH_PIXELS))
    size = -(-total // count)

    def make(number: int) -> Batch:
        return read_batch(bench.inputs_at(order[number * size : (number + 1) * size]))

    return MadeBatches(make, range(-(-total // size)))


def synthetic_calibration(
    checkpoint: Checkpoint, selection: Selection, network: OpenedNetwork | str
) -> Calibration | None:
    """Survey the network on noise.

    Args:
        checkpoint: As read.
        selection: Its tensors by kind.
        network: With the checkpoint's weights, or the specification by which it is built.

    Returns:
        None without batch norm, beyond MOST_WEIGHTS, and where it cannot be built or does not run on noise.
    """
    from gbnn_compress.calibration.calibrated import calibrate
    from gbnn_compress.calibration.synthetic import synthetic_inputs

    weights = sum(checkpoint.tensors[name].numel() for name in selection.shared)
    has_norms = any(name.endswith("running_var") for name in selection.unshared)
    if not has_norms or weights > MOST_WEIGHTS:
        return None
    try:
        opened = open_network(checkpoint, network) if isinstance(network, str) else network
    except ArchitectureError:
        return None
    own = opened.network.state_dict(keep_vars=True)
    kernels = [tensor for tensor in own.values() if tensor.dim() == 4]  # in the network's order, not the file's
    if not kernels:
        return None
    names = _names(opened.network, checkpoint, selection, opened.fit)
    tensors = {name: own[mine] for name, mine in names.items()}
    inputs = synthetic_inputs(opened.network, tensors, channels=kernels[0].shape[1])
    return None if inputs is None else calibrate(opened.network, [read_batch(inputs)], names=names, synthetic=True)


def precisions_on(
    source: str,
    bench: Bench | None,
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    seed: int,
) -> Mapping[str, np.ndarray] | None:
    """1 / sigma^2 of the filters of shared tensors, by the recipe's `posterior`.

    Args:
        source: `data_free` or `variational`.
        bench: The network on the user's inputs; `variational` needs their labels.
        checkpoint: As read.
        selection: Its tensors by kind.
        seed: Of labels, batches and draws.

    Returns:
        Name -> float64 (rows,); None for `data_free`.

    Raises:
        GbnnError: No data, bad data or architecture.
    """
    import torch

    if source == "data_free":
        return None
    if bench is None:
        raise GbnnError(f"`posterior: {source}`: sigma comes from inputs; name them with `--data`")
    from gbnn_compress.calibration.sources import variational_precisions

    # A copy: calibration may hold the network on another device.
    network, first = copied(bench.network).cpu(), bench.inputs(at_most=1)
    n_classes = logits(network, [(first, None)]).shape[1]
    at_most = max(min(MOST_PIXELS // first[0, 0].numel(), MOST_INPUTS), 1)
    own, inputs = network.state_dict(keep_vars=True), bench.inputs(at_most=at_most)
    names = _names(network, checkpoint, selection, bench.fit)
    tensors = {name: own[mine] for name, mine in names.items() if name in selection.shared}
    labels = torch.as_tensor(bench.images.sample(at_most).labels)
    check_labels(labels, n_classes, option="--data")
    return variational_precisions(network, tensors, inputs, labels, seed=seed)


def _names(network: torch.nn.Module, checkpoint: Checkpoint, selection: Selection, fit: Fit) -> dict[str, str]:
    """Tensors that may be touched, by the checkpoint's names, with the network's names for them.

    What the file stores once must be one tensor in the network too.
    """
    own = network.state_dict(keep_vars=True)
    held = {name: own[mine] for name, mine in fit.names.items()}
    ties = {name: kept for name, kept in checkpoint.ties.items() if name not in fit.extra}
    apart = {kept for name, kept in ties.items() if held.get(name) is not held.get(kept)}
    touched = (name for name in (*selection.shared, *selection.unshared) if name in held and name not in apart)
    return {name: fit.names[name] for name in touched}
