"""Artifact <-> file: which bytes go into which section (docs/format.md)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from gbnn_compress.codec import container
from gbnn_compress.codec.bank import decode_bank, encode_bank
from gbnn_compress.codec.contexts import whole_values
from gbnn_compress.codec.symbols import decode_maps, encode_maps
from gbnn_compress.codec.tables import decode_tables, encode_tables
from gbnn_compress.codec.values import Vector, decode_vectors, dequantise, encode_vectors
from gbnn_compress.errors import ArtifactError
from gbnn_compress.types import Artifact, Bank, IndexMap, TensorInfo

KINDS = {"s": "shared", "u": "unshared", "r": "raw", "t": "tied"}

FACTS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("checkpoint", "recipe", "versions", "damage"), dict),
    **dict.fromkeys(("seed", "components_before_merging"), int),
    **dict.fromkeys(("target_ratio", "max_drop"), (int, float, type(None))),
    "ratio_of": str,
    "warnings": list,
    "noise": (int, float),
}
"""What the manifest says besides, and of which type."""

STRUCTURE = ("names", "shapes", "dtypes", "kinds", "ties", "split", "raw")
"""Entries of the manifest that describe the tensors; the others are facts."""

RAW_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz"), 1),
    **dict.fromkeys(("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
"""Dtypes that a raw tensor may have (a shareable one is raw when it is empty), and the bytes of a value."""

BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}


def encode_artifact(
    *,
    tensors: Sequence[TensorInfo],
    bank: Bank,
    exponent: int,
    scales: np.ndarray,
    relative_rmse: np.ndarray,
    maps: Sequence[IndexMap],
    vectors: Sequence[Vector],
    raw: Sequence[bytes],
    facts: Mapping[str, Any],
) -> bytes:
    """Serialise a compressed network.

    Args:
        tensors: Every tensor of the state dict, in order.
        bank: K components on the grid 2 ^ exponent (`round_bank`).
        exponent: The grid.
        scales: float64 (T,), bfloat16 values.
        relative_rmse: float64 (T,), error of each shared tensor.
        maps: One a shared tensor, in order.
        vectors: One an unshared tensor, in order.
        raw: Bytes of each raw tensor, in order.
        facts: Further JSON for the manifest.

    Returns:
        The bytes of the file.
    """
    shapes = [info.shape for info in tensors if info.kind == "shared"]
    tables, stream = encode_maps([m.ids for m in maps], shapes, whole_values(bank.means))
    table_bytes = encode_tables(tables, shapes)
    values, raw_blob = encode_vectors(list(vectors)), compress_raw(raw)
    sections = {
        "bank": encode_bank(bank, exponent=exponent, scales=scales, relative_rmse=relative_rmse),
        "maps": table_bytes + stream,
        "outliers": b"".join(m.outliers.astype(m.outliers.dtype.newbyteorder("<")).tobytes() for m in maps),
        "values": values + raw_blob,
    }
    split, raw_sizes = [len(table_bytes), len(values)], [len(part) for part in raw]
    return container.pack(_manifest(tensors, facts, split=split, raw_sizes=raw_sizes), sections)


def header_bytes(tensors: Sequence[TensorInfo], facts: Mapping[str, Any]) -> int:
    """About the bytes that header and manifest will take, before anything is encoded."""
    sections = {"bank": b"b", "maps": b"m", "values": b"v"}
    manifest = _manifest(tensors, facts, split=[123456, 123456], raw_sizes=[8] * sum(t.kind == "raw" for t in tensors))
    return len(container.pack(manifest, sections)) - len(sections)


def read_artifact(path: Path) -> Artifact:
    """Decode a file.

    Raises:
        ArtifactError: The file is missing, foreign or damaged.
    """
    manifest, sections, size_bytes = container.unpack(path)
    try:
        return _decode(manifest, sections, size_bytes, hashlib.sha256(path.read_bytes()).hexdigest())
    except (
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        ValueError,
        MemoryError,
        zstandard.ZstdError,
    ) as error:
        # Checksums are right, so somebody wrote it so.
        reason = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"`{path}` contradicts itself ({reason}); it was not written by gbnn-compress") from None


def _decode(manifest: dict[str, Any], sections: Mapping[str, bytes], size_bytes: int, sha256: str) -> Artifact:
    tensors = _tensor_infos(manifest)
    by_kind = {kind: [info for info in tensors if info.kind == kind] for kind in KINDS.values()}
    shared = by_kind["shared"]
    bank, scales, errors = decode_bank(sections["bank"], n_tensors=len(shared))
    split_maps, split_values = manifest["split"]
    shapes = [info.shape for info in shared]
    tables = decode_tables(sections["maps"][:split_maps], shapes=shapes, alphabet=len(bank.means) + 1)
    ids: dict[int, np.ndarray] = {}
    small = np.min_scalar_type(len(bank.means))
    map_bits = decode_maps(
        sections["maps"][split_maps:],
        tables,
        shapes,
        whole_values(bank.means),
        consume=lambda i, part: ids.update({i: part.astype(small)}),
    )
    maps = _with_outliers(shared, [ids[i] for i in range(len(shared))], sections["outliers"], len(bank.means))
    vectors = decode_vectors(
        sections["values"][:split_values], sizes=[math.prod(info.shape) for info in by_kind["unshared"]]
    )
    facts = {key: manifest[key] for key in manifest if key not in STRUCTURE}
    _check_facts(facts)
    return Artifact(
        tensors=tensors,
        bank=bank,
        scales=scales,
        relative_rmse=errors,
        map_bits=map_bits,
        maps=maps,
        values={info.name: dequantise(v) for info, v in zip(by_kind["unshared"], vectors, strict=True)},
        raw=_raw(by_kind["raw"], manifest["raw"], sections["values"][split_values:]),
        facts=facts,
        sections=_section_bytes(sections, size_bytes),
        table_bytes=split_maps,
        size_bytes=size_bytes,
        sha256=sha256,
    )


def compress_raw(raw: Sequence[bytes]) -> bytes:
    """The raw tensors' bytes, concatenated and compressed; empty when there are none."""
    return zstandard.ZstdCompressor(level=19).compress(b"".join(raw)) if raw else b""


def _manifest(
    tensors: Sequence[TensorInfo], facts: Mapping[str, Any], *, split: list[int], raw_sizes: list[int]
) -> dict[str, Any]:
    return {
        "names": [info.name for info in tensors],
        "shapes": [list(info.shape) for info in tensors],
        "dtypes": [info.dtype for info in tensors],
        "kinds": "".join(info.kind[0] for info in tensors),
        "ties": {info.name: info.tied_to for info in tensors if info.tied_to},
        "split": split,
        "raw": raw_sizes,
        **facts,
    }


def _tensor_infos(manifest: Mapping[str, Any]) -> tuple[TensorInfo, ...]:
    columns = zip(manifest["names"], manifest["shapes"], manifest["dtypes"], manifest["kinds"], strict=True)
    infos = tuple(
        TensorInfo(name, tuple(shape), dtype, KINDS[kind], manifest["ties"].get(name))
        for name, shape, dtype, kind in columns
    )
    seen: set[str | None] = set()
    for info in infos:
        _check_info(info, seen)
        seen.add(info.name)
    return infos


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Refuse a manifest that the report or a posterior sample could not be made from."""
    for name, kind in FACTS.items():
        if not isinstance(facts[name], kind):
            raise ValueError(f"`{name}` is {facts[name]!r}")
    if not 0 <= facts["noise"] < math.inf:
        raise ValueError(f"`noise` is {facts['noise']}")


def _check_info(info: TensorInfo, seen: set[str | None]) -> None:
    """Refuse what `rebuild` could not build."""
    if not isinstance(info.name, str) or info.name in seen:
        raise ValueError(f"`{info.name}` is no name, or there twice")
    if not all(type(size) is int and size >= 0 for size in info.shape):
        raise ValueError(f"`{info.name}` has the shape {list(info.shape)}")
    if info.kind == "shared" and len(info.shape) < 2:
        raise ValueError(f"`{info.name}` is shared and has the shape {list(info.shape)}")
    if info.kind in ("shared", "unshared") and (info.dtype not in BITS or 0 in info.shape):
        raise ValueError(f"`{info.name}` is coded and has the dtype {info.dtype} and the shape {list(info.shape)}")
    if (info.kind == "tied") != (info.tied_to in seen):
        raise ValueError(f"`{info.name}` is tied to {info.tied_to}")


def _with_outliers(
    shared: Sequence[TensorInfo], ids: Sequence[np.ndarray], data: bytes, escape: int
) -> tuple[IndexMap, ...]:
    maps, start = [], 0
    for info, part in zip(shared, ids, strict=True):
        dtype = np.dtype(f"<u{BITS[info.dtype] // 8}")
        count = int((part == escape).sum())
        outliers = np.frombuffer(data, dtype=dtype, count=count, offset=start)
        start += count * dtype.itemsize
        maps.append(IndexMap(info.name, part, outliers))
    if start != len(data):
        raise ValueError("more outliers than ids that name one")
    return tuple(maps)


def _raw(infos: Sequence[TensorInfo], sizes: Sequence[int], blob: bytes) -> dict[str, bytes]:
    data = zstandard.ZstdDecompressor().decompress(blob) if blob else b""
    expected = [math.prod(info.shape) * RAW_BYTES[info.dtype] for info in infos]
    if expected != list(sizes) or sum(sizes) != len(data):
        raise ValueError("raw tensors of the wrong size")
    stops = np.cumsum(sizes, dtype=np.int64)
    return {info.name: data[stop - size : stop] for info, size, stop in zip(infos, sizes, stops.tolist(), strict=True)}


def _section_bytes(sections: Mapping[str, bytes], size_bytes: int) -> dict[str, int]:
    named = {
        "bank": len(sections["bank"]),
        "index_maps": len(sections["maps"]),
        "outliers": len(sections["outliers"]),
        "unshared": len(sections["values"]),
    }
    return {**named, "header": size_bytes - sum(named.values())}
