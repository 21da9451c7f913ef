"""An artifact in its network -> one ONNX file: dense means, a codebook, or posterior samples that share ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gbnn_compress.errors import GbnnError
from gbnn_compress.onnx_files.decode import constant, decode, tables
from gbnn_compress.onnx_files.graph import LOGITS, TEMPERATURE, network_graph
from gbnn_compress.onnx_files.samples import sampled
from gbnn_compress.predict.rebuild import rebuild

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from gbnn_compress.types import Artifact

LARGEST_FILE = 2**31 - 1
"""Bytes: protobuf, which ONNX files are made of, takes no more."""


def onnx_bytes(
    module: torch.nn.Module,
    artifact: Artifact,
    *,
    shared: Mapping[str, str],
    input_shape: Sequence[int],
    weights: str,
    seeds: Sequence[int],
    temperature: float,
) -> bytes:
    """Serialise a network.

    Args:
        module: float32, in evaluation mode, with the posterior-mean weights.
        artifact: Where its weights come from.
        shared: Name of a parameter or buffer in the module -> the artifact's name of that shared tensor.
        input_shape: Of one input.
        weights: `mean`, `codebook` or `samples`.
        seeds: One a posterior sample; of no meaning to the other forms.
        temperature: What the artifact says to divide logits by, or for samples the logarithms of their mean; 1 for
            nothing of the kind.

    Raises:
        GbnnError: More bytes than ONNX can hold in a file, or samples of a network that uses nothing shared.
        Exception: Whatever torch's exporter raises.
    """
    model, inputs = network_graph(module, input_shape=input_shape, shared=shared)
    if weights == "mean":
        _fill_in(model.graph, inputs, artifact)
        _divide(model.graph, temperature)
    elif weights == "codebook":
        _decode_in(model.graph, inputs, artifact)
        _divide(model.graph, temperature)
    elif not inputs:
        raise GbnnError(
            "the network uses no tensor with shared weights, so its samples are alike; give `--weights mean`"
        )
    else:
        shared_tables = tables(artifact, inputs, seeds)
        model = sampled(model, inputs, shared_tables, n_samples=len(seeds), temperature=temperature)
    return _serialised(model)


def _fill_in(graph: ir.Graph, inputs: Mapping[str, ir.Value], artifact: Artifact) -> None:
    """Turn the inputs into initialisers with the posterior means."""
    means = rebuild(artifact)
    for name, value in inputs.items():
        graph.inputs.remove(value)
        value.const_value = ir.tensor(means[name].float().numpy(), name=value.name)
        graph.register_initializer(value)


def _decode_in(graph: ir.Graph, inputs: Mapping[str, ir.Value], artifact: Artifact) -> None:
    """Let nodes make the inputs from the posterior-mean codebooks."""
    for table in tables(artifact, inputs, [None]):
        held = {kind: constant(graph, f"{table.name}/{kind}", draws[0]) for kind, draws in table.drawn.items()}
        decode(graph, inputs[table.name], table, held)


def _divide(graph: ir.Graph, temperature: float) -> None:
    """Let the graph give its logits divided by a temperature."""
    if temperature == 1.0:
        return
    logits = graph.outputs[0]
    divisor = constant(graph, TEMPERATURE, np.array(temperature, dtype=np.float32))
    scaled = ir.Value(name=LOGITS, type=logits.type, shape=logits.shape)
    logits.name = f"{LOGITS}_at_temperature_1"
    graph.outputs[0] = Tape(graph).op("Div", [logits, divisor], output=scaled)


def _serialised(model: ir.Model) -> bytes:
    held = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    size = sum(tensor.nbytes for tensor in held if tensor is not None)
    if size > LARGEST_FILE:
        raise GbnnError(
            f"the weights take {size / 1e9:.1f} GB, and an ONNX file holds 2.1 GB at most; give `--weights codebook`"
        )
    return ir.to_proto(model).SerializeToString(deterministic=True)
