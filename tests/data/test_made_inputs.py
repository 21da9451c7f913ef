"""Inputs made from NAME:DTYPE:SHAPE: what is read, what is refused, and which sizes and values are made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gbnn_compress.data.batches import Batch, arguments
from gbnn_compress.data.made_inputs import InputSpec, made_batch, made_batches, parse_input, parse_inputs
from gbnn_compress.errors import GbnnError


class Sentences(nn.Module):
    """Takes token ids below 50, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: object = None) -> torch.Tensor:
        assert not self.training
        return self.norm((self.words(input_ids) * attention_mask[..., None]).sum(1))


class Deep(nn.Module):
    """Takes one input of at least 100 samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv1d(x[:, None], torch.ones(1, 1, 100))


TEXTS = ["input_ids:int64:batch,sequence", "attention_mask:int64:batch,sequence"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input_ids:int64:batch,sequence", InputSpec("input_ids", "int64", ("batch", "sequence"))),
        (" x : torch.float32 : batch, 3, 8 ", InputSpec("x", "float32", ("batch", 3, 8))),
        ("scale:bool:", InputSpec("scale", "bool", ())),
    ],
)
def test_reading(text: str, expected: InputSpec) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input_ids", "expected NAME:DTYPE:SHAPE, such as input_ids:int64:batch,sequence, got `input_ids`"),
        ("x:float32", "expected NAME:DTYPE:SHAPE"),
        (":float32:batch", "expected NAME:DTYPE:SHAPE"),
        ("x:float:batch", "expected a dtype of float32, .*, got `float`"),
        ("x:float32:batch,0", "sizes of at least 1, separated by commas, got `0`"),
        ("x:float32:batch,-1", "got `-1`"),
        ("x:float32:batch,,3", "got ``"),
    ],
)
def test_bad_forms_are_refused_in_one_line_with_an_example(text: str, message: str) -> None:
    with pytest.raises(GbnnError, match=message) as refusal:
        parse_input(text)
    assert "\n" not in str(refusal.value)
    assert "input_ids:int64:batch,sequence" in str(refusal.value)


def test_an_input_is_given_once() -> None:
    with pytest.raises(GbnnError, match="`x` is given 2 times"):
        parse_inputs(["x:float32:batch", "x:int64:batch"])


def test_arguments_of_the_network_become_keywords_with_values_that_it_takes() -> None:
    network = Sentences().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batch = made_batch(TEXTS, network)
    assert arguments(network, batch)[1].keys() == {"input_ids", "attention_mask"}
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert ids.shape == mask.shape == (2, 8)
    assert 1 < ids.max() < 50
    assert ids.min() >= 0
    assert set(mask.unique().tolist()) <= {0, 1}
    assert mask[:, 0].all()
    assert network.training
    assert network.norm.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_single_input_of_any_name_is_positional_and_long_enough() -> None:
    batch = made_batch(["audio:float32:batch,time"], Deep(), batch_size=3)
    assert isinstance(batch.inputs, torch.Tensor)
    assert batch.inputs.shape == (3, 128)
    assert torch.equal(batch.inputs, made_batch(["audio:float32:batch,time"], Deep(), batch_size=3).inputs)


def test_several_batches_differ_in_size_and_values() -> None:
    batches = list(made_batches(TEXTS, Sentences(), batch_sizes=(2, 3, 1)))
    assert [batch.size for batch in batches] == [2, 3, 1]
    assert not torch.equal(batches[0].inputs["input_ids"][:1], batches[2].inputs["input_ids"])


def test_inputs_that_the_network_does_not_have() -> None:
    with pytest.raises(GbnnError, match=r"`--input ids`: `Sentences.forward` has no such argument; it has `input_ids`"):
        made_batch(["ids:int64:batch,sequence", TEXTS[1]], Sentences())


def test_a_network_that_runs_on_no_size() -> None:
    with pytest.raises(GbnnError, match=r"`Deep` fails on inputs made for `--input` \(`x` \[2, 50\]: RuntimeError"):
        made_batch(["x:float32:batch,50"], Deep())


def test_a_forward_of_the_user_gets_the_values() -> None:
    seen: list[Batch] = []

    def run(network: nn.Module, batch: Batch) -> None:
        seen.append(batch)

    made_batch(["a:float32:batch,2", "b:bool:batch"], Deep(), run=run)
    assert seen[-1].value.keys() == {"a", "b"}
    assert seen[-1].value["b"].all()


def test_coloured_images_are_smooth_and_other_inputs_stay_white() -> None:
    network = torch.nn.Identity()
    texts = ["image:float32:batch,3,32,32"]
    white, first, second = (
        torch.cat([batch.inputs for batch in made_batches(texts, network, batch_sizes=sizes, coloured=coloured)])
        for sizes, coloured in (((16,), False), ((16,), True), ((2, 16), True))
    )
    alike = [float((x[..., 1:] * x[..., :-1]).mean()) for x in (white, first, second[2:])]
    assert abs(alike[0]) < 0.05
    assert 0.2 < alike[1] < alike[2]
    assert float(first.std()) == pytest.approx(1, abs=1e-3)
    rows = ["x:float32:batch,32"]
    plain, coloured = (next(made_batches(rows, network, coloured=each)).inputs for each in (False, True))
    assert torch.equal(plain, coloured)
