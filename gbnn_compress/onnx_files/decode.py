"""Graph nodes that decode packed ids and a codebook into a dense tensor: Cast, Gather, Reshape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gbnn_compress.onnx_files.codes import codes_of
from gbnn_compress.predict.rebuild import codebooks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from gbnn_compress.onnx_files.codes import Codes
    from gbnn_compress.types import Artifact

_CODE_TYPES = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8, 16: ir.DataType.UINT16}


@dataclass(frozen=True)
class GraphTable:
    """One shared tensor: its ids, and the weights that they encode in each of S draws.

    Attributes:
        name: The tensor.
        shape: Its shape.
        codes: Its ids.
        drawn: float32 arrays whose first axis is the draw. `codebook` (S, rows) or (S, rows, 2): the weights that each
            code encodes. `outliers` (S, n_outliers): the outliers' values; absent without outliers.
    """

    name: str
    shape: tuple[int, ...]
    codes: Codes
    drawn: Mapping[str, np.ndarray]


def tables(artifact: Artifact, names: Collection[str], seeds: Sequence[int | None]) -> Iterator[GraphTable]:
    """Tables of the named shared tensors.

    Args:
        artifact: The artifact.
        names: Names of shared tensors.
        seeds: Seeds of the draws; None for the posterior mean.
    """
    shapes = {info.name: info.shape for info in artifact.tensors}
    draws = zip(*(codebooks(artifact, seed=seed) for seed in seeds), strict=True)
    for index_map, books in zip(artifact.maps, draws, strict=True):
        if index_map.name not in names:
            continue
        codes = codes_of(index_map, n_components=len(artifact.bank.means))
        entries = np.stack([np.append(book.entries.float().numpy(), np.float32(0)) for book in books])
        drawn = {"codebook": entries[:, codes.components]}
        if len(codes.outliers):
            drawn["outliers"] = np.stack([book.outliers.float().numpy() for book in books])
        yield GraphTable(index_map.name, shapes[index_map.name], codes, drawn)


def decode(graph: ir.Graph, weight: ir.Value, table: GraphTable, held: Mapping[str, ir.Value]) -> None:
    """Replace one input of a graph by nodes that decode it.

    Args:
        graph: Changed in place.
        weight: The input.
        table: The tensor to decode.
        held: Values of the graph with one draw of `table.drawn`, by the same keys.
    """
    codes, tape = table.codes, Tape()
    packed = codes.codes.astype(_CODE_TYPES[codes.bits].numpy())
    indices = tape.op("Cast", [constant(graph, f"{table.name}/ids", packed)], {"to": ir.DataType.INT32})
    dense = tape.op("Gather", [held["codebook"], indices])
    if "outliers" in held:
        positions = constant(graph, f"{table.name}/outlier_positions", codes.outliers)
        flat = tape.op("Reshape", [dense, _shape(graph, (-1,))])
        dense = tape.op("ScatterElements", [flat, positions, held["outliers"]])
    dense = tape.op("Reshape", [dense, _shape(graph, table.shape)])
    graph.inputs.remove(weight)
    ir.convenience.replace_all_uses_with(weight, dense)
    # ONNX Runtime orders nodes backwards from the outputs: of a layer's two inputs it computes the one later in the
    # file first. With decoding nodes at the start of the file, that is the output of the previous layer, so that each
    # weight is decoded when its layer needs it. Elsewhere, all weights would be decoded before the first layer.
    graph.insert_before(graph[0], tape.nodes)


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initialiser to a graph."""
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _shape(graph: ir.Graph, shape: tuple[int, ...]) -> ir.Value:
    """The initialiser that holds a shape; tensors of equal shape use the same one."""
    name = f"shape/{'x'.join(map(str, shape))}"
    return graph.initializers.get(name) or constant(graph, name, np.array(shape, dtype=np.int64))
