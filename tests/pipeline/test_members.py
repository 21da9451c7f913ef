"""`members`: several networks trained from one checkpoint into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import Stop, digits_options, stopped_at

from gbnn_compress import compress, load
from gbnn_compress.errors import GbnnError
from gbnn_compress.format.ensembles import members_of
from gbnn_compress.pipeline.members import member_request
from gbnn_compress.pipeline.request import Request

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread", "training_is_kept", "fewer_stages")]

MODELS = """
from torch import nn

def tiny():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A network with batch norm, and 160 digits."""
    given = digits_options(tmp_path_factory.mktemp("tiny"), MODELS, n_validation=40) | {"epochs": 1}
    return {**given, "settings": {**given["settings"], "finetune.fold_temperature": False}}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], training_is_kept: None, fewer_stages: None
) -> tuple[Any, Path, list[str]]:
    """The report on three members, their file, and the lines of progress."""
    path, lines = tmp_path_factory.mktemp("made") / "net.gbnn.safetensors", list[str]()
    report = compress(
        **options,
        target_ratio=2,
        members=3,
        seed=5,
        output=path,
        eval_data=options["val_data"],
        samples=2,
        html=path.with_name("page.html"),
        progress=lines.append,
    )
    return report, path, lines


def test_the_target_is_the_checkpoint_over_the_whole_file(made: tuple[Any, Path, list[str]]) -> None:
    report, path, _ = made
    floating = 4 * (8 * 9 + 8 + 4 * 8 + 2880 + 10)
    assert report["members"][0]["floating_bytes"] == floating
    assert report["ratio_to_one"] == floating / path.stat().st_size
    assert 2 <= report["ratio_to_one"] <= 2 * 1.03
    assert report["target_met"]
    assert report["target_ratio"] == 2
    assert report["checkpoint"]["architecture_candidates"] == []
    assert report["artifact"]["path"] == str(path)


def test_members_differ_by_their_seeds(made: tuple[Any, Path, list[str]]) -> None:
    report, path, _ = made
    assert [member["seed"] for member in report["members"]] == [5, 6, 7]
    states = [member.state_dict()["4.weight"] for member in load(path).members]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    assert all(member["training"]["epochs"] == 1 for member in report["members"])
    assert all("last_epoch" in member["training"] for member in report["members"])


def test_the_first_member_is_what_a_single_run_makes(
    made: tuple[Any, Path, list[str]], tmp_path: Path, options: dict[str, Any]
) -> None:
    report, path, _ = made
    ratio = report["members"][0]["target_ratio"]
    compress(**options, target_ratio=ratio, seed=5, output=tmp_path / "net.gbnn.safetensors")
    (alone,) = members_of(tmp_path / "net.gbnn.safetensors")
    own = members_of(path)[0].contents.sections
    assert all(own[name] == section for name, section in alone.contents.sections.items() if name != "manifest")


@pytest.mark.parametrize(("given", "stored"), [(None, False), (False, False), (True, True)])
def test_members_have_a_temperature_only_if_it_is_asked_for(
    tmp_path: Path, options: dict[str, Any], given: bool | None, stored: bool
) -> None:
    settings = {**options["settings"], "finetune.fold_temperature": given}
    request = Request(
        **{**options, "settings": settings}, target_ratio=2, members=2, output=tmp_path / "net.gbnn.safetensors"
    )
    assert member_request(request, 1, ratio=4).configuration.finetune.fold_temperature is stored


def test_only_the_file_and_the_page_are_left(made: tuple[Any, Path, list[str]]) -> None:
    _, path, _ = made
    assert sorted(each.name for each in path.parent.iterdir()) == ["net.gbnn.safetensors", "page.html"]
    assert "3 networks in a file 2" in path.with_name("page.html").read_text()


def test_lines_name_the_member(made: tuple[Any, Path, list[str]]) -> None:
    lines = made[2]
    for number in range(3):
        assert any(line.startswith(f"member {number}: epoch 1/1") for line in lines)


def test_the_ensemble_is_evaluated(made: tuple[Any, Path, list[str]], options: dict[str, Any]) -> None:
    from gbnn_compress import evaluate

    report, path, _ = made
    found = evaluate(path, options["val_data"], arch=options["arch"], samples=2, seed=5)
    assert report["evaluation"]["after"]["nll"] == pytest.approx(found["nll"])
    assert report["evaluation"]["before"].keys() == report["evaluation"]["mean"].keys()


def test_a_stopped_run_goes_on_to_the_same_bytes(
    made: tuple[Any, Path, list[str]], tmp_path: Path, options: dict[str, Any]
) -> None:
    path, lines = tmp_path / "net.gbnn.safetensors", list[str]()
    run = {**options, "target_ratio": 2, "members": 3, "seed": 5, "output": path}

    def stop(line: str) -> None:
        if line.startswith("member 1: "):
            raise Stop

    with pytest.raises(Stop):
        compress(**run, progress=stop)
    assert not path.exists()
    assert tmp_path.joinpath("net.member0.gbnn.state.safetensors").exists()
    compress(**run, progress=lines.append)
    assert any(line.startswith("member 0: continuing after epoch 1") for line in lines)
    assert path.read_bytes() == made[1].read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_run_writes_the_members_so_far(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "net.gbnn.safetensors"
    with stopped_at(3, KeyboardInterrupt):
        report = compress(**options, target_ratio=2, members=3, output=path)
    assert len(report["members"]) == 1
    assert any(warning.startswith("member 0: training stopped") for warning in report["warnings"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"epochs": 0}, "`--members 3`: members differ by their training; give `--epochs` and `--data`, or join"),
        ({"epochs": 1, "data": None, "val_data": None}, "training needs data"),
        ({"members": 0}, "expected 1 to 64 networks, got 0"),
        ({"members": 65}, "expected 1 to 64 networks, got 65"),
        ({"members": "3"}, "`members`: expected a whole number"),
        ({"ratio_of": "parameters"}, "leave out `--ratio-of`"),
        ({"metric": len}, "measured on one network"),
        ({"seed": 2**32 - 2}, "--seed"),
    ],
)
def test_what_has_no_members_is_refused(options: dict[str, Any], changes: dict[str, Any], line: str) -> None:
    given = {**options, "target_ratio": 2, "members": 3, **changes}
    if changes.get("epochs") == 0:
        given["val_data"] = None
    with pytest.raises(GbnnError, match=line):
        compress(**given)


def test_a_plan_has_no_members(options: dict[str, Any]) -> None:
    from gbnn_compress import plan

    with pytest.raises(GbnnError, match="`plan` predicts single files"):
        plan(options["checkpoint"], target_ratio=2, members=3, epochs=1, data=options["data"])
