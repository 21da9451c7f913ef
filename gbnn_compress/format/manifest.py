"""The manifest <-> bytes: the checkpoint's SHA-256, then deflated JSON of the tensors and the facts."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from gbnn_compress.format.dictionary import DICTIONARY
from gbnn_compress.types import TensorInfo

KINDS = {"s": "shared", "u": "unshared", "r": "raw", "t": "tied"}

MOST_BYTES = 1 << 22
"""Largest size of the JSON, enough for the names of a hundred thousand tensors."""

MOST_NAME_CHARACTERS = 1 << 23
"""Largest number of characters of all names: repeating most of the name before costs a file almost no bytes."""

_DIGEST_BYTES = 32

_HEAD = re.compile(r"([0-9]+)(?:([surt])([0-9]+(?:,[0-9]+)*)?:([a-z0-9_]+))?")
"""Number of parts in common with the name before; kind, shape and dtype where they differ from the tensor before."""


def encode_manifest(tensors: Sequence[TensorInfo], facts: Mapping[str, Any]) -> bytes:
    """Write the descriptions of the tensors, and the facts.

    Args:
        tensors: Every tensor of the state dict, in order.
        facts: JSON; `checkpoint.sha256` is 64 hexadecimal digits.
    """
    checkpoint = dict(facts["checkpoint"])
    digest = bytes.fromhex(checkpoint.pop("sha256"))
    described = {
        "tensors": _rows(tensors),
        "ties": {info.name: info.tied_to for info in tensors if info.tied_to is not None},
        **facts,
        "checkpoint": checkpoint,
    }
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    return digest + deflate(text, dictionary=DICTIONARY)


def decode_manifest(data: bytes) -> tuple[tuple[TensorInfo, ...], dict[str, Any]]:
    """Read a manifest: the tensors and the facts, both unchecked.

    Raises:
        LookupError, TypeError, AttributeError, ValueError, zlib.error: The bytes are no manifest.
    """
    facts = json.loads(inflate(data[_DIGEST_BYTES:], most=MOST_BYTES, dictionary=DICTIONARY).decode())
    rows, ties = facts.pop("tensors"), facts.pop("ties")
    if not isinstance(rows, list) or not all(isinstance(name, str) for name in ties.values()):
        raise ValueError("`tensors` should be a list, and `ties` should map names to names")
    facts["checkpoint"] = {"sha256": data[:_DIGEST_BYTES].hex(), **facts["checkpoint"]}
    return _infos(rows, ties), facts


def deflate(data: bytes, *, dictionary: bytes = b"") -> bytes:
    """A raw deflate stream (RFC 1951), with a preset dictionary."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY, dictionary)
    return coder.compress(data) + coder.flush()


def inflate(data: bytes, *, most: int, dictionary: bytes = b"") -> bytes:
    """The inverse of `deflate`.

    Args:
        data: The stream.
        most: Largest number of bytes that it may hold; decoding stops there.
        dictionary: The preset dictionary.

    Raises:
        ValueError, zlib.error: The bytes are not exactly one stream of at most that size.
    """
    decoder = zlib.decompressobj(-15, dictionary)
    # One byte more: a limit of 0 would mean none, and the end of the stream must be reached.
    result = decoder.decompress(data, most + 1)
    if len(result) > most:
        raise ValueError(f"a compressed stream holds more than {most:,} bytes")
    if not decoder.eof or decoder.unused_data:
        raise ValueError("a compressed stream does not end where it should")
    return result


def _rows(tensors: Sequence[TensorInfo]) -> list[str]:
    """One string per tensor, without the parts in common with the tensor before."""
    rows: list[str] = []
    before: list[str] = []
    described = ""
    for info in tensors:
        parts = info.name.split(".")
        common = 0
        while common < min(len(parts) - 1, len(before)) and parts[common] == before[common]:
            common += 1
        kind = f"{info.kind[0]}{','.join(map(str, info.shape))}:{info.dtype}"
        rows.append(f"{common}{'' if kind == described else kind} {'.'.join(parts[common:])}")
        before, described = parts, kind
    return rows


def _infos(rows: Sequence[str], ties: Mapping[str, str]) -> tuple[TensorInfo, ...]:
    """The inverse of `_rows`."""
    infos: list[TensorInfo] = []
    characters = 0
    for row in rows:
        head, space, rest = row.partition(" ")
        match = _HEAD.fullmatch(head)
        if match is None or not space:
            raise ValueError(f"`{row}` describes no tensor")
        common, letter, dims, dtype = match.groups()
        before = infos[-1].name.split(".") if infos else []
        if int(common) > len(before):
            raise ValueError(f"`{row}` refers to more parts than the name before has")
        name = ".".join([*before[: int(common)], rest])
        characters += len(name)
        if characters > MOST_NAME_CHARACTERS:
            raise ValueError(f"the names have more than {MOST_NAME_CHARACTERS:,} characters")
        if letter is None:
            infos.append(TensorInfo(name, infos[-1].shape, infos[-1].dtype, infos[-1].kind, ties.get(name)))
        else:
            shape = tuple(map(int, dims.split(","))) if dims else ()
            infos.append(TensorInfo(name, shape, dtype, KINDS[letter], ties.get(name)))
    return tuple(infos)
