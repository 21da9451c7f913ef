"""Small random networks for the tests of rate control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gbnn_compress.rate.cells import build_cells
from gbnn_compress.rate.posterior import data_free_posterior
from gbnn_compress.rate.rate_problem import RateProblem, fit_path

if TYPE_CHECKING:
    from gbnn_compress.types import Cells, Posterior


def random_network(seed: int, *, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two convolutions, a batch norm and a matrix, 36 thousand weights, half Laplacian and half Gaussian."""
    random = np.random.RandomState(seed)

    def tensor(*shape: int) -> torch.Tensor:
        values = np.where(random.rand(*shape) < 0.5, random.laplace(size=shape), random.normal(size=shape))
        return torch.from_numpy(values / np.sqrt(np.prod(shape[1:]))).to(dtype)

    return {
        "conv1.weight": tensor(16, 3, 3, 3),
        "bn1.weight": tensor(16).abs() + 0.5,
        "bn1.bias": tensor(16),
        "bn1.running_mean": tensor(16),
        "bn1.running_var": tensor(16).abs() + 0.1,
        "bn1.num_batches_tracked": torch.tensor(100),
        "conv2.weight": tensor(48, 16, 3, 3),
        "fc.weight": tensor(10, 2880),
        "fc.bias": tensor(10),
    }


def floating_size(network: dict[str, torch.Tensor]) -> int:
    """Bytes of the floating tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.values() if tensor.is_floating_point())


def cells_of(network: dict[str, torch.Tensor], *, resolution: float = 128) -> tuple[tuple[Posterior, ...], Cells]:
    """Posteriors and cells of the shared tensors."""
    shared = [name for name, tensor in network.items() if tensor.dim() >= 2]
    posteriors = data_free_posterior(network, shared)
    return posteriors, build_cells(network, posteriors, resolution=resolution)


def problem_of(cells: Cells, **options: object) -> RateProblem:
    """Rate control of cells, with 200 components before merging and 100 bytes of the rest."""
    usual = {
        "n_components": 200,
        "log_sigma_weight": 0.1,
        "max_iterations": 5,
        "scales": np.ones(cells.n_tensors),
        "value_bits": np.full(cells.n_tensors, 32),
        "other_bytes": lambda penalty: 100,
    }
    return fit_path(cells, **{**usual, **options})  # type: ignore[arg-type]
