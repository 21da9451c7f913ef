"""Modules and mappings of tensors as checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gbnn_compress.checkpoint.objects import digest, read_any
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.errors import CheckpointError, GbnnError


class Tied(nn.Module):
    """Two layers that share their weights, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.tensor(3))


def test_a_module_is_read_like_its_saved_state_dict(tmp_path: Path) -> None:
    network = Tied()
    torch.save(network.state_dict(), tmp_path / "net.pth")
    saved, found = read_checkpoint(tmp_path / "net.pth"), read_any(network)
    assert list(found.tensors) == list(saved.tensors)
    assert found.ties == saved.ties == {"second.weight": "first.weight"}
    for name, tensor in saved.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert not found.tensors[name].requires_grad
    assert (found.path, found.name, found.notes) == (None, "Tied", ())
    assert found.size_bytes == sum(tensor.nbytes for tensor in network.state_dict().values())


def test_the_digest_is_over_names_dtypes_shapes_and_bytes() -> None:
    state = {"fc.weight": torch.ones(10, 64).bfloat16(), "steps": torch.tensor(7)}
    text = b"fc.weight\nbfloat16\n10,64\n" + b"\x80\x3f" * 640 + b"steps\nint64\n\n" + (7).to_bytes(8, "little")
    assert digest(state) == (hashlib.sha256(text).hexdigest(), 1288)
    assert read_any(state).sha256 == digest(state)[0]
    for other in ({"steps": state["steps"], "fc.weight": state["fc.weight"]}, {**state, "steps": torch.tensor(8)}):
        assert digest(other)[0] != digest(state)[0]
    assert digest({"a": torch.zeros(2, 3)})[0] != digest({"a": torch.zeros(3, 2)})[0]


def test_a_mapping_may_be_nested_as_in_a_file() -> None:
    first, second = nn.Linear(8, 8).state_dict(), nn.Linear(8, 8).state_dict()
    found = read_any({"state_dict": first, "epoch": 3})
    assert list(found.tensors) == ["weight", "bias"]
    assert "Took the state dict under `state_dict`" in found.notes[0]
    both = {"generator": first, "critic": second}
    with pytest.raises(CheckpointError, match=r"`checkpoint` holds several networks.*--key"):
        read_any(both)
    assert torch.equal(read_any(both, key="critic").tensors["weight"], second["weight"])


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (5, {}, "`checkpoint`: expected a path, a torch.nn.Module or a mapping of tensors, got `int`"),
        (None, {"argument": "reference"}, "`reference`: expected a path, .* got `NoneType`"),
        (nn.Linear, {}, r"got `Linear`; give an instance, such as Linear\(\)"),
        ({}, {}, "`checkpoint` holds no tensors"),
        ({"a": 1}, {}, "`checkpoint` holds no tensors"),
        (nn.ReLU(), {}, "`ReLU` holds no tensors"),
        (nn.Linear(2, 2), {"key": "a"}, "`--key`: `Linear` is one network"),
        (nn.Linear(2, 2, device="meta"), {}, "tensor `weight` has no values"),
        ({"a": torch.eye(3).to_sparse()}, {}, "tensor `a` is sparse"),
    ],
)
def test_bad_objects(given: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(GbnnError, match=words) as caught:
        read_any(given, **options)
    assert "\n" not in str(caught.value)


def test_a_module_whose_state_dict_fails() -> None:
    class Broken(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("not\nnow")

    with pytest.raises(CheckpointError, match=r"`Broken` gives no state dict \(RuntimeError: not now\)"):
        read_any(Broken(2, 2))
