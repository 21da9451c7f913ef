"""What a model takes by either way of loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_loading import loading

pytestmark = pytest.mark.long


if TYPE_CHECKING:
    from pathlib import Path

LAYERS, WIDTH = 12, 1024


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers of 4 MB each, once decoded; nodes that decode come first, as in an exported file."""
    generator = np.random.default_rng(0)
    held = [numpy_helper.from_array(np.linspace(-0.1, 0.1, 256, dtype=np.float32), "codebook")]
    decoding, layers = [], []
    for layer in range(LAYERS):
        ids = generator.integers(0, 256, (WIDTH, WIDTH), dtype=np.uint8)
        held.append(numpy_helper.from_array(ids, f"ids{layer}"))
        decoding += [
            helper.make_node("Cast", [f"ids{layer}"], [f"wide{layer}"], to=TensorProto.INT32),
            helper.make_node("Gather", ["codebook", f"wide{layer}"], [f"weight{layer}"]),
        ]
        inputs = [f"x{layer}" if layer else "input", f"weight{layer}"]
        layers.append(helper.make_node("MatMul", inputs, [f"x{layer + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("input", f"x{LAYERS}")
    ]
    graph = helper.make_graph([*decoding, *layers], "layers", ends[:1], ends[1:], initializer=held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path_factory.mktemp("loading") / "layers.onnx"
    onnx.save(model, path)
    return path


def test_folded_constants_take_the_memory_of_all_layers_and_capped_ones_that_of_one(path: Path) -> None:
    folded, capped = (loading(path, [WIDTH], fold=fold) for fold in (True, False))
    assert folded is not None
    assert capped is not None
    assert folded.keys() == capped.keys() == {"memory_bytes", "cpu_seconds"}
    assert 4 * LAYERS * WIDTH**2 < folded["memory_bytes"] < 1e9
    assert 0 < capped["memory_bytes"] < folded["memory_bytes"] - 4 * WIDTH**2
    assert 0 < folded["cpu_seconds"] < 60


def test_what_cannot_be_measured_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading(path, [WIDTH + 1], fold=True) is None
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert loading(path, [WIDTH], fold=True) is None
