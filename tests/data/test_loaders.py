"""Data of any kind as batches: objects, files of arrays, and the user's own code."""

from __future__ import annotations

import random
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from gbnn_compress.data.datasets import Dataset as Images
from gbnn_compress.data.loaders import Batches, load_data
from gbnn_compress.errors import DataError

X = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(100)
PAIRS = TensorDataset(X, Y)


class Noisy(Dataset[tuple[torch.Tensor, int]]):
    """Single inputs with noise from all three global generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(2) + float(np.random.rand()) + random.random(), index


class Stream(IterableDataset[torch.Tensor]):
    """Single inputs in order."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(X)


class Again:
    """Batches that can be iterated again."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(X.split(40))


def batches() -> Iterator[torch.Tensor]:
    yield from X.split(40)


def opened(data: Any, **options: Any) -> Batches:
    found = load_data(data, **options)
    assert isinstance(found, Batches)
    return found


def inputs_of(data: Batches) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in data])


@pytest.mark.parametrize(
    ("data", "sizes", "spec"),
    [
        (DataLoader(PAIRS, batch_size=64), [64, 36], "DataLoader"),
        (DataLoader(PAIRS, batch_size=64, num_workers=1), [64, 36], "DataLoader"),
        (PAIRS, [32, 32, 32, 4], "TensorDataset"),
        (Stream(), [32, 32, 32, 4], "Stream"),
        (list(X.split(40)), [40, 40, 20], "list"),
        (Again(), [40, 40, 20], "Again"),
        (batches, [40, 40, 20], "batches"),
        (lambda: DataLoader(PAIRS, batch_size=64), [64, 36], "<lambda>"),
        (torch.cat([X, X]), [128, 72], "Tensor"),
        (torch.cat([X, X]).numpy(), [128, 72], "ndarray"),
    ],
)
def test_what_yields_batches(data: Any, sizes: list[int], spec: str) -> None:
    found = opened(data)
    assert found.spec == spec
    for _ in range(2):
        assert [batch.size for batch in found] == sizes
        assert torch.equal(inputs_of(found)[:100], X)
    assert found.n_inputs == sum(sizes)


def test_labels_are_integers_of_each_input() -> None:
    found = opened(PAIRS)
    assert found.has_targets
    assert found.has_labels
    np.testing.assert_array_equal(found.labels, np.arange(100))
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    for targets in (Y.float(), X.long(), torch.ones(100, dtype=torch.bool)):
        found = opened(TensorDataset(X, targets))
        assert found.has_targets
        assert not found.has_labels
        assert found.labels is None
    found = opened([(X, Y), (X, Y.float().tolist())][:1])
    assert found.has_labels
    assert not opened([X]).has_targets


def test_keyword_arguments_and_their_targets() -> None:
    found = opened([{"ids": X, "labels": Y}])
    (batch,) = found
    assert batch.inputs.keys() == {"ids"}
    assert found.has_labels
    (whole,) = opened(UserDict(ids=X, mask=X))
    assert whole.inputs.keys() == {"ids", "mask"}
    assert len(opened([UserDict(ids=X)]).first.inputs["ids"]) == 100


def test_every_pass_shuffles_alike_and_leaves_the_user_s_generators_alone() -> None:
    own = torch.Generator().manual_seed(5)
    for loader in (
        DataLoader(PAIRS, batch_size=16, shuffle=True),
        DataLoader(PAIRS, batch_size=16, shuffle=True, generator=own),
        DataLoader(PAIRS, batch_size=16, shuffle=True, num_workers=1),
        Noisy(),
    ):
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), own.get_state()
        found = opened(loader)
        first, second, other = inputs_of(found), inputs_of(found), torch.cat([b.inputs for b in found.pass_with(1)])
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        next(iter(found))
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]
        assert torch.equal(own.get_state(), before[3])


def test_the_caller_may_draw_random_numbers_between_batches() -> None:
    found = opened(Noisy())
    expected = inputs_of(found)
    torch.manual_seed(9)
    drawn, parts = [], []
    for batch in found:
        parts.append(batch.inputs)
        drawn.append(float(torch.rand(())))
    assert torch.equal(torch.cat(parts), expected)
    torch.manual_seed(9)
    assert drawn == [float(torch.rand(())) for _ in drawn]


def test_some_of_the_batches() -> None:
    found = opened(list(X.split(10)))
    even = found.only(lambda position: position % 2 == 0)
    assert len(list(even)) == 5
    assert torch.equal(inputs_of(even.only(lambda position: position >= 4)), torch.cat([X[40:50], X[60:70], X[80:90]]))


def fails() -> Iterator[torch.Tensor]:
    yield X
    raise RuntimeError("the disk\nis gone")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (iter([X]), "can be read several times, got `list_iterator`.*give a list, a DataLoader, or a function"),
        ((x for x in [X]), "can be read several times, got `generator`"),
        (DataLoader(PAIRS).__iter__(), "can be read several times"),
        (5, "expected a specification, a DataLoader.*, got `int`"),
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), "expected a specification.*, got `Sequential`"),
        ([], "`list` yields nothing, expected at least one batch"),
        (lambda: iter([]), "`<lambda>` yields nothing"),
        (lambda: 1 / 0, r"`<lambda>` fails when called without arguments \(ZeroDivisionError"),
        (lambda: 5, "got `int`"),
        (TensorDataset(X[:0]), "`TensorDataset` is empty"),
        (X[:0], "`Tensor` is empty"),
        ([X[:0]], "at least one input in each batch"),
        (torch.tensor(1.0), "expected an array of inputs as `x` of `Tensor`, got a single number"),
        ({"a": X, "b": X[:5]}, "arrays of one length in `dict`, got `a` 100, `b` 5"),
        ({"a": X, "b": "text"}, "expected an array of inputs as `b` of `dict`, got `str`"),
        ({}, "`dict` is empty"),
        ([{"a": X}, {"b": X}], "each batch of `list` to be like the first, a mapping of `a`, got a mapping of `b`"),
        ([X, X.long()], "like the first, a float32 tensor, got a int64 tensor at position 1"),
        ([(X, Y), X], r"like the first, \(a float32 tensor, a int64 tensor\), got a float32 tensor"),
        ([np.array([None, 1])], "an array of dtype object, expected numbers"),
        (fails, r"`fails` fails at batch 1 \(RuntimeError: the disk is gone\)"),
    ],
)
def test_bad_objects(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        list(opened(data, option="--val-data"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("`--val-data`")


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., str]:
    def write(**arrays: Any) -> str:
        np.savez(tmp_path / "data.npz", **arrays)
        return f"npz:{tmp_path / 'data.npz'}"

    return write


def test_npz_of_other_inputs(npz: Callable[..., str]) -> None:
    sound = np.random.RandomState(0).randn(150, 7).astype(np.float32)
    found = opened(npz(x=sound))
    assert [batch.size for batch in found] == [128, 22]
    np.testing.assert_array_equal(inputs_of(found).numpy(), sound)
    assert not found.has_targets
    found = opened(npz(x=sound, y=sound[:, :2]))
    assert found.first.targets.shape == (128, 2)
    assert not found.has_labels
    assert opened(npz(x=sound, y=np.arange(150))).has_labels
    found = opened(npz(input_ids=np.ones((3, 5), np.int64), attention_mask=np.ones((3, 5)), labels=np.arange(3)))
    assert found.first.inputs.keys() == {"input_ids", "attention_mask"}
    assert found.has_labels
    assert opened(npz(x=np.zeros((4, 6), np.uint8))).first.inputs.dtype == torch.uint8


def test_npz_of_images_stays_a_data_set_of_images(npz: Callable[..., str]) -> None:
    assert isinstance(load_data(npz(x=np.zeros((2, 4, 4), np.uint8)), labels=None), Images)
    with pytest.raises(DataError, match="expected an array `y`"):
        load_data(npz(x=np.zeros((2, 4, 4), np.uint8)))


def test_safetensors_of_inputs(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": X.bfloat16(), "y": Y}, path)
    found = opened(f"safetensors:{path}")
    assert found.first.inputs.dtype == torch.bfloat16
    assert found.has_labels


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 3)), "y": np.zeros(3)}, "arrays of one length in .*, got `x` 2, `y` 3"),
        ({"x": np.array([None])}, "cannot be read"),
        ({"x": np.array(["text"])}, "an array of dtype <U4, expected numbers"),
        ({"x": np.zeros((0, 3))}, "is empty"),
        ({"labels": np.arange(3)}, "expected an array `x`, or arrays named after the arguments of `forward`"),
    ],
)
def test_bad_files(npz: Callable[..., str], arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_data(npz(**arrays))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load_data(f"safetensors:{tmp_path / 'x.safetensors'}")
    (tmp_path / "x.safetensors").write_text("nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        load_data(f"safetensors:{tmp_path / 'x.safetensors'}")
    with pytest.raises(DataError, match="no npz archive"):
        load_data(f"npz:{tmp_path / 'x.safetensors'}")


CODE = """
import torch
from pathlib import Path
Path(__file__).with_name("ran").touch()
LIST = [torch.zeros(2, 3)]
NUMBER = 5
def loader():
    from beside import made
    return made()
def yielding():
    from beside import made
    yield from made()
class Each:
    def __len__(self): return 5
    def __getitem__(self, index): return torch.full((3,), float(index))
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "data.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("import torch\ndef made():\n    return [torch.ones(4, 3)]\n")
    return str(tmp_path / "data.py")


@pytest.mark.parametrize(("name", "size"), [("LIST", 2), ("loader", 4), ("yielding", 4), ("Each", 5)])
def test_the_user_s_own_code(code: str, name: str, size: int) -> None:
    found = opened(f"{code}:{name}")
    assert [batch.size for batch in found] == [batch.size for batch in found] == [size]
    assert found.spec == f"{code}:{name}"


def test_the_user_s_own_code_runs_only_when_named(code: str, npz: Callable[..., str]) -> None:
    load_data("digits:test")
    load_data(npz(x=np.zeros((2, 3))))
    with pytest.raises(DataError):
        load_data(f"npz:{code}")
    with pytest.raises(DataError):
        load_data(code)
    assert not Path(code).with_name("ran").exists()
    load_data(f"{code}:LIST")
    assert Path(code).with_name("ran").exists()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}:lodaer", "has no `lodaer`.*did you mean `loader`"),
        ("{}:NUMBER", "got `int`"),
        ("nothing_here.py:loader", "no file `nothing_here.py`"),
        ("no_such_package_at_all:loader", "cannot be imported"),
        ("npzz:file.npz", "unknown data `npzz:file.npz`"),
    ],
)
def test_bad_code(code: str, spec: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_data(spec.format(code))
