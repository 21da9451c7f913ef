"""Artifacts that have a bit of everything, and what the Python reader makes of them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from codec_facts import FACTS
from mutations import sections_of, version_of
from native import Decoded
from reader import corpus
from trellis_ids import trellis_ids

from gbnn_compress.checkpoint.arrays import raw_bytes_of
from gbnn_compress.format.artifact import encode_artifact, read_artifact
from gbnn_compress.format.bank import round_bank
from gbnn_compress.format.bits import write_length
from gbnn_compress.format.checks import BITS, RAW_BYTES
from gbnn_compress.format.container import SECTIONS_BY_VERSION
from gbnn_compress.format.dictionary import DICTIONARY
from gbnn_compress.format.manifest import MOST_BYTES, deflate, inflate
from gbnn_compress.format.vectors import EXACT, LINEAR, LOGARITHMIC, RELATIVE, Vector
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.types import Bank, IndexMap, TensorInfo

_GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_ENSEMBLE = _GOLDEN / "ensemble.gbnn.safetensors"
GOLDEN = [path for path in sorted(_GOLDEN.glob("*.gbnn.safetensors")) if path != GOLDEN_ENSEMBLE]
"""Stored artifacts of one network."""

SHAPES = [(40, 12), (35, 9, 3, 3), (20, 1, 2, 3, 2), (1, 60), (300, 1), (7, 5, 1, 4)]


LAST_BIT = ("float64.bn.running", "float64.bn.small")
"""Tensors of `of_everything` that depend on `exp2`, whose last bit is not the same on all processors."""


def of_everything(
    version: int, *, components: int = 33, outliers: float = 0.01, seed: int = 0, with_last_bit: bool = True
) -> bytes:
    """Shared, unshared, raw and tied tensors of every dtype and shape; those of LAST_BIT can be left out."""
    random = np.random.RandomState(seed)
    bank = round_bank(Bank(np.sort(random.normal(size=components)), random.normal(size=components)), exponent=-14)
    tensors, maps, vectors, raw = [], [], [], []
    for number, (dtype, bits) in enumerate(BITS.items()):
        for shape in SHAPES:
            name = f"{dtype}.{'x'.join(map(str, shape))}.weight"
            tensors.append(TensorInfo(name, shape, dtype, "shared"))
            ids = trellis_ids(shape, components=components, outliers=outliers, seed=seed + len(maps))
            patterns = random.randint(0, 1 << 16, int((ids == components).sum())).astype(f"u{bits // 8}")
            maps.append(
                IndexMap(name, ids.astype(np.uint32), patterns << (bits - 16), version == 2 and number % 2 == 0)
            )
        for name, vector in _vectors(dtype, random).items():
            if with_last_bit or not name.startswith(LAST_BIT):
                tensors.append(TensorInfo(name, (4, 6), dtype, "unshared"))
                vectors.append(vector)
        tensors.append(TensorInfo(f"{dtype}.tied", (40, 12), dtype, "tied", f"{dtype}.40x12.weight"))
    for dtype, width in RAW_BYTES.items():
        for shape in [(), (3, 2), (0, 4)]:
            tensors.append(TensorInfo(f"raw.{dtype}.{len(shape)}.{math.prod(shape)}", shape, dtype, "raw"))
            raw.append(random.bytes(math.prod(shape) * width) if dtype != "bool" else b"\1" * math.prod(shape))
    tensors.append(TensorInfo("tied again", (), "float32", "tied", "float32.tied"))
    return encode_artifact(
        tensors=tensors,
        bank=bank,
        exponent=-14,
        scales=2.0 ** random.randint(-3, 12, len(maps)),
        relative_rmse=np.zeros(len(maps)),
        maps=maps,
        vectors=vectors,
        raw=raw,
        facts={**FACTS, "noise": 0.3},
    )


def _vectors(dtype: str, random: np.random.RandomState) -> dict[str, Vector]:
    """A norm of each mode."""
    codes = random.randint(-40, 40, 24)
    exact = random.randint(0, 1 << 16, 24).astype(f"u{BITS[dtype] // 8}")
    found = {
        "running_mean": Vector(RELATIVE, -9, codes),
        "running_var": Vector(LOGARITHMIC, -11, 3 * codes),
        "weight": Vector(LINEAR, -7, codes * codes),
        "bias": Vector(LINEAR, -3, np.full(24, 5)),
        "far": Vector(LINEAR, 150, codes << 20),
        "small": Vector(LOGARITHMIC, 11, -codes * codes),
        "exact": Vector(EXACT, 0, exact, BITS[dtype]),
    }
    return {f"{dtype}.bn.{name}": vector for name, vector in found.items()}


def singles() -> list[bytes]:
    """The artifacts of one network that forged files are made of."""
    return [data for data in corpus() if b'"members"' not in data[:300]]


def python_reads(path: Path, *, seed: int | None = None) -> dict[str, Decoded]:
    """The tensors that the library rebuilds."""
    artifact = read_artifact(path)
    dtypes = {info.name: info.dtype for info in artifact.tensors}
    for info in artifact.tensors:
        if info.tied_to is not None:
            dtypes[info.name] = dtypes[info.tied_to]
    return {
        name: Decoded(dtypes[name], tuple(tensor.shape), raw_bytes_of(tensor))
        for name, tensor in rebuild(artifact, seed=seed).items()
    }


def checksum(tensors: dict[str, Decoded]) -> int:
    """What the driver prints of the tensors of a single file."""
    result = 0
    for tensor in tensors.values():
        result = (31 * result + zlib.crc32(tensor.data)) % (1 << 32)
    return result


def ensemble(members: Sequence[bytes]) -> bytes:
    """Several artifacts in one file (docs/format.md, "Ensembles")."""
    parts, dictionary = [], DICTIONARY
    for member in members:
        sections, version = sections_of(member), version_of(member)
        manifest = sections["manifest"]
        text = inflate(manifest[32:], most=MOST_BYTES, dictionary=DICTIONARY)
        sections["manifest"] = manifest[:32] + deflate(text, dictionary=dictionary)
        if not parts:
            dictionary = (DICTIONARY + text)[-32768:]
        ordered = [sections[name] for name in SECTIONS_BY_VERSION[version]]
        entries = [
            write_length(len(part)) + (zlib.crc32(part).to_bytes(4, "little") if part else b"") for part in ordered
        ]
        parts.append(b"".join(entries + ordered))
    return ensemble_of_parts(parts, [version_of(member) for member in members])


def ensemble_of_parts(parts: Sequence[bytes], versions: Sequence[int]) -> bytes:
    """A file of members that are laid out already."""
    header: dict[str, object] = {"__metadata__": {"gbnn-compress": "2", "members": ",".join(map(str, versions))}}
    start = 0
    for number, part in enumerate(parts):
        stop = start + len(part)
        header[f"data.{number}"] = {"dtype": "U8", "shape": [len(part)], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)
