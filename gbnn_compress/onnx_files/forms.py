"""The forms of an ONNX file: dense means, a codebook, posterior samples with common ids, or no weights at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gbnn_compress.errors import GbnnError
from gbnn_compress.onnx_files.call import TARGET
from gbnn_compress.onnx_files.decode import constant, decode, tables
from gbnn_compress.onnx_files.external import leave_outside
from gbnn_compress.onnx_files.graph import TEMPERATURE, network_graph
from gbnn_compress.onnx_files.samples import sampled
from gbnn_compress.predict.rebuild import rebuild

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from gbnn_compress.onnx_files.call import Call
    from gbnn_compress.onnx_files.signature import Signature
    from gbnn_compress.types import Artifact

LARGEST_FILE = 2**31 - 1
"""Largest size of a protobuf message, and so of an ONNX file, in bytes."""


def onnx_model(
    module: torch.nn.Module,
    artifact: Artifact,
    call: Call,
    *,
    signature: Signature,
    names: Mapping[str, str],
    weights: str,
    seeds: Sequence[int],
    temperature: float,
) -> ir.Model:
    """A network as a model.

    Args:
        module: float32, in evaluation mode, with the posterior-mean weights.
        artifact: The source of its weights.
        call: The call that is traced; free axes have sizes of at least 2.
        signature: Names and free axes of inputs and outputs.
        names: Name of a parameter or buffer in the module -> the artifact's name of that tensor: of shared tensors, and
            for `external` of all that are to be outside of the file.
        weights: `mean`, `codebook`, `samples` or `external`.
        seeds: Seeds of the posterior samples; ignored by the other forms.
        temperature: Divisor of a classifier's logits, or for samples of the logarithm of their mean probabilities; 1
            for none.

    Returns:
        The model. Its inputs are those of the signature, but for targets that are not used.

    Raises:
        GbnnError: `samples` is asked of a network without shared tensors.
        Exception: Any exception of torch's exporter.
    """
    model, inputs = network_graph(module, call, signature=signature, names=names)
    if weights == "mean":
        _fill_in(model.graph, inputs, artifact)
        _divide(model.graph, signature, temperature)
    elif weights == "codebook":
        _decode_in(model.graph, inputs, artifact)
        _divide(model.graph, signature, temperature)
    elif weights == "external":
        leave_outside(model.graph, inputs, artifact)
        _divide(model.graph, signature, temperature)
    elif not inputs:
        raise GbnnError(
            "the network uses no tensor with shared weights, so all of its samples are equal; give `--weights mean`"
        )
    else:
        shared_tables = tables(artifact, inputs, seeds)
        model = sampled(
            model, inputs, shared_tables, signature=signature, n_samples=len(seeds), temperature=temperature
        )
    _drop_unused_targets(model.graph)
    return model


def _fill_in(graph: ir.Graph, inputs: Mapping[str, ir.Value], artifact: Artifact) -> None:
    """Replace the inputs by initialisers with the posterior means."""
    means = rebuild(artifact)
    for name, value in inputs.items():
        graph.inputs.remove(value)
        value.const_value = ir.tensor(means[name].float().numpy(), name=value.name)
        graph.register_initializer(value)


def _decode_in(graph: ir.Graph, inputs: Mapping[str, ir.Value], artifact: Artifact) -> None:
    """Replace the inputs by nodes that decode the posterior-mean codebooks."""
    for table in tables(artifact, inputs, [None]):
        held = {kind: constant(graph, f"{table.name}/{kind}", draws[0]) for kind, draws in table.drawn.items()}
        decode(graph, inputs[table.name], table, held)


def _drop_unused_targets(graph: ir.Graph) -> None:
    """Remove the targets among the inputs that a `forward` of the user gets and does not use."""
    for value in list(graph.inputs):
        if str(value.name).split(".")[0] == TARGET and not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)


def _divide(graph: ir.Graph, signature: Signature, temperature: float) -> None:
    """Divide the logits of a classifier's graph by a temperature."""
    if temperature == 1.0 or not signature.classifier:
        return
    logits = graph.outputs[signature.logits]
    divisor = constant(graph, TEMPERATURE, np.array(temperature, dtype=np.float32))
    scaled = ir.Value(name=logits.name, type=logits.type, shape=logits.shape)
    logits.name = f"{logits.name}_at_temperature_1"
    graph.outputs[signature.logits] = Tape(graph).op("Div", [logits, divisor], output=scaled)


def serialised(model: ir.Model) -> bytes:
    """The bytes of a file.

    Raises:
        GbnnError: The file would be larger than ONNX allows.
    """
    held = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    size = sum(each.nbytes for each in held if each is not None and not isinstance(each, ir.ExternalTensor))
    if size > LARGEST_FILE:
        raise GbnnError(
            f"the weights take {size / 1e9:.1f} GB, but an ONNX file holds at most 2.1 GB; give `--weights codebook`"
        )
    return ir.to_proto(model).SerializeToString(deterministic=True)
