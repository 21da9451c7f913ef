"""A network with inputs: surveyed once, then compressed in lockstep at any lambda."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gbnn_compress.calibration.feedback import Alphabet
from gbnn_compress.calibration.side_by_side import LockstepOptions, Sharing, SideBySide, run_in_lockstep
from gbnn_compress.calibration.survey import LayerStatistics, survey
from gbnn_compress.parallel import single_thread
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.damage import Difference, drop_at, output_difference
from gbnn_compress.types import Damage, IndexMap, Posterior

MOST_PATHS, PATH_WEIGHTS = 16, 2**24
"""Most paths of each filter's search, and the largest product of paths and weights of the network: feedback then takes
up to a third of a pass, and up to 0.6 GB if one layer has all the weights."""

SWEEPS = 2
"""Rounds of coordinate descent in a layer; more rounds do not lower the damage."""

DAMPING, SYNTHETIC_DAMPING = 0.02, 0.05
"""Damping of the inputs' covariance: stronger for noise."""


@dataclass(frozen=True)
class Calibration:
    """A network, inputs, and what the survey measured.

    Attributes:
        network: In evaluation mode, holding the original weights.
        tensors: The network's own tensors by their names in the checkpoint.
        inputs: (N, ...), preprocessed.
        synthetic: Whether the inputs are noise.
        layers: Name -> statistics of every layer that one pass uses once.
        columns: C if the network returns one floating (N, C) tensor; 0 otherwise.
    """

    network: torch.nn.Module
    tensors: Mapping[str, torch.Tensor]
    inputs: torch.Tensor
    synthetic: bool
    layers: Mapping[str, LayerStatistics]
    columns: int

    @property
    def gain(self) -> float:
        """Cost of an error without feedback over its cost with feedback: the geometric mean over the layers."""
        return float(np.exp(np.mean([np.log(layer.gain) for layer in self.layers.values()]))) if self.layers else 1.0


def calibrate(
    network: torch.nn.Module, inputs: torch.Tensor, *, names: Mapping[str, str], synthetic: bool
) -> Calibration:
    """Survey a network.

    Args:
        network: In evaluation mode, holding the original weights; it is not changed.
        inputs: (N, ...), preprocessed.
        names: Name in the checkpoint -> name in the network, of the tensors that may be touched.
        synthetic: Whether the inputs are noise; batch norm then uses their statistics.
    """
    own = network.state_dict(keep_vars=True)
    tensors = {name: own[mine] for name, mine in names.items()}
    with single_thread():
        layers = survey(
            network,
            tensors,
            inputs,
            damping=_damping(synthetic),
            match_batch_norm=synthetic,
        )
    once = {name: layer for name, layer in layers.items() if layer.calls == 1}
    return Calibration(network, tensors, inputs, synthetic, once, _columns(network, inputs[:2]))


@torch.no_grad()
def _columns(network: torch.nn.Module, inputs: torch.Tensor) -> int:
    output = network(inputs)
    is_one = isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim() == 2
    return int(output.shape[1]) if is_one and len(output) == len(inputs) else 0


def compress_in_lockstep(
    calibration: Calibration,
    book: Codebook,
    posteriors: Sequence[Posterior],
    maps: Sequence[IndexMap],
) -> SideBySide:
    """Choose ids with error feedback, and correct biases and batch-norm statistics.

    Args:
        calibration: From `calibrate`.
        book: Components, counts and lambda.
        posteriors: One per shared tensor.
        maps: Assignments without feedback; their outliers stay outliers.
    """
    size = len(book.bank.means)
    sharing = {
        posterior.name: Sharing(
            alphabet=Alphabet(book.bank.means, book.counts[t, :size]),
            scale=posterior.scale,
            rows=np.exp(-2 * posterior.log_sigma),
            unit=1 / calibration.layers[posterior.name].column,
            exact=maps[t].ids == size,
        )
        for t, posterior in enumerate(posteriors)
        if posterior.name in calibration.layers
    }
    options = LockstepOptions(
        penalty=book.penalty,
        damping=_damping(calibration.synthetic),
        paths=n_paths(sum(len(index_map.ids) for index_map in maps)),
        sweeps=SWEEPS,
        synthetic=calibration.synthetic,
    )
    with single_thread():
        return run_in_lockstep(calibration.network, calibration.tensors, calibration.inputs, sharing, options)


def n_paths(n_weights: int) -> int:
    """Paths of each filter's search in a network of `n_weights`."""
    return min(max(PATH_WEIGHTS // n_weights, 1), MOST_PATHS)


def measured_damage(logits: torch.Tensor) -> Damage:
    """Damage on the inputs of a lockstep pass, without labels; the drop is the usual one at this agreement.

    Args:
        logits: (2N, C), first of the original network, then of the compressed one; C >= 2.
    """
    before, after = logits.double().log_softmax(dim=1).chunk(2)
    agreement = float((before.argmax(dim=1) == after.argmax(dim=1)).double().mean())
    divergence = float((before.exp() * (before - after)).sum(dim=1).mean())
    return Damage(drop_at(agreement), agreement, max(divergence, 0.0))


def measured_difference(outputs: object) -> Difference | None:
    """How the outputs of a lockstep pass differ.

    Args:
        outputs: (2N, ...), first of the original network, then of the compressed one.

    Returns:
        None if the outputs are not one floating tensor with 2N rows.
    """
    if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point() or outputs.dim() < 2:
        return None
    if len(outputs) % 2:
        return None
    before, after = outputs.double().flatten(1).chunk(2)
    return output_difference(before.numpy(), after.numpy())


def _damping(synthetic: bool) -> float:
    return SYNTHETIC_DAMPING if synthetic else DAMPING
