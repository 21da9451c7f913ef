"""Calibration: the network of a checkpoint with the user's inputs, or with synthetic ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbnn_compress.evaluation import Bench, Evaluation
from gbnn_compress.tasks import build_network, load_weights
from gbnn_compress.weights.architecture import find_architectures
from gbnn_compress.weights.select import Selection, floating_shapes

if TYPE_CHECKING:
    from gbnn_compress.calibration.calibrated import Calibration
    from gbnn_compress.types import Checkpoint

MOST_WEIGHTS = 16_000_000
"""Shared weights of the largest network that is looked at on noise: compressing it takes about a minute more."""

MOST_PIXELS = 6_500_000
"""Height times width times number of the inputs that are used: all layers' activations of a block are in memory."""


def calibration_on(data: Evaluation, checkpoint: Checkpoint, selection: Selection, *, arch: str | None) -> Calibration:
    """Survey the network on the user's inputs; labels are not looked at.

    Raises:
        GbnnError: Bad data or architecture.
    """
    from gbnn_compress.calibration.calibrated import calibrate

    bench = Bench(checkpoint, data, arch, labels=False)
    height, width = bench.inputs(at_most=1).shape[2:]
    inputs = bench.inputs(at_most=max(MOST_PIXELS // (height * width), 1))
    return calibrate(bench.network.cpu(), inputs, names=_names(selection), synthetic=False)


def synthetic_calibration(checkpoint: Checkpoint, selection: Selection, *, arch: str) -> Calibration | None:
    """Survey the network on noise; None without batch norm, beyond MOST_WEIGHTS, or where it does not run on noise.

    Raises:
        GbnnError: Bad architecture.
    """
    from gbnn_compress.calibration.calibrated import calibrate
    from gbnn_compress.calibration.synthetic import synthetic_inputs

    kernels = [checkpoint.tensors[name] for name in selection.shared if checkpoint.tensors[name].dim() == 4]
    weights = sum(checkpoint.tensors[name].numel() for name in selection.shared)
    has_norms = any(name.endswith("running_var") for name in selection.unshared)
    if not kernels or not has_norms or weights > MOST_WEIGHTS:
        return None
    network = build_network(arch, n_classes=find_architectures(floating_shapes(checkpoint.tensors)).n_classes)
    load_weights(network, checkpoint.tensors, spec=arch)
    own = network.state_dict(keep_vars=True)
    tensors = {name: own[name] for name in _names(selection) if name in own}
    inputs = synthetic_inputs(network, tensors, channels=kernels[0].shape[1])
    return None if inputs is None else calibrate(network, inputs, names=_names(selection), synthetic=True)


def _names(selection: Selection) -> tuple[str, ...]:
    return (*selection.shared, *selection.unshared)
