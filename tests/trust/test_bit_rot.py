"""Twenty thousand single-bit flips: every one is noticed, and the message names the place."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from reader import NAMES, corpus

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.container import SECTIONS
from gbnn_compress.format.ensembles import read_ensemble

FLIPS = 5_000

NAMED = re.compile("|".join([*(f"the checksum of `{name}` is wrong" for name in SECTIONS), "header"]))


@pytest.mark.long
@pytest.mark.parametrize("data", corpus(), ids=NAMES)
def test_every_flipped_bit_is_noticed_and_its_place_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "flipped.gbnn.safetensors"
    places = random.Random(0).sample(range(8 * len(data)), FLIPS)
    # Written in place: a file that is made anew each time takes longer than the reading.
    with path.open("wb", buffering=0) as file:
        file.write(data)
        for place in places:
            byte, bit = divmod(place, 8)
            file.seek(byte)
            file.write(bytes([data[byte] ^ 1 << bit]))
            with pytest.raises(ArtifactError) as caught:
                read_ensemble(path)
            assert NAMED.search(str(caught.value)), (byte, bit, str(caught.value))
            file.seek(byte)
            file.write(data[byte : byte + 1])
    read_ensemble(path)
