"""The members of an ensemble in one graph: each with its posterior samples, their outputs averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gbnn_compress.onnx_files.decode import constant
from gbnn_compress.onnx_files.graph import OPSET
from gbnn_compress.onnx_files.samples import ENTROPY, MUTUAL_INFORMATION, PROBABILITIES, deviation_name, output_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbnn_compress.onnx_files.reference import Outputs
    from gbnn_compress.onnx_files.signature import Signature

SMALLEST = np.finfo(np.float32).tiny
"""Probabilities below count as this one in logarithms."""


def average_outputs(members: Sequence[Outputs], signature: Signature, *, n_samples: int) -> Outputs:
    """The outputs of an ensemble for one call, from those of each member averaged over its samples.

    Args:
        members: Arrays by name, of each member.
        signature: Inputs and outputs of the networks.
        n_samples: Number of samples of each member.

    Returns:
        Of classifiers, what `predict.prediction.across_members` gives. Of others, mean and standard deviation over all
        samples of all members. Outputs that are not floating are those of the first member.
    """
    found: Outputs = {}
    for position, name in enumerate(signature.outputs):
        if not signature.floating[position]:
            found[name] = members[0][name]
        elif signature.classifier:
            found |= _classes(members)
        else:
            found |= _values(members, name, n_samples)
    return found


def averaged_model(
    models: Sequence[ir.Model], signature: Signature, *, n_samples: int, inputs_of: ir.Model
) -> ir.Model:
    """One model of several, with the outputs that `average_outputs` describes.

    Args:
        models: One per member, with posterior samples. They are consumed.
        signature: Inputs and outputs of the networks.
        n_samples: Number of samples of each member.
        inputs_of: The model whose inputs the result has.
    """
    kept = {str(value.name): value for model in (*models, inputs_of) for value in model.graph.inputs}
    inputs = {name: ir.val(name, kept[name].dtype, kept[name].shape) for name in signature.inputs if name in kept}
    graph = ir.Graph(list(inputs.values()), [], nodes=[], opset_imports={"": OPSET}, name="ensemble")
    found = [_moved(model, graph, inputs, prefix=f"member{number}/") for number, model in enumerate(models)]
    tape = Tape(graph)
    for position, name in enumerate(signature.outputs):
        if not signature.floating[position]:
            first = found[0][name]
            graph.outputs.append(tape.op("Identity", [first], output=ir.val(name, first.dtype, first.shape)))
        elif signature.classifier:
            graph.outputs.extend(_of_classifiers(tape, graph, found, signature))
        else:
            graph.outputs.extend(_of_others(tape, graph, found, name, n_samples=n_samples))
    return ir.Model(graph, ir_version=models[0].ir_version, producer_name=models[0].producer_name)


def _moved(model: ir.Model, graph: ir.Graph, inputs: Mapping[str, ir.Value], *, prefix: str) -> dict[str, ir.Value]:
    """Move a member's nodes into a graph, under names of their own, and return its outputs by their old names."""
    own = model.graph
    outputs = {str(value.name): value for value in own.outputs}
    own.outputs.clear()
    for value in list(own.inputs):
        ir.convenience.replace_all_uses_with(value, inputs[str(value.name)])
    own.inputs.clear()
    for each in model.graphs():
        held = list(each.initializers.values())
        each.initializers.clear()
        for value in (*held, *each.inputs, *(output for node in each for output in node.outputs)):
            value.name = f"{prefix}{value.name}"
        for node in each:
            node.name = node.name and f"{prefix}{node.name}"
        for value in held:
            (graph if each is own else each).initializers.add(value)
    nodes = list(own)
    own.remove(nodes)
    graph.extend(nodes)
    return outputs


def _of_classifiers(
    tape: Tape, graph: ir.Graph, members: Sequence[Mapping[str, ir.Value]], signature: Signature
) -> list[ir.Value]:
    """The mean q of the members' probabilities p_m, H(q), and the mean of KL(p_m | q) and of their own information.

    The mean of KL(p_m | q) equals H(q) - mean of H(p_m), without cancellation.
    """
    classes = constant(graph, "class_axis", np.array([1 - signature.rank]))
    smallest = constant(graph, "smallest", np.array(SMALLEST))
    each = [member[PROBABILITIES] for member in members]
    mean = tape.op("Mean", each, output=output_value(PROBABILITIES, signature))
    log_mean, *logs = (tape.op("Log", [tape.op("Max", [value, smallest])]) for value in (mean, *each))
    negative = tape.op("ReduceSum", [tape.op("Mul", [mean, log_mean]), classes], {"keepdims": 0})
    entropy = tape.op("Neg", [negative], output=output_value(ENTROPY, signature))
    surprises = [
        tape.op("Mul", [value, tape.op("Sub", [log, log_mean])]) for value, log in zip(each, logs, strict=True)
    ]
    between = tape.op("ReduceSum", [tape.op("Mean", surprises), classes], {"keepdims": 0})
    within = tape.op("Mean", [member[MUTUAL_INFORMATION] for member in members])
    # Rounding may make the first part negative.
    total = tape.op("Add", [tape.op("Relu", [between]), within], output=output_value(MUTUAL_INFORMATION, signature))
    return [mean, entropy, total]


def _of_others(
    tape: Tape, graph: ir.Graph, members: Sequence[Mapping[str, ir.Value]], name: str, *, n_samples: int
) -> list[ir.Value]:
    """Mean and standard deviation over all samples of all members."""
    each, spread = ([member[key] for member in members] for key in (name, deviation_name(name)))
    numbers = {"draws": n_samples, "draws_less_one": n_samples - 1, "all_draws_less_one": len(members) * n_samples - 1}
    draws, fewer, all_fewer = (
        graph.initializers.get(key) or constant(graph, key, np.array(number, dtype=np.float32))
        for key, number in numbers.items()
    )
    like = each[0]
    mean = tape.op("Mean", each, output=ir.val(name, like.dtype, like.shape))
    squares = []
    for value, deviation in zip(each, spread, strict=True):
        distance = tape.op("Sub", [value, mean])
        squares.append(tape.op("Mul", [tape.op("Mul", [distance, distance]), draws]))
        squares.append(tape.op("Mul", [tape.op("Mul", [deviation, deviation]), fewer]))
    variance = tape.op("Div", [tape.op("Sum", squares), all_fewer])
    return [mean, tape.op("Sqrt", [variance], output=ir.val(deviation_name(name), like.dtype, like.shape))]


def _classes(members: Sequence[Outputs]) -> Outputs:
    mean, expected, within = (
        np.mean([member[name] for member in members], axis=0) for name in (PROBABILITIES, ENTROPY, MUTUAL_INFORMATION)
    )
    logs = np.log(mean, where=mean > 0, out=np.zeros_like(mean))
    entropy = -(mean * logs).sum(axis=1)
    return {
        PROBABILITIES: mean,
        ENTROPY: entropy,
        MUTUAL_INFORMATION: np.maximum(entropy - expected, 0.0) + within,
    }


def _values(members: Sequence[Outputs], name: str, n_samples: int) -> Outputs:
    means, deviations = (np.stack([member[key] for member in members]) for key in (name, deviation_name(name)))
    mean = means.mean(axis=0)
    squares = (n_samples * (means - mean) ** 2 + (n_samples - 1) * deviations**2).sum(axis=0)
    return {name: mean, deviation_name(name): np.sqrt(squares / (len(members) * n_samples - 1))}
