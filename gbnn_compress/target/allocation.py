"""How layers share the bits: by what a cut at about the target would cost in each of them.

With inputs that is measured. Without, a layer's relative output error e costs -log(1 - e) instead of e: nearly the same
while errors are small, and without bound where a layer would vanish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.rate.codebook import ideal_lengths
from gbnn_compress.rate.control import codebook_at
from gbnn_compress.rate.maps import index_maps
from gbnn_compress.target.forecast import codebook_of_size, layer_errors

if TYPE_CHECKING:
    import torch

    from gbnn_compress.rate.codebook import Codebook
    from gbnn_compress.target.prepared import Prepared
    from gbnn_compress.types import IndexMap, Posterior

POWER = 0.5
"""Of the measured cost of an error. 1 would be right if costs were exact and added up; files were worse with it, and no
better with 0.75 (docs/method.md)."""

HALF_TRUSTED = 16
"""From so many inputs the power is half of that."""

COST_RANGE = 2.0**8
"""Costs are believed within this factor of their mean."""

VANISHING = 0.9
"""Relative error of a layer from which the cost of errors is no longer taken for linear."""

LARGEST_ERROR = 0.999
"""Relative errors count as at most that: a layer of zeros has 1."""

LEAST_CONTRAST = 1.5
"""Ratio of the largest factor to the smallest from which another fit is worth its time."""

BISECTIONS = 20
"""Of log2(lambda), over 18 octaves at most."""

CURVE_OCTAVES = np.arange(-10.0, 9.0)
"""Octaves of lambda around the cut between which the layers' errors and bits are interpolated."""


def rescue_factors(prepared: Prepared, *, ratio: float) -> dict[str, float]:
    """How much more an error costs in each tensor where some would vanish at a target.

    A weight of w for the error of a layer is lambda / w for that layer alone, so that one curve of codebooks over
    lambda tells the errors e and the bits at any weights. Sought are lambda and w = d(-log(1 - e)) / de = 1 / (1 - e)
    that spend the same bits as the cut without weights; all weights are then divided by what makes lambda stay.

    Args:
        prepared: The checkpoint.
        ratio: Of the file, the target.

    Returns:
        Name -> factor; empty where no tensor has an error of VANISHING, or all have about the same.
    """
    problem, book = prepared.problem, _cut(prepared, ratio)
    if (_relative_errors(prepared, book) < VANISHING).all():
        return {}
    books = [codebook_at(problem, book.penalty * 2.0**octaves)[0] for octaves in CURVE_OCTAVES]
    errors = np.stack([_relative_errors(prepared, each) for each in books], axis=1)
    bits = np.stack([_bits(each) for each in books], axis=1)
    # log2 of the weight at each place of the curve, and of lambda there: it only rises.
    weights = -np.log2(1 - np.maximum.accumulate(errors, axis=1))
    lambdas = CURVE_OCTAVES + weights
    allowed = bits[:, CURVE_OCTAVES == 0].sum()

    def places(octaves: float) -> list[float]:
        return [float(np.interp(octaves, row, CURVE_OCTAVES)) for row in lambdas]

    def spent(octaves: float) -> float:
        pairs = zip(places(octaves), bits, strict=True)
        return sum(float(np.interp(place, CURVE_OCTAVES, row)) for place, row in pairs)

    low, high = 0.0, float(lambdas[:, -1].min())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > allowed else (low, middle)
    factors = 2.0 ** -np.array(places(high))
    if factors.max() < LEAST_CONTRAST * factors.min():
        return {}
    return {posterior.name: factor for posterior, factor in zip(prepared.posteriors, factors.tolist(), strict=True)}


def cost_of_errors(prepared: Prepared, *, ratio: float) -> float:
    """-log(1 - e) of the relative output error e of each layer at a target, in all."""
    return float(-np.log(1 - _relative_errors(prepared, _cut(prepared, ratio))).sum())


def _cut(prepared: Prepared, ratio: float) -> Codebook:
    """The codebook of a file of about this ratio."""
    return codebook_of_size(prepared, prepared.floating_bytes / ratio)[0]


def _relative_errors(prepared: Prepared, book: Codebook) -> np.ndarray:
    """float64 (T,), relative error of each shared tensor, at most LARGEST_ERROR."""
    return np.minimum(layer_errors(prepared, book), LARGEST_ERROR)


def _bits(book: Codebook) -> np.ndarray:
    """float64 (T,), bits of the ids of each shared tensor."""
    lengths = ideal_lengths(book.counts)
    return np.where(book.counts > 0, book.counts * np.where(np.isfinite(lengths), lengths, 0.0), 0.0).sum(axis=1)


def cost_factors(prepared: Prepared, *, ratio: float) -> dict[str, float]:
    """How much more an error costs in each tensor than the norms of the layers say.

    Weights are cut to a ratio without feedback; the Fisher information along each layer's errors is what they cost
    (`calibration/sensitivity.py`), less by what feedback will gain there. Where costs add up, bytes are spent best if
    all weights of the network cost the same (reverse water-filling: Cover & Thomas, "Elements of information theory",
    10.3).

    Args:
        prepared: With `calibration` on real inputs.
        ratio: Of the file, about.

    Returns:
        Name -> a factor of the squared error's cost, of geometric mean 1 over the weights where none is out of range;
        only tensors with a cost, none where the network takes no gradients.
    """
    from gbnn_compress.calibration.sensitivity import error_costs

    calibration = prepared.calibration
    assert calibration is not None
    book = _cut(prepared, ratio)
    tensors, posteriors = prepared.checkpoint.tensors, prepared.posteriors
    maps = index_maps(tensors, posteriors, book, value_bits=prepared.value_bits)
    errors = {
        posterior.name: _errors(tensors[posterior.name], posterior, index_map, book.bank.means)
        for posterior, index_map in zip(posteriors, maps, strict=True)
    }
    costs, n_inputs = error_costs(calibration.network, calibration.tensors, calibration.inputs, errors)
    names = [name for name, cost in costs.items() if 0 < cost < np.inf]
    if not names:
        return {}
    sizes = np.array([tensors[name].numel() for name in names], dtype=np.float64)
    gains = np.array([calibration.layers[name].gain if name in calibration.layers else 1.0 for name in names])
    logs = np.log([costs[name] for name in names]) - np.log(gains * sizes)
    logs -= (sizes * logs).sum() / sizes.sum()
    believed = logs.clip(-np.log(COST_RANGE), np.log(COST_RANGE))
    powers = POWER * n_inputs / (n_inputs + HALF_TRUSTED) * believed
    return dict(zip(names, np.exp(powers).tolist(), strict=True))


def _errors(tensor: torch.Tensor, posterior: Posterior, index_map: IndexMap, means: np.ndarray) -> torch.Tensor:
    """float32, of the tensor's shape: shared weights minus the tensor's; 0 for outliers."""
    import torch

    shared = torch.from_numpy(np.append(means * posterior.scale, np.nan)[index_map.ids]).reshape(tensor.shape)
    return (shared - tensor.detach().double()).nan_to_num(nan=0.0).float()
