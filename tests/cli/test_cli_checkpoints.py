"""Folders, keys, layouts and file names, as they are typed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

NAME = os.fsdecode(b"net\xff")


def network(scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"0.weight": scale * torch.randn(60, 40, generator=generator), "0.bias": torch.zeros(60)}


def folder(path: Path) -> Path:
    """In two shards."""
    path.mkdir(parents=True, exist_ok=True)
    listed = {}
    for number, (name, tensor) in enumerate(network().items()):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        safetensors.torch.save_file({name: tensor}, path / file)
        listed[name] = file
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return path


@pytest.mark.long
@pytest.mark.parametrize("typed", ["hub/Llama-3.2-1B", "hub/Llama-3.2-1B/", "hub/../hub/Llama-3.2-1B/."])
def test_a_folder_is_one_checkpoint_and_names_the_artifact(run, typed):
    folder(Path("hub/Llama-3.2-1B"))
    outcome = run(typed, "--target-ratio", "4", "--json", "-", "-q")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["artifact"]["path"] == "Llama-3.2-1B.gbnn.safetensors"
    files = list(Path("hub/Llama-3.2-1B").glob("*.safetensors"))
    assert report["checkpoint"]["bytes"] == sum(file.stat().st_size for file in files)
    assert run("diff", typed, "Llama-3.2-1B.gbnn.safetensors", "-q").code == 0


@pytest.mark.long
def test_the_working_directory_is_a_folder_too(run, monkeypatch):
    monkeypatch.chdir(folder(Path("here")))
    outcome = run("compress", ".", "--target-ratio", "4", "-q")
    assert outcome.code == 0
    assert outcome.out.startswith("here   ")
    assert Path("here.gbnn.safetensors").exists()
    again = run("compress", ".", "--target-ratio", "4", "-q")
    assert again.code == 0


def test_nothing_of_the_folder_is_overwritten(run):
    place = folder(Path("hub"))
    for name in ("model-00001-of-00002.safetensors", "model.safetensors", "pytorch_model.bin"):
        outcome = run("compress", "hub", "--target-ratio", "4", "-o", f"hub/{name}", "-q")
        assert outcome.code == 2
        assert "loaders may take it for a part of the checkpoint" in outcome.err
    assert len(list(place.iterdir())) == 3


@pytest.mark.parametrize("command", ["compress", "plan"])
def test_other_folders_and_shards_alone_are_refused(run, command):
    Path("empty").mkdir()
    shard = folder(Path("hub")) / "model-00001-of-00002.safetensors"
    words = {"empty": "is a folder without model.safetensors", str(shard): "name its folder, `hub`"}
    for path, said in words.items():
        outcome = run(command, path, *(["--target-ratio", "4"] if command == "compress" else []), "-q")
        assert outcome.code == 2
        assert said in outcome.err
        assert outcome.err.count("\n") == 1


@pytest.mark.long
def test_a_key_chooses_among_networks(run):
    torch.save({"g": network(), "g_ema": network(2), "p": torch.tensor(0.2)}, "gan.pt")
    refused = run("gan.pt", "--target-ratio", "4", "-q")
    assert refused.code == 2
    assert "several networks, `g`, `g_ema`: choose one with `--key g_ema`" in refused.err
    outcome = run("gan.pt", "--target-ratio", "4", "--key", "g_ema", "-q")
    assert outcome.code == 0
    assert "Took the state dict under `g_ema`, left `g`, `p`." in outcome.out
    assert run("plan", "gan.pt", "--key", "g", "-q").code == 0
    assert run("diff", "gan.pt", "gan.gbnn.safetensors", "--key", "g_ema", "-q").code == 0
    missing = run("plan", "gan.pt", "--key", "d", "-q")
    assert missing.code == 2
    assert "holds no tensors under `--key d`: expected one of `g`, `g_ema`" in missing.err


def test_decompress_like_the_original(run):
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in network().items()}}, "net.ckpt")
    assert run("net.ckpt", "--target-ratio", "4", "-q").code == 0
    outcome = run("decompress", "net.gbnn.safetensors", "-o", "back.ckpt", "--like", "net.ckpt", "-q")
    assert outcome.code == 0, outcome.err
    back = torch.load("back.ckpt", weights_only=True)
    assert back["epoch"] == 3
    assert list(back["state_dict"]) == ["module.0.weight", "module.0.bias"]
    refused = run("decompress", "net.gbnn.safetensors", "-o", "back.ckpt", "-q")
    assert refused.code == 2
    assert "`--like`" in refused.err


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_names_that_are_no_unicode(run, suffix):
    artifact = f"{NAME}.gbnn.safetensors"
    path = Path(NAME + suffix)
    plain = Path("plain" + suffix)
    safetensors.torch.save_file(network(), plain) if suffix == ".safetensors" else torch.save(network(), plain)
    plain.rename(path)
    lines = [
        (str(path), "--target-ratio", "4", "--json", f"{NAME}.json", "--html", f"{NAME}.html"),
        ("plan", str(path), "--json", "-"),
        ("report", artifact, "--json", "-", "--html", f"{NAME}-2.html"),
        ("report", artifact),
        ("diff", str(path), artifact),
        ("decompress", artifact, "-o", f"{NAME}-dense.safetensors"),
        ("decompress", artifact, "-o", f"{NAME}-like{suffix}", "--like", str(path)),
    ]
    for line in lines:
        outcome = run(*line)
        assert outcome.code == 0, (line, outcome.err)
        assert "Traceback" not in outcome.err
    assert json.loads(Path(f"{NAME}.json").read_text())["checkpoint"]["path"] == str(path)
    refused = run("export", artifact, "-o", f"{NAME}.onnx", "--arch", "torch.nn:Identity", "-q")
    assert refused.code == 2
    assert refused.err.count("\n") == 1


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_folders_whose_names_are_no_unicode(run):
    folder(Path(NAME))
    outcome = run(NAME, "--target-ratio", "4", "-q")
    assert outcome.code == 0, outcome.err
    assert Path(f"{NAME}.gbnn.safetensors").exists()
