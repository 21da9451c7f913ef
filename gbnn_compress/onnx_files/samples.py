"""Posterior samples in one graph: the network is there once and scanned over one codebook per sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gbnn_compress.onnx_files.decode import GraphTable, constant, decode
from gbnn_compress.onnx_files.graph import OPSET, TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gbnn_compress.onnx_files.signature import Signature

PROBABILITIES, ENTROPY, MUTUAL_INFORMATION = ("probabilities", "entropy", "mutual_information")

DEVIATION = ".std"
"""End of the name of a standard deviation."""


def deviation_name(name: str) -> str:
    """Name of the standard deviation of an output."""
    return f"{name}{DEVIATION}"


def sampled(
    model: ir.Model,
    inputs: Mapping[str, ir.Value],
    tables: Iterable[GraphTable],
    *,
    signature: Signature,
    n_samples: int,
    temperature: float,
) -> ir.Model:
    """A model of the outputs averaged over samples, with their uncertainty.

    Args:
        model: Its graph has the inputs of the signature and `inputs`, and the outputs of the signature. It is consumed.
        inputs: The weights by name.
        tables: One per weight, with one codebook per sample.
        signature: Inputs and outputs of the network.
        n_samples: S, number of samples.
        temperature: T, applied to a classifier's mean as in `temperature.scale`.

    Returns:
        A model. Of a classifier with logits (N, C, ...), the outputs are `probabilities` (N, C, ...), and `entropy` and
        `mutual_information` (N, ...) in nats. Of other networks, each floating output is the mean over the samples, and
        `NAME.std` the standard deviation with S - 1 in the denominator. Other outputs are those of the first sample.
    """
    body = model.graph
    given = list(body.inputs[: len(signature.inputs)])
    for value in given:
        body.inputs.remove(value)
    outer = ir.Graph(given, [], nodes=[], opset_imports={"": OPSET}, name="samples")
    scanned = []
    for table in tables:
        scanned += [constant(outer, f"{table.name}/{kind}/all", draws) for kind, draws in table.drawn.items()]
        held = {kind: _scan_input(body, f"{table.name}/{kind}", draws[0]) for kind, draws in table.drawn.items()}
        decode(body, inputs[table.name], table, held)
    each = _sizes_of(body, signature)
    tape = Tape(outer)
    n_outputs = len(signature.outputs)
    stacked = tape.op_multi_out("Scan", scanned, {"body": body, "num_scan_inputs": len(scanned)}, num_outputs=n_outputs)
    for position, (value, (dtype, shape)) in enumerate(zip(stacked, each, strict=True)):
        name = signature.outputs[position]
        if not signature.floating[position]:
            found = [_first(tape, outer, value, ir.val(name, dtype, shape))]
        elif signature.classifier:
            found = _of_classifier(tape, outer, value, signature, n_samples=n_samples, temperature=temperature)
        else:
            found = _of_other(tape, outer, value, name, shape, n_samples=n_samples)
        outer.outputs.extend(found)
    return ir.Model(outer, ir_version=model.ir_version, producer_name=model.producer_name)


def _scan_input(body: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.val(name, ir.DataType.FLOAT, array.shape)
    body.inputs.append(value)
    return value


def _sizes_of(body: ir.Graph, signature: Signature) -> list[tuple[ir.DataType, ir.Shape | None]]:
    """Type and shape of the body's outputs; where they have the names of the model's outputs, they get others."""
    found = []
    for value in body.outputs:
        assert value.dtype is not None
        found.append((value.dtype, value.shape))
        if not signature.classifier or len(signature.outputs) > 1:
            value.name = f"{value.name}/each"
    return found


def _first(tape: Tape, graph: ir.Graph, stacked: ir.Value, output: ir.Value) -> ir.Value:
    """The first sample's output."""
    first = graph.initializers.get("first_sample") or constant(graph, "first_sample", np.array(0))
    return tape.op("Gather", [stacked, first], {"axis": 0}, output=output)


def _of_other(
    tape: Tape, graph: ir.Graph, stacked: ir.Value, name: str, shape: ir.Shape | None, *, n_samples: int
) -> list[ir.Value]:
    """Mean and standard deviation of (S, ...) over S."""
    axis = graph.initializers.get("first_axis") or constant(graph, "first_axis", np.array([0]))
    divisor = graph.initializers.get("divisor")
    if divisor is None:
        divisor = constant(graph, "divisor", np.array(max(n_samples - 1, 1), dtype=np.float32))
    mean = tape.op("ReduceMean", [stacked, axis], {"keepdims": 0}, output=ir.val(name, ir.DataType.FLOAT, shape))
    squares = tape.op("ReduceSumSquare", [tape.op("Sub", [stacked, mean]), axis], {"keepdims": 0})
    variance = tape.op("Div", [squares, divisor])
    deviation = tape.op("Sqrt", [variance], output=ir.val(deviation_name(name), ir.DataType.FLOAT, shape))
    return [mean, deviation]


def _of_classifier(
    tape: Tape, graph: ir.Graph, logits: ir.Value, signature: Signature, *, n_samples: int, temperature: float
) -> list[ir.Value]:
    """From log p_s (S, N, C, ...): q = softmax(log p / T), H(q) and the mean of KL(p_s | p), p the mean of p_s over s.

    The mean of KL(p_s | p) equals the mutual information H(p) - mean H(p_s), without cancellation. All is computed
    from logarithms, because small probabilities underflow in float32.
    """
    # Axes are counted from the end: the class axis is the same one with and without the axis of the samples.
    class_axis = 1 - signature.rank
    log_each = tape.op("LogSoftmax", [logits], {"axis": class_axis})
    first, last = constant(graph, "first_axis", np.array([0])), constant(graph, "last_axis", np.array([class_axis]))
    log_count = constant(graph, "log_samples", np.array(np.log(n_samples), dtype=np.float32))
    log_mean = tape.op("Sub", [tape.op("ReduceLogSumExp", [log_each, first], {"keepdims": 0}), log_count])
    scaled = log_mean
    if temperature != 1.0:
        divided = tape.op("Div", [log_mean, constant(graph, TEMPERATURE, np.array(temperature, dtype=np.float32))])
        scaled = tape.op("LogSoftmax", [divided], {"axis": class_axis})
    probabilities = tape.op("Exp", [scaled], output=output_value(PROBABILITIES, signature))
    negative = tape.op("ReduceSum", [tape.op("Mul", [probabilities, scaled]), last], {"keepdims": 0})
    entropy = tape.op("Neg", [negative], output=output_value(ENTROPY, signature))
    surprise = tape.op("Mul", [tape.op("Exp", [log_each]), tape.op("Sub", [log_each, log_mean])])
    divergence = tape.op("ReduceSum", [surprise, last], {"keepdims": 0})
    # Rounding may make it negative.
    information = tape.op("ReduceMean", [divergence, first], {"keepdims": 0})
    mutual = tape.op("Relu", [information], output=output_value(MUTUAL_INFORMATION, signature))
    return [probabilities, entropy, mutual]


def output_value(name: str, signature: Signature) -> ir.Value:
    """One of the outputs of a classifier: `probabilities`, `entropy` or `mutual_information`."""
    places = [f"axis_{axis}" for axis in range(2, signature.rank)]
    classes = ["classes"] if name == PROBABILITIES else []
    return ir.val(name, ir.DataType.FLOAT, ("batch", *classes, *places))
