"""Bit allocation among layers, by the cost of each layer's errors at about the target ratio.

With inputs the cost is measured (`measured_costs`). Without inputs, a relative output error e of a layer costs
-log(1 - e) (`rescue_factors`). That is about e for small errors, and unbounded for a layer that vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.data.kind import CLASSIFIER
from gbnn_compress.rate.codebook import id_bits
from gbnn_compress.rate.maps import index_maps
from gbnn_compress.rate.rate_problem import codebook_at
from gbnn_compress.target.forecast import codebook_of_size, layer_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from gbnn_compress.rate.codebook import Codebook
    from gbnn_compress.target.prepared import Prepared
    from gbnn_compress.types import IndexMap, Posterior

POWER = 0.5
"""Exponent of the measured costs with many inputs. 1 would be right if costs were exact and additive; files were worse
with 1, and no better with 0.75 (docs/method.md)."""

HALF_TRUSTED = 16
"""Number of inputs at which the exponent is half of POWER."""

ROW_POWER = 0.3
"""Exponent of the measured costs of rows in networks that are no classifiers; 0.5 was worse with few inputs
(docs/method.md)."""

COST_RANGE = 2.0**8
"""Costs are clipped to this factor above and below their mean."""

VANISHING = 0.9
"""Relative error of a layer from which `rescue_factors` applies; below it the cost is taken as linear."""

LARGEST_ERROR = 0.999
"""Upper bound of relative errors. A layer of zeros has an error of 1, whose cost would be infinite."""

LEAST_CONTRAST = 1.5
"""Smallest ratio of the largest to the smallest factor for which the mixture is fitted again."""

BISECTIONS = 20
"""Steps of the bisection on log2(lambda), over at most 18 octaves."""

CURVE_OCTAVES = np.array([-10.0, -8, -6, -4, -2, -1, 0, 1, 2, 3, 4, 6, 8])
"""Octaves of lambda relative to the cut at which errors and bits of the layers are computed; between, interpolated."""


def rescue_factors(prepared: Prepared, book: Codebook) -> dict[str, float]:
    """Cost factors that keep layers from vanishing at a cut, without inputs.

    A factor w on the error of one layer acts as lambda / w in that layer. One curve of codebooks over lambda therefore
    gives the errors e and the bits for any factors. The factors are w = d(-log(1 - e)) / de = 1 / (1 - e), at the
    lambda that spends the same bits as the cut without factors. They are then scaled so that lambda stays the same.

    Args:
        prepared: The checkpoint.
        book: The codebook of the cut.

    Returns:
        Name -> factor on the squared error's cost. Empty if no tensor has a relative error of VANISHING or more, or if
        all factors are about equal.
    """
    problem = prepared.problem
    if (_relative_errors(prepared, book) < VANISHING).all():
        return {}
    books = [codebook_at(problem, book.penalty * 2.0**octaves)[0] for octaves in CURVE_OCTAVES]
    errors = np.stack([_relative_errors(prepared, each) for each in books], axis=1)
    bits = np.stack([id_bits(each.counts, each.trellis) for each in books], axis=1)
    # log2 of the factor at each point of the curve, and of the lambda there, which rises monotonically.
    log_factors = -np.log2(1 - np.maximum.accumulate(errors, axis=1))
    lambdas = CURVE_OCTAVES + log_factors
    allowed = id_bits(book.counts, book.trellis).sum()

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


def cost_of_errors(prepared: Prepared, book: Codebook) -> float:
    """Sum over the layers of -log(1 - e), where e is the layer's relative output error with a codebook."""
    return float(-np.log(1 - _relative_errors(prepared, book)).sum())


def _relative_errors(prepared: Prepared, book: Codebook) -> np.ndarray:
    """Relative output error of each shared tensor, at most LARGEST_ERROR, float64 (T,)."""
    return np.minimum(layer_errors(prepared, book), LARGEST_ERROR)


@dataclass(frozen=True)
class MeasuredCosts:
    """Costs of errors, measured on inputs.

    Attributes:
        factors: Name -> factor on the squared error's cost, relative to the cost that the layer's norm predicts. The
            geometric mean over all weights is 1 unless factors are clipped. Tensors without a cost are left out.
        rows: Name -> float64 (rows,), relative cost of the errors of each filter; empty for classifiers, whose filters
            are weighed by their batch norms.
    """

    factors: Mapping[str, float]
    rows: Mapping[str, np.ndarray]


def measured_costs(prepared: Prepared, *, ratio: float) -> MeasuredCosts | None:
    """Costs of errors of the tensors and their rows, measured on inputs.

    The weights are quantised to a ratio without error feedback. The Fisher information along each layer's errors
    (`calibration/sensitivity.py`), divided by the gain of feedback in that layer, is their cost. If costs are additive,
    bytes are spent best when all weights of the network cost the same (reverse water-filling: Cover & Thomas,
    "Elements of information theory", 10.3).

    Args:
        prepared: A checkpoint with `calibration` on real inputs.
        ratio: Approximate ratio of the file.

    Returns:
        None if the network gives no gradients.
    """
    from gbnn_compress.calibration.sensitivity import error_costs

    calibration = prepared.calibration
    assert calibration is not None
    book, _ = codebook_of_size(prepared, prepared.floating_bytes / ratio)
    tensors, posteriors = prepared.checkpoint.tensors, prepared.posteriors
    maps = index_maps(tensors, posteriors, book, value_bits=prepared.value_bits)
    errors = {
        posterior.name: _errors(tensors[posterior.name], posterior, index_map, book.bank.means)
        for posterior, index_map in zip(posteriors, maps, strict=True)
    }
    classifier = prepared.kind.task == CLASSIFIER
    found = error_costs(calibration, errors, classifier=classifier)
    costs = {name: cost for name, cost in found.costs.items() if 0 < cost < np.inf}
    if not costs:
        return None
    names = list(costs)
    sizes = np.array([tensors[name].numel() for name in names], dtype=np.float64)
    gains = np.array([calibration.layers[name].gain if name in calibration.layers else 1.0 for name in names])
    logs = np.log([costs[name] for name in names]) - np.log(gains * sizes)
    logs -= (sizes * logs).sum() / sizes.sum()
    clipped = logs.clip(-np.log(COST_RANGE), np.log(COST_RANGE))
    log_factors = POWER * found.n_inputs / (found.n_inputs + HALF_TRUSTED) * clipped
    filters = () if classifier else calibration.filters & costs.keys()
    rows = {name: found.rows[name] ** ROW_POWER for name in names if name in filters}
    return MeasuredCosts(dict(zip(names, np.exp(log_factors).tolist(), strict=True)), rows)


def _errors(tensor: torch.Tensor, posterior: Posterior, index_map: IndexMap, means: np.ndarray) -> torch.Tensor:
    """Quantised weights minus the tensor's weights, float32, in the tensor's shape; 0 for outliers."""
    import torch

    shared = torch.from_numpy(np.append(means * posterior.scale, np.nan)[index_map.ids]).reshape(tensor.shape)
    return (shared - tensor.detach().double()).nan_to_num(nan=0.0).float()
