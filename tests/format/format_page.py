"""A decoder written from docs/format.md alone.

It uses no part of the package, no entropy coder and no tensor library: beyond the page it needs JSON, CRC-32 and
deflate.
"""

from __future__ import annotations

import bisect
import json
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")

WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2 - 2**-7) * 2.0**127,
    "float32": (2 - 2**-23) * 2.0**127,
    "float64": sys.float_info.max,
}

RAW_WIDTHS = {**WIDTHS, "bool": 1, "int64": 8}


class Bits:
    """A bit string, most significant bit first."""

    def __init__(self, data: bytes) -> None:
        self.number, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, width: int) -> int:
        self.left -= width
        assert self.left >= 0
        return self.number >> self.left & ((1 << width) - 1)

    def eg(self, order: int) -> int:
        zeros = 0
        while self.u(1) == 0:
            zeros += 1
        return 2 ** (zeros + order) - 2**order + self.u(zeros + order)

    def quotient(self) -> int:
        zeros = 0
        while zeros < 6 and self.u(1) == 0:
            zeros += 1
        return zeros if zeros < 6 else 6 + self.eg(0)

    def zz(self, order: int) -> int:
        value = self.eg(order)
        return value // 2 if value % 2 == 0 else -(value + 1) // 2


def read_container(data: bytes) -> list[tuple[int, bytes]]:
    """The version and the bytes of each network; more than one in an ensemble."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    data = data[8 + length :]
    metadata = header.pop("__metadata__")
    if "members" not in metadata:
        assert list(metadata) == ["gbnn-compress"]
        assert header == {"data": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
        return [(int(metadata["gbnn-compress"]), data)]
    assert metadata == {"gbnn-compress": "2", "members": metadata["members"]}
    versions = [int(version) for version in metadata["members"].split(",")]
    assert 2 <= len(versions) <= 64
    assert list(header) == [f"data.{number}" for number in range(len(versions))]
    parts, start = [], 0
    for entry in header.values():
        stop = entry["data_offsets"][1]
        assert entry == {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        parts.append(data[start:stop])
        start = stop
    assert start == len(data)
    return list(zip(versions, parts, strict=True))


def read_sections(version: int, data: bytes) -> dict[str, bytes]:
    """The sections of one network."""
    entries = []
    orders = {
        1: ("manifest", "bank", "maps", "outliers", "values"),
        2: ("manifest", "bank", "values", "outliers", "maps"),
    }
    for name in orders[version]:
        length, data = read_length(data)
        checksum, data = (data[:4], data[4:]) if length else (b"", data)
        entries.append((name, length, checksum))
    sections = {}
    for name, length, checksum in entries:
        sections[name], data = data[:length], data[length:]
        assert not length or zlib.crc32(sections[name]).to_bytes(4, "little") == checksum
    assert not data
    return sections


def read_length(data: bytes) -> tuple[int, bytes]:
    """A length, and the bytes after it."""
    stop = next(index for index, byte in enumerate(data) if byte < 128) + 1
    return sum((byte % 128) << (7 * index) for index, byte in enumerate(data[:stop])), data[stop:]


def read_part(section: bytes) -> tuple[bytes, bytes]:
    """So many bytes as the length says, and the rest."""
    if not section:
        return b"", b""
    length, data = read_length(section)
    return data[:length], data[length:]


def dictionary() -> bytes:
    """The lines at the end of the page."""
    block = PAGE.partition("## Dictionary")[2].partition("```text\n")[2].partition("```")[0]
    return block.replace("\n", "").encode("ascii")


def manifest_text(section: bytes, first: bytes = b"") -> bytes:
    """The JSON of a manifest; that of a later member of an ensemble needs the first member's."""
    return zlib.decompressobj(-15, (dictionary() + first)[-32768:]).decompress(section[32:])


def read_manifest(text: bytes) -> dict[str, Any]:
    manifest = json.loads(text.decode())
    names: list[str] = []
    kinds: list[tuple[str, list[int], str]] = []
    for row in manifest["tensors"]:
        head, _, rest = row.partition(" ")
        digits = next((index for index, letter in enumerate(head) if letter in "surt"), len(head))
        count, kind = int(head[:digits]), head[digits:]
        names.append(".".join([*(names[-1].split(".")[:count] if count else []), rest]))
        if kind:
            shape, _, dtype = kind[1:].partition(":")
            kinds.append((kind[0], [int(size) for size in shape.split(",") if size], dtype))
        else:
            kinds.append(kinds[-1])
    letters, shapes, dtypes = zip(*kinds, strict=True)
    return {**manifest, "names": names, "kinds": letters, "shapes": shapes, "dtypes": dtypes}


def read_bank(data: bytes, n_tensors: int) -> dict[str, Any]:
    bits = Bits(data)
    exponent, size = bits.u(12) - 2048, bits.eg(8) + 1
    codes, order = [bits.zz(8)], bits.u(6)
    for _ in range(size - 1):
        codes.append(codes[-1] + 1 + bits.eg(order))
    logs, last = [], 0
    for _ in range(size):
        last += bits.zz(1)
        logs.append(last / 8)
    scales, errors = (short_floats(bits, n_tensors) for _ in range(2))
    means = [math.ldexp(float(code), exponent) for code in codes]
    return {"means": means, "logs": logs, "scales": scales, "errors": errors}


def short_floats(bits: Bits, count: int) -> list[float]:
    order, code, numbers = bits.u(4), 2048 * 16, []
    for _ in range(count):
        code += bits.zz(order)
        numbers.append(math.ldexp(1 + code % 16 / 16, code // 16 - 2048) if code else 0.0)
    return numbers


Table = tuple[dict[int, int], dict[str, int] | None, bool]
"""Symbol -> level, of the symbols that occur, ascending; the rule; and whether there is a trellis."""


def kernel(shape: list[int]) -> tuple[int, int]:
    """Height and width."""
    return (math.prod(shape[2:-1]), shape[-1]) if len(shape) > 2 else (1, 1)


def read_tables(data: bytes, shapes: list[list[int]], version: int) -> list[Table]:
    bits, tables = Bits(data), []
    for shape in shapes:
        first, more, order = bits.eg(4), bits.eg(4), bits.u(2)
        levels = [bits.u(8)]
        for _ in range(more):
            levels.append(levels[-1] + bits.zz(order))
        table = {first + index: level for index, level in enumerate(levels) if level > 0}
        rule = None
        trellis = version == 2 and len(table) > 1 and bits.u(1) == 1
        if len(table) > 1 and bits.u(1):
            rule = {"start": bits.u(7)}
            for name in ("left", "above", "corner") if math.prod(kernel(shape)) > 1 else ():
                rule[name] = bits.u(6) - 32
            rule |= {"tail": bits.u(2), "offset": bits.u(3) - 5, "floor": bits.u(7)}
        tables.append((table, rule, trellis))
    return tables


def table_frequencies(levels: list[int], factors: list[int] | None = None) -> list[int]:
    largest = max((level - 1) // 4 for level in levels)
    weights = [((16, 19, 23, 27)[(level - 1) % 4] << 25) >> (largest - (level - 1) // 4) for level in levels]
    if factors is not None:
        weights = [weight * factor >> 26 for weight, factor in zip(weights, factors, strict=True)]
    result = [1 + weight * (2**24 - len(levels)) // max(1, sum(weights)) for weight in weights]
    result[weights.index(max(weights))] += 2**24 - sum(result)
    return result


class Ans:
    """The stream; ids are read under one list of frequencies each."""

    def __init__(self, data: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))
        self.state = 0
        self.refill()

    def refill(self) -> None:
        while self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def read(self, frequency: list[int], count: int) -> list[int]:
        starts = np.cumsum([0, *frequency]).tolist()
        found = []
        for _ in range(count):
            quantile = self.state % 2**24
            j = bisect.bisect_right(starts, quantile) - 1
            found.append(j)
            self.state = (self.state >> 24) * frequency[j] + quantile - starts[j]
            self.refill()
        return found


def read_ids(data: bytes, tables: list[Table], shapes: list[list[int]], means: list[float]) -> list[list[int]]:
    stream, maps = Ans(data), []
    for (table, rule, _), shape in zip(tables, shapes, strict=True):
        symbols = list(table)
        if len(symbols) == 1:
            maps.append(symbols * math.prod(shape))
        elif rule is None:
            found = stream.read(table_frequencies(list(table.values())), math.prod(shape))
            maps.append([symbols[j] for j in found])
        else:
            maps.append(read_by_context(stream, table, rule, shape, means))
    assert stream.state == 0
    assert not stream.words
    return maps


def lg(x: int) -> int:
    power = x.bit_length() - 1
    return 16 * power + 16 * x // 2**power - 16


def ex(level: int) -> int:
    return (16 + level % 16) * 2 ** (level // 16) // 16


def whole(means: list[float]) -> list[int]:
    """Values of the components, and of the outlier."""
    exponent = max(math.frexp(mean)[1] for mean in means if mean) if any(means) else 0
    return [int(math.ldexp(mean, 24 - exponent)) for mean in means] + [0]


def read_by_context(
    stream: Ans, table: dict[int, int], rule: dict[str, int], shape: list[int], means: list[float]
) -> list[int]:
    (rows, columns), (height, width), values = shape[:2], kernel(shape), whole(means)
    symbols, levels = list(table), list(table.values())
    ids: dict[tuple[int, int, int], int] = {}
    known: dict[tuple[int, int], list[int]] = {}
    mean = ex(4 * rule["start"])
    sums = {axis: [8 * 4096] * size for axis, size in (("row", rows), ("column", columns))}
    counts = {axis: [8] * size for axis, size in (("row", rows), ("column", columns))}
    kernels = {(o, i): 0 for o in range(rows) for i in range(columns)}
    step = max(1, 2**20 // columns)
    for tap in range(height * width):
        y, x = divmod(tap, width)
        total, count, low = 8 * mean, 8, 0

        def value(o: int, i: int, y: int, x: int) -> int:
            return values[ids[o, i, y * width + x]] if x >= 0 and y >= 0 else 0

        def prediction(o: int, i: int, y: int = y, x: int = x, tap: int = tap) -> int:
            if tap == 0:
                return 0
            left = rule["left"] * value(o, i, y, x - 1)
            return (left + rule["above"] * value(o, i, y - 1, x) + rule["corner"] * value(o, i, y - 1, x - 1)) // 16

        for high in (2, 16) if tap else (1, 2, 4, 8, 16):
            for start in range(0, rows, step):
                band = range(start, min(start + step, rows))
                block = [(o, i) for o in band for i in range(columns) if low <= (o + i) % 16 < high]
                groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
                for o, i in block:
                    level = lg(sums["row"][o]) - lg(4096 * counts["row"][o])
                    if columns > 1:
                        level += lg(sums["column"][i]) - lg(4096 * counts["column"][i])
                    if tap:
                        ratio = 16 * ex(min(max(level + 192, 0), 576)) + kernels[o, i]
                        level = lg(max(1, ratio // (16 + tap))) - 192
                    level = min(max((level + lg(mean)) // 4, 0), 111)
                    scale = ex(4 * level + 2)
                    place = min(max((4 * prediction(o, i) + scale) // (2 * scale), -8), 8) if tap else 0
                    groups.setdefault((level, place), []).append((o, i))
                for (level, place), members in sorted(groups.items()):
                    if (level, place) not in known:
                        shares = [factor(symbol, level, place, rule, values) for symbol in symbols]
                        known[level, place] = table_frequencies(levels, shares)
                    found = stream.read(known[level, place], len(members))
                    for (o, i), j in zip(members, found, strict=True):
                        ids[o, i, tap] = symbols[j]
                if not block:
                    continue
                distance = {(o, i): abs(values[ids[o, i, tap]] - prediction(o, i)) for o, i in block}
                total, count = total + sum(distance.values()), count + len(block)
                mean = max(1, total // count)
                for axis, place, size in (("row", 0, rows), ("column", 1, columns)):
                    added = [0] * size
                    for key, far in distance.items():
                        added[key[place]] += far
                        counts[axis][key[place]] += 1
                    for index, far in enumerate(added):
                        sums[axis][index] += min(far, 2**50) * 4096 // mean
                for key, far in distance.items():
                    kernels[key] += far * 4096 // mean
            low = high
    taps = range(height * width)
    return [ids[o, i, tap] for o in range(rows) for i in range(columns) for tap in taps]


def factor(symbol: int, level: int, place: int, rule: dict[str, int], values: list[int]) -> int:
    if symbol == len(values) - 1:
        return 2**30
    scale = ex(max(4 * (level + rule["offset"]) + 2, 0)) + ex(4 * rule["floor"])
    centre = place * ex(4 * level + 2) // 2
    far = min(1024 * abs(values[symbol] - centre) // scale, 2**20)
    freedom = 2 ** (rule["tail"] + 2) - 1
    result = freedom * 2**50 // (freedom * 2**20 + far**2)
    for _ in range(rule["tail"] + 1):
        result = result**2 // 2**30
    return result


NEXT = ((0, 1), (2, 3), (5, 4), (7, 6), (1, 0), (3, 2), (4, 5), (6, 7))


class Stream:
    """The stream of one tensor in version 2."""

    def __init__(self, words: list[int], size: int) -> None:
        self.words, self.count = words, 4 if size >= 2**17 else 1
        heads = [self.words.pop(0) for _ in range(2 * self.count)]
        self.states = [high << 32 | low for high, low in zip(heads[::2], heads[1::2], strict=True)]
        self.words.reverse()
        self.number = 0

    def read(self, starts: list[int]) -> int:
        which = self.number % self.count
        self.number += 1
        state = self.states[which]
        quantile = state % 2**24
        j = bisect.bisect_right(starts, quantile) - 1
        state = (state >> 24) * (starts[j + 1] - starts[j]) + quantile - starts[j]
        if state < 2**32 and self.words:
            state = state << 32 | self.words.pop()
        self.states[which] = state
        return j


def read_streams(data: bytes, tables: list[Table], shapes: list[list[int]], means: list[float]) -> list[list[int]]:
    """The ids of version 2."""
    maps = []
    for table, shape in zip(tables, shapes, strict=True):
        size = math.prod(shape)
        if len(table[0]) == 1:
            maps.append(list(table[0]) * size)
            continue
        length, data = read_length(data)
        stream = Stream(list(struct.unpack(f"<{length}I", data[: 4 * length])), size)
        data = data[4 * length :]
        maps.append(read_lanes(stream, table, shape, whole(means)))
        assert stream.states == [0 if stream.count == 1 else 2**32] * stream.count
        assert not stream.words
    assert not data
    return maps


def single(x: float) -> float:
    """Rounded to float32."""
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def fine_lg(x: float) -> int:
    fraction, exponent = math.frexp(x)
    return 16 * (exponent - 1) + int(32 * fraction) - 16


def fine_ex(level: int) -> float:
    level = min(max(level, 0), 512)
    return math.ldexp(16 + level % 16, level // 16 - 4)


def folded(numbers: list[float]) -> float:
    """Sum of float32 numbers, padded to 16."""
    numbers = numbers + [0.0] * (16 - len(numbers))
    while len(numbers) > 1:
        half = len(numbers) // 2
        numbers = [single(a + b) for a, b in zip(numbers[:half], numbers[half:], strict=True)]
    return numbers[0]


def read_lanes(stream: Stream, table: Table, shape: list[int], values: list[int]) -> list[int]:
    levels, rule, trellis = table
    (rows, columns), (height, width), escape = shape[:2], kernel(shape), len(values) - 1
    taps = height * width
    ids = [[0] * (columns * taps) for _ in range(rows)]
    known: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}

    def model(level: int, place: int, parity: int) -> tuple[list[int], list[int]]:
        if (level, place, parity) not in known:
            symbols = [k for k in levels if not trellis or k == escape or k % 2 == parity]
            shares = None if rule is None else [factor(k, level, place, rule, values) for k in symbols]
            row = table_frequencies([levels[k] for k in symbols], shares)
            known[level, place, parity] = symbols, np.cumsum([0, *row]).tolist()
        return known[level, place, parity]

    start = ex(4 * rule["start"]) if rule else 0
    total, count = [32.0 * start] + [0.0] * (taps - 1), [32] + [0] * (taps - 1)
    column_sum, column_usual = [single(4.0 * start)] * columns, [single(4.0 * start)] * columns
    for first in range(0, rows, 16):
        lanes = range(min(16, rows - first))
        states = [0 for _ in lanes]
        row_usual = single(4 * max(1.0, total[0] / count[0])) if rule else 0.0
        row_sum = [row_usual for _ in lanes]
        for column in range(columns):
            kernel_sum, kernel_usual = [0.0 for _ in lanes], [0.0 for _ in lanes]
            read: list[list[int]] = []
            for tap in range(taps):
                y, x = divmod(tap, width)
                parities = [state % 2 if trellis else 0 for state in states]
                places, expected = [(0, 0) for _ in lanes], [0 for _ in lanes]
                if rule is not None:
                    if not count[tap]:
                        total[tap], count[tap] = 32 * (total[tap - 1] / count[tap - 1]), 32
                    mean = fine_lg(single(max(1.0, total[tap] / count[tap])))
                    in_row = [mean + fine_lg(a) - fine_lg(row_usual) for a in row_sum]
                    own = fine_lg(column_sum[column]) - fine_lg(column_usual[column]) if columns > 1 else 0
                    usual = [fine_ex(level + own) for level in in_row]
                    for o in lanes:
                        level = in_row[o] + own
                        if taps > 1:
                            high, low = (single(16 * usual[o] + s[o]) for s in (kernel_sum, kernel_usual))
                            level = min(max(level, 0), 512) + fine_lg(high) - fine_lg(low)
                        level = min(max(level, 0) // 4, 111)
                        if tap:
                            left = rule["left"] * read[tap - 1][o] if x else 0
                            above = rule["above"] * read[tap - width][o] if y else 0
                            corner = rule["corner"] * read[tap - width - 1][o] if x and y else 0
                            expected[o] = (left + above + corner) // 16
                        halves = single(single(expected[o]) * single(2 / ex(4 * level + 2)))
                        place = int(min(max(single(halves + 8.5), 0.0), 16.0)) - 8
                        places[o] = (level, place)
                found = []
                for o in lanes:
                    symbols, starts = model(*places[o], parities[o])
                    found.append(symbols[stream.read(starts)])
                    ids[first + o][column * taps + tap] = found[o]
                    states[o] = NEXT[states[o]][0 if found[o] == escape else found[o] // 2 % 2]
                if rule is None:
                    continue
                read.append([values[k] for k in found])
                far = [single(abs(values[k] - p)) for k, p in zip(found, expected, strict=True)]
                for o in lanes:
                    kernel_sum[o] = single(kernel_sum[o] + far[o])
                    kernel_usual[o] = single(kernel_usual[o] + usual[o])
                    row_sum[o] = single(row_sum[o] + far[o])
                added = folded(far)
                column_sum[column] = single(column_sum[column] + added)
                rows_usual = folded([fine_ex(level) for level in in_row])
                column_usual[column] = single(column_usual[column] + rows_usual)
                row_usual = single(row_usual + fine_ex(mean + own))
                total[tap], count[tap] = total[tap] + added, count[tap] + len(lanes)
    return [k for row in ids for k in row]


def read_vector(bits: Bits, size: int, last: list[int]) -> tuple[int, float, list[int]]:
    """Mode, step and codes (or bit patterns) of a vector; `last` is that of the role."""
    mode = bits.u(2)
    if mode == 2:
        width = bits.u(7)
        return mode, 0.0, [bits.u(width) for _ in range(size)]
    for index, order in enumerate((0, 0, 2)):
        last[index] += bits.zz(order)
    half_octaves, order, centre = last
    codes = [0] * size
    if order:
        quotients = [bits.quotient() for _ in range(size)]
        rests = [quotient * 2 ** (order - 1) + bits.u(order - 1) for quotient in quotients]
        codes = [rest // 2 if rest % 2 == 0 else -(rest + 1) // 2 for rest in rests]
    root = 1.0 if half_octaves % 2 == 0 else 1.4142135623730951
    step = math.ldexp(root, half_octaves // 2) if half_octaves < 2048 else sys.float_info.max
    return mode, step, [centre * 2 ** max(order - 3, 0) + code for code in codes]


def read_vectors(data: bytes, names: list[str], sizes: list[int]) -> dict[str, tuple[bool, list[Any]]]:
    """For each vector whether the values are bit patterns, and the values."""
    bits = Bits(data)
    roles: dict[str, list[int]] = {}
    vectors = {}
    for name, size in zip(names, sizes, strict=True):
        vectors[name] = read_vector(bits, size, roles.setdefault(name.split(".")[-1], [-16, 3, 0]))
    values: dict[str, tuple[bool, list[Any]]] = {}
    for name, (mode, step, codes) in sorted(vectors.items(), key=lambda item: item[1][0] == 3):
        products = [float(code) * step for code in codes]
        if mode == 3:
            _, variances = values[".".join([*name.split(".")[:-1], "running_var"])]
            largest = [min(v, sys.float_info.max) for v in variances]
            products = [product * math.sqrt(v) for product, v in zip(products, largest, strict=True)]
        values[name] = (True, codes) if mode == 2 else (False, np.exp2(products).tolist() if mode == 1 else products)
    return values


def rounded(values: list[float], dtype: str) -> np.ndarray:
    """Bit patterns of float64 values at a dtype, at most its largest finite number."""
    double = np.clip(np.array(values, dtype=np.float64), -LARGEST[dtype], LARGEST[dtype])
    if dtype == "float64":
        return double.view(np.uint64)
    single = double.astype(np.float32)
    if dtype == "float16":
        return single.astype(np.float16).view(np.uint16)
    if dtype == "float32":
        return single.view(np.uint32)
    bits = single.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def decode(data: bytes) -> dict[str, Any]:
    """What `decode_members` gives for a file of one network."""
    (network,) = decode_members(data)
    return network


def decode_members(data: bytes) -> list[dict[str, Any]]:
    """Ids and dense weights (floating ones as bit patterns, raw ones as bytes) of each network of a file."""
    networks, first = [], b""
    for version, part in read_container(data):
        sections = read_sections(version, part)
        text = manifest_text(sections["manifest"], first)
        networks.append(decode_network(version, sections, read_manifest(text)))
        first = first or text
    return networks


def decode_network(version: int, sections: dict[str, bytes], manifest: dict[str, Any]) -> dict[str, Any]:
    """Ids and dense weights of one network."""
    names, shapes, dtypes, kinds = (manifest[key] for key in ("names", "shapes", "dtypes", "kinds"))
    places = {letter: [i for i, kind in enumerate(kinds) if kind == letter] for letter in "surt"}
    bank = read_bank(sections["bank"], len(places["s"]))
    table_part, id_part = read_part(sections["maps"])
    shared = [shapes[i] for i in places["s"]]
    tables = read_tables(table_part, shared, version)
    maps = (read_ids if version == 1 else read_streams)(id_part, tables, shared, bank["means"])
    dense: dict[str, Any] = {}
    outliers, position, escape = sections["outliers"], 0, len(bank["means"])
    for t, i in enumerate(places["s"]):
        weights = rounded([mean * bank["scales"][t] for mean in bank["means"]] + [0.0], dtypes[i])[maps[t]]
        width = WIDTHS[dtypes[i]]
        for place in [place for place, symbol in enumerate(maps[t]) if symbol == escape]:
            weights[place] = int.from_bytes(outliers[position : position + width], "little")
            position += width
        dense[names[i]] = weights.reshape(shapes[i])
    assert position == len(outliers)
    vector_part, raw_part = read_part(sections["values"])
    vectors = read_vectors(vector_part, [names[i] for i in places["u"]], [math.prod(shapes[i]) for i in places["u"]])
    for i in places["u"]:
        exact, values = vectors[names[i]]
        pattern = np.array(values, dtype=f"u{WIDTHS[dtypes[i]]}") if exact else rounded(values, dtypes[i])
        dense[names[i]] = pattern.reshape(shapes[i])
    raw = zlib.decompressobj(-15).decompress(raw_part)
    for i in places["r"]:
        size = math.prod(shapes[i]) * RAW_WIDTHS[dtypes[i]]
        dense[names[i]], raw = raw[:size], raw[size:]
    assert not raw
    for i in places["t"]:
        dense[names[i]] = dense[manifest["ties"][names[i]]]
    ids = {names[i]: part for i, part in zip(places["s"], maps, strict=True)}
    return {
        "ids": ids,
        "dense": {name: dense[name] for name in names},
        "bank": bank,
        "noise": manifest["noise"],
        "version": version,
        "by_context": {names[i] for i, (_, rule, _) in zip(places["s"], tables, strict=True) if rule},
    }
