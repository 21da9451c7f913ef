"""A checkpoint's own layout with an artifact's weights in it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from checkpoint_files import LEGACY, saved

import gbnn_compress
from gbnn_compress.checkpoint.original import laid_out, open_original
from gbnn_compress.errors import CheckpointError, GbnnError


def network(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "fc.weight": scale * torch.arange(12.0).reshape(4, 3),
        "fc.bias": torch.ones(4, dtype=torch.float16),
        "n": torch.tensor(3),
    }


def other(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in tensors.items()}


def written(folder: Path, path: Path, weights: dict[str, torch.Tensor]) -> Path:
    before = path.read_bytes()
    new = folder / f"new{path.suffix}"
    new.write_bytes(laid_out(open_original(path), weights))
    assert path.read_bytes() == before
    return new


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_wrapper_other_entries_and_names_stay(tmp_path, options):
    prefixed = {f"module.{name}": tensor for name, tensor in network().items()}
    optimizer = {"state": {0: {"m": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    content = {"epoch": 3, "state_dict": OrderedDict(prefixed), "optimizer": optimizer, "best": (0.5, None)}
    new = torch.load(written(tmp_path, saved(tmp_path, content, **options), other(prefixed)), weights_only=True)
    assert list(new) == list(content)
    assert type(new["state_dict"]) is OrderedDict
    assert equal(new["state_dict"], other(prefixed))
    assert (new["epoch"], new["best"], new["optimizer"]["param_groups"]) == (3, (0.5, None), [{"lr": 0.1}])
    assert torch.equal(new["optimizer"]["state"][0]["m"], torch.ones(3))


def test_ties_views_and_lazy_tensors_stay_what_they_are(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    content = {"a": shared, "b": shared, "t": shared.clone().T, "neg": torch._neg_view(torch.ones(2, 2))}
    weights = {"a": shared + 5, "b": shared + 5, "t": torch.ones(3, 2), "neg": torch.full((2, 2), 7.0)}
    new = torch.load(written(tmp_path, saved(tmp_path, content), weights))
    assert new["a"].data_ptr() == new["b"].data_ptr()
    assert new["t"].stride() == (1, 3)
    assert new["neg"].is_neg()
    assert all(torch.equal(new[name], tensor) for name, tensor in weights.items())


def test_safetensors_keep_metadata_and_order(tmp_path):
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(network(), path, metadata={"format": "pt", "licence": "MIT"})
    new = written(tmp_path, path, other(network()))
    with safetensors.safe_open(path, "pt") as old, safetensors.safe_open(new, "pt") as file:
        assert file.metadata() == {"format": "pt", "licence": "MIT"}
        assert file.offset_keys() == old.offset_keys()
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in other(network()).items())


def test_of_several_networks_the_nearest_is_replaced(tmp_path):
    content = {"g": network(1), "d": network(2), "g_ema": network(3)}
    new = torch.load(written(tmp_path, saved(tmp_path, content), network(2.9)))
    assert equal(new["g"], network(1))
    assert equal(new["d"], network(2))
    assert equal(new["g_ema"], network(2.9))


def test_a_prefix_that_was_chosen_is_found_again(tmp_path):
    content = {"step": torch.tensor(5)}
    for prefix, scale in (("online_model.", 1), ("ema_model.", 2)):
        content |= {prefix + name: tensor for name, tensor in network(scale).items()}
    new = torch.load(written(tmp_path, saved(tmp_path, content), network(2.1)))
    assert torch.equal(new["ema_model.fc.weight"], network(2.1)["fc.weight"])
    assert torch.equal(new["online_model.fc.weight"], network(1)["fc.weight"])


def test_names_of_artifacts_that_were_stripped_are_found(tmp_path):
    prefixed = {f"module.model.{name}": tensor for name, tensor in network().items()}
    new = torch.load(written(tmp_path, saved(tmp_path, {"state_dict": prefixed}), other(network())))
    assert torch.equal(new["state_dict"]["module.model.fc.weight"], network()["fc.weight"] + 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("fc.bias"),
        lambda tensors: tensors.update({"fc.bias": torch.ones(5, dtype=torch.float16)}),
        lambda tensors: tensors.update({"fc.bias": torch.ones(4)}),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, change):
    tensors = network()
    change(tensors)
    with pytest.raises(CheckpointError, match=r"net.pth` lacks 1 of 3 tensors of the artifact \(`fc.bias`\), by name"):
        laid_out(open_original(saved(tmp_path, tensors)), network())


def test_a_view_that_repeats_values_is_refused(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(1).expand(3, 4)})
    with pytest.raises(CheckpointError, match="holds `a` as a view that repeats values"):
        laid_out(open_original(path), {"a": torch.ones(3, 4)})


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    linear = torch.nn.Linear(40, 60)
    saved(tmp_path, {"state_dict": {f"module.{n}": t for n, t in linear.state_dict().items()}, "epoch": 3})
    gbnn_compress.compress(tmp_path / "net.pth", target_ratio=4, output=tmp_path / "net.gbnn.safetensors")
    return tmp_path / "net.gbnn.safetensors"


@pytest.mark.long
@pytest.mark.parametrize("seed", [None, 3])
def test_an_artifact_becomes_the_checkpoint_that_its_own_loader_reads(tmp_path, artifact, seed):
    size = gbnn_compress.decompress(artifact, tmp_path / "back.pth", seed=seed, like=tmp_path / "net.pth")
    assert size == (tmp_path / "back.pth").stat().st_size
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["epoch"] == 3
    assert equal(back["state_dict"], gbnn_compress.load(artifact).state_dict(seed=seed))


def test_bad_places_are_refused(tmp_path, artifact):
    with pytest.raises(GbnnError, match=r"with `--like`"):
        gbnn_compress.decompress(artifact, tmp_path / "back.pth")
    with pytest.raises(GbnnError, match="it is the checkpoint that `--like` names"):
        gbnn_compress.decompress(artifact, tmp_path / "net.pth", like=tmp_path / "net.pth")
    with pytest.raises(GbnnError, match="is a folder: `--like` takes one file"):
        gbnn_compress.decompress(artifact, tmp_path / "back.pth", like=tmp_path)
    with pytest.raises(GbnnError, match="does not exist"):
        gbnn_compress.decompress(artifact, tmp_path / "back.pth", like=tmp_path / "no.pth")
    with pytest.raises(GbnnError, match="lacks 2 of 2 tensors"):
        gbnn_compress.decompress(artifact, tmp_path / "back.pth", like=artifact)
    assert not (tmp_path / "back.pth").exists()


def test_views_that_overlap_are_refused(tmp_path):
    flat = torch.randn(48)
    path = saved(tmp_path, {"flat": flat, "a.weight": flat[:24].view(4, 6), "b.weight": flat[24:].view(4, 6)})
    weights = {"flat": torch.ones(48), "a.weight": torch.zeros(4, 6), "b.weight": torch.zeros(4, 6)}
    with pytest.raises(CheckpointError, match="in memory that overlaps with other tensors"):
        laid_out(open_original(path), weights)


def test_another_file_must_have_the_same_names(tmp_path):
    weights = {"a.weight": torch.zeros(4, 6)}
    path = saved(tmp_path, {"module.a.weight": torch.ones(4, 6)})
    assert laid_out(open_original(path), weights)
    with pytest.raises(CheckpointError, match="give the checkpoint that it was made from"):
        laid_out(open_original(path), weights, sha256="0" * 64)
