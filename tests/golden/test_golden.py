"""Each version of the file, to the byte: a recorded artifact decodes and encodes as it did."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from golden_network import (
    ARTIFACT,
    ARTIFACT_2,
    ENSEMBLE,
    ENSEMBLE_OF,
    EXPECTED,
    EXPECTED_2,
    FACTS,
    MEAN_CODES,
    TENSORS,
    as_arrays,
    encoder_input,
    encoder_input_2,
)

from gbnn_compress.compiled import SWITCH
from gbnn_compress.format.artifact import encode_artifact, read_artifact
from gbnn_compress.format.container import unpack
from gbnn_compress.format.dictionary import DICTIONARY
from gbnn_compress.format.ensembles import joined, members_of, read_ensemble
from gbnn_compress.format.manifest import MOST_BYTES, inflate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[], dict[str, Any]]


RECORDED_WITH = "1.2.13"

VERSIONS = pytest.mark.parametrize(
    ("artifact_path", "expected_path", "make"),
    [(ARTIFACT, EXPECTED, encoder_input), (ARTIFACT_2, EXPECTED_2, encoder_input_2)],
    ids=["1", "2"],
)


def parts(path: Path) -> dict[str, bytes]:
    """The sections of a file, the manifest decompressed."""
    sections = unpack(path).sections
    manifest = sections["manifest"]
    return {**sections, "manifest": manifest[:32] + inflate(manifest[32:], most=MOST_BYTES, dictionary=DICTIONARY)}


@VERSIONS
def test_recorded_file_decodes_to_the_recorded_weights(artifact_path: Path, expected_path: Path, make: Make) -> None:
    got = as_arrays(read_artifact(artifact_path))
    assert list(got) == [info.name for info in TENSORS]
    with np.load(expected_path) as expected:
        assert set(expected.files) == set(got)
        for name, array in got.items():
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


@VERSIONS
def test_recorded_file_decodes_to_what_went_in(artifact_path: Path, expected_path: Path, make: Make) -> None:
    artifact, given = read_artifact(artifact_path), make()
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
        assert got.trellis == expected.trellis
    assert list(artifact.raw.values()) == given["raw"]


@VERSIONS
def test_sections_add_up_to_the_file(artifact_path: Path, expected_path: Path, make: Make) -> None:
    artifact = read_artifact(artifact_path)
    assert artifact.size_bytes == artifact_path.stat().st_size
    assert sum(artifact.sections.values()) == artifact.size_bytes
    assert artifact.size_bytes < 4000


@VERSIONS
def test_encoding_gives_the_recorded_sections(
    tmp_path: Path, artifact_path: Path, expected_path: Path, make: Make
) -> None:
    path = tmp_path / "again.gbnn.safetensors"
    path.write_bytes(encode_artifact(**make()))
    assert unpack(path).version == unpack(artifact_path).version
    assert parts(path) == parts(artifact_path)


@VERSIONS
@pytest.mark.skipif(zlib.ZLIB_RUNTIME_VERSION != RECORDED_WITH, reason="zlib may compress the manifest otherwise")
def test_encoding_gives_the_recorded_bytes(artifact_path: Path, expected_path: Path, make: Make) -> None:
    assert {encode_artifact(**make()) for _ in range(10)} == {artifact_path.read_bytes()}


def test_recorded_ensemble_decodes_to_the_recorded_weights() -> None:
    ensemble = read_ensemble(ENSEMBLE)
    assert ensemble.size_bytes == ENSEMBLE.stat().st_size
    for member, path in zip(ensemble.members, ENSEMBLE_OF, strict=True):
        assert sum(member.sections.values()) == member.size_bytes
        assert member.facts == FACTS
        got = as_arrays(member)
        with np.load(EXPECTED if path == ARTIFACT else EXPECTED_2) as expected:
            for name, array in got.items():
                np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.skipif(zlib.ZLIB_RUNTIME_VERSION != RECORDED_WITH, reason="zlib may compress the manifest otherwise")
def test_joining_gives_the_recorded_ensemble() -> None:
    assert joined([members_of(path)[0] for path in ENSEMBLE_OF]) == ENSEMBLE.read_bytes()
    assert joined(members_of(ENSEMBLE)) == ENSEMBLE.read_bytes()


@pytest.mark.parametrize("switch", ["0", "1"])
def test_version_2_decodes_alike_compiled_or_not(monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.setenv(SWITCH, switch)
    assert encode_artifact(**encoder_input_2()) == ARTIFACT_2.read_bytes()
    assert [m.trellis for m in read_artifact(ARTIFACT_2).maps] == [True, True, False, False, True]
