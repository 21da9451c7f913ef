"""Bad input is one line and leaves nothing behind; odd input works."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gbnn_compress import compress, decompress, diff, evaluate, export_onnx, load, plan
from gbnn_compress.errors import CheckpointError, GbnnError, OutputError
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict.rebuild import rebuild


def network(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two layers and a batch norm, 13 thousand weights."""
    random = np.random.RandomState(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.from_numpy(0.05 * random.normal(size=shape)).float()

    return {
        "conv.weight": tensor(32, 16, 3, 3),
        "bn.weight": torch.ones(32),
        "bn.bias": tensor(32),
        "bn.running_mean": tensor(32),
        "bn.running_var": tensor(32).abs() + 1,
        "fc.weight": tensor(32, 256),
        "fc.bias": tensor(32),
    }


def saved(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / "net.safetensors"
    save_file(tensors, path)
    return path


def refusal(path: Path, error: type[GbnnError] = CheckpointError, **options: Any) -> str:
    """The one line with which a checkpoint is refused; nothing is written, and planning says the same."""
    output = path.parent / "out.gbnn.safetensors"
    before = contents(path.parent)
    with pytest.raises(error) as caught:
        compress(path, **{"target_ratio": 4, "output": output, **options})
    line = str(caught.value)
    assert "\n" not in line
    assert contents(path.parent) == before
    if not options:
        with pytest.raises(error) as planned:
            plan(path)
        assert str(planned.value) == line
    return line


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder"
        for file in folder.rglob("*")
    }


def round_trip(folder: Path, tensors: dict[str, torch.Tensor], **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The report, and the dense weights that come out of `decompress`."""
    path, output = saved(folder, tensors), folder / "out.gbnn.safetensors"
    report = compress(path, **{"target_ratio": 4, "output": output, **options})
    decompress(output, folder / "dense.safetensors")
    dense = load_file(folder / "dense.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in dense.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }
    return report, dense


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def test_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "net.pth")


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    assert "is a folder without model.safetensors" in refusal(tmp_path / "net")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / name)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["net.pth", "old.pth", "net.safetensors"])
def test_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if name == "net.safetensors":
        save_file(network(), path)
    else:
        torch.save(network(), path, _use_new_zipfile_serialization=name == "net.pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert f"`{path}`" in refusal(path)


class Trap:
    """Makes a folder where it is unpickled carelessly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickle_that_needs_code(tmp_path: Path, writer: Any) -> None:
    path = tmp_path / "net.pth"
    writer({**network(), "trap": Trap(tmp_path / "sprung")}, path)
    refusal(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("tensors", [{"bias": torch.ones(9)}, {"ids": torch.ones(3, 3, dtype=torch.int32)}])
def test_nothing_to_share(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    assert "has no tensor to share" in refusal(saved(tmp_path, tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["fc.weight", "fc.bias", "bn.running_var"])
def test_weights_that_are_not_finite_are_named_and_counted(tmp_path: Path, name: str, value: float) -> None:
    tensors = network()
    tensors[name].view(-1)[[1, 5, 7]] = value
    line = refusal(saved(tmp_path, tensors))
    assert f"tensor `{name}`: expected finite values, got 3 NaN or Inf among {tensors[name].numel()} values" in line


@pytest.mark.parametrize("ratio", [0.5, 0, -3, float("nan"), float("inf")])
def test_target_below_one(tmp_path: Path, ratio: float) -> None:
    line = refusal(saved(tmp_path, network()), GbnnError, target_ratio=ratio)
    assert "`--target-ratio`: expected a number of at least 1" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_ratio": None}, "give either `--target-ratio`"),
        ({"max_drop": 1.0}, "give either `--target-ratio`"),
        ({"target_ratio": None, "max_drop": 0.0}, "`--max-drop`: expected accuracy points"),
        ({"target_ratio": None, "max_drop": 101.0}, "`--max-drop`: expected accuracy points"),
        ({"ratio_of": "file"}, "`--ratio-of`: expected `artifact` or `parameters`, got `file`"),
        ({"recipe": "defalt"}, "unknown recipe `defalt`"),
        ({"settings": {"nosie": 1}}, "unknown key `nosie`"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in refusal(saved(tmp_path, network()), GbnnError, **options)


@pytest.mark.long
@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_bad_seeds(tmp_path: Path, seed: int) -> None:
    path = saved(tmp_path, network())
    assert refusal(path, GbnnError, seed=seed).startswith("`--seed`: expected a whole number from 0 to 4294967295, got")
    artifact = tmp_path / "net.gbnn.safetensors"
    compress(path, target_ratio=4, output=artifact)
    for action in (
        lambda: decompress(artifact, tmp_path / "dense.safetensors", seed=seed),
        lambda: load(artifact).state_dict(seed=seed),
        lambda: load(artifact).predict(torch.zeros(1, 16, 4, 4), seed=seed),
        lambda: evaluate(artifact, "digits", seed=seed),
        lambda: diff(path, artifact, seed=seed),
        lambda: export_onnx(artifact, tmp_path / "net.onnx", seed=seed),
    ):
        with pytest.raises(GbnnError, match=r"expected a whole number from 0 to 4294967295, got"):
            action()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["net.gbnn.safetensors", "net.safetensors"]


def test_a_recipe_with_epochs_wants_data(tmp_path: Path) -> None:
    line = refusal(saved(tmp_path, network()), GbnnError, settings={"epochs": 3})
    assert line == "the recipe's `epochs: 3`: training needs data; give `--data`"


def test_a_plan_needs_no_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = saved(tmp_path, network()), tmp_path / "there"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert plan(path, ratios=[8.0])["rates"][0]["target_ratio"] == 8.0


@pytest.mark.parametrize("ratios", [(), (0.5, 8)])
def test_a_plan_needs_ratios(tmp_path: Path, ratios: tuple[float, ...]) -> None:
    with pytest.raises(GbnnError, match="`ratios`: expected numbers of at least 1, got"):
        plan(saved(tmp_path, network()), ratios=ratios)


def test_output_folder_missing(tmp_path: Path) -> None:
    output = tmp_path / "no" / "out.gbnn.safetensors"
    assert "does not exist" in refusal(saved(tmp_path, network()), OutputError, output=output)


def test_output_that_is_a_folder(tmp_path: Path) -> None:
    assert "is a directory" in refusal(saved(tmp_path, network()), OutputError, output=tmp_path)


@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to])
def test_output_over_the_input(tmp_path: Path, link: Any) -> None:
    path = output = saved(tmp_path, network())
    if link is not None:
        output = tmp_path / "link.safetensors"
        link(output, path)
    assert "it is the checkpoint itself" in refusal(path, OutputError, output=output)


@pytest.mark.long
def test_nothing_is_left_when_the_written_file_does_not_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OutputError("the disk lies")

    monkeypatch.setattr("gbnn_compress.target.write.read_artifact", broken)
    assert refusal(saved(tmp_path, network()), OutputError, seed=0) == "the disk lies"


def test_unreachable_target_is_missed_by_a_file_that_decodes(tmp_path: Path) -> None:
    report, dense = round_trip(tmp_path, network(), target_ratio=10_000)
    assert report["target_met"] is False
    assert 1 < report["ratio"] < 10_000
    assert all(bool(tensor.isfinite().all()) for tensor in dense.values())


@pytest.mark.long
def test_tensors_of_other_dtypes_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = network() | {
        "complex": torch.randn(3, 4, dtype=torch.complex64),
        "long": torch.arange(-5, 5).reshape(2, 5),
        "bytes": torch.arange(256).to(torch.uint8),
        "mask": torch.tensor([True, False, True]),
        "eighth": torch.randn(4, 8).to(torch.float8_e4m3fn),
        "other_eighth": torch.randn(5).to(torch.float8_e5m2),
        "nothing": torch.empty(0, 3),
    }
    _, dense = round_trip(tmp_path, tensors, target_ratio=2)
    for name in ("complex", "long", "bytes", "mask", "eighth", "other_eighth", "nothing"):
        assert torch.equal(*(each[name].reshape(-1).view(torch.uint8) for each in (dense, tensors))), name


@pytest.mark.long
def test_values_whose_squares_overflow_are_kept_exactly(tmp_path: Path) -> None:
    large = torch.randn(300, dtype=torch.float64) * 1e299
    _, dense = round_trip(tmp_path, network() | {"large.bias": large})
    assert torch.equal(dense["large.bias"], large)


@pytest.mark.long
def test_a_dtype_that_safetensors_lacks(tmp_path: Path) -> None:
    wide = torch.randn(3, 4, dtype=torch.complex128)
    torch.save(network() | {"wide": wide}, tmp_path / "n.pth")
    artifact = tmp_path / "n.gbnn.safetensors"
    compress(tmp_path / "n.pth", target_ratio=2, output=artifact)
    with pytest.raises(GbnnError, match=r"`wide` has the dtype complex128, which safetensors lacks; use `gbnn_comp"):
        decompress(artifact, tmp_path / "dense.safetensors")
    assert not (tmp_path / "dense.safetensors").exists()
    assert torch.equal(load(artifact).state_dict()["wide"], wide)


@pytest.mark.long
@pytest.mark.parametrize("value", [0.0, 0.3, -2e-40, 5e37])
def test_constant_tensors(tmp_path: Path, value: float) -> None:
    tensors = network() | {"constant.weight": torch.full((20, 30), value)}
    report, dense = round_trip(tmp_path, tensors)
    assert report["target_met"]
    constant = dense["constant.weight"]
    assert len(constant.unique()) == 1
    np.testing.assert_allclose(constant.double().numpy(), float(tensors["constant.weight"][0, 0]), rtol=0.05)


def test_a_network_of_one_constant_tensor(tmp_path: Path) -> None:
    report, dense = round_trip(tmp_path, {"w": torch.full((100, 100), 0.3)})
    assert report["weights"]["outliers"] == 0  # which would be the same weights
    np.testing.assert_allclose(dense["w"].numpy(), 0.3, rtol=0.05)


@pytest.mark.long
@pytest.mark.parametrize("value", [0.0, -0.7, 1e-38, 1e30])
def test_tensors_of_one_element(tmp_path: Path, value: float) -> None:
    tensors = network() | {"one.weight": torch.full((1, 1), value), "scalar": torch.tensor(value)}
    _, dense = round_trip(tmp_path, tensors)
    for name in ("one.weight", "scalar"):
        np.testing.assert_allclose(dense[name].numpy(), tensors[name].numpy(), rtol=0.05)


def test_tensors_kept_bit_for_bit_that_leave_no_room_are_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(0, 1 << 30, (64, 64)))
    tensors = {"w": torch.from_numpy(random.normal(size=(64, 64)).astype(np.float32)), "ids": ids}
    report, _ = round_trip(tmp_path, tensors)
    [missed] = [line for line in report["warnings"] if line.startswith("target missed")]
    assert re.search(
        r"; biases, norms and tensors kept bit for bit take \d+\.\d kB, the target allows 4\.1 kB for the whole file;",
        missed,
    )


def test_a_network_of_one_weight(tmp_path: Path) -> None:
    report, dense = round_trip(tmp_path, {"w": torch.full((1, 1), 0.3)})
    assert report["target_met"] is False
    assert bool(dense["w"].isfinite().all())


@pytest.mark.long
@pytest.mark.parametrize("name", ["conv.weight", "fc.weight"])
def test_a_huge_weight_is_restored_exactly_and_harms_no_other(tmp_path: Path, name: str) -> None:
    tensors = network()
    tensors[name].view(-1)[77] = 1e30
    report, dense = round_trip(tmp_path, tensors)
    assert report["target_met"]
    assert float(dense[name].view(-1)[77]) == float(tensors[name].view(-1)[77])
    for each in ("conv.weight", "fc.weight"):
        others = torch.arange(tensors[each].numel()) != (77 if each == name else -1)
        assert relative_error(dense[each].view(-1)[others], tensors[each].view(-1)[others]) < 0.03, each


@pytest.mark.long
@pytest.mark.parametrize("factor", [1e-320, 1e-160, 1e160])
def test_tensors_whose_squares_do_not_fit(tmp_path: Path, factor: float) -> None:
    tensors = network() | {"fc.weight": network()["fc.weight"].double() * factor}
    report, dense = round_trip(tmp_path, tensors)
    assert report["target_met"]
    # Denormals have few bits of their own.
    limit = 0.2 if factor == 1e-320 else 0.03
    ratio = torch.from_numpy(np.array(1.0 / max(factor, 1e-307)))
    assert relative_error(dense["fc.weight"] * ratio, tensors["fc.weight"] * ratio) < limit
    assert relative_error(dense["conv.weight"], tensors["conv.weight"]) < 0.03


@pytest.mark.long
def test_the_checkpoint_is_only_read(tmp_path: Path) -> None:
    path = saved(tmp_path, network())
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    compress(path, target_ratio=4, output=tmp_path / "out.gbnn.safetensors")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    rebuild(read_artifact(tmp_path / "out.gbnn.safetensors"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.safetensors", "out.gbnn.safetensors"]
