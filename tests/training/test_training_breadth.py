"""Training reaches the weights of every kind of layer, and says where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_networks

from gbnn_compress import compress, load
from gbnn_compress.checkpoint.exact_tables import is_table
from gbnn_compress.data.batches import read_batch
from gbnn_compress.predict.running import copied, run_with
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.training.goal import Goal
from gbnn_compress.training.objective import Loss, loss_of
from gbnn_compress.training.schedule import Optimisers, Schedule
from gbnn_compress.training.shared_weights import SharedWeights
from gbnn_compress.types import Bank, Posterior

pytestmark = [
    pytest.mark.usefixtures("one_thread", "training_is_kept"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
]

NETWORKS = ("convolutions", "attention", "reparametrised", "recurrent")
FIXED = {"attention": {"encoding", "frozen.weight"}}
"""Shared tensors that a network does not train: a buffer, and a frozen matrix."""

MEANS = np.linspace(-2.5, 2.5, 11)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def shared_names(network: torch.nn.Module) -> list[str]:
    """What `select` shares, ties once."""
    own = network.state_dict(keep_vars=True)
    seen: set[int] = set()
    names = []
    for name, tensor in own.items():
        is_shared = tensor.is_floating_point() and tensor.dim() >= 2 and not is_table(name, tensor)
        if is_shared and id(tensor) not in seen:
            seen.add(id(tensor))
            names.append(name)
    return names


def shared_weights(network: torch.nn.Module) -> SharedWeights:
    """On a uniform bank in units of each tensor's root mean square."""
    tensors, names = network.state_dict(), shared_names(network)
    shared = SharedWeights(tensors, names, device=torch.device("cpu"))
    posteriors = [
        Posterior(name, float(tensors[name].square().mean().sqrt()) or 2.0**-1000, np.zeros(len(tensors[name])))
        for name in names
    ]
    counts = np.tile(np.append(np.ones(len(MEANS)), 0.0), (len(names), 1))
    book = Codebook(Bank(MEANS, np.full(len(MEANS), -2.0)), counts, 1e-4, np.ones(len(names)))
    shared.adopt(book, posteriors, exponent=-4, noise=0.1, outliers={})
    return shared


def loss(network: torch.nn.Module, shared: SharedWeights, *, labelled: bool = True) -> Loss:
    """Under one draw."""
    teacher = copied(network).eval()
    labels = torch.arange(8) % training_networks.CLASSES
    options: dict[str, Any] = {"dataset_size": 8, "half": False, "generator": torch.Generator().manual_seed(0)}
    batch = read_batch((images(8), labels) if labelled else images(8))
    return loss_of(network.train(), teacher, shared, batch, goal=Goal(labelled=labelled), **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_handed_in_do_what_the_same_weights_loaded_do(name: str) -> None:
    network = getattr(training_networks, name)().eval()
    before = network(images(4))
    shared = shared_weights(network)
    drawn = {key: value.detach() for key, value in shared.weights(shared.ids()).items()}
    other = getattr(training_networks, name)().eval()
    other.load_state_dict(network.state_dict() | drawn, strict=True)
    if "second.weight" in other.state_dict():
        other.second.weight.data.copy_(drawn["first.weight"])
    torch.testing.assert_close(run_with(network, drawn, images(4)), other(images(4)))
    assert not torch.allclose(before, other(images(4)))
    assert torch.equal(network(images(4)), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_moves_every_tensor_but_those_that_the_network_holds_fixed(name: str) -> None:
    network = getattr(training_networks, name)()
    shared = shared_weights(network)
    before = {key: latent.detach().clone() for key, latent in shared.latent.items()}
    schedule = Schedule(1, 1, 0.5, 0.03, 0.01, 0.001, 0.5, 1.0, 0.0, 8, only_bank=False, noisy=True, half=False)
    optimisers = Optimisers(network, shared, schedule)
    optimisers.watch_bank()
    optimisers.set_rates(0)
    optimisers.step(loss(network, shared).total(distillation=0.5, beta=1.0))
    for key, latent in shared.latent.items():
        assert latent.grad is not None, key
        assert bool(latent.grad.any()), key
    stayed = {key for key, latent in shared.latent.items() if torch.equal(latent, before[key])}
    zeros = {key for key, latent in before.items() if not latent.any()}  # steps are relative to a tensor's size
    assert stayed == FIXED.get(name, set()) | zeros


@pytest.mark.parametrize("name", NETWORKS)
def test_absent_labels_give_the_gradients_of_labels_without_weight(name: str) -> None:
    found = []
    for labelled, distillation in ((True, 1.0), (False, 0.5)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of dropout
            network = getattr(training_networks, name)()
            shared = shared_weights(network)
            loss(network, shared, labelled=labelled).total(distillation=distillation, beta=1.0).backward()
        found.append({key: latent.grad for key, latent in shared.latent.items()})
    with_labels, without = found
    assert all(torch.equal(with_labels[key], without[key]) for key in without)
    assert all(bool(gradient.any()) for gradient in without.values())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path, random = tmp_path_factory.mktemp("data") / "data.npz", np.random.default_rng(0)
    np.savez(path, x=random.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8), y=np.arange(64) % 4)
    return f"npz:{path}"


def trained(
    state: dict[str, torch.Tensor], arch: str, data: str, folder: Path, *, target_ratio: float
) -> dict[str, Any]:
    """The report of one epoch."""
    torch.save(state, folder / "net.pth")
    return compress(
        folder / "net.pth",
        target_ratio=target_ratio,
        output=folder / "net.gbnn.safetensors",
        arch=arch,
        data=data,
        epochs=1,
        settings={"n_components": 64, "em_iterations": 2, "finetune.precision": "float32"},
    )


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_trains_to_a_file(name: str, data: str, tmp_path: Path) -> None:
    network = getattr(training_networks, name)()
    report = trained(network.state_dict(), f"{training_networks.__file__}:{name}", data, tmp_path, target_ratio=3)
    assert report["target_met"]
    assert {layer["name"] for layer in report["layers"]} == set(shared_names(network))
    others = set(network.state_dict()) - set(shared_names(network)) - {"second.weight"}
    assert set(report["not_shared"]) == others
    warned = [warning for warning in report["warnings"] if "shared but not trained" in warning]
    assert [f"`{key}`" in warned[0] for key in FIXED.get(name, ())] == [True] * len(FIXED.get(name, ()))
    assert len(warned) == (name in FIXED)
    loaded = load(report["artifact"]["path"])
    if is_table("classifier.weight", network.classifier.weight):
        kept = loaded.state_dict()["classifier.weight"]
        assert not torch.equal(kept, network.classifier.weight), "exact is what training came to"
    loaded.to_module(network)
    assert bool(loaded.predict(images(4), samples=2).isfinite().all())


@pytest.mark.long
def test_what_the_loss_does_not_depend_on_is_named(data: str, tmp_path: Path) -> None:
    path = tmp_path / "models.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(192, 4))\n"
        "        self.spare = torch.nn.ParameterList([torch.ones(16, 16) for _ in range(5)])\n"
        "    def forward(self, x):\n"
        "        return self[1](self[0](x))\n"
    )
    torch.manual_seed(0)
    state = {"1.weight": torch.randn(4, 192) / 16, "1.bias": torch.zeros(4)}
    state |= {f"spare.{i}": torch.randn(16, 16) for i in range(5)}
    report = trained(state, f"{path}:Net", data, tmp_path, target_ratio=4)
    warned = next(warning for warning in report["warnings"] if "shared but not trained" in warning)
    assert "`spare.0`, `spare.1`, `spare.2`, `spare.3` and 1 more" in warned
