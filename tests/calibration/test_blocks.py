"""Weights of layers as least-squares problems: products of the patches with the rows are the layers' outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lockstep_runs import twin_of
from torch import nn
from torch.nn import functional

from gbnn_compress.calibration.blocks import FEWEST_SAMPLES, LONGEST_BLOCK, Block, blocks_of, chosen, places_of
from gbnn_compress.calibration.interceptor import intercepted
from gbnn_compress.calibration.uses import AnyUse, Use

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def use_of(layer: nn.Module, x: torch.Tensor) -> Use:
    """The one product or convolution of a layer."""
    uses: list[AnyUse] = []
    twin = twin_of(layer)
    with intercepted(twin.tensors, uses.append):
        twin.network(x)
    (use,) = (each for each in uses if isinstance(each, Use))
    return use


def patches_of(block: Block, use: Use) -> torch.Tensor:
    """All patches, (groups, n, d)."""
    return block.patches(use, torch.arange(block.count(use)))


def outputs_of(block: Block, use: Use) -> torch.Tensor:
    """What the rows make of all patches, float64 (groups, n, rows)."""
    rows = block.arrange(use.weight.detach()).double()
    return patches_of(block, use).double() @ rows.transpose(1, 2)


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"padding": 2},
    {"padding": 1, "dilation": 2},
    {"padding": "same"},
    {"padding": "same", "dilation": 3},
    {"padding": "valid", "dilation": 2},
    {"groups": 2, "padding": 1},
    {"groups": 4, "stride": 2, "padding": 1, "dilation": 2},
]

MADE = {1: (nn.Conv1d, functional.conv1d), 2: (nn.Conv2d, functional.conv2d), 3: (nn.Conv3d, functional.conv3d)}


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:.*even kernel")
def test_patches_of_a_convolution_times_its_filters_are_its_outputs(
    axes: int, kernel: int, options: dict[str, Any]
) -> None:
    layer = MADE[axes][0](4, 8, kernel, **options)
    x = torch.randn(2, 4, *(9, 8, 7)[:axes])
    use, y = use_of(layer, x), layer(x).detach() - layer.bias.detach().reshape(-1, *[1] * axes)
    (block,) = blocks_of(use)
    assert block.width == layer.weight[0].numel()
    assert block.count(use) == y[:, 0].numel()
    made = outputs_of(block, use)  # groups, n, rows
    expected = y.double().movedim(1, -1).reshape(-1, layer.groups, 8 // layer.groups).movedim(1, 0)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (2, 3)},
        {"kernel_size": (1, 3), "stride": (1, 3), "padding": (2, 0)},
        {"kernel_size": 3, "groups": 2, "padding": 1},
        {"kernel_size": 3, "groups": 4, "stride": 2, "padding": 1},
        {"kernel_size": 3, "dilation": (1, 2), "padding": 2},
    ],
    ids=str,
)
def test_patches_of_an_image_are_those_of_unfold(options: dict[str, Any]) -> None:
    layer = nn.Conv2d(4, 8, bias=False, **options)
    use = use_of(layer, torch.randn(3, 4, 9, 10))
    (block,) = blocks_of(use)
    groups, width = layer.groups, block.width
    spread = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    unfolded = functional.unfold(use.x, *spread).reshape(3, groups, width, -1)
    assert torch.equal(patches_of(block, use), unfolded.permute(1, 0, 3, 2).reshape(groups, -1, width))


TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def phase_outputs(block: Block, use: Use) -> torch.Tensor:
    return outputs_of(block, use)


@pytest.mark.parametrize(
    ("kernel", "stride"), [(3, 1), (2, 2), (4, 2), (3, 2), (5, 3), (2, 3), (1, 2)], ids=lambda each: str(each)
)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_phases_of_a_transposed_convolution_hold_all_of_its_outputs(
    axes: int, groups: int, kernel: int, stride: int
) -> None:
    """Without padding, every output is one product of one phase, and none is left out or counted twice."""
    layer = TRANSPOSED[axes](4, 6, kernel, stride=stride, groups=groups, bias=False)
    x = torch.randn(2, 4, *(5, 4, 3)[:axes])
    use, y = use_of(layer, x), layer(x).detach().double()
    made = torch.cat([outputs_of(block, use).reshape(-1) for block in blocks_of(use)])
    # Outputs beyond the last tap of a phase are zero.
    found, expected = (each[each.abs() > 1e-9].sort().values for each in (made, y.reshape(-1)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "output_padding": 1}], ids=str)
def test_padding_of_a_transposed_convolution_only_cuts_outputs_off(options: dict[str, Any]) -> None:
    layer = nn.ConvTranspose1d(3, 2, 4, stride=2, bias=False, **options)
    x = torch.randn(1, 3, 6)
    whole = nn.ConvTranspose1d(3, 2, 4, stride=2, bias=False)
    whole.weight = layer.weight
    one, other = use_of(layer, x), use_of(whole, x)
    for block, same in zip(blocks_of(one), blocks_of(other), strict=True):
        assert torch.equal(patches_of(block, one), patches_of(same, other))


def test_patches_of_a_transposed_convolution_against_a_loop() -> None:
    """Taps that overlap: output t is the sum over taps k and places i with i * stride + k = t."""
    layer, x = nn.ConvTranspose1d(3, 2, 5, stride=2, bias=False), torch.randn(1, 3, 4)
    weight, (length, kernel, stride) = layer.weight.detach().double(), (4, 5, 2)
    use = use_of(layer, x)
    for block, phases in zip(blocks_of(use), ([0], [1]), strict=True):
        made = outputs_of(block, use)[0]
        taps = len(range(phases[0], kernel, stride))
        for q, (row, (channel, phase)) in itertools.product(
            range(length + taps - 1), enumerate(itertools.product(range(2), phases))
        ):
            expected = sum(
                float(x[0, c, q - j].double() * weight[c, channel, phase + j * stride])
                for c in range(3)
                for j in range(taps)
                if 0 <= q - j < length
            )
            assert float(made[q, row]) == pytest.approx(expected, abs=1e-5)
        assert block.width == 3 * taps


@pytest.mark.parametrize("dilation", [2, 3])
def test_taps_of_a_dilated_transposed_convolution_are_rows(dilation: int) -> None:
    layer, x = nn.ConvTranspose1d(3, 2, 4, dilation=dilation, bias=False), torch.randn(2, 3, 5)
    use = use_of(layer, x)
    (block,) = blocks_of(use)
    assert torch.equal(patches_of(block, use)[0], x.transpose(1, 2).reshape(-1, 3))
    assert torch.equal(block.arrange(layer.weight.detach())[0], layer.weight.detach().reshape(3, -1).T)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (5, 7, 6), (2, 3, 4, 6)])
def test_patches_of_a_linear_layer_are_its_inputs(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape)
    use = use_of(nn.Linear(6, 2), x)
    (block,) = blocks_of(use)
    assert torch.equal(patches_of(block, use), x.reshape(1, -1, 6))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 4), torch.randn(5, 3, 6)),
        (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, (3, 5), stride=(2, 3), groups=2), torch.randn(2, 4, 5, 5)),
        (nn.ConvTranspose3d(2, 3, 3, stride=2), torch.randn(1, 2, 3, 3, 3)),
        (nn.ConvTranspose1d(2, 3, 3, stride=2, dilation=2), torch.randn(1, 2, 5)),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_blocks_hold_each_weight_once(layer: nn.Module, x: torch.Tensor) -> None:
    use, weight = use_of(layer, x), layer.get_parameter("weight")
    places = places_of(use.weight, weight)
    held = [block.arrange(places) for block in blocks_of(use)]
    for block, each in zip(blocks_of(use), held, strict=True):
        assert each.shape[2] == block.width
        assert torch.equal(weight.detach().reshape(-1)[each], block.arrange(use.weight.detach()))
    found = torch.cat([each.reshape(-1) for each in held])
    assert torch.equal(found.sort().values, torch.arange(weight.numel()))


def test_places_of_views() -> None:
    tensor = torch.randn(6, 8)
    for view in (tensor, tensor.T, tensor[2:4], tensor[:, ::3], tensor[1::2, 5:], tensor.view(3, 2, 8)[1]):
        assert torch.equal(tensor.reshape(-1)[places_of(view, tensor)], view)
    turned = torch.randn(6, 8).T  # positions are in C order, whatever the memory's order
    assert torch.equal(turned.reshape(-1)[places_of(turned[2:5], turned)], turned[2:5])
    last = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    assert torch.equal(last.reshape(-1)[places_of(last, last)], last)


def test_positions_are_sampled_only_where_there_are_more_than_wanted() -> None:
    assert torch.equal(chosen(5, 5), torch.arange(5))
    assert torch.equal(chosen(3, 5), torch.arange(3))
    some = chosen(1000, 50)
    assert len(some) == 50
    assert torch.equal(some, some.sort().values)
    assert int(some[0]) >= 0
    assert int(some[-1]) < 1000
    assert torch.equal(some, chosen(1000, 50))


def test_wide_layers_want_more_patches() -> None:
    (narrow,), (wide,) = (blocks_of(use_of(nn.Linear(n, 2), torch.ones(1, n))) for n in (4, 200))
    assert narrow.wanted == FEWEST_SAMPLES
    assert wide.wanted == 16 * 200
    (widest,) = blocks_of(use_of(nn.Linear(5000, 1), torch.ones(1, 5000)))
    assert widest.wanted == 16 * LONGEST_BLOCK
