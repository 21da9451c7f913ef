"""What becomes of each tensor of a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from gbnn_compress.checkpoint.select import (
    dtype_name,
    floating_bytes,
    floating_shapes,
    outlier_warnings,
    select,
    with_coded_tables,
)
from gbnn_compress.errors import CheckpointError, GbnnError
from gbnn_compress.types import Checkpoint


def checkpoint(tensors: dict[str, torch.Tensor], ties: dict[str, str] | None = None) -> Checkpoint:
    return Checkpoint(Path("net.pth"), "0" * 64, 1, tensors, ties or {})


def test_every_kind_in_the_order_of_the_file() -> None:
    network = {
        "conv.weight": torch.ones(2, 3, 1, 1),
        "conv.bias": torch.ones(2),
        "bn.num_batches_tracked": torch.tensor(5),
        "temperature": torch.tensor(1.5),
        "half.weight": torch.ones(16, 16, dtype=torch.float16),
        "bf.weight": torch.ones(16, 16, dtype=torch.bfloat16),
        "double.weight": torch.ones(16, 16, dtype=torch.float64),
        "small.weight": torch.ones(2, 2),
        "column.weight": torch.ones(300, 1),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "complex": torch.ones(2, 2, dtype=torch.complex64),
        "quarter": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "nothing": torch.empty(0, 4),
        "none": torch.empty(0),
        "tied.weight": torch.ones(2, 2),
    }
    selection = select(checkpoint(network, {"tied.weight": "half.weight"}))
    assert selection.shared == ("conv.weight", "half.weight", "bf.weight", "double.weight")
    assert selection.unshared == ("conv.bias",)
    assert selection.tables == ("temperature", "small.weight", "column.weight")
    exact = ("bn.num_batches_tracked", "temperature", "small.weight", "column.weight")
    assert selection.raw == (*exact, "mask", "complex", "quarter", "nothing", "none")


@pytest.mark.parametrize(
    ("network", "shared"),
    [
        ({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 1)}, ("a.weight",)),
        ({"b.weight": torch.ones(4, 1), "b.bias": torch.ones(4)}, ("b.weight",)),
        ({"a.weight": torch.ones(4, 4), "c.weight": torch.ones(16, 16)}, ("c.weight",)),
    ],
)
def test_the_largest_matrices_there_are_are_no_tables(network: dict[str, torch.Tensor], shared: tuple[str]) -> None:
    assert select(checkpoint(network)).shared == shared


def test_tables_are_coded_only_where_they_would_take_much_of_the_file() -> None:
    network = {"w": torch.ones(16, 16), "bins": torch.logspace(-6, 6, 50), "step": torch.tensor(3)}
    selection = select(checkpoint(network))
    assert selection.raw == ("bins", "step")
    assert with_coded_tables(selection, network, file_bytes=10_000) == selection
    coded = with_coded_tables(selection, network, file_bytes=1_000)
    assert (coded.unshared, coded.raw, coded.tables) == (("bins",), ("step",), ("bins",))
    assert with_coded_tables(coded, network, file_bytes=1_000) == coded


@pytest.mark.parametrize("name", ["w", "b"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted_and_named(name: str, value: float) -> None:
    network = {"w": torch.arange(12.0).view(3, 4), "b": torch.arange(12.0)}
    network[name].view(-1)[[1, 5]] = value
    with pytest.raises(CheckpointError) as caught:
        select(checkpoint(network))
    line = str(caught.value)
    assert "`net.pth`" in line
    assert f"`{name}`: expected finite values, got 2 NaN or Inf among 12 values" in line
    assert "repair the checkpoint" in line


def test_raw_tensors_may_hold_anything() -> None:
    nan = torch.full((2, 2), float("nan"))
    network = {"w": torch.ones(2, 2), "c": torch.complex(nan, nan), "f": nan.to(torch.float8_e4m3fn)}
    assert select(checkpoint(network)).raw == ("c", "f")


def test_a_tie_to_a_bad_tensor_is_found_at_its_first_name() -> None:
    bad = torch.full((2, 2), float("nan"))
    with pytest.raises(CheckpointError, match="`a`: expected finite values, got 4"):
        select(checkpoint({"a": bad, "b": bad}, {"b": "a"}))


@pytest.mark.parametrize(
    "network",
    [{}, {"b": torch.ones(4)}, {"n": torch.ones(2, 2, dtype=torch.int64)}, {"e": torch.empty(0, 3)}],
)
def test_nothing_to_share(network: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError) as caught:
        select(checkpoint(network))
    line = str(caught.value)
    assert "`net.pth` has no tensor to share" in line
    assert "expected a floating tensor with two or more dimensions" in line
    assert f"got none among {len(network)}" in line
    assert ("(`n` is int64 and kept bit for bit: convert weights to float16 or wider)" in line) is ("n" in network)


@pytest.mark.parametrize("name", ["bits8", "bits16"])
def test_an_unknown_dtype_is_named_with_its_tensor(name: str) -> None:
    odd = torch.empty(3, dtype=getattr(torch, name))
    with pytest.raises(CheckpointError) as caught:
        select(checkpoint({"w": torch.ones(2, 2), "odd": odd}))
    line = str(caught.value)
    assert f"`net.pth`: tensor `odd`: expected a floating, integer, boolean or complex dtype, got {name}" in line


def test_floating_shapes_are_those_of_floating_tensors_ties_included() -> None:
    network = {
        "w": torch.ones(3, 4),
        "scalar": torch.tensor(0.5, dtype=torch.float16),
        "bn.num_batches_tracked": torch.tensor(5),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "tied": torch.ones(3, 4),
    }
    assert floating_shapes(network) == {"w": (3, 4), "scalar": (), "tied": (3, 4)}


def test_floating_bytes_count_buffers_once_and_integers_never() -> None:
    network = {
        "w": torch.ones(3, 4),
        "h": torch.ones(5, dtype=torch.float16),
        "d": torch.ones(2, 1, dtype=torch.float64),
        "n": torch.ones(9, dtype=torch.int64),
        "tied": torch.ones(3, 4),
    }
    assert floating_bytes(network, {"tied": "w"}) == 48 + 10 + 16
    assert floating_bytes({}, {}) == 0


def test_dtype_names() -> None:
    assert dtype_name(torch.ones(1, dtype=torch.bfloat16)) == "bfloat16"
    assert dtype_name(torch.tensor(1)) == "int64"


def test_selecting_leaves_the_checkpoint_as_it_is() -> None:
    network = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "b": torch.ones(3)}
    before = {name: tensor.clone() for name, tensor in network.items()}
    select(checkpoint(network))
    assert list(network) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_value_that_hides_all_others_is_warned_of(dtype: torch.dtype) -> None:
    weights = torch.linspace(-1, 1, 300, dtype=dtype).reshape(15, 20)
    hidden = weights.clone()
    hidden[3, 4] = -32_768
    visible = weights.clone()
    visible[3, 4] = 60  # 0.97 of the sum of squares
    few, zeros = torch.zeros(9, 11, 1, 1, dtype=dtype), torch.zeros(20, 20, dtype=dtype)
    few[0, 0] = zeros[0, 0] = 1
    found = checkpoint({"plain": weights, "hidden": hidden, "visible": visible, "few": few, "zeros": zeros})
    (warning,) = outlier_warnings(found, select(found))
    assert warning.startswith(
        "`hidden`: one value, -3.28e+04, has over 99 % of the sum of squares, so the 299 others are quantised coarsely"
    )


INFINITY = float("inf")


@pytest.mark.parametrize("infinity", [INFINITY, -INFINITY])
@pytest.mark.parametrize("finite", [0.0, 1.0, -65504.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_are_kept_bit_for_bit(infinity: float, finite: float, dtype: torch.dtype) -> None:
    mask = torch.full((4, 4), finite, dtype=dtype)
    mask[torch.ones(4, 4).triu(1).bool()] = infinity
    network = {"n": torch.tensor(3), "mask": mask, "w": torch.ones(3, 3), "row": mask[0], "k": torch.tensor(4)}
    selection = select(checkpoint(network))
    assert selection.raw == ("n", "mask", "row", "k")  # in the file's order
    assert selection.shared == ("w",)


@pytest.mark.parametrize("values", [[INFINITY, -INFINITY], [0.0, 1.0, INFINITY], [0.0, INFINITY, float("nan")]])
def test_other_infinities_are_refused(values: list[float]) -> None:
    with pytest.raises(CheckpointError, match="`mask`: expected finite values"):
        select(checkpoint({"w": torch.ones(3, 3), "mask": torch.tensor(values).repeat(5)}))


def test_tensors_that_are_kept_bit_for_bit() -> None:
    tensors = {
        "body.weight": torch.randn(20, 30),
        "body.bias": torch.randn(20),
        "head.weight": torch.randn(20, 30),
        "head.bias": torch.randn(20),
        "again.weight": torch.randn(20, 30),
    }
    tensors["again.weight"] = tensors["head.weight"]
    read = checkpoint(tensors, ties={"again.weight": "head.weight"})
    found = select(read, keep=("head.*",))
    assert (found.shared, found.unshared, found.raw) == (
        ("body.weight",),
        ("body.bias",),
        ("head.weight", "head.bias"),
    )
    assert select(read, keep=("again.*",)).raw == ("head.weight",)
    assert select(read, keep=("*.bias",)).unshared == ()
    with pytest.raises(GbnnError, match=r"`--keep` `\*`: no tensor is left to compress"):
        select(read, keep=("*",))


def test_kept_tensors_may_hold_nan() -> None:
    tensors = {"body.weight": torch.randn(20, 30), "table.weight": torch.full((20, 30), torch.nan)}
    assert select(checkpoint(tensors), keep=("table*",)).raw == ("table.weight",)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("head", "`head.weight`, `head.bias`"), ("haed.weight", "`head.weight`"), ("x*", "`body.weight`")],
)
def test_a_pattern_that_matches_nothing(pattern: str, near: str) -> None:
    names = ("body.weight", "head.weight", "head.bias")
    with pytest.raises(GbnnError, match=rf"`--keep {re.escape(pattern)}` matches no tensor; there are {near}"):
        select(checkpoint({name: torch.randn(20, 30) for name in names}), keep=(pattern,))
