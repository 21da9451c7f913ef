"""A torch module as an ONNX graph with its shared weights as inputs."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import onnx_ir as ir

from gbnn_compress.errors import ArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

OPSET = 21
"""The lowest opset with integers of 4 bits."""

INPUT = "input"
LOGITS = "logits"
TEMPERATURE = "temperature"


def network_graph(
    module: torch.nn.Module, *, input_shape: Sequence[int], shared: Mapping[str, str]
) -> tuple[ir.Model, dict[str, ir.Value]]:
    """Export a module for any batch size, its shared weights as inputs of the graph.

    The optimiser, which runs here, neither folds nor transposes inputs.

    Args:
        module: float32, in evaluation mode.
        input_shape: Shape of one input.
        shared: Name of a parameter or buffer in the module -> name of the shared tensor; two names of one tensor
            become one input.

    Returns:
        The model, and its inputs for the shared tensors that the network uses, by the tensor's name.

    Raises:
        ArchitectureError: The network works for one batch size only.
        Exception: Any exception of torch's exporter.
    """
    import torch

    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, *input_shape),),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGITS],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        assert program is not None
        _require_any_batch(program.model.graph)
        weights = _weights_as_inputs(program.model.graph, shared)
        program.optimize()
    _strip(program.model.graph)
    return program.model, weights


def _require_any_batch(graph: ir.Graph) -> None:
    shape = graph.inputs[0].shape
    if shape is not None and isinstance(shape[0], int):
        raise ArchitectureError(
            "the network can be exported for one batch size only, because it loops over the images of a batch or"
            " holds their number as a constant; rewrite its `forward` without either"
        )


def _weights_as_inputs(graph: ir.Graph, shared: Mapping[str, str]) -> dict[str, ir.Value]:
    weights: dict[str, ir.Value] = {}
    for own, name in shared.items():
        if own not in graph.initializers:
            continue
        value = graph.initializers.pop(own)
        if name in weights:
            ir.convenience.replace_all_uses_with(value, weights[name])
            continue
        value.const_value = None
        graph.inputs.append(value)
        weights[name] = value
    return weights


def _strip(graph: ir.Graph) -> None:
    """Remove source lines, which the exporter records with paths, and shapes, which runtimes infer."""
    nodes = list(graph.all_nodes())
    for node in nodes:
        node.name = None
        node.metadata_props.clear()
    inner = [value for node in nodes for value in node.outputs if not value.is_graph_output()]
    for value in (*inner, *graph.initializers.values()):
        value.type = value.shape = None
    for value in (*inner, *graph.initializers.values(), *graph.inputs, *graph.outputs):
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the output of the exporter, which is pages long where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
