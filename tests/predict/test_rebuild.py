"""Dense weights as the network wants them, and samples that share their draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.pipeline.compress import compress
from gbnn_compress.predict.rebuild import component_deviations, rebuild

if TYPE_CHECKING:
    from gbnn_compress.types import Artifact

GOLDEN = Path(__file__).parents[1] / "golden" / "version1.gbnn.safetensors"


class TiedNetwork(torch.nn.Module):
    """A convolution, a batch norm, and two matrices of one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3)
        self.norm = torch.nn.BatchNorm2d(16)
        self.first = torch.nn.Linear(16, 16, dtype=torch.float16)
        self.second = torch.nn.Linear(16, 16, bias=False, dtype=torch.float16)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(-3, 7).reshape(2, 5))
        self.register_buffer("mask", torch.tensor([True, False, True]))


@pytest.fixture(scope="module")
def network() -> TiedNetwork:
    torch.manual_seed(0)
    module = TiedNetwork()
    module.norm.num_batches_tracked.fill_(2**40 + 1)
    module.norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        module.conv.weight[0, 0, 0, 0] = 1e20
    return module


@pytest.fixture(scope="module")
def artifact(network: TiedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("rebuild")
    torch.save(network.state_dict(), folder / "net.pth")
    compress(folder / "net.pth", target_ratio=1, output=folder / "net.gbnn.safetensors")
    return read_artifact(folder / "net.gbnn.safetensors")


@pytest.mark.long
def test_loads_strictly_into_the_original_module(network: TiedNetwork, artifact: Artifact) -> None:
    dense = rebuild(artifact)
    assert list(dense) == list(network.state_dict())
    fresh = TiedNetwork()
    fresh.load_state_dict(dense, strict=True)
    for name, tensor in network.state_dict().items():
        assert dense[name].dtype == tensor.dtype
        assert dense[name].shape == tensor.shape
        error = (dense[name].double() - tensor.double()).abs().median()
        # A batch norm's vectors are right together, not each for itself.
        limit = 0.1 if name.startswith("norm.") else 0.02
        assert error <= limit * tensor.double().abs().median() + 1e-3, name


def test_integer_and_boolean_buffers_are_exact(network: TiedNetwork, artifact: Artifact) -> None:
    dense, given = rebuild(artifact, seed=3), network.state_dict()
    for name in ("norm.num_batches_tracked", "table", "mask"):
        assert torch.equal(dense[name], given[name])


def test_outliers_are_exact(artifact: Artifact) -> None:
    assert float(rebuild(artifact)["conv.weight"][0, 0, 0, 0]) == float(torch.tensor(1e20))


def test_ties_hold_one_tensor(artifact: Artifact) -> None:
    for seed in (None, 0):
        dense = rebuild(artifact, seed=seed)
        assert dense["second.weight"] is dense["first.weight"]


def test_shared_weights_are_means_times_scale(artifact: Artifact) -> None:
    dense = rebuild(artifact)
    for index, index_map in enumerate(artifact.maps):
        inside = index_map.ids < len(artifact.bank.means)
        means = artifact.bank.means[index_map.ids[inside]] * artifact.scales[index]
        tensor = dense[index_map.name]
        expected = torch.from_numpy(means).to(tensor.dtype)
        assert torch.equal(tensor.reshape(-1)[torch.from_numpy(inside)], expected)


@pytest.mark.parametrize("path", ["golden", "compressed"])
def test_members_of_a_component_share_one_draw(artifact: Artifact, path: str) -> None:
    chosen = read_artifact(GOLDEN) if path == "golden" else artifact
    size = len(chosen.bank.means)
    mean, sample = rebuild(chosen), rebuild(chosen, seed=1)
    moved = 0
    for index, index_map in enumerate(chosen.maps):
        deviations = component_deviations(chosen, index)
        before, after = (state[index_map.name].double().reshape(-1).numpy() for state in (mean, sample))
        for component in np.unique(index_map.ids[index_map.ids < size]):
            members = index_map.ids == component
            assert len(np.unique(after[members])) == 1
            if chosen.bank.means[component] == 0:
                np.testing.assert_array_equal(after[members], before[members])
                assert deviations[component] == 0
            else:
                moved += after[members][0] != before[members][0]
                rounding = 0.01 * abs(before[members][0])
                assert abs(after[members][0] - before[members][0]) <= 6 * deviations[component] + rounding
    assert moved > 3


def test_deviations_shrink_with_the_members() -> None:
    artifact = read_artifact(GOLDEN)
    size, noise = len(artifact.bank.means), artifact.facts["noise"]
    for index, index_map in enumerate(artifact.maps):
        members = np.bincount(index_map.ids, minlength=size + 1)[:size]
        got = component_deviations(artifact, index)
        assert got.shape == (size,)
        np.testing.assert_array_equal(got == 0, (members == 0) | (artifact.bank.means == 0))
        used = got > 0
        expected = noise * artifact.scales[index] * np.exp(artifact.bank.log_sigmas[used]) / np.sqrt(members[used])
        np.testing.assert_allclose(got[used], expected)


def test_draws_have_the_deviations_they_should(artifact: Artifact) -> None:
    index = [index_map.name for index_map in artifact.maps].index("conv.weight")
    ids, size = artifact.maps[index].ids, len(artifact.bank.means)
    deviations = component_deviations(artifact, index)
    component = int(np.argmax(np.where(np.isin(np.arange(size), ids), deviations, 0)))
    place = int(np.flatnonzero(ids == component)[0])
    draws = np.array([float(rebuild(artifact, seed=seed)["conv.weight"].reshape(-1)[place]) for seed in range(200)])
    mean = artifact.bank.means[component] * artifact.scales[index]
    assert abs(draws.mean() - mean) < 4 * deviations[component] / np.sqrt(200)
    assert draws.std() == pytest.approx(deviations[component], rel=0.25)


def test_same_seed_same_sample_other_seed_other_sample(artifact: Artifact) -> None:
    first, second, other = (rebuild(artifact, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    assert torch.equal(first["norm.weight"], other["norm.weight"])


def test_sampling_is_the_order_of_draws_that_the_format_page_names() -> None:
    artifact = read_artifact(GOLDEN)
    generator = np.random.default_rng(11)
    sample, mean = rebuild(artifact, seed=11), rebuild(artifact)
    size = len(artifact.bank.means)
    for index, index_map in enumerate(artifact.maps):
        centres = artifact.bank.means * artifact.scales[index]
        table = centres + component_deviations(artifact, index) * generator.standard_normal(size)
        tensor = sample[index_map.name]
        inside = index_map.ids < size
        expected = torch.from_numpy(table[index_map.ids[inside]]).to(tensor.dtype)
        assert torch.equal(tensor.reshape(-1)[torch.from_numpy(inside)], expected)
        if not inside.all():
            outside = torch.from_numpy(~inside)
            draws = generator.standard_normal(len(index_map.outliers))
            noise = torch.from_numpy(artifact.facts["noise"] * artifact.scales[index] * draws)
            values = mean[index_map.name].reshape(-1)[outside].double() + noise
            assert torch.equal(tensor.reshape(-1)[outside], values.to(tensor.dtype))


def test_rebuilding_leaves_the_artifact_and_earlier_results() -> None:
    artifact = read_artifact(GOLDEN)
    first = rebuild(artifact)
    kept = {name: tensor.clone() for name, tensor in first.items()}
    for name, tensor in first.items():
        if artifact.tensors and tensor.is_floating_point() and name != "half.tied":
            tensor.add_(1)
    second = rebuild(artifact)
    assert all(torch.equal(second[name], kept[name]) for name in kept)


@pytest.mark.long
def test_any_raw_dtype_survives(tmp_path: Path) -> None:
    network = {
        "w": torch.linspace(-1, 1, 600).reshape(20, 30),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "shorts": torch.tensor([[-5, 7]], dtype=torch.int16),
        "quarter": torch.linspace(-2, 2, 5).to(torch.float8_e5m2),
        "complex": torch.complex(torch.ones(2), torch.zeros(2)),
        "empty": torch.empty(3, 0, dtype=torch.float16),
    }
    save_file(network, tmp_path / "net.safetensors")
    compress(tmp_path / "net.safetensors", target_ratio=1, output=tmp_path / "net.gbnn.safetensors")
    dense = rebuild(read_artifact(tmp_path / "net.gbnn.safetensors"))
    for name in ("bytes", "shorts", "quarter", "complex", "empty"):
        assert dense[name].dtype == network[name].dtype
        assert dense[name].shape == network[name].shape
        assert torch.equal(
            dense[name].contiguous().view(-1).view(torch.uint8), network[name].view(-1).view(torch.uint8)
        )
