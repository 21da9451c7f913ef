"""Predictions of an ensemble: probabilities are averaged over members and draws, and uncertainty counts both."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from ensemble_files import NETWORKS, artifact, images, narrow, three, wide
from torch import nn

import gbnn_compress
from gbnn_compress.errors import ArchitectureError, GbnnError, OutputError
from gbnn_compress.format import container
from gbnn_compress.format.ensembles import joined, members_of, read_ensemble
from gbnn_compress.format.manifest import deflate_manifest
from gbnn_compress.predict.ensemble import CompressedEnsemble
from gbnn_compress.predict.loading import write_ensemble
from gbnn_compress.predict.network import CompressedNetwork
from gbnn_compress.predict.prediction import average

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[Path]:
    return three(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def ensemble(files: list[Path]) -> Path:
    path = files[0].with_name("ensemble.gbnn.safetensors")
    gbnn_compress.ensemble(files, path)
    return path


def loaded(path: Path, networks: Any = NETWORKS) -> CompressedEnsemble:
    found = gbnn_compress.load(path)
    assert isinstance(found, CompressedEnsemble)
    found.to_module(networks)
    return found


def alone(path: Path, network: nn.Module) -> CompressedNetwork:
    found = gbnn_compress.load(path)
    assert isinstance(found, CompressedNetwork)
    found.to_module(network)
    return found


@pytest.mark.long
def test_probabilities_are_the_mean_of_the_members(files: list[Path], ensemble: Path) -> None:
    x = images()
    each = [alone(path, make()).predict(x, samples=3, seed=5) for path, make in zip(files, NETWORKS, strict=True)]
    found = loaded(ensemble).predict_with_uncertainty(x, samples=3, seed=5)
    torch.testing.assert_close(found.probabilities, sum(each) / 3, rtol=0, atol=1e-15)
    assert found.samples == 9


def test_probabilities_are_averaged_and_not_logits(ensemble: Path) -> None:
    x = images()
    found = loaded(ensemble)
    with torch.no_grad():
        logits = [network(x).double() for network in found.to_module(NETWORKS)]
    got = found.predict(x, samples=0)
    torch.testing.assert_close(got, sum(each.softmax(dim=1) for each in logits) / 3, rtol=0, atol=1e-7)
    assert not torch.allclose(got, (sum(logits) / 3).softmax(dim=1), atol=1e-3)


def test_uncertainty_is_that_of_all_draws_of_all_members(files: list[Path], ensemble: Path) -> None:
    x = images()
    draws = []
    for path, make in zip(files, NETWORKS, strict=True):
        for seed in (2, 3):
            network = make().eval()
            network.load_state_dict(gbnn_compress.load(path).state_dict(seed=seed))
            draws.append(network(x).detach().double().softmax(dim=1))
    expected, found = average(draws), loaded(ensemble).predict_with_uncertainty(x, samples=2, seed=2)
    for name in ("probabilities", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)
    assert (found.mutual_information > 0).all()


@pytest.mark.parametrize("task", ["classifier", "other"])
def test_the_order_of_the_members_does_not_matter(tmp_path: Path, files: list[Path], task: str) -> None:
    results = []
    for order in itertools.permutations(range(3)):
        path = tmp_path / "ensemble.gbnn.safetensors"
        gbnn_compress.ensemble([files[k] for k in order], path)
        found = loaded(path, [NETWORKS[k] for k in order])
        results.append(found.predict_with_uncertainty(images().double(), samples=2, task=task, forward=in_double))
    for result in results[1:]:
        for name, value in vars(results[0]).items():
            if name != "samples":
                torch.testing.assert_close(getattr(result, name), value, rtol=0, atol=1e-12)


def in_double(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return network.float()(batch.float()).double()


def test_equal_members_at_the_mean_know_no_more_than_one(tmp_path: Path, files: list[Path]) -> None:
    gbnn_compress.ensemble([files[0]] * 3, tmp_path / "same.gbnn.safetensors")
    found = loaded(tmp_path / "same.gbnn.safetensors", narrow).predict_with_uncertainty(images(), samples=0)
    single = alone(files[0], narrow()).predict_with_uncertainty(images(), samples=0)
    assert found.mutual_information.abs().max() < 1e-14
    torch.testing.assert_close(found.probabilities, single.probabilities, rtol=0, atol=1e-15)


def test_each_member_keeps_its_temperature(tmp_path: Path, files: list[Path]) -> None:
    first, second = (members_of(path)[0] for path in files[:2])
    warm = first._replace(text=first.text[:-1] + b',"temperature":2.5}')
    path = tmp_path / "warm.gbnn.safetensors"
    write_ensemble(path, [warm, second])
    sections = {**warm.contents.sections, "manifest": deflate_manifest(warm.digest, warm.text)}
    (tmp_path / "first.gbnn.safetensors").write_bytes(container.pack(sections, version=warm.contents.version))
    x = images()
    each = [alone(tmp_path / "first.gbnn.safetensors", narrow()).predict(x), alone(files[1], narrow()).predict(x)]
    found = loaded(path, narrow).predict_with_uncertainty(x)
    torch.testing.assert_close(found.probabilities, sum(each) / 2, rtol=0, atol=1e-15)
    assert (found.mutual_information >= 0).all()
    assert not torch.allclose(each[0], alone(files[0], narrow()).predict(x), atol=1e-3)
    assert [member.get("temperature") for member in gbnn_compress.load(path).report()["members"]] == [2.5, None]


def test_outputs_of_other_networks_are_averaged(files: list[Path], ensemble: Path) -> None:
    x = images()
    draws = []
    for path, make in zip(files, NETWORKS, strict=True):
        for seed in (0, 1):
            network = make().eval()
            network.load_state_dict(gbnn_compress.load(path).state_dict(seed=seed))
            draws.append(network(x).detach().double())
    found = loaded(ensemble).predict_with_uncertainty(x, samples=2, task="other")
    stacked = torch.stack(draws)
    torch.testing.assert_close(found.mean.double(), stacked.mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.standard_deviation.double(), stacked.std(dim=0), rtol=0, atol=1e-6)
    assert found.samples == 6


def test_any_batch_size_gives_the_same(ensemble: Path) -> None:
    found = loaded(ensemble)
    whole, parts = (found.predict(images(7), samples=2, batch_size=size) for size in (128, 3))
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("networks", [list(NETWORKS), (narrow(), narrow(), wide())])
def test_one_network_per_member(ensemble: Path, networks: Any) -> None:
    found = gbnn_compress.load(ensemble).to_module(networks)
    assert [each[0].out_channels for each in found] == [16, 16, 24]
    assert all(not each.training for each in found)
    if isinstance(networks, tuple):
        assert all(mine is its for mine, its in zip(found, networks, strict=True))


def test_one_module_serves_as_the_pattern_of_all(tmp_path: Path, files: list[Path]) -> None:
    gbnn_compress.ensemble(files[:2], tmp_path / "two.gbnn.safetensors")
    first, second = gbnn_compress.load(tmp_path / "two.gbnn.safetensors").to_module(narrow())
    assert not torch.equal(first[0].weight, second[0].weight)


def test_refusals_name_the_member(ensemble: Path) -> None:
    found = gbnn_compress.load(ensemble)
    with pytest.raises(GbnnError, match=r"for an ensemble of 3 networks, got a list of 2"):
        found.to_module([narrow, narrow])
    with pytest.raises(ArchitectureError, match=r"^member 2: "):
        found.to_module(narrow)
    with pytest.raises(ArchitectureError, match=r"^member 0: the architecture is not known"):
        gbnn_compress.load(ensemble).predict(images())
    with pytest.raises(GbnnError, match="`samples`"):
        found.predict(images(), samples=-1)


def test_one_module_cannot_be_two_members(tmp_path: Path, files: list[Path]) -> None:
    gbnn_compress.ensemble([files[0], files[1]], tmp_path / "two.gbnn.safetensors")
    found, network = gbnn_compress.load(tmp_path / "two.gbnn.safetensors"), narrow()
    with pytest.raises(GbnnError, match="expected a module of its own for each member"):
        found.to_module([network, network])
    with pytest.raises(GbnnError, match=r"`network`: expected one for all or a list of 2"):
        found.to_module([network])


def test_equal_members_are_told(tmp_path: Path, files: list[Path]) -> None:
    report = gbnn_compress.ensemble([files[0], files[1], files[0]], tmp_path / "three.gbnn.safetensors")
    told = [each for each in report["warnings"] if each.startswith("members")]
    assert told == ["members 0 and 2 are the same network: their average is no better than one of them"]


def test_outputs_of_other_shapes_are_refused(tmp_path: Path, files: list[Path]) -> None:
    other = artifact(tmp_path / "ten.gbnn.safetensors", narrow(classes=10), seed=3)
    gbnn_compress.ensemble([files[0], other], tmp_path / "e.gbnn.safetensors")
    found = loaded(tmp_path / "e.gbnn.safetensors", [narrow, lambda: narrow(classes=10)])
    line = "member 1 returns logits 6x10, and member 0 logits 6x5: expected outputs of one kind and shape"
    with pytest.raises(ArchitectureError, match=line):
        found.predict(images())


def test_an_ensemble_is_flattened_and_one_network_stays_a_file(
    tmp_path: Path, files: list[Path], ensemble: Path
) -> None:
    gbnn_compress.ensemble([files[2], ensemble], tmp_path / "four.gbnn.safetensors")
    digests = [
        member.facts["checkpoint"]["sha256"] for member in read_ensemble(tmp_path / "four.gbnn.safetensors").members
    ]
    assert digests == [members_of(files[k])[0].digest.hex() for k in (2, 0, 1, 2)]
    report = gbnn_compress.ensemble([files[0]], tmp_path / "one.gbnn.safetensors")
    assert (tmp_path / "one.gbnn.safetensors").read_bytes() == files[0].read_bytes()
    assert "members" not in report
    gbnn_compress.ensemble([ensemble], tmp_path / "again.gbnn.safetensors")
    assert (tmp_path / "again.gbnn.safetensors").read_bytes() == ensemble.read_bytes()


def test_inputs_are_not_overwritten(files: list[Path]) -> None:
    before = files[1].read_bytes()
    with pytest.raises(OutputError, match=r"one of the files to join"):
        gbnn_compress.ensemble(files, files[1])
    assert files[1].read_bytes() == before
    for wrong in ([], str(files[0])):
        with pytest.raises(GbnnError, match="expected a list of files"):
            gbnn_compress.ensemble(wrong, "x.gbnn.safetensors")


def test_a_file_that_cannot_be_read_back_is_not_written(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gbnn_compress.predict import loading

    monkeypatch.setattr(loading, "joined", lambda members: joined(members[::-1]))
    with pytest.raises(OutputError, match=r"member 0 of .* is not what was written"):
        gbnn_compress.ensemble(files, tmp_path / "e.gbnn.safetensors")
    assert not (tmp_path / "e.gbnn.safetensors").exists()


def test_one_member_as_dense_weights(tmp_path: Path, files: list[Path], ensemble: Path) -> None:
    from safetensors.torch import load_file

    gbnn_compress.decompress(ensemble, tmp_path / "dense.safetensors", member=2, seed=4)
    expected = gbnn_compress.load(files[2]).state_dict(seed=4)
    found = load_file(tmp_path / "dense.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for member in (None, 3, -1):
        with pytest.raises(GbnnError, match=r"is an ensemble of 3 networks: expected `--member` with one of 0 \("):
            gbnn_compress.decompress(ensemble, tmp_path / "x.safetensors", member=member)
    with pytest.raises(GbnnError, match="holds one network"):
        gbnn_compress.decompress(files[0], tmp_path / "x.safetensors", member=1)


def test_the_report_adds_up(files: list[Path], ensemble: Path) -> None:
    report = gbnn_compress.load(ensemble).report()
    parts = [gbnn_compress.load(path).report() for path in files]
    size = ensemble.stat().st_size
    assert sum(each["artifact"]["bytes"] for each in report["members"]) + report["container_bytes"] == size
    assert sum(report["sections"].values()) == size == report["artifact"]["bytes"]
    assert report["floating_bytes"] == sum(each["floating_bytes"] for each in parts)
    assert report["ratio"] == report["floating_bytes"] / size
    assert report["ratio_to_one"] == parts[0]["floating_bytes"] / size
    for member, part in zip(report["members"], parts, strict=True):
        same = member.keys() - {"artifact", "ratio", "sections"}
        assert {key: member[key] for key in same} == {key: part[key] for key in same}
