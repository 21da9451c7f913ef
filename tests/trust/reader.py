"""Everything that is done with an artifact, on bytes that may be anything."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from gbnn_compress_cli.report_view import file_view
from mutations import ENSEMBLE, GOLDEN, GOLDEN_2, members_of, packed
from rich.console import Console

import gbnn_compress
from gbnn_compress.format.artifact import encode_artifact
from gbnn_compress.format.bank import round_bank
from gbnn_compress.format.trellis import next_states, superset_of
from gbnn_compress.format.vectors import quantise
from gbnn_compress.predict.network import CompressedNetwork
from gbnn_compress.report import page as pages
from gbnn_compress.types import Bank, IndexMap, TensorInfo

NAMES = ("golden", "contexts", "golden-2", "contexts-2", "golden-ensemble", "contexts-ensemble")
"""Names of the files of `corpus`."""


def read_fully(data: bytes, folder: Path, *, page: bool = False) -> None:
    """Read, report on, rebuild and decompress an artifact.

    Args:
        data: Its bytes.
        folder: For files.
        page: Also make its page, which takes long.

    Raises:
        GbnnError: It is refused.
    """
    path = folder / "fuzzed.gbnn.safetensors"
    path.write_bytes(data)
    loaded = gbnn_compress.load(path)
    report = loaded.report()
    json.dumps(report)
    console = Console(file=io.StringIO(), width=100, markup=False, highlight=False, emoji=False)
    for renderable in file_view(report, name="fuzzed", every_layer=True):
        console.print(renderable)
    alone = isinstance(loaded, CompressedNetwork)
    for network in [loaded] if alone else loaded.members:
        network.state_dict(seed=1)
    last = None if alone else len(loaded.members) - 1
    gbnn_compress.decompress(path, folder / "dense.safetensors", member=last)
    if page:
        shown = pages.file_page(loaded.artifact, name="fuzzed") if alone else pages.EnsemblePage("fuzzed", report)
        pages.render(shown)


def corpus() -> list[bytes]:
    """Artifacts to start from: of each version the golden one, and one of kernels whose ids are coded by context.

    The last two are ensembles.
    """
    single = [GOLDEN.read_bytes(), with_contexts(), GOLDEN_2.read_bytes(), with_contexts(trellis=True)]
    both = [member for data in single[1::2] for member in members_of(data)]
    return [*single, ENSEMBLE.read_bytes(), packed(both)]


def with_contexts(*, trellis: bool = False) -> bytes:
    """Two convolutions, a norm and a classifier of 12 components."""
    random = np.random.RandomState(7)
    bank = round_bank(Bank(np.linspace(-1, 1, 12), np.zeros(12)), exponent=-6)
    shapes = {"conv1.weight": (16, 3, 3, 3), "conv2.weight": (16, 16, 3, 3), "fc.weight": (10, 16)}
    tensors, maps, vectors = [], [], []
    for name, shape in shapes.items():
        rows = np.exp(random.normal(size=shape[0])) / 4
        values = rows[:, None] * random.laplace(size=(shape[0], int(np.prod(shape[1:]))))
        ids = np.abs(values.reshape(-1, 1) - bank.means).argmin(axis=1).astype(np.uint8)
        tensors.append(TensorInfo(name, shape, "float32", "shared"))
        if trellis:
            ids = _on_trellis(ids.reshape(shape[0], -1), escape=12).ravel()
        maps.append(IndexMap(name, ids, np.empty(0, np.uint32), trellis))
    for name, logarithmic in {
        "bn.weight": False,
        "bn.bias": False,
        "bn.running_mean": False,
        "bn.running_var": True,
    }.items():
        values = np.exp(random.normal(size=16))
        tensors.append(TensorInfo(name, (16,), "float32", "unshared"))
        exact = values.astype(np.float32).view(np.uint32)
        vectors.append(quantise(values, step=0.05, logarithmic=logarithmic, exact=exact))
    tensors.append(TensorInfo("bn.num_batches_tracked", (), "int64", "raw"))
    facts = {
        "checkpoint": {"sha256": "ab" * 32, "bytes": 1, "parameters": 1, "architecture": None, "notes": []},
        "recipe": {},
        "seed": 0,
        "versions": {},
        "target_ratio": None,
        "max_drop": 1.0,
        "ratio_of": "artifact",
        "components_before_merging": 12,
        "damage": {"drop": 0.5, "agreement": 0.9, "logit_kl": 0.1, "measured": False, "safe_ratio": 1.0},
        "warnings": ["careful"],
        "noise": 0.1,
        "blends": [3],
        "temperature": 1.5,
        "training": {"epochs": 3, "beta": 1.0},
    }
    return encode_artifact(
        tensors=tensors,
        bank=bank,
        exponent=-6,
        scales=np.array([1.0, 0.5, 0.25]),
        relative_rmse=np.array([0.1, 0.0, 0.2]),
        maps=maps,
        vectors=vectors,
        raw=[np.int64(3).tobytes()],
        facts=facts,
    )


def _on_trellis(ids: np.ndarray, *, escape: int) -> np.ndarray:
    """The ids (rows, n), one less or one more where a row's state does not allow them."""
    result, states = ids.copy(), np.zeros(len(ids), dtype=np.int64)
    for step, column in enumerate(ids.T):
        result[:, step] = np.where(column % 2 == superset_of(states), column, column ^ 1)
        states = next_states(states, result[:, step].astype(np.int64), escape=escape)
    return result
