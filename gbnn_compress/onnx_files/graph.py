"""A torch module as an ONNX graph with tensors of an artifact as inputs."""

from __future__ import annotations

import io
import logging
import re
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import onnx_ir as ir

from gbnn_compress.errors import ArchitectureError
from gbnn_compress.onnx_files.flat import PREFIX, Flat

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import torch

    from gbnn_compress.onnx_files.call import Call
    from gbnn_compress.onnx_files.signature import Signature

OPSET = 21
"""The lowest opset with integers of 4 bits."""

TEMPERATURE = "temperature"


class FixedAxisError(ArchitectureError):
    """An axis that was to be free has one size in the graph."""


def network_graph(
    module: torch.nn.Module, call: Call, *, signature: Signature, names: Mapping[str, str]
) -> tuple[ir.Model, dict[str, ir.Value]]:
    """Export a module, some of its tensors as inputs of the graph.

    The optimiser, which runs here, neither folds nor transposes inputs.

    Args:
        module: float32, in evaluation mode.
        call: The call that is traced; free axes have sizes of at least 2.
        signature: Names and free axes.
        names: Name of a parameter or buffer in the module -> name of the tensor; two names of one tensor become one
            input.

    Returns:
        The model, and its inputs for the tensors that the network uses, by the tensor's name.

    Raises:
        FixedAxisError: The exporter has found that a free axis has one size only.
        Exception: Any exception of torch's exporter.
    """
    import torch

    free = tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in signature.axes)
    with _quiet(), _fresh_kernels():
        program = torch.onnx.export(
            Flat(module, call, signature.keys),
            call.tensors,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=list(signature.inputs),
            dynamic_shapes=(free,),
        )
        assert program is not None
        graph = program.model.graph
        inputs = graph.inputs[: len(signature.inputs)]
        _require_free(inputs, signature, _fixed_symbols(program.exported_program))
        _name_axes([*inputs, *graph.outputs], inputs, signature)
        _name_weights(graph)
        weights = _weights_as_inputs(graph, names)
        _own_outputs(graph)
        _forget_shapes_after_recurrent_layers(graph)
        program.optimize()
    _strip(graph)
    _name_ends(graph, graph.inputs[: len(signature.inputs)], signature)
    return program.model, weights


def _fixed_symbols(program: torch.export.ExportedProgram | None) -> set[str]:
    """Symbols of axes (`s95`) that have one size only."""
    ranges = {} if program is None else program.range_constraints
    return {str(symbol) for symbol, each in ranges.items() if each.lower == each.upper}


def _require_free(inputs: Collection[ir.Value], signature: Signature, fixed: Collection[str]) -> None:
    for value, name, axes in zip(inputs, signature.inputs, signature.axes, strict=True):
        for axis in axes:
            assert value.shape is not None
            size = value.shape[axis]
            if isinstance(size, int) or str(size.value) in fixed:
                raise FixedAxisError(
                    f"axis {axis} (`{axes[axis]}`) of the input `{name}` cannot be exported with a free size, because"
                    " the network loops over it, branches on its size or holds it as a constant"
                )


def _name_axes(values: Collection[ir.Value], inputs: Collection[ir.Value], signature: Signature) -> None:
    """Give the exporter's symbols of free axes (`s95`) their names, within expressions, too."""
    names: dict[str, str] = {}
    for value, axes in zip(inputs, signature.axes, strict=True):
        for axis, name in axes.items():
            assert value.shape is not None
            names.setdefault(str(value.shape[axis]), name)

    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return size.value and re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.value)


def _name_weights(graph: ir.Graph) -> None:
    """Remove the prefix of Flat from the names of the network's tensors."""
    values = list(graph.initializers.values())
    graph.initializers.clear()
    for value in values:
        value.name = str(value.name).removeprefix(PREFIX)
        graph.initializers.add(value)


def _weights_as_inputs(graph: ir.Graph, names: Mapping[str, str]) -> dict[str, ir.Value]:
    weights: dict[str, ir.Value] = {}
    for own, name in names.items():
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


def _own_outputs(graph: ir.Graph) -> None:
    """Copy outputs that are an input, a weight or another output: each output of a graph is a value of its own."""
    seen: set[int] = set()
    for position, value in enumerate(graph.outputs):
        if id(value) in seen or value.producer() is None:
            node = ir.node("Identity", [value])
            copy = node.outputs[0]
            copy.type, copy.shape = value.type, value.shape
            graph.append(node)
            graph.outputs[position] = copy
        seen.add(id(value))


def _forget_shapes_after_recurrent_layers(graph: ir.Graph) -> None:
    """Remove inferred shapes in graphs with recurrent layers, so that the optimiser infers them again.

    The exporter takes the time axis of their outputs for fixed, and the optimiser would write its size into the graph.
    """
    nodes = list(graph.all_nodes())
    if any(node.op_type in ("LSTM", "GRU", "RNN") for node in nodes):
        for node in nodes:
            for value in node.outputs:
                value.shape = None


def _name_ends(graph: ir.Graph, inputs: Collection[ir.Value], signature: Signature) -> None:
    """Name inputs and outputs; inner values of these names get others."""
    ends = dict(zip(map(id, (*inputs, *graph.outputs)), (*signature.inputs, *signature.outputs), strict=True))
    taken = set(ends.values())
    inner = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in (*inner, *graph.inputs):
        if id(value) not in ends and value.name in taken:
            value.name = f"{value.name}/inner"
    for value in (*inputs, *graph.outputs):
        value.name = ends[id(value)]


def _strip(graph: ir.Graph) -> None:
    """Remove the exporter's records (source lines with paths, the signature), and shapes, which runtimes infer."""
    graph.metadata_props.clear()
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
def _fresh_kernels() -> Iterator[None]:
    """Let the exporter's own kernels of recurrent layers take effect.

    It registers kernels that keep the time axis free. torch caches the kernel that it ran before, if a recurrent layer
    has run or was exported in this process, and does not look again.
    """
    import torch

    aten = torch.ops.aten
    operators = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)

    def forget() -> None:
        for operator in operators:
            cache = getattr(operator, "_dispatch_cache", None)
            if cache is not None:
                cache.clear()

    forget()
    try:
        yield
    finally:
        forget()


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
