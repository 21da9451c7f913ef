"""Version 0 of the file, to the byte: a recorded artifact decodes and encodes as it did."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from golden_network import ARTIFACT, EXPECTED, FACTS, MEAN_CODES, TENSORS, as_arrays, encoder_input

from gbnn_compress.format.artifact import encode_artifact, read_artifact
from gbnn_compress.format.container import unpack
from gbnn_compress.format.dictionary import DICTIONARY
from gbnn_compress.format.manifest import MOST_BYTES, inflate

if TYPE_CHECKING:
    from pathlib import Path


RECORDED_WITH = "1.2.13"


def parts(path: Path) -> dict[str, bytes]:
    """The sections of a file, the manifest decompressed."""
    sections = unpack(path).sections
    manifest = sections["manifest"]
    return {**sections, "manifest": manifest[:32] + inflate(manifest[32:], most=MOST_BYTES, dictionary=DICTIONARY)}


def test_recorded_file_decodes_to_the_recorded_weights() -> None:
    got = as_arrays(ARTIFACT)
    assert list(got) == [info.name for info in TENSORS]
    with np.load(EXPECTED) as expected:
        assert set(expected.files) == set(got)
        for name, array in got.items():
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_recorded_file_decodes_to_what_went_in() -> None:
    artifact, given = read_artifact(ARTIFACT), encoder_input()
    assert artifact.tensors == TENSORS
    assert artifact.facts == FACTS
    np.testing.assert_array_equal(artifact.bank.means * 16, MEAN_CODES)
    np.testing.assert_array_equal(artifact.bank.log_sigmas, given["bank"].log_sigmas)
    np.testing.assert_array_equal(artifact.scales, given["scales"])
    np.testing.assert_array_equal(artifact.relative_rmse, given["relative_rmse"])
    for got, expected in zip(artifact.maps, given["maps"], strict=True):
        np.testing.assert_array_equal(got.ids, expected.ids)
        np.testing.assert_array_equal(got.outliers, expected.outliers)
        assert got.outliers.dtype == expected.outliers.dtype
    assert list(artifact.raw.values()) == given["raw"]


def test_sections_add_up_to_the_file() -> None:
    artifact = read_artifact(ARTIFACT)
    assert artifact.size_bytes == ARTIFACT.stat().st_size
    assert sum(artifact.sections.values()) == artifact.size_bytes
    assert artifact.size_bytes < 4000


def test_encoding_gives_the_recorded_sections(tmp_path: Path) -> None:
    path = tmp_path / "again.gbnn.safetensors"
    path.write_bytes(encode_artifact(**encoder_input()))
    assert parts(path) == parts(ARTIFACT)


@pytest.mark.skipif(zlib.ZLIB_RUNTIME_VERSION != RECORDED_WITH, reason="zlib may compress the manifest otherwise")
def test_encoding_gives_the_recorded_bytes() -> None:
    assert {encode_artifact(**encoder_input()) for _ in range(30)} == {ARTIFACT.read_bytes()}
