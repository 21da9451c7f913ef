"""Compress a pretrained network into a small Bayesian one: Gaussian-mixture weight sharing, one compact file.

Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gbnn_compress.errors import GbnnError
    from gbnn_compress.onnx_files.export import export_onnx
    from gbnn_compress.pipeline.compress import compress, run
    from gbnn_compress.pipeline.plan import plan
    from gbnn_compress.pipeline.request import Request
    from gbnn_compress.predict.bench import Evaluation
    from gbnn_compress.predict.comparison import diff
    from gbnn_compress.predict.ensemble import CompressedEnsemble
    from gbnn_compress.predict.evaluation import evaluate
    from gbnn_compress.predict.loading import decompress, ensemble, load
    from gbnn_compress.predict.network import CompressedNetwork

__all__ = [
    "CompressedEnsemble",
    "CompressedNetwork",
    "Evaluation",
    "GbnnError",
    "Request",
    "compress",
    "decompress",
    "diff",
    "ensemble",
    "evaluate",
    "export_onnx",
    "load",
    "plan",
    "run",
]

_HOMES = {
    "GbnnError": "errors",
    "Evaluation": "predict.bench",
    "diff": "predict.comparison",
    "evaluate": "predict.evaluation",
    "export_onnx": "onnx_files.export",
    "CompressedNetwork": "predict.network",
    "CompressedEnsemble": "predict.ensemble",
    "decompress": "predict.loading",
    "ensemble": "predict.loading",
    "load": "predict.loading",
    "compress": "pipeline.compress",
    "plan": "pipeline.plan",
    "Request": "pipeline.request",
    "run": "pipeline.compress",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `gbnn_compress` has no attribute `{name}`")
    return getattr(importlib.import_module(f"gbnn_compress.{_HOMES[name]}"), name)
