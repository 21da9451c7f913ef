"""Graphs without weights: initialisers that are external data, each a tensor of the artifact found by its name."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.tape import Tape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnxruntime
    import torch

    from gbnn_compress.types import Artifact, TensorInfo

KINDS = ("shared", "unshared", "raw")
"""Kinds of the tensors that can be external."""

_TYPES = {
    "bool": ir.DataType.BOOL,
    "int8": ir.DataType.INT8,
    "int16": ir.DataType.INT16,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
    "uint8": ir.DataType.UINT8,
    "uint16": ir.DataType.UINT16,
    "uint32": ir.DataType.UINT32,
    "uint64": ir.DataType.UINT64,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
}
"""Dtypes of external tensors. Builds of ONNX Runtime for browsers lack 8-bit floats; complex tensors are not cast."""

_LONGEST_NAME = 255
"""Largest length of a file's name in bytes."""


def can_be_external(info: TensorInfo) -> bool:
    """Whether ONNX has a type for a tensor, and a file below the graph's folder can have its name."""
    path = PurePosixPath(info.name)
    short = all(len(part.encode(errors="replace")) <= _LONGEST_NAME for part in path.parts)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return info.dtype in _TYPES and short and inside and not set(info.name) & {"\0", "\\"} and info.name == str(path)


def leave_outside(graph: ir.Graph, inputs: Mapping[str, ir.Value], artifact: Artifact) -> None:
    """Replace inputs of a graph by initialisers that are external data, at the shapes and dtypes of the artifact.

    The location of an initialiser is the tensor's name, its offset 0. A Cast follows where the graph has another dtype.

    Args:
        graph: Changed in place.
        inputs: Inputs of the graph by the tensor's name in the artifact.
        artifact: The artifact.
    """
    infos = {info.name: info for info in artifact.tensors}
    tape = Tape()
    for name, value in inputs.items():
        tensor = _external_tensor(infos[name], str(value.name))
        graph.inputs.remove(value)
        if tensor.dtype != value.dtype:
            stored = ir.Value(name=value.name)
            value.name = f"{value.name}/cast"
            cast = tape.op("Cast", [stored], {"to": value.dtype})
            ir.convenience.replace_all_uses_with(value, cast)
            value = stored
        value.const_value = tensor
        graph.register_initializer(value)
    graph.insert_before(graph[0], tape.nodes)


def give_external(options: onnxruntime.SessionOptions, graph: bytes, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a session the values of a graph's external initialisers, each the tensor whose name is its location.

    Args:
        options: Options of the session; changed in place.
        graph: Bytes of an ONNX file.
        tensors: Decoded tensors by name.
    """
    from onnxruntime import OrtValue

    outside = [each for each in onnx.load_from_string(graph).graph.initializer if each.external_data]
    values = [
        OrtValue.ortvalue_from_numpy_with_onnx_type(_raw(tensors[_location(each)]), each.data_type) for each in outside
    ]
    options.add_external_initializers([each.name for each in outside], values)


def _external_tensor(info: TensorInfo, name: str) -> ir.ExternalTensor:
    dtype = _TYPES[info.dtype]
    length = int(dtype.itemsize) * math.prod(info.shape)
    return ir.ExternalTensor(info.name, 0, length, dtype, shape=ir.Shape(info.shape), name=name)


def _raw(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor; of bfloat16, which numpy lacks, the bits."""
    import torch

    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _location(initialiser: onnx.TensorProto) -> str:
    return next(entry.value for entry in initialiser.external_data if entry.key == "location")
