"""What kind of network a checkpoint is of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gbnn_compress.data.kind import (
    IMAGE_CLASSIFIER,
    Kind,
    check_task,
    looks_like_image_classifier,
    require_forecast,
    settle_kind,
)
from gbnn_compress.errors import GbnnError

IMAGES = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10)).state_dict()
CLASSIFIER, OTHER, UNKNOWN = Kind("classifier"), Kind("other"), Kind()
ASSUMED = Kind(assumes=IMAGE_CLASSIFIER)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ASSUMED),
        ({"task": "classifier"}, CLASSIFIER),
        ({"task": "other", "indexed_classes": 10, "outputs": 10}, OTHER),
        ({"labels": True}, CLASSIFIER),
        ({"labels": True, "outputs": 1}, OTHER),
        ({"indexed_classes": 10}, CLASSIFIER),
        ({"indexed_classes": 1}, OTHER),
        ({"indexed_classes": 10, "outputs": 1}, OTHER),
        ({"outputs": 10}, CLASSIFIER),
        ({"outputs": 0}, OTHER),
        ({"outputs": 10, "images": False}, OTHER),
        ({"outputs": 10, "images": False, "labels": True}, CLASSIFIER),
        ({"outputs": 10, "labels": True, "recorded": "other"}, OTHER),
        ({"outputs": 0, "recorded": "classifier"}, CLASSIFIER),
        ({"task": "other", "recorded": "classifier"}, OTHER),
    ],
)
def test_what_settles_the_kind(said: dict, expected: Kind) -> None:
    known = {"task": None, "labels": False, "indexed_classes": None, "outputs": None, **said}
    assert settle_kind(known.pop("task"), tensors=IMAGES, **known) == expected


@pytest.mark.parametrize("single", ["indexed_classes", "outputs"])
def test_a_single_output_is_no_classifier(single: str) -> None:
    known = {"labels": False, "indexed_classes": None, "outputs": None, single: 1}
    with pytest.raises(GbnnError, match=r"--task classifier.*two or more outputs per input, got one"):
        settle_kind("classifier", tensors=IMAGES, **known)


class Named(nn.Module):
    """Modules in the order in which they are given."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


NETWORKS = {
    "grey images": (Named(conv=nn.Conv2d(1, 8, 3), fc=nn.Linear(8, 10)), True),
    "no bias": (Named(conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 10, bias=False)), True),
    "speech": (Named(conv=nn.Conv1d(1, 8, 3), fc=nn.Linear(8, 10)), False),
    "volumes": (Named(conv=nn.Conv3d(1, 8, 3), fc=nn.Linear(8, 10)), False),
    "features": (Named(conv=nn.Conv2d(64, 8, 3), fc=nn.Linear(8, 10)), False),
    "segmentation": (Named(conv=nn.Conv2d(3, 8, 3), head=nn.Conv2d(8, 10, 1)), False),
    "embedding": (Named(conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 10), norm=nn.LayerNorm(10)), False),
    "one number": (Named(conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 1)), False),
    "regression": (Named(first=nn.Linear(8, 64), second=nn.Linear(64, 10)), False),
    "sentences": (Named(words=nn.Embedding(50, 16), layer=nn.TransformerEncoderLayer(16, 2)), False),
    "recurrent": (Named(lstm=nn.LSTM(40, 64), fc=nn.Linear(64, 10)), False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_looks_like_an_image_classifier(name: str) -> None:
    network, expected = NETWORKS[name]
    assert looks_like_image_classifier(network.state_dict()) is expected


@pytest.mark.parametrize("name", NETWORKS)
def test_in_a_file_sorted_by_name_too(name: str) -> None:
    network, expected = NETWORKS[name]
    state = network.state_dict()
    assert looks_like_image_classifier({name: state[name] for name in sorted(state)}) is expected or name == "embedding"


def test_a_vision_transformer_looks_like_one_too() -> None:
    tokens = {"cls_token": torch.ones(1, 1, 16), "pos_embed": torch.ones(1, 5, 16)}
    rest = Named(patch_embed=nn.Conv2d(3, 16, 4), block=nn.Linear(16, 16), head=nn.Linear(16, 10))
    assert looks_like_image_classifier(tokens | rest.state_dict())


@pytest.mark.parametrize(
    ("kind", "measured", "refused"),
    [
        (CLASSIFIER, False, False),
        (ASSUMED, False, True),
        (UNKNOWN, False, True),
        (ASSUMED, True, False),
    ],
)
def test_points_are_promised_only_where_they_are_known(kind: Kind, measured: bool, refused: bool) -> None:
    if not refused:
        require_forecast(kind, measured=measured)
        return
    with pytest.raises(GbnnError, match=r"--max-drop.*--task classifier.*--val-data.*--target-ratio"):
        require_forecast(kind, measured=measured)


@pytest.mark.parametrize("measured", [False, True])
def test_no_points_of_what_is_no_classifier(measured: bool) -> None:
    with pytest.raises(GbnnError, match=r"--max-drop.*give `--target-ratio`"):
        require_forecast(OTHER, measured=measured)


def test_labelled_data_of_what_is_said_to_be_no_classifier() -> None:
    assert settle_kind("other", labels=True, indexed_classes=None, outputs=10, tensors=IMAGES) == OTHER


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(GbnnError, match="`--task`: expected `classifier` or `other`, got `detector`"):
        check_task("detector")
