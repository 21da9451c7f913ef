"""Posterior samples in one graph: the network is there once and scanned over one codebook per sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gbnn_compress.onnx_files.decode import GraphTable, constant, decode
from gbnn_compress.onnx_files.graph import INPUT, OPSET, TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROBABILITIES, ENTROPY, MUTUAL_INFORMATION = ("probabilities", "entropy", "mutual_information")


def sampled(
    model: ir.Model, inputs: Mapping[str, ir.Value], tables: Iterable[GraphTable], *, n_samples: int, temperature: float
) -> ir.Model:
    """A model of the mean probabilities over samples, and of their entropy and mutual information.

    Args:
        model: Its graph has the inputs `input` and `inputs`, and logits (N, C) as its only output. It is consumed.
        inputs: The weights by name.
        tables: One per weight, with one codebook per sample.
        n_samples: S, number of samples.
        temperature: T, applied to the mean as in `temperature.scale`.

    Returns:
        A model with the outputs `probabilities` (N, C), and `entropy` and `mutual_information` (N,) in nats.
    """
    body = model.graph
    images = next(value for value in body.inputs if value.name == INPUT)
    body.inputs.remove(images)
    outer = ir.Graph([images], [], nodes=[], opset_imports={"": OPSET}, name="samples")
    scanned = []
    for table in tables:
        scanned += [constant(outer, f"{table.name}/{kind}/all", draws) for kind, draws in table.drawn.items()]
        held = {kind: _scan_input(body, f"{table.name}/{kind}", draws[0]) for kind, draws in table.drawn.items()}
        decode(body, inputs[table.name], table, held)
    tape = Tape(outer)
    logits = tape.op("Scan", scanned, {"body": body, "num_scan_inputs": len(scanned)})
    log_each = tape.op("LogSoftmax", [logits], {"axis": -1})
    outer.outputs.extend(_summary(tape, outer, log_each, n_samples=n_samples, temperature=temperature))
    return ir.Model(outer, ir_version=model.ir_version, producer_name=model.producer_name)


def _scan_input(body: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.val(name, ir.DataType.FLOAT, array.shape)
    body.inputs.append(value)
    return value


def _summary(tape: Tape, graph: ir.Graph, log_each: ir.Value, *, n_samples: int, temperature: float) -> list[ir.Value]:
    """From log p_s (S, N, C): q = softmax(log p / T), H(q) and the mean of KL(p_s | p), with p the mean of p_s over s.

    The mean of KL(p_s | p) equals the mutual information H(p) - mean H(p_s), without cancellation. All is computed
    from logarithms, because small probabilities underflow in float32.
    """
    first, last = constant(graph, "first_axis", np.array([0])), constant(graph, "last_axis", np.array([-1]))
    log_count = constant(graph, "log_samples", np.array(np.log(n_samples), dtype=np.float32))
    log_mean = tape.op("Sub", [tape.op("ReduceLogSumExp", [log_each, first], {"keepdims": 0}), log_count])
    scaled = log_mean
    if temperature != 1.0:
        divided = tape.op("Div", [log_mean, constant(graph, TEMPERATURE, np.array(temperature, dtype=np.float32))])
        scaled = tape.op("LogSoftmax", [divided], {"axis": -1})
    probabilities = tape.op("Exp", [scaled], output=_output(PROBABILITIES))
    negative = tape.op("ReduceSum", [tape.op("Mul", [probabilities, scaled]), last], {"keepdims": 0})
    entropy = tape.op("Neg", [negative], output=_output(ENTROPY))
    surprise = tape.op("Mul", [tape.op("Exp", [log_each]), tape.op("Sub", [log_each, log_mean])])
    divergence = tape.op("ReduceSum", [surprise, last], {"keepdims": 0})
    # Rounding may make it negative.
    information = tape.op("ReduceMean", [divergence, first], {"keepdims": 0})
    mutual = tape.op("Relu", [information], output=_output(MUTUAL_INFORMATION))
    return [probabilities, entropy, mutual]


def _output(name: str) -> ir.Value:
    shape = ("batch", "classes") if name == PROBABILITIES else ("batch",)
    return ir.val(name, ir.DataType.FLOAT, shape)
