"""Several networks in one file: what goes in comes out, no byte too many, and damage is named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from ensemble_files import artifact, narrow, three

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format import container
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.format.ensembles import Member, joined, members_of, read_ensemble

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[Path]:
    return three(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def members(files: list[Path]) -> list[Member]:
    return [member for path in files for member in members_of(path)]


@pytest.fixture(scope="module")
def ensemble(files: list[Path], members: list[Member]) -> Path:
    path = files[0].with_name("ensemble.gbnn.safetensors")
    path.write_bytes(joined(members))
    return path


def refusal(path: Path, data: bytes) -> str:
    """The one line with which bytes are refused."""
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        read_ensemble(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def header_of(data: bytes) -> dict[str, object]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_header(data: bytes, **changes: object) -> bytes:
    """The same tensors under a header with other entries; those of None are left out."""
    length = int.from_bytes(data[:8], "little")
    header = {key: value for key, value in {**header_of(data), **changes}.items() if value is not None}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.long
def test_each_member_is_the_network_of_its_file(files: list[Path], ensemble: Path) -> None:
    found = read_ensemble(ensemble)
    for member, path in zip(found.members, files, strict=True):
        alone = read_artifact(path)
        assert member.tensors == alone.tensors
        assert member.facts == alone.facts
        for mine, its in zip(member.maps, alone.maps, strict=True):
            np.testing.assert_array_equal(mine.ids, its.ids)
            np.testing.assert_array_equal(mine.outliers, its.outliers)


def test_bytes_add_up(ensemble: Path) -> None:
    found, data = read_ensemble(ensemble), ensemble.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert found.size_bytes == len(data) == header + sum(member.size_bytes for member in found.members)
    assert all(sum(member.sections.values()) == member.size_bytes for member in found.members)
    assert header % 8 == 0


def test_the_header_names_versions_and_tensors_in_order(ensemble: Path) -> None:
    header = header_of(ensemble.read_bytes())
    versions = ",".join(str(member.contents.version) for member in members_of(ensemble))
    assert header["__metadata__"] == {"gbnn-compress": "2", "members": versions}
    assert list(header)[1:] == ["data.0", "data.1", "data.2"]


def test_joining_copies_sections(members: list[Member], ensemble: Path) -> None:
    again = members_of(ensemble)
    assert [member.parts for member in again] == [member.parts for member in members]
    assert joined(again) == ensemble.read_bytes()


def test_a_file_of_one_network_is_an_ensemble_of_one(files: list[Path]) -> None:
    assert joined(members_of(files[0])) == files[0].read_bytes()
    found = read_ensemble(files[0])
    assert found.sha256 == found.members[0].sha256
    assert found.size_bytes == found.members[0].size_bytes == files[0].stat().st_size


@pytest.mark.long
def test_no_byte_beyond_the_parts(tmp_path: Path, files: list[Path], ensemble: Path) -> None:
    assert ensemble.stat().st_size <= sum(path.stat().st_size for path in files) + 1000
    alike = [artifact(tmp_path / f"{seed}", narrow(), seed=seed) for seed in range(4)]
    data = joined([member for path in alike for member in members_of(path)])
    assert len(data) < sum(path.stat().st_size for path in alike) - 300


def test_as_many_members_as_are_allowed(tmp_path: Path, members: list[Member]) -> None:
    path = tmp_path / "many.gbnn.safetensors"
    path.write_bytes(joined(members[:1] * 64))
    assert len(read_ensemble(path).members) == 64
    with pytest.raises(ArtifactError, match="2 to 64 networks, got 65"):
        joined(members[:1] * 65)


def test_a_damaged_member_is_named(tmp_path: Path, ensemble: Path) -> None:
    data = bytearray(ensemble.read_bytes())
    data[-1] ^= 1
    assert "`, member 2: the checksum of `" in refusal(tmp_path / "damaged", bytes(data))


def test_a_forged_member_is_named(tmp_path: Path, members: list[Member]) -> None:
    first, second, third = members
    forged = second._replace(text=second.text.replace(b'"noise":', b'"noisy":'))
    line = refusal(tmp_path / "forged", joined([first, forged, third]))
    assert "`, member 1: the network contradicts itself (KeyError: 'noise')" in line


@pytest.mark.parametrize(
    "metadata",
    [{"gbnn-compress": "2", "members": each} for each in ("", "1", "1,1", "1,1,3", "1,1,x", "1,1,1,", "1" + ",1" * 99)]
    + [{"gbnn-compress": "1", "members": "1,1,1"}],
)
def test_a_header_that_names_other_members_is_refused(tmp_path: Path, ensemble: Path, metadata: dict[str, str]) -> None:
    assert "header" in refusal(tmp_path / "x", with_header(ensemble.read_bytes(), __metadata__=metadata))


def test_members_in_another_order_of_bytes_are_refused(tmp_path: Path, ensemble: Path) -> None:
    data = ensemble.read_bytes()
    header = header_of(data)
    line = refusal(tmp_path / "x", with_header(data, **{"data.0": header["data.1"], "data.1": header["data.0"]}))
    assert "in this order" in line


def test_tensors_that_are_no_bytes_are_refused(tmp_path: Path, ensemble: Path) -> None:
    data = ensemble.read_bytes()
    changed = {**header_of(data)["data.0"], "dtype": "I8"}  # type: ignore[dict-item]
    assert "tensors of bytes" in refusal(tmp_path / "x", with_header(data, **{"data.0": changed}))


def test_limits_hold_for_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ensemble: Path) -> None:
    from gbnn_compress.format import checks

    held = checks.Held()
    for member in read_ensemble(ensemble).members:
        held = held.with_tensors(member.tensors, n_components=len(member.bank.means))
    values = held.values
    monkeypatch.setattr(checks, "VALUES_PER_BYTE", 0)
    monkeypatch.setattr(checks, "FREE_VALUES", values)
    read_ensemble(ensemble)
    monkeypatch.setattr(checks, "FREE_VALUES", values - 1)
    with pytest.raises(ArtifactError, match=r"member 2: .* too many for a network"):
        read_ensemble(ensemble)


def test_where_one_network_is_expected_an_ensemble_is_refused(ensemble: Path) -> None:
    with pytest.raises(ArtifactError, match="is an ensemble of 3 networks, expected a file of one"):
        read_artifact(ensemble)


def test_any_flipped_byte_is_noticed(tmp_path: Path, ensemble: Path) -> None:
    path, data = tmp_path / "flipped", ensemble.read_bytes()
    for place in random.Random(0).sample(range(len(data)), 300):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(ArtifactError):
            read_ensemble(path)


def test_packing_gives_the_same_bytes_every_time(members: list[Member]) -> None:
    packed = [({**each.contents.sections}, each.contents.version) for each in members]
    assert len({container.pack_members(packed) for _ in range(5)}) == 1
