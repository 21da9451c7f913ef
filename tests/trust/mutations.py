"""Artifacts as somebody who means harm would write them: every checksum and length right, what they guard wrong."""

from __future__ import annotations

import contextlib
import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gbnn_compress.errors import GbnnError
from gbnn_compress.format import container
from gbnn_compress.format.bits import BitWriter, read_length, write_length
from gbnn_compress.format.dictionary import DICTIONARY
from gbnn_compress.format.manifest import MOST_BYTES, deflate, deflate_manifest, inflate, inflate_manifest

GOLDEN = Path(__file__).parents[1] / "golden" / "version1.gbnn.safetensors"
GOLDEN_2 = GOLDEN.with_name("version2.gbnn.safetensors")
ENSEMBLE = GOLDEN.with_name("ensemble.gbnn.safetensors")

DIGEST_BYTES = 32

NUMBERS = (-1, 0, 1, 2, 3, 255, 256, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**400))

JUNK: tuple[Any, ...] = (
    *NUMBERS,
    *(None, True, False, 0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", "a", "\0", "\ud800", "x" * 2000, "0", "weight", "float32", "\n\x1b[2J", "é", "<script>", "{{ 1 }}", "%s"),
    *([], {}, [[]], [0], [None], ["a"], {"a": 1}, {"": {}}, [[[[[[[[]]]]]]]], list(range(50))),
)

KINDS, DTYPES = "surtx", ("float32", "float16", "bfloat16", "float64", "int64", "bool", "int8", "complex128", "save")

Sections = dict[str, bytes]
Mutation = Callable[[random.Random, Sections], Sections]


def mutated(chance: random.Random, data: bytes) -> bytes:
    """One artifact made of another: damaged as a whole, or forged in a few places with its checksums put right."""
    if chance.random() < 0.1:
        return damaged(chance, data)
    members = members_of(data)
    place = chance.randrange(len(members))
    members[place] = (_forged(chance, members[place][0]), members[place][1])
    if len(members) > 1 and chance.random() < 0.1:
        members = chance.choices(members, k=chance.choice((1, 2, 3, 8, 65)))
    made = packed(members) if len(members) > 1 else container.pack(members[0][0], version=members[0][1])
    return damaged(chance, made) if chance.random() < 0.02 else made


def _forged(chance: random.Random, sections: Sections) -> Sections:
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        try:
            sections = chance.choice(MUTATIONS)(chance, sections)
        except (ValueError, TypeError, LookupError, AttributeError, zlib.error, GbnnError):
            continue  # the mutation before took away what this one needs
    return sections


def members_of(data: bytes) -> list[tuple[Sections, int]]:
    """The sections and the version of each network of a file, each with a manifest that needs no other one."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    if "data" in header:
        return [(sections_of(data), version_of(data))]
    versions = [int(version) for version in header["__metadata__"]["members"].split(",")]
    found, first = list[tuple[Sections, int]](), b""
    for number, version in enumerate(versions):
        begin, stop = header[f"data.{number}"]["data_offsets"]
        sections = container.sections_of(memoryview(data)[start + begin : start + stop], version)
        digest, text = inflate_manifest(sections["manifest"], first=first)
        first = first or text
        found.append(({**sections, "manifest": deflate_manifest(digest, text)}, version))
    return found


def packed(members: Sequence[tuple[Sections, int]]) -> bytes:
    """An ensemble of such networks; a manifest that cannot be read stays as it is."""
    first, made = b"", []
    for sections, version in members:
        with contextlib.suppress(ValueError, zlib.error):
            digest, text = inflate_manifest(sections["manifest"])
            sections = {**sections, "manifest": deflate_manifest(digest, text, first=first)}
            first = first or text
        made.append((sections, version))
    return container.pack_members(made)


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Bytes changed, left out, put in, repeated or cut off."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(result) + 1)
        length = min(chance.choice((1, 1, 2, 4, 8, 40)), len(result) - place)
        how = chance.randrange(7)
        if how == 0 and place < len(result):
            result[place] ^= 1 << chance.randrange(8)
        elif how == 1:
            result[place : place + length] = chance.randbytes(length)
        elif how == 2:
            del result[place : place + length]
        elif how == 3:
            result[place:place] = chance.randbytes(length)
        elif how == 4:
            result[place : place + length] = bytes([chance.choice((0, 255))]) * length
        elif how == 5:
            result[place:place] = result[place : place + length]
        else:
            del result[place:]
    return bytes(result)


def sections_of(data: bytes) -> Sections:
    """The sections of an artifact's bytes."""
    start = 8 + int.from_bytes(data[:8], "little")
    return container.sections_of(memoryview(data)[start:], version_of(data))


def version_of(data: bytes) -> int:
    """The version of the format that an artifact's header names."""
    return 2 if b'"gbnn-compress":"2"' in data[:200] else 1


def manifest_of(sections: Mapping[str, bytes]) -> dict[str, Any]:
    """The manifest's JSON."""
    found: dict[str, Any] = json.loads(_manifest_text(sections))
    return found


def _manifest_text(sections: Mapping[str, bytes]) -> bytes:
    return inflate(sections["manifest"][DIGEST_BYTES:], most=MOST_BYTES, dictionary=DICTIONARY)


def with_manifest(sections: Mapping[str, bytes], manifest: Any) -> Sections:
    """The same sections under another manifest."""
    text = json.dumps(manifest).encode()
    return {**sections, "manifest": bytes(DIGEST_BYTES) + deflate(text, dictionary=DICTIONARY)}


def _damage_a_section(chance: random.Random, sections: Sections) -> Sections:
    name = chance.choice(container.SECTIONS)
    return {**sections, name: damaged(chance, sections[name])}


def _damage_a_part(chance: random.Random, sections: Sections) -> Sections:
    """Within a section of two parts, the length of the first put right."""
    name = chance.choice(("maps", "values"))
    length, start = read_length(sections[name], 0)
    parts = [sections[name][start : start + length], sections[name][start + length :]]
    which = chance.randrange(2)
    parts[which] = damaged(chance, parts[which])
    return {**sections, name: write_length(len(parts[0])) + parts[0] + parts[1]}


def _damage_the_text(chance: random.Random, sections: Sections) -> Sections:
    """The manifest's JSON, inside its compression."""
    text = damaged(chance, _manifest_text(sections))
    return {**sections, "manifest": bytes(DIGEST_BYTES) + deflate(text, dictionary=DICTIONARY)}


def _damage_the_raw(chance: random.Random, sections: Sections) -> Sections:
    """The raw tensors' bytes, inside their compression."""
    length, start = read_length(sections["values"], 0)
    raw = inflate(sections["values"][start + length :], most=MOST_BYTES)
    return {**sections, "values": sections["values"][: start + length] + deflate(damaged(chance, raw))}


def _put_junk(chance: random.Random, sections: Sections) -> Sections:
    """Any entry of the manifest becomes something else, twice or nothing."""
    manifest = manifest_of(sections)
    places = list(_places(manifest))
    holder, key = chance.choice(places)
    if chance.random() < 0.2:
        del holder[key]
    elif isinstance(holder, dict) and chance.random() < 0.1:
        holder[chance.choice(("", "a", "temperature", "training", "blends", "\ud800"))] = chance.choice(JUNK)
    else:
        holder[key] = chance.choice(JUNK)
    return with_manifest(sections, manifest)


def _add_an_optional_fact(chance: random.Random, sections: Sections) -> Sections:
    key = chance.choice(("temperature", "training", "blends"))
    training = {"epochs": chance.choice(JUNK), "beta": chance.choice(JUNK)}
    return with_manifest(sections, {**manifest_of(sections), key: chance.choice((chance.choice(JUNK), training, [0]))})


def _change_a_row(chance: random.Random, sections: Sections) -> Sections:
    """One tensor described otherwise: its kind, shape, dtype or name, or the order of the rows."""
    manifest = manifest_of(sections)
    rows = manifest["tensors"]
    place = chance.randrange(len(rows))
    how = chance.randrange(6)
    if how == 0:
        rows[place] = f"{chance.choice(NUMBERS)} {chance.choice(('a', '', 'weight', 'x.' * 500))}"
    elif how == 1:
        other = chance.randrange(len(rows))
        rows[place], rows[other] = rows[other], rows[place]
    elif how == 2:
        del rows[place]
    elif how == 3:
        rows.insert(place, chance.choice(rows))
    else:
        shape = ",".join(
            str(chance.choice((*NUMBERS, 1, 2, 3, 8))) for _ in range(chance.choice((0, 1, 2, 2, 3, 4, 70)))
        )
        rows[place] = f"0{chance.choice(KINDS)}{shape}:{chance.choice(DTYPES)} {chance.choice(('a', 'b.c', 'd'))}"
    return with_manifest(sections, manifest)


def _forge_a_bank(chance: random.Random, sections: Sections) -> Sections:
    """A bank of extreme numbers, and as many tensors' scales as before."""
    shared = sum("s" in row.partition(" ")[0] for row in manifest_of(sections)["tensors"]) or 1
    writer = BitWriter()
    size = chance.choice((1, 2, 9, 9, 9, 300, 1 << 17, (1 << 17) + 1))
    writer.write(chance.choice((0, 1, 2044, 2048, 3000, 4095)), width=12)
    writer.write_exp_golomb(size - 1, order=8)
    writer.write_exp_golomb(chance.choice((0, 1, 2**40, 2**62)), order=8)
    order = chance.choice((0, 3, 47, 63))
    writer.write(order, width=6)
    writer.write_exp_golomb([chance.choice((0, 1, 2**20)) for _ in range(size - 1)] if size < 999 else [], order=3)
    for _ in range(2 + 2 * shared):
        writer.write_exp_golomb(chance.choice((0, 1, 100, 2**40)), order=chance.choice((0, 1)))
    return {**sections, "bank": writer.getvalue() + chance.randbytes(chance.choice((0, 60)))}


def _forge_vectors(chance: random.Random, sections: Sections) -> Sections:
    """Vectors of extreme steps, orders, centres and widths."""
    writer = BitWriter()
    for _ in range(chance.randrange(1, 9)):
        mode = chance.randrange(4)
        writer.write(mode, width=2)
        if mode == 2:
            writer.write(chance.choice((0, 1, 16, 32, 64, 65, 127)), width=7)
        else:
            for order in (0, 0, 2):
                writer.write_exp_golomb(chance.choice((0, 1, 5, 99, 8191, 2**52)), order=order)
        writer.write([chance.randrange(2**16)] * chance.choice((0, 4, 20)), width=16)
    length, start = read_length(sections["values"], 0)
    vectors = writer.getvalue() + chance.randbytes(chance.choice((0, 300)))
    return {**sections, "values": write_length(len(vectors)) + vectors + sections["values"][start + length :]}


def _forge_tables(chance: random.Random, sections: Sections) -> Sections:
    """Tables of extreme levels and rules."""
    writer = BitWriter()
    for _ in range(chance.randrange(1, 7)):
        last = chance.choice((0, 1, 5, 9, 10))
        writer.write_exp_golomb(chance.choice((0, 0, 0, 1, 9)), order=4)
        writer.write_exp_golomb(last, order=4)
        order = chance.randrange(4)
        writer.write(order, width=2)
        writer.write(chance.choice((0, 1, 100, 255)), width=8)
        steps = [chance.choice((0, 1, 2, 20, 400, 2**33, 2**62)) for _ in range(last)]
        writer.write_exp_golomb(steps, order=order)
        writer.write(chance.randrange(2), width=1)
        writer.write(chance.randrange(2**37), width=37)
    length, start = read_length(sections["maps"], 0)
    tables = writer.getvalue() + chance.randbytes(chance.choice((0, 40)))
    return {**sections, "maps": write_length(len(tables)) + tables + sections["maps"][start + length :]}


def _forge_streams(chance: random.Random, sections: Sections) -> Sections:
    """Streams of version 2, of any lengths and words; version 1 reads them as one stream."""
    length, start = read_length(sections["maps"], 0)
    streams = b""
    for _ in range(chance.randrange(1, 6)):
        count = chance.choice((0, 1, 2, 3, 8, 40))
        claimed = chance.choice((count, count, count, count + 1, 2**20, 2**60))
        word = chance.choice((bytes(4), b"\xff" * 4, b"\1\0\0\0"))
        streams += write_length(claimed) + chance.choice((word * count, chance.randbytes(4 * count)))
    return {**sections, "maps": sections["maps"][: start + length] + streams}


MUTATIONS: tuple[Mutation, ...] = (
    *(_damage_a_section, _damage_a_part, _damage_a_part, _damage_the_text, _damage_the_raw, _put_junk, _put_junk),
    *(_add_an_optional_fact, _change_a_row, _change_a_row, _forge_a_bank, _forge_vectors, _forge_tables),
    _forge_streams,
)


def _places(value: Any) -> Any:
    """Every (holder, key) of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)
