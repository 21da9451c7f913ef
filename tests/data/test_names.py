"""Names of a checkpoint are a network's, whatever wrapped either of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gbnn_compress.data.architectures import load_weights
from gbnn_compress.data.names import WRAPPER_PARTS, bare, match_names, rename, spellings

PARTS = st.sampled_from(["a", "b", "0", "conv", "module", "model", "_orig_mod"])
NAMES = st.lists(PARTS, max_size=3).flatmap(
    lambda parts: st.sampled_from(["weight", "bias"]).map(lambda own: ".".join([*parts, own]))
)
NETWORKS = st.dictionaries(NAMES, st.tuples(st.integers(1, 3)), min_size=1, max_size=8)
PREFIXES = st.lists(st.sampled_from(sorted(WRAPPER_PARTS)), max_size=3)


@settings(deadline=None)  # the first example imports scipy
@given(network=NETWORKS, prefix=PREFIXES)
def test_wrappers_around_the_whole_network_are_seen_through_both_ways(
    network: dict[str, tuple[int]], prefix: list[str]
) -> None:
    wrapped = {".".join([*prefix, name]): shape for name, shape in network.items()}
    back = dict(zip(wrapped, network, strict=True))
    assert match_names(wrapped, network) == back
    assert match_names(network, wrapped) == {name: other for other, name in back.items()}
    assert rename(wrapped, back) == back


@settings(deadline=None)
@given(network=NETWORKS, prefix=PREFIXES, extra=st.sets(st.sampled_from(["steps", "criterion.weight", "x.y.bias"])))
def test_what_the_network_does_not_have_is_left_out(
    network: dict[str, tuple[int]], prefix: list[str], extra: set[str]
) -> None:
    wrapped = {".".join([*prefix, name]): shape for name, shape in network.items()}
    matched = match_names({**dict.fromkeys(extra, (9,)), **wrapped}, network)
    assert list(matched.values()) == list(network)
    renamed = rename([*extra, *wrapped], matched)
    assert len(set(renamed.values())) == len(renamed)


@settings(deadline=None)
@given(network=NETWORKS, data=st.data())
def test_a_wrapped_part_is_seen_through(network: dict[str, tuple[int]], data: st.DataObject) -> None:
    """Unless it becomes another tensor's name."""
    plain = {name: shape for name, shape in network.items() if bare(name) == name}
    heads = sorted({name.rpartition(".")[0] for name in plain} - {""})
    if not heads:
        return
    part = data.draw(st.sampled_from(heads))
    wrapped = {name.replace(part, f"{part}.module", 1) if name.startswith(f"{part}.") else name: name for name in plain}
    assert match_names({name: plain[own] for name, own in wrapped.items()}, plain) == wrapped


def test_one_wrapper_around_all_comes_before_two_around_some() -> None:
    network = {"fc.weight": (2, 2), "model.fc.weight": (2, 2)}
    wrapped = {"model.fc.weight": (2, 2), "model.model.fc.weight": (2, 2)}
    assert match_names(wrapped, network) == {"model.fc.weight": "fc.weight", "model.model.fc.weight": "model.fc.weight"}


def test_shapes_decide_where_names_leave_it_open() -> None:
    checkpoint = {"model.fc.weight": (2, 2), "module.fc.weight": (3, 3)}
    assert match_names(checkpoint, {"fc.weight": (3, 3)}) == {"module.fc.weight": "fc.weight"}


def test_two_that_fit_as_well_are_none() -> None:
    assert match_names({"model.fc.weight": (2, 2), "module.fc.weight": (2, 2)}, {"fc.weight": (2, 2)}) == {}


def test_a_common_prefix_of_any_name_is_found_where_all_of_the_network_is_under_it() -> None:
    network = {"0.weight": (4, 3), "0.bias": (4,)}
    inside = {f"module.net.{name}": shape for name, shape in network.items()}
    beside = {"module.head.weight": (4, 4)}
    assert list(match_names({**inside, **beside}, network).values()) == ["0.weight", "0.bias"]
    twice = {f"a.{name}": shape for name, shape in network.items()} | inside
    assert match_names(twice, network) == {}


def test_names_with_other_shapes_still_belong_together() -> None:
    assert match_names({"module.w": (2,)}, {"w": (3,)}) == {"module.w": "w"}


def test_spellings_shorten_step_by_step() -> None:
    found = list(spellings(["module.model.a.weight", "module.model.b.module.weight"]))
    assert [tuple(read.values()) for read in found] == [
        ("module.model.a.weight", "module.model.b.module.weight"),
        ("model.a.weight", "model.b.module.weight"),
        ("a.weight", "b.module.weight"),
        ("a.weight", "b.weight"),
    ]
    assert len(list(spellings(["model.w", "module.w"]))) == 1  # bare, they would be one


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    "wrapped",
    [
        {"model": lambda name: f"model.{name}"},
        {"wrapped": lambda name: f"module._orig_mod.model.{name}"},
        {"net": lambda name: f"net.{name}"},
        {"part": lambda name: name.replace("0.", "0.module.", 1)},
    ],
    ids=lambda each: next(iter(each)),
)
def test_weights_are_loaded_whatever_wrapped_them(wrapped: dict) -> None:
    (spell,) = wrapped.values()
    given, fresh = network().state_dict(), network()
    tensors = {spell(name): tensor for name, tensor in given.items()} | {"val_acc.correct": torch.tensor(3)}
    fit = load_weights(fresh, tensors, spec="m:f")
    assert fit.extra == ("val_acc.correct",)
    assert list(fit.names.values()) == list(given)
    assert all(torch.equal(tensor, given[name]) for name, tensor in fresh.state_dict().items())


def test_old_names_that_a_network_knows_may_be_wrapped_too() -> None:
    class Renaming(nn.Linear):
        def _load_from_state_dict(self, state: dict, prefix: str, *rest: object) -> None:
            if f"{prefix}old" in state:
                state[f"{prefix}bias"] = state.pop(f"{prefix}old")
            super()._load_from_state_dict(state, prefix, *rest)

    tensors = {"module.weight": torch.ones(2, 2), "module.old": torch.full((2,), 7.0)}
    layer = Renaming(2, 2)
    assert load_weights(layer, tensors, spec="m:f").extra == ()
    assert layer.bias.tolist() == [7, 7]
