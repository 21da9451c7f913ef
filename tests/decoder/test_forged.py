"""Damaged and forged files: the decoder reads what the Python reader reads, refuses what it refuses, and never errs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from artifacts import checksum, ensemble, of_everything, python_reads, singles
from mutations import mutated
from native import Driver

from gbnn_compress.errors import GbnnError

FLIPS, FORGED, AGREED = 10_000, 8_000, 400

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def python_checksum(path: Path) -> int | None:
    """The checksum that the driver should print, or None if the Python reader refuses the file."""
    try:
        return checksum(python_reads(path))
    except GbnnError:
        return None


def test_the_corpus_is_read(driver: Driver, tmp_path: Path) -> None:
    for data in [*singles(), *(of_everything(version, with_last_bit=False) for version in (1, 2))]:
        (tmp_path / "net").write_bytes(data)
        assert driver.read(data) == (0, checksum(python_reads(tmp_path / "net")))


def test_every_flipped_bit_is_noticed(driver: Driver) -> None:
    files = [*singles(), ensemble(singles())]
    for data in files:
        for place in random.Random(0).sample(range(8 * len(data)), FLIPS // len(files)):
            flipped = bytearray(data)
            flipped[place // 8] ^= 1 << place % 8
            assert driver.read(bytes(flipped))[0] != 0, place


def test_forged_files_are_read_or_refused(driver: Driver) -> None:
    chance, files = random.Random(1), singles()
    codes = [driver.read(mutated(chance, chance.choice(files)))[0] for _ in range(FORGED)]
    assert 0 < codes.count(0) < FORGED / 2
    assert len(set(codes)) > 12


def test_forged_members_of_ensembles_are_read_or_refused(driver: Driver) -> None:
    chance, files, codes = random.Random(2), singles(), []
    for _ in range(FORGED // 20):
        members = [chance.choice(files) for _ in range(chance.choice((2, 2, 3)))]
        data = bytearray(ensemble(members))
        for _ in range(chance.choice((0, 1, 1, 3))):
            data[chance.randrange(chance.choice((300, len(data))))] = chance.randrange(256)
        codes.append(driver.read(bytes(data))[0])
    assert 0 < codes.count(0) < len(codes) / 2


def test_the_python_reader_agrees(driver: Driver, tmp_path: Path) -> None:
    chance, files = random.Random(3), singles()
    path = tmp_path / "net.gbnn.safetensors"
    for number in range(AGREED):
        data = mutated(chance, chance.choice(files))
        path.write_bytes(data)
        code, got = driver.read(data)
        expected = python_checksum(path)
        assert (code == 0) == (expected is not None), number
        assert code != 0 or got == expected, number


def test_headers_of_other_writers(driver: Driver, tmp_path: Path) -> None:
    """The header may have spaces, escapes and entries in any order, as the safetensors library allows."""
    data = singles()[0]
    size = int.from_bytes(data[:8], "little")
    body = data[8 + size :]
    chance = random.Random(4)
    letters = np.frombuffer(b' "\\{}[]:,0123456789abcU8nulltrue.-+eE\n\x00\xc3', np.uint8)
    path = tmp_path / "net.gbnn.safetensors"
    agreed = 0
    for number in range(AGREED):
        text = bytearray(data[8 : 8 + size])
        for _ in range(chance.choice((1, 1, 2))):
            place = chance.randrange(len(text))
            new = bytes(chance.choices(letters.tolist(), k=chance.choice((0, 1, 1, 3))))
            text[place : place + chance.choice((0, 1))] = new
        forged = len(text).to_bytes(8, "little") + bytes(text) + body
        path.write_bytes(forged)
        is_read = python_checksum(path) is not None
        assert (driver.read(forged)[0] == 0) == is_read, (number, bytes(text))
        agreed += is_read
    assert 0 < agreed < AGREED
