"""Detection of state dicts whose weights are already quantised: integer tensors with scales beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbnn_compress.errors import CheckpointError, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

CODES = frozenset({"int8", "uint8", "int16", "int32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "uint4"})
"""Dtypes of quantised weights."""

LAYOUTS = (
    ("qweight", ("g_idx",), "GPTQ"),
    ("qweight", ("qzeros",), "AWQ"),
    ("qweight", ("scales", "scale"), "GPTQ or AWQ"),
    ("weight", ("weight.absmax", "weight.quant_map", "weight.nested_absmax"), "bitsandbytes 4-bit"),
    ("weight", ("weight.quant_state.",), "bitsandbytes 4-bit"),
    ("weight", ("SCB", "weight.SCB", "weight_format"), "bitsandbytes 8-bit"),
    ("weight_packed", ("weight_scale", "weight_global_scale"), "compressed-tensors"),
    ("weight", ("weight_scale_inv", "weight_scale", "scale_weight"), "8-bit weights with scales"),
    ("weight._data", ("weight._scale",), "quanto"),
    ("W_q", ("meta", "scale", "zero"), "HQQ"),
    ("_blocks", ("_scales",), "MXFP4"),
)
"""Ending of the codes' name, endings of names beside it (with a dot at the end: a prefix), and name of the layout."""


def check_not_quantised(entries: Mapping[object, object], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse quantised weights, because their codes lose their meaning if they share components.

    Args:
        entries: All entries of the state dict.
        tensors: The entries that are tensors.

    Raises:
        CheckpointError: There are quantised weights. The message continues a sentence that begins with the path.
    """
    packed = [str(name) for name in entries if str(name).endswith("_packed_params")]
    found = [(name, "torch's packed weights") for name in packed] or list(_codes(tensors))
    if found:
        names, layout = listed((name for name, _ in found), most=1), found[0][1]
        raise CheckpointError(
            f"holds quantised weights, {names} ({layout}): dequantise them first, or use the checkpoint from before"
            " quantisation"
        )


def _codes(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the names of tensors that are codes, with their layouts."""
    for name, tensor in tensors.items():
        if str(tensor.dtype).removeprefix("torch.") not in CODES or tensor.numel() < 2:
            continue
        layouts = (layout for ending, beside, layout in LAYOUTS if _fits(name, ending, beside, tensors))
        if (layout := next(layouts, None)) is not None:
            yield name, layout


def _fits(name: str, ending: str, beside: tuple[str, ...], tensors: Mapping[str, torch.Tensor]) -> bool:
    if not name.endswith(ending):
        return False
    stem = name.removesuffix(ending)
    if stem and not stem.endswith(".") and not ending.startswith("_"):
        return False
    return any(
        any(other.startswith(stem + end) for other in tensors) if end.endswith(".") else stem + end in tensors
        for end in beside
    )
