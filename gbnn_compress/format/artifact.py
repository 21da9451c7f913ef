"""Artifact <-> file: the bytes of each section (docs/format.md)."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format import container
from gbnn_compress.format.bank import decode_bank, encode_bank
from gbnn_compress.format.bits import read_length, write_length
from gbnn_compress.format.checks import BITS, RAW_BYTES, Held, check_facts, check_infos
from gbnn_compress.format.contexts import whole_values
from gbnn_compress.format.lane_maps import decode_lane_maps, encode_lane_maps
from gbnn_compress.format.manifest import (
    KINDS,
    decode_manifest,
    deflate,
    encode_manifest,
    inflate,
    inflate_manifest,
)
from gbnn_compress.format.symbols import decode_maps, encode_maps
from gbnn_compress.format.tables import Table, decode_tables, encode_tables
from gbnn_compress.format.vectors import EXACT, Vector, decode_vectors, dequantise_all, encode_vectors, role
from gbnn_compress.types import Artifact, Bank, IndexMap, TensorInfo

REASON_LENGTH = 200
"""Largest number of characters of an error that quotes the file."""


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
    contexts: bool = True,
) -> bytes:
    """Serialise a compressed network.

    Args:
        tensors: Every tensor of the state dict, in order.
        bank: K components on the grid 2 ^ exponent (`round_bank`).
        exponent: The grid.
        scales: float64 (T,), as `short_floats` gives them.
        relative_rmse: float64 (T,), error of each shared tensor.
        maps: One per shared tensor, in order.
        vectors: One per unshared tensor, in order.
        raw: Bytes of each raw tensor, in order.
        facts: Further JSON for the manifest; `checkpoint.sha256` is 64 hexadecimal digits.
        contexts: Whether ids may be coded by context.

    Returns:
        The bytes of the file.
    """
    shapes = [info.shape for info in tensors if info.kind == "shared"]
    version, values = version_of(maps), whole_values(bank.means)
    if version == 1:
        tables, stream = encode_maps([m.ids for m in maps], shapes, values, contexts=contexts)
    else:
        tables, stream = encode_lane_maps(maps, shapes, values, contexts=contexts)
    table_bytes = encode_tables(tables, shapes, version=version)
    roles = [role(info.name) for info in tensors if info.kind == "unshared"]
    sections = {
        "manifest": encode_manifest(tensors, facts),
        "bank": encode_bank(bank, exponent=exponent, scales=scales, relative_rmse=relative_rmse),
        "maps": _joined(table_bytes, stream),
        "outliers": b"".join(m.outliers.astype(m.outliers.dtype.newbyteorder("<")).tobytes() for m in maps),
        "values": _joined(encode_vectors(vectors, roles=roles), compress_raw(raw)),
    }
    return container.pack(sections, version=version)


def version_of(maps: Sequence[IndexMap]) -> int:
    """The oldest version of the format that holds these maps."""
    return 2 if any(m.trellis and (m.ids != m.ids[0]).any() for m in maps) else 1


def header_bytes(tensors: Sequence[TensorInfo], facts: Mapping[str, Any]) -> int:
    """The approximate size of header and manifest, before anything is encoded."""
    manifest = encode_manifest(tensors, facts)
    others = {"bank": b"b" * 200, "maps": b"m" * 100_000, "values": b"v" * 2000}
    split_bytes = 2 * 2  # lengths of the tables and of the vectors
    return len(container.pack({"manifest": manifest, **others})) - sum(map(len, others.values())) + split_bytes


def read_artifact(path: Path, *, known: Sequence[IndexMap] | None = None) -> Artifact:
    """Decode a file.

    Args:
        path: The file.
        known: The maps that the file must hold; the artifact then refers to these instead of copies.

    Raises:
        ArtifactError: The file is missing, of another format or damaged, holds other maps, or several networks.
    """
    contents = container.unpack(path)
    with refused(f"`{path}`"):
        digest, text = inflate_manifest(contents.sections["manifest"])
        artifact, _ = decode(contents, digest, text, sha256=sha256_of(path), known=known)
    return artifact


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def refused(name: str, *, subject: str = "") -> Iterator[None]:
    """Turn every error that the bytes of a file may cause into a refusal of one line.

    Args:
        name: Name of the file, or of the member.
        subject: What contradicts itself, if it is not what the name says.

    Raises:
        ArtifactError: The block raised an error.
    """
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    except (
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        ValueError,
        MemoryError,
        RecursionError,
        zlib.error,
    ) as error:
        # The checksums are right, so the file was written like this.
        reason = f"{type(error).__name__}: {error}"[:REASON_LENGTH]
        what = f"{name}: {subject}" if subject else name
        raise ArtifactError(f"{what} contradicts itself ({reason}); it was not written by gbnn-compress") from None


def decode(
    contents: container.Contents,
    digest: bytes,
    text: bytes,
    *,
    sha256: str,
    known: Sequence[IndexMap] | None = None,
    before: Held | None = None,
    file_bytes: int | None = None,
) -> tuple[Artifact, Held]:
    """Decode one network.

    Args:
        contents: Its sections.
        digest: SHA-256 of its checkpoint.
        text: The JSON of its manifest.
        sha256: Hex digest of its bytes.
        known: The maps that it must hold.
        before: What the networks before it in the file hold.
        file_bytes: Size of the file, if it holds other networks too.

    Returns:
        The network, and what the file holds up to it.

    Raises:
        ArtifactError: It would unpack into too much, or holds other maps.
        Exception: Any of those that `refused` knows.
    """
    sections, size_bytes, version = contents
    tensors, facts = decode_manifest(digest, text)
    check_infos(tensors)
    check_facts(facts)
    by_kind = {kind: [info for info in tensors if info.kind == kind] for kind in KINDS.values()}
    shared = by_kind["shared"]
    bank, scales, errors = decode_bank(sections["bank"], n_tensors=len(shared))
    held = (before or Held()).with_tensors(tensors, n_components=len(bank.means))
    held.require_fitting(size_bytes if file_bytes is None else file_bytes)
    table_part, id_part = _parted(sections["maps"])
    vector_part, raw_part = _parted(sections["values"])
    shapes = [info.shape for info in shared]
    tables = decode_tables(table_part, shapes=shapes, alphabet=len(bank.means) + 1, version=version)
    ids: list[np.ndarray] = []

    def consume(index: int, part: np.ndarray) -> None:
        ids.append(part if known is None else _same(known[index].ids, part, info=shared[index]))

    decode_ids = decode_maps if version == 1 else decode_lane_maps
    map_bits = decode_ids(id_part, tables, shapes, whole_values(bank.means), consume=consume)
    maps = _with_outliers(shared, ids, tables, sections["outliers"], len(bank.means))
    for expected, got, info in zip(known or (), maps, shared, strict=known is not None):
        _same(expected.outliers, got.outliers, info=info)
    vectors = decode_vectors(
        vector_part,
        sizes=[math.prod(info.shape) for info in by_kind["unshared"]],
        roles=[role(info.name) for info in by_kind["unshared"]],
    )
    _check_widths(by_kind["unshared"], vectors)
    artifact = Artifact(
        tensors=tensors,
        bank=bank,
        scales=scales,
        relative_rmse=errors,
        map_bits=map_bits,
        maps=maps,
        values=dequantise_all([info.name for info in by_kind["unshared"]], vectors),
        raw=_raw(by_kind["raw"], raw_part),
        facts=facts,
        sections=_section_bytes(sections, size_bytes),
        table_bytes=len(table_part),
        size_bytes=size_bytes,
        sha256=sha256,
    )
    return artifact, held


def compress_raw(raw: Sequence[bytes]) -> bytes:
    """The raw tensors' bytes, concatenated and compressed; empty when there are none."""
    return deflate(b"".join(raw)) if raw else b""


def _joined(first: bytes, second: bytes) -> bytes:
    """Two parts in one section: the length of the first, then both; empty if both are empty."""
    return write_length(len(first)) + first + second if first or second else b""


def _parted(section: bytes) -> tuple[bytes, bytes]:
    """The inverse of `_joined`."""
    if not section:
        return b"", b""
    length, start = read_length(section, 0)
    if start + length > len(section):
        raise ArtifactError("damaged artifact: a part is longer than its section")
    return section[start : start + length], section[start + length :]


def _with_outliers(
    shared: Sequence[TensorInfo], ids: Sequence[np.ndarray], tables: Sequence[Table], data: bytes, escape: int
) -> tuple[IndexMap, ...]:
    maps, start = [], 0
    for info, part, table in zip(shared, ids, tables, strict=True):
        dtype = np.dtype(f"<u{BITS[info.dtype] // 8}")
        count = int((part == escape).sum())
        outliers = np.frombuffer(data, dtype=dtype, count=count, offset=start)
        start += count * dtype.itemsize
        maps.append(IndexMap(info.name, part, outliers, table.trellis))
    if start != len(data):
        raise ValueError("more outliers than ids that name one")
    return tuple(maps)


def _same(expected: np.ndarray, got: np.ndarray, *, info: TensorInfo) -> np.ndarray:
    """The expected array, after a check that the one read is equal, whose memory can then be freed."""
    if not np.array_equal(expected, got):
        raise ArtifactError(f"ids or outliers of `{info.name}` differ from those that were written; try again")
    return expected


def _check_widths(infos: Sequence[TensorInfo], vectors: Sequence[Vector]) -> None:
    for info, vector in zip(infos, vectors, strict=True):
        if vector.mode == EXACT and vector.width != BITS[info.dtype]:
            raise ValueError(f"`{info.name}` of {info.dtype} is stored in {vector.width} bits a value")


def _raw(infos: Sequence[TensorInfo], blob: bytes) -> dict[str, bytes]:
    sizes = [math.prod(info.shape) * RAW_BYTES[info.dtype] for info in infos]
    data = inflate(blob, most=sum(sizes)) if blob else b""
    if sum(sizes) != len(data):
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
