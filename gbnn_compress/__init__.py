"""Compress a pretrained network into a small Bayesian one: Gaussian-mixture weight sharing, one compact file.

Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gbnn_compress.comparison import diff
    from gbnn_compress.errors import GbnnError
    from gbnn_compress.evaluation import Evaluation, evaluate
    from gbnn_compress.export import export_onnx
    from gbnn_compress.network import CompressedNetwork, decompress, load
    from gbnn_compress.pipeline import compress
    from gbnn_compress.planning import plan

__all__ = [
    "CompressedNetwork",
    "Evaluation",
    "GbnnError",
    "compress",
    "decompress",
    "diff",
    "evaluate",
    "export_onnx",
    "load",
    "plan",
]

_HOMES = {
    "GbnnError": "errors",
    "Evaluation": "evaluation",
    "diff": "comparison",
    "evaluate": "evaluation",
    "export_onnx": "export",
    "CompressedNetwork": "network",
    "decompress": "network",
    "load": "network",
    "compress": "pipeline",
    "plan": "planning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `gbnn_compress` has no attribute `{name}`")
    return getattr(importlib.import_module(f"gbnn_compress.{_HOMES[name]}"), name)
