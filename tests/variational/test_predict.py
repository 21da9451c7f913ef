import copy

import pytest
import torch
from torch import nn

from gbnn_compress.errors import ArchitectureError, DataError, GbnnError
from gbnn_compress.variational.predict import logits, predict_probabilities


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.second(self.first(images.flatten(1)))


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
def test_one_draw_that_changes_nothing_is_the_softmax(label):
    network = small_network()
    found = predict_probabilities(network, lambda: batches(label=label), draws=[{}])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, logits(network, batches()).double().softmax(dim=1))


def test_draws_average_probabilities_not_logits():
    network = small_network()
    draws = [{"5.bias": torch.eye(5)[k] * 10} for k in range(3)]
    expected = torch.zeros(11, 5, dtype=torch.float64)
    for draw in draws:
        changed = copy.deepcopy(network)
        changed.load_state_dict(draw, strict=False)
        expected += logits(changed, batches()).double().softmax(dim=1) / 3
    found = predict_probabilities(network, batches, draws=iter(draws))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(11, dtype=torch.float64))


def test_half_precision_draws_and_buffers_are_laid_over():
    network = small_network()
    draw = {"0.weight": torch.zeros(4, 3, 3, 3).half(), "1.running_mean": torch.ones(4).half()}
    changed = copy.deepcopy(network)
    changed.load_state_dict(draw, strict=False)
    found = predict_probabilities(network, batches, draws=[draw])
    torch.testing.assert_close(found, logits(changed, batches()).double().softmax(dim=1))


def test_network_and_draws_are_not_changed():
    network = small_network().train()
    network[1].eval()
    state = copy.deepcopy(network.state_dict())
    draw = {"5.bias": torch.ones(5)}
    predict_probabilities(network, batches, draws=[draw])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert [module.training for module in network.modules()] == [True, True, False, True, True, True, True]
    assert torch.equal(draw["5.bias"], torch.ones(5))


@pytest.mark.parametrize("names", [["first.weight"], ["second.weight"], ["first.weight", "second.weight"]])
def test_any_name_of_a_tied_tensor_changes_both(names):
    draw = {name: torch.eye(4) for name in names}
    images = torch.rand(2, 1, 2, 2)
    found = predict_probabilities(Tied(), lambda: [(images, None)], draws=[draw])
    torch.testing.assert_close(found, images.flatten(1).double().softmax(dim=1))


def test_error_no_draw():
    with pytest.raises(GbnnError, match="`--samples` must be at least 1, got 0"):
        predict_probabilities(small_network(), batches, draws=[])


def test_error_no_batch():
    with pytest.raises(DataError, match="`--ood` gave no batch"):
        logits(small_network(), [], option="--ood")


def test_error_draw_names_an_unknown_tensor():
    with pytest.raises(ArchitectureError, match=r"the network has no tensor `fc.bias`"):
        predict_probabilities(small_network(), batches, draws=[{"fc.bias": torch.ones(5)}])


def test_error_draw_of_another_shape():
    with pytest.raises(ArchitectureError, match=r"`5.bias` is \[6\] in a draw and \[5\] in the network"):
        predict_probabilities(small_network(), batches, draws=[{"5.bias": torch.ones(6)}])


def test_error_wrong_channel_count():
    with pytest.raises(DataError, match=r"`--data` gives images with 1 channel\(s\) and the network expects 3"):
        logits(small_network(), batches(n_channels=1))


def test_error_network_fails_on_the_images():
    with pytest.raises(ArchitectureError, match=r"shape \(4, 3, 6, 6\) from `--data` \(RuntimeError: .*`--arch`") as e:
        logits(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), batches())
    assert "\n" not in str(e.value)


def test_error_labels_beyond_the_classes():
    with pytest.raises(DataError, match=r"`--data` has label 5 and the network 5 classes, .* 0..4"):
        logits(small_network(), batches(label=5))


def test_error_output_is_no_tensor():
    with pytest.raises(ArchitectureError, match=r"logits of shape \(4, classes\) for 4 image\(s\), got `tuple`"):
        logits(Lambda(lambda images: (images, images)), batches())


def test_error_output_is_not_two_dimensional():
    with pytest.raises(ArchitectureError, match=r"got shape \(4, 3, 6, 6\)"):
        logits(Lambda(lambda images: images), batches())


def test_error_output_is_not_finite():
    with pytest.raises(ArchitectureError, match="got values that are infinite or NaN"):
        logits(Lambda(lambda images: images.flatten(1) / 0), batches())
