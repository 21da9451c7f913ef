import numpy as np
import pytest
import torch

from gbnn_compress.predict import metrics
from gbnn_compress.predict.prediction import at_temperature, average
from gbnn_compress.predict.temperature import (
    LARGEST,
    SMALLEST,
    fit_temperature,
    scale,
)


def logits_and_labels(*, n: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the softmax of the logits: they are calibrated at temperature 1."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()


def test_scaling_probabilities_is_dividing_logits():
    logits, _ = logits_and_labels(n=50)
    torch.testing.assert_close(scale(logits.softmax(dim=1), 1.7), (logits / 1.7).softmax(dim=1))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
    logits, labels = logits_and_labels()
    found = fit_temperature((logits * temperature).softmax(dim=1), labels)
    assert found == pytest.approx(temperature, rel=0.05)


def test_the_fit_is_the_minimum_of_nll():
    logits, labels = logits_and_labels(n=300)
    probabilities = (3 * logits).softmax(dim=1)
    best = fit_temperature(probabilities, labels)
    nlls = [metrics.nll(scale(probabilities, best * factor), labels) for factor in (0.98, 1.0, 1.02)]
    assert nlls[1] == min(nlls)


def test_labels_may_be_numpy_and_nothing_is_changed():
    logits, labels = logits_and_labels(n=300)
    probabilities = logits.softmax(dim=1)
    before = probabilities.clone()
    assert fit_temperature(probabilities, labels.numpy()) == fit_temperature(probabilities, labels)
    assert torch.equal(probabilities, before)


def test_the_fit_stays_within_its_bounds_and_probability_0_is_no_trouble():
    sure = torch.eye(3, dtype=torch.float64)
    assert fit_temperature(0.25 * (sure + 1), torch.arange(3)) == pytest.approx(SMALLEST, rel=0.01)
    assert fit_temperature(sure, torch.tensor([1, 2, 0])) == pytest.approx(LARGEST, rel=0.01)


@pytest.mark.parametrize("temperature", [SMALLEST, 0.7, LARGEST])
def test_scaling_keeps_the_order_of_classes_and_mutual_information(temperature):
    draws = [each.softmax(dim=1) for each in logits_and_labels(n=20)[0].split(10)]
    before = average(draws)
    after = at_temperature(before, temperature)
    assert torch.equal(after.probabilities.argmax(dim=1), before.probabilities.argmax(dim=1))
    assert torch.equal(after.mutual_information, before.mutual_information)
    np.testing.assert_allclose(after.entropy, metrics.predictive_entropy(after.probabilities))
    torch.testing.assert_close(after.probabilities.sum(dim=1), torch.ones(10, dtype=torch.float64))


def test_temperature_1_changes_nothing():
    prediction = average([logits_and_labels(n=5)[0].softmax(dim=1)])
    assert at_temperature(prediction, 1.0) is prediction
