"""Where sigma comes from: variational inference, against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gbnn_compress.calibration.sources import variational_precisions

pytestmark = pytest.mark.usefixtures("one_thread")


class Masked(nn.Module):
    """The output does not depend on the first half of the hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)
        self.out.weight.data *= 8
        self.register_buffer("mask", torch.tensor([0.0, 0, 0, 1, 1, 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(x)) * self.mask)


def logistic() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Logits = W x."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3, bias=False)).eval()
    return network, dict(network.named_parameters())


def inputs(count: int) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def known_fisher(network: nn.Module, x: torch.Tensor) -> np.ndarray:
    """F of W[c, j] is E[x_j^2 p_c (1 - p_c)]; its mean over j."""
    with torch.no_grad():
        p = network(x).double().softmax(dim=1)
    return ((p * (1 - p)).T @ x.double().square() / len(x)).mean(dim=1).numpy()


def test_variational_inference_finds_the_posterior_of_logistic_regression() -> None:
    """Near a mode, 1 / sigma^2 = N F + 1 / prior^2."""
    network, tensors = logistic()
    x = inputs(1024)
    labels = torch.multinomial(network(x).softmax(dim=1), 1, generator=torch.Generator().manual_seed(2))[:, 0]
    got = variational_precisions(network, tensors, x, labels, seed=0)["0.weight"]
    prior = float(tensors["0.weight"].detach().square().mean())
    np.testing.assert_allclose(got, len(x) * known_fisher(network, x) + 1 / prior, rtol=0.3)


def test_where_the_loss_feels_nothing_sigma_is_larger() -> None:
    torch.manual_seed(0)
    network, x = Masked().eval(), inputs(256)
    tensors, labels = dict(network.named_parameters()), torch.arange(256) % 3
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    felt = variational_precisions(network, tensors, x, labels, seed=0)["hidden.weight"]
    assert felt[:3].max() < felt[3:].min() / 2
    prior = float(tensors["hidden.weight"].detach().square().mean())
    np.testing.assert_allclose(felt[:3], 1 / prior, rtol=0.2)
    assert all(torch.equal(tensor, before[name]) and tensor.grad is None for name, tensor in tensors.items())


def test_the_same_seed_gives_the_same_numbers() -> None:
    network, tensors = logistic()
    x, labels = inputs(64), torch.arange(64) % 3
    first, again, other = (variational_precisions(network, tensors, x, labels, seed=seed) for seed in (0, 0, 1))
    assert (first["0.weight"] == again["0.weight"]).all()
    assert (first["0.weight"] != other["0.weight"]).any()
