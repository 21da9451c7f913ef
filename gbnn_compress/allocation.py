"""How layers share the bits where there are inputs: by what a cut at about the target would cost in each of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.rate.control import predicted_bytes, solve_size
from gbnn_compress.rate.maps import index_maps

if TYPE_CHECKING:
    import torch

    from gbnn_compress.prepared import Prepared
    from gbnn_compress.types import IndexMap, Posterior

POWER = 0.5
"""Of the measured cost of an error. 1 would be right if costs were exact and added up; files were worse with it, and no
better with 0.75 (docs/method.md)."""

HALF_TRUSTED = 16
"""From so many inputs the power is half of that."""

COST_RANGE = 2.0**8
"""Costs are believed within this factor of their mean."""


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

    problem, calibration = prepared.problem, prepared.calibration
    assert calibration is not None
    limit = prepared.floating_bytes / ratio
    book, _ = solve_size(problem, partial(predicted_bytes, problem), limit=limit)
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
