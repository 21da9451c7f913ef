"""Weights that are codes already are refused by their layout."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import refusal, saved

from gbnn_compress.checkpoint.read import read_checkpoint


def codes(dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.arange(64).reshape(8, 8).to(dtype)


PACKED = {"qweight": codes(), "qzeros": codes(), "scales": torch.rand(4, 8).half()}
LAYOUTS = {
    "GPTQ": {**PACKED, "g_idx": torch.arange(8, dtype=torch.int32)},
    "AWQ": PACKED,
    "GPTQ or AWQ": {"qweight": codes(), "scales": torch.rand(4, 8).half()},
    "bitsandbytes 4-bit": {"weight": codes(torch.uint8), "weight.absmax": torch.rand(4)},
    "bitsandbytes 8-bit": {"weight": codes(torch.int8), "SCB": torch.rand(8)},
    "compressed-tensors": {"weight_packed": codes(), "weight_scale": torch.rand(8, 1)},
    "8-bit weights with scales": {"weight": codes().to(torch.float8_e4m3fn), "weight_scale_inv": torch.rand(1, 1)},
    "quanto": {"weight._data": codes(torch.int8), "weight._scale": torch.rand(8, 1)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "model.layers.0.mlp."])
def test_layouts_are_refused_with_the_way_out(tmp_path, layout, prefix):
    layer = {prefix + name: tensor for name, tensor in LAYOUTS[layout].items()}
    line = refusal(saved(tmp_path, {"state_dict": {"head.weight": torch.rand(8, 8), **layer}}))
    assert "holds quantised weights" in line
    assert f"`{prefix}{next(iter(LAYOUTS[layout]))}`" in line
    assert f"({layout})" in line
    assert "dequantise them first" in line


def test_the_state_of_a_quantised_tensor_counts_as_well(tmp_path):
    state = {"fc.weight": codes(torch.uint8), "fc.weight.quant_state.bitsandbytes__nf4": codes(torch.uint8)}
    assert "bitsandbytes 4-bit" in refusal(saved(tmp_path, state))


def test_blocks_with_scales(tmp_path):
    state = {"mlp.gate_up_proj_blocks": codes(torch.uint8), "mlp.gate_up_proj_scales": codes(torch.uint8)}
    assert "MXFP4" in refusal(saved(tmp_path, state))


def test_integers_and_scales_of_a_network_are_its_own(tmp_path):
    content = {
        "fc.weight": torch.rand(8, 8),
        "fc.weight_scale": torch.rand(8),
        "relative_position_index": codes(torch.int64),
        "table.weight": codes(torch.int64),
        "table.weight_scale": torch.rand(8),
        "scale": torch.rand(1),
        "norm.num_batches_tracked": torch.tensor(3, dtype=torch.int32),
        "tokens": codes(torch.uint8),
    }
    assert set(read_checkpoint(saved(tmp_path, content)).tensors) == set(content)
