import copy

import pytest
import torch
from torch import nn

from gbnn_compress.errors import ArchitectureError, DataError
from gbnn_compress.predict.running import logits


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def batches(*, n_channels: int = 3, label: int | None = 0):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.rand((size, n_channels, 6, 6), generator=generator),
            None if label is None else torch.full((size,), label),
        )
        for size in (4, 4, 3)
    ]


def test_logits_are_the_networks_outputs_in_evaluation_mode():
    network = small_network().eval()
    expected = network(torch.cat([images for images, _ in batches()])).detach()
    found = logits(network, batches())
    assert found.dtype == torch.float32
    assert found.shape == (11, 5)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("label", [0, None])
def test_labels_change_nothing(label):
    network = small_network()
    assert torch.equal(logits(network, batches(label=label)), logits(network, batches()))


def test_half_precision_outputs_are_float32():
    found = logits(Lambda(lambda images: images.flatten(1)[:, :5].half()), batches())
    assert found.dtype == torch.float32


def test_network_is_left_as_it_was():
    network = small_network().train()
    network[1].eval()
    state = copy.deepcopy(network.state_dict())
    logits(network, batches())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert [module.training for module in network.modules()] == [True, True, False, True, True, True, True]


def test_modes_come_back_after_an_error():
    network = small_network().train()
    with pytest.raises(DataError):
        logits(network, batches(label=5))
    assert all(module.training for module in network.modules())


def test_error_no_batch():
    with pytest.raises(DataError, match="`--ood` is empty"):
        logits(small_network(), [], option="--ood")


def test_a_batch_taken_for_channels_is_no_wrong_channel_count():
    flat = [(torch.rand(4, 8, 8), None)]
    with pytest.raises(ArchitectureError, match=r"the network fails on a batch of shape \(4, 8, 8\) from `--data`"):
        logits(small_network(), flat)
    waves = torch.nn.Sequential(torch.nn.Conv1d(3, 2, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    with pytest.raises(DataError, match=r"images with 5 channel\(s\), the network expects 3"):
        logits(waves, [(torch.rand(4, 5, 9), None)])


def test_error_wrong_channel_count():
    with pytest.raises(DataError, match=r"`--data` has images with 1 channel\(s\), the network expects 3"):
        logits(small_network(), batches(n_channels=1))


def test_error_network_fails_on_the_images():
    with pytest.raises(ArchitectureError, match=r"shape \(4, 3, 6, 6\) from `--data` \(RuntimeError: .*`--arch`") as e:
        logits(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), batches())
    assert "\n" not in str(e.value)


def test_error_labels_beyond_the_classes():
    with pytest.raises(DataError, match=r"`--data`: expected labels in 0..4 for a network with 5 classes, got 5"):
        logits(small_network(), batches(label=5))


def test_error_output_is_no_tensor():
    with pytest.raises(ArchitectureError, match=r"logits of shape \(4, classes\) for 4 image\(s\), got `tuple`"):
        logits(Lambda(lambda images: (images, images)), batches())


def test_error_output_is_not_two_dimensional():
    with pytest.raises(ArchitectureError, match=r"got shape \(4, 3, 6, 6\)"):
        logits(Lambda(lambda images: images), batches())


def test_error_output_is_not_finite():
    with pytest.raises(ArchitectureError, match="got infinite or NaN values"):
        logits(Lambda(lambda images: images.flatten(1) / 0), batches())
