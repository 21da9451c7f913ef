"""Which part of a file is the network: the only one is taken, several are refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_files import saved, weights

from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.errors import CheckpointError
from gbnn_compress.types import Checkpoint


def network(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {"0.weight": scale * torch.ones(6, 5), "0.bias": torch.ones(6), "1.weight": torch.ones(3, 6)}


def under(prefix: str, tensors: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in (tensors or network()).items()}


def read(folder: Path, content: object, *, key: str | None = None) -> Checkpoint:
    return read_checkpoint(saved(folder, content), key=key)


def refused(folder: Path, content: object, *, key: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder, content, key=key)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    "loose",
    [
        {"latent_avg": torch.randn(64)},
        {"latent_avg": torch.randn(18, 512)},
        {"epoch": torch.tensor(7), "best_acc": torch.tensor(0.9)},
        {"torch_rng": torch.get_rng_state()},
        {"stats": {"mean": torch.ones(9), "std": torch.ones(9), "n": torch.tensor(3)}},
        {"ema": {"decay": torch.tensor(0.9)}},
        {"dino_loss": {"center": torch.ones(1, 100)}},
    ],
)
@pytest.mark.parametrize("key", ["g_ema", "encoder", "state_dict"])
def test_nothing_beside_it_hides_the_only_network(tmp_path, loose, key):
    for content in ({key: network(), **loose}, {**loose, key: network()}):
        checkpoint = read(tmp_path, content)
        assert list(checkpoint.tensors) == list(network())
        assert all(f"`{name}`" in checkpoint.notes[0] for name in (key, *loose))


def test_a_wrapper_s_other_entries_are_named_tensors_first(tmp_path):
    content = {
        "epoch": 3,
        "optimizer": {"state": {0: torch.ones(2)}},
        "state_dict": network(),
        "bank": torch.ones(9, 9),
    }
    assert read(tmp_path, content).notes == (
        "Took the state dict under `state_dict`, left `bank`, `epoch`, `optimizer`.",
    )


def test_loose_tensors_are_the_network_where_the_nested_ones_are_small_things(tmp_path):
    checkpoint = read(tmp_path, {**network(), "statistics": {"covariance": torch.ones(2, 2)}})
    assert list(checkpoint.tensors) == list(network())
    assert "`statistics`" in checkpoint.notes[0]


def test_a_small_thing_of_a_wrapper_s_name_hides_no_loose_network(tmp_path):
    large = {f"{i}.weight": torch.ones(20, 20) for i in range(3)}
    assert list(read(tmp_path, {**large, "model": {"w": torch.ones(2, 2)}}).tensors) == list(large)


def test_averages_whose_names_lost_their_dots_are_told(tmp_path):
    averaged = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in network().items()}
    assert "choose one with `--key model_ema.`" in refused(tmp_path, {**under("model."), **averaged})


def test_an_average_without_weights_is_no_network(tmp_path):
    content = {"model": network(), "model_ema": {"steps": torch.tensor(1200), "decay": torch.tensor(0.9)}}
    assert list(read(tmp_path, content).tensors) == list(network())


def test_averaged_weights_keep_what_lies_among_them(tmp_path):
    averaged = {"steps": torch.tensor(3), **under("module.")}
    checkpoint = read(tmp_path, {"state_dict": network(), "ema_state_dict": averaged})
    assert list(checkpoint.tensors) == list(averaged)


def test_several_networks_are_refused_by_name_and_chosen_by_key(tmp_path):
    content = {"g": network(1), "d": network(2), "g_ema": network(3), "ada_aug_p": torch.tensor(0.2)}
    assert "holds several networks, `g`, `d`, `g_ema`: choose one with `--key g_ema`" in refused(tmp_path, content)
    checkpoint = read(tmp_path, content, key="d")
    assert float(checkpoint.tensors["0.weight"][0, 0]) == 2
    assert checkpoint.notes == ("Took the state dict under `d`, left `g`, `g_ema`, `ada_aug_p`.",)


@pytest.mark.parametrize("key", ["ema.state_dict", "ema", "ema.state_dict.module", "ema.state_dict.module."])
def test_a_key_may_lead_into_a_nested_wrapper(tmp_path, key):
    content = {"model": network(1), "ema": {"state_dict": under("module.", network(2)), "updates": 7}}
    checkpoint = read(tmp_path, content, key=key)
    prefix = "" if "module" in key else "module."
    assert list(checkpoint.tensors) == list(under(prefix))
    assert float(checkpoint.tensors[f"{prefix}0.weight"][0, 0]) == 2
    assert "left `model`" in checkpoint.notes[0]


def test_a_key_may_have_dots_of_its_own(tmp_path):
    content = {"a.b": network(1), "a": {"b": network(2)}, "c": network(3)}
    assert float(read(tmp_path, content, key="a.b").tensors["0.weight"][0, 0]) == 1
    assert float(read(tmp_path, {**content, "a.b": 0}, key="a.b").tensors["0.weight"][0, 0]) == 2


@pytest.mark.parametrize(
    ("content", "key", "there"),
    [
        ({"g": weights(), "d": weights()}, "generator", "`g`, `d`"),
        ({"state_dict": under("a.") | under("b.")}, "c", "`state_dict`"),
        (under("a.") | under("b."), "c.", "`a.`, `b.`"),
        ({"g": weights(), "epoch": 3}, "epoch", "`g`"),
        (under("a."), "", "`a.`"),
        (under("a."), ".", "`a.`"),
    ],
)
def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path, content, key, there):
    assert f"holds no tensors under `--key {key}`: expected one of {there}" in refused(tmp_path, content, key=key)


PAIRS = [
    ("online_model.", "ema_model."),
    ("student.", "teacher."),
    ("encoder.", "encoder_ema."),
    ("netG.", "netG_ema."),
    ("model.", "ema_model.module."),
    ("policy.", "target_policy."),
    ("", "ema."),
    ("module.online.", "module.target."),
]


@pytest.mark.parametrize("prefixes", PAIRS)
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_a_network_and_its_copy_in_one_state_dict_are_refused(tmp_path, prefixes, wrapper):
    both = {"step": torch.tensor(5), **under(prefixes[0], network(1)), **under(prefixes[1], network(2))}
    content = both if wrapper is None else {wrapper: both, "epoch": 3}
    line = refused(tmp_path, content)
    assert "holds several networks in one state dict" in line
    key = line.rpartition("`--key ")[2].rstrip("`")
    checkpoint = read(tmp_path, content, key=key)
    assert {name.removeprefix("module.") for name in checkpoint.tensors} == set(network())
    assert any(f"`{key}`" in note for note in checkpoint.notes)
    assert prefixes[0] == "" or any(f"left `step`, `{prefixes[0].partition('.')[0]}" in n for n in checkpoint.notes)


def test_three_copies_are_refused_too(tmp_path):
    content = under("model.") | under("ema_fast.") | under("ema_slow.")
    assert "`model.`, `ema_fast.`, `ema_slow.`" in refused(tmp_path, content)


def test_a_copy_beside_a_small_head_is_refused(tmp_path):
    big = {"0.weight": torch.ones(60, 50), "0.bias": torch.ones(60)}
    content = under("online.", big) | under("target.", big) | {"predictor.weight": torch.ones(4, 4)}
    assert "holds several networks" in refused(tmp_path, content)


CRITIC = {"0.weight": torch.ones(6, 7), "0.bias": torch.ones(6), "1.weight": torch.ones(1, 6)}
TOGETHER = [
    under("encoder_q.") | under("encoder_k."),  # two towers: letters name no copy
    under("left.") | under("right."),
    under("actor.") | under("actor_target.") | under("critic.", CRITIC) | under("critic_target.", CRITIC),
    under("generator.") | under("discriminator.", {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}),
    under("source_encoder.") | under("target_encoder."),
    under("encoder.") | under("decoder.") | {"mask_token": torch.ones(1, 6)},
    {"context.weight": torch.ones(9, 4), "target.weight": torch.ones(9, 4)},
    under("student.") | {"teacher_head.weight": torch.ones(3, 3)},
    under("layers.0.") | under("layers.1."),
    under("momentum_encoder."),
]


@pytest.mark.parametrize("content", TOGETHER)
def test_parts_of_one_network_stay_together(tmp_path, content):
    assert set(read(tmp_path, content).tensors) == set(content)


def test_lazy_views_are_read_as_torch_reads_them(tmp_path):
    z = torch.randn(4, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    content = {"imag": z.clone().conj().imag, "neg": torch._neg_view(z.real.clone()), "conj": z.conj(), "plain": z}
    assert content["imag"].is_neg()
    assert content["conj"].is_conj()
    checkpoint = read(tmp_path, content)
    for name, tensor in checkpoint.tensors.items():
        assert not tensor.is_neg()
        assert not tensor.is_conj()
        assert tensor.is_contiguous()
        assert torch.equal(tensor, content[name])
    assert checkpoint.ties == {}


def matrices(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name.replace("_", "."): torch.ones(shape) for name, shape in shapes.items()}


BACKBONE = matrices(conv_weight=(16, 3, 3, 3), fc_weight=(10, 16), fc_bias=(10,))


@pytest.mark.parametrize("key", ["backbone", "model"])
def test_a_queue_beside_a_network_hides_it_not_and_is_not_taken_for_it(tmp_path, key):
    queue = matrices(queue=(32, 512), labels=(512,), proto=(100, 32), centre=(32,))
    line = refused(tmp_path, {key: BACKBONE, **queue})
    assert f"`{key}`" in line
    assert f"`--key {key}`" in line
    assert list(read(tmp_path, {key: BACKBONE, **queue}, key=key).tensors) == list(BACKBONE)


def test_a_part_of_a_network_under_a_wrapper_s_name_does_not_stand_for_it(tmp_path):
    part = {"fc.weight": BACKBONE["fc.weight"]}
    assert list(read(tmp_path, {**BACKBONE, "module": part}).tensors) == list(BACKBONE)
    assert list(read(tmp_path, {"state_dict": BACKBONE, "ema": part}).tensors) == list(BACKBONE)


@pytest.mark.parametrize("keys", [("model", "discriminator"), ("net", "network")])
def test_two_networks_of_other_shapes_are_refused_whatever_they_are_called(tmp_path, keys):
    other = matrices(conv_weight=(8, 3, 5, 5), fc_weight=(1, 8), head_weight=(16, 16))
    line = refused(tmp_path, dict(zip(keys, (BACKBONE, other), strict=True)))
    assert all(f"`{key}`" in line for key in keys)
    assert "--key" in line


def test_a_numpy_value_among_a_module_s_tensors_is_refused(tmp_path):
    import numpy as np

    line = refused(tmp_path, {**BACKBONE, "conv.running_mean": np.ones(16)})
    assert "`conv.running_mean` as a numpy value: convert it with torch.from_numpy" in line
