"""A step of training on a GPU is that on the CPU: the same code, other last digits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gbnn_compress_cli.digits_network import digits_cnn

from gbnn_compress.data.batches import read_batch
from gbnn_compress.errors import GbnnError
from gbnn_compress.predict.bench import device_named
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.training.objective import Loss, loss_of
from gbnn_compress.training.shared_weights import SharedWeights
from gbnn_compress.types import Bank, Posterior

NAMES = ("conv1.weight", "conv2.weight", "conv3.weight", "hidden.weight", "classifier.weight")
TOLERANCE = 1e-3
"""Relative; float32 sums in another order, without TF32."""

GPU = "cuda"


def step_on(device: torch.device) -> tuple[SharedWeights, Loss]:
    """Forward and backward through the demonstration's network on nine components, without noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = digits_cnn().train()
        images, labels = torch.rand(32, 1, 8, 8), torch.arange(32) % 10
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    shared = SharedWeights(tensors, NAMES, device=device)
    scales = {name: float(tensors[name].square().mean().sqrt()) for name in NAMES}
    posteriors = [Posterior(name, scales[name], np.zeros(len(tensors[name]))) for name in NAMES]
    bank = Bank(np.linspace(-2, 2, 9), np.full(9, -2.0))
    mask = torch.zeros(tensors["hidden.weight"].shape, dtype=torch.bool)
    mask[3, 5] = True
    book = Codebook(bank, np.ones((len(NAMES), 10)), penalty=0.01, distortion=np.ones(len(NAMES)))
    shared.adopt(book, posteriors, exponent=-6, noise=0.1, outliers={"hidden.weight": mask})
    network.to(device)
    teacher = copy.deepcopy(network).eval()
    batch = read_batch((images.to(device), labels.to(device)))
    loss = loss_of(network, teacher, shared, batch, dataset_size=1000, half=False, generator=None)
    (
        loss.total(distillation=0.5, beta=1.0)
        + 1e-3 * shared.coding.divergence_nats(shared.coding.deviations(shared.ids()))
    ).backward()
    return shared, loss


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_is_that_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    here, there = step_on(torch.device("cpu")), step_on(torch.device(GPU))
    ids, others = here[0].ids(), there[0].ids()
    for name in NAMES:
        assert (ids[name] != others[name].cpu()).double().mean() < TOLERANCE
    for part in ("cross_entropy", "distillation"):
        torch.testing.assert_close(getattr(here[1], part), getattr(there[1], part).cpu(), rtol=TOLERANCE, atol=1e-5)
    pairs = [(here[0].coding.means, there[0].coding.means), (here[0].coding.log_sigmas, there[0].coding.log_sigmas)]
    pairs += [(here[0].latent[name], there[0].latent[name]) for name in NAMES]
    for cpu, gpu in pairs:
        assert cpu.grad is not None
        assert gpu.grad is not None
        assert (cpu.grad - gpu.grad.cpu()).norm() <= TOLERANCE * cpu.grad.norm()
    assert [m.name for m in there[0].maps()] == list(NAMES)
    assert there[0].coding.bits(others) == pytest.approx(here[0].coding.bits(ids), rel=TOLERANCE)


@pytest.mark.parametrize("name", ["cuda:99", "graphics"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(
        GbnnError, match=f"`--device`: expected auto, cpu or a device that torch sees here, got `{name}`"
    ):
        device_named(name)
