import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassCalibrationError

from gbnn_compress.errors import GbnnError
from gbnn_compress.predict import metrics


def random_predictions(seed: int, *, n: int = 200, n_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(n_classes, 0.5), size=n)
    return probabilities, generator.integers(0, n_classes, size=n)


predictions = st.builds(
    random_predictions, st.integers(0, 2**32 - 1), n=st.integers(1, 40), n_classes=st.integers(1, 6)
)


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_agrees_on_accuracy_nll_and_brier(seed):
    p, y = random_predictions(seed)
    classes = list(range(5))
    assert metrics.accuracy(p, y) == sklearn.metrics.accuracy_score(y, p.argmax(axis=1))
    assert metrics.nll(p, y) == pytest.approx(sklearn.metrics.log_loss(y, p, labels=classes))
    assert metrics.brier(p, y) == pytest.approx(sklearn.metrics.brier_score_loss(y, p, labels=classes))


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_agrees_on_ece_away_from_0_and_1(seed):
    p, y = random_predictions(seed)
    oracle = MulticlassCalibrationError(num_classes=5, n_bins=15, norm="l1")
    assert metrics.ece(p, y) == pytest.approx(float(oracle(torch.tensor(p), torch.tensor(y))), abs=1e-6)


def test_ece_puts_confidence_1_into_the_last_bin():
    p = np.array([[1.0, 0.0], [0.96, 0.04]])
    y = np.array([1, 0])
    # One bin: |accuracy 0.5 - confidence 0.98|. Bins apart would give (1 + 0.04) / 2.
    assert metrics.ece(p, y) == pytest.approx(0.48)


def test_ece_puts_confidence_0_into_the_first_bin():
    p = np.array([[0.0, 0.0], [0.05, 0.05]])
    assert metrics.ece(p, np.array([0, 0])) == pytest.approx(0.975)


def test_ece_of_sure_and_right_is_0_and_of_sure_and_wrong_is_1():
    p = np.eye(3)
    assert metrics.ece(p, np.arange(3)) == 0.0
    assert metrics.ece(p, np.array([1, 2, 0])) == 1.0


def test_torchmetrics_sets_confidence_1_apart_and_this_does_not():
    p, y = np.array([[1.0, 0.0], [0.96, 0.04]]), np.array([1, 0])
    oracle = MulticlassCalibrationError(num_classes=2, n_bins=15, norm="l1")
    assert float(oracle(torch.tensor(p), torch.tensor(y))) == pytest.approx((1 + 0.04) / 2, abs=1e-6)
    assert metrics.ece(p, y) == pytest.approx(abs(0.5 - 0.98))


def test_ece_puts_an_edge_into_the_bin_below():
    # Edges of two bins: 0, 0.5, 1. Confidence 0.5 and 0.4 share the first bin, where they are half right.
    p = np.array([[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.8, 0.1, 0.1]])
    assert metrics.ece(p, np.array([0, 1, 0]), n_bins=2) == pytest.approx((abs(1 - 0.9) + abs(1 - 0.8)) / 3)


def test_adaptive_ece_by_hand():
    # Two bins of two: confidences .5 and .6, one right; .9 and 1, both right.
    p = np.array([[1.0, 0.0], [0.6, 0.4], [0.9, 0.1], [0.5, 0.5]])
    y = np.array([0, 1, 0, 0])
    assert metrics.adaptive_ece(p, y, n_bins=2) == pytest.approx((abs(1 - 1.1) + abs(2 - 1.9)) / 4)


def test_adaptive_ece_with_a_bin_an_input_and_with_more():
    p, y = random_predictions(0, n=10)
    gaps = np.abs((p.argmax(axis=1) == y) - p.max(axis=1))
    assert metrics.adaptive_ece(p, y, n_bins=10) == pytest.approx(gaps.mean())
    assert metrics.adaptive_ece(p, y, n_bins=50) == pytest.approx(gaps.mean())


@pytest.mark.parametrize("seed", range(3))
def test_bins_of_equal_mass_are_quantile_bins(seed):
    p, y = random_predictions(seed, n=300)
    order = np.argsort(p.max(axis=1))
    gaps = [np.mean((p.argmax(axis=1) == y)[part] - p.max(axis=1)[part]) for part in order.reshape(15, 20)]
    assert metrics.adaptive_ece(p, y) == pytest.approx(np.abs(gaps).mean())


def two_classes(confidences: list[float], right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    p = np.array(confidences)
    return np.stack([p, 1 - p], axis=1), np.where(right, 0, 1)


@pytest.mark.parametrize(
    ("confidences", "right", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [True] * 4, 1.0),
        ([0.9, 0.8, 0.7, 0.6], [True, True, False, False], 0.5),
        ([0.9, 0.8, 0.7, 0.6], [False, True, True, True], 1.0),  # 1 of 4 again, after 1 of 1
        ([0.9, 0.9, 0.7, 0.6], [True, False, False, False], 0.0),  # equally sure: both or neither
        ([1.0, 0.6], [False, False], 0.0),
    ],
)
def test_coverage_at_a_risk_of_a_quarter(confidences, right, expected):
    assert metrics.coverage_at_risk(*two_classes(confidences, right), risk=0.25) == expected


def test_coverage_counts_exactly_the_risk_as_within():
    p, y = two_classes([0.99 - n / 1000 for n in range(40)], [n != 19 and n != 39 for n in range(40)])
    assert metrics.coverage_at_risk(p, y, risk=0.05) == 1.0


@given(predictions)
def test_scores_lie_in_their_ranges(prediction):
    p, y = prediction
    scores = metrics.measures(p, y)
    assert list(scores) == ["accuracy", "nll", "ece", "brier", "adaptive_ece", "coverage_at_5_percent_risk"]
    assert 0 <= scores["adaptive_ece"] <= 1
    assert 0 <= scores["coverage_at_5_percent_risk"] <= 1
    assert 0 <= scores["accuracy"] <= 1
    assert 0 <= scores["ece"] <= 1
    assert -1e-12 <= scores["brier"] <= 2 + 1e-12
    assert -1e-12 <= scores["nll"] < np.inf


@given(predictions)
def test_one_bin_is_the_gap_between_accuracy_and_confidence(prediction):
    p, y = prediction
    gap = abs(metrics.accuracy(p, y) - p.max(axis=1).mean())
    assert metrics.ece(p, y, n_bins=1) == pytest.approx(gap)
    assert metrics.ece(p, y) >= gap - 1e-12


@settings(deadline=None)
@given(predictions)
def test_order_of_inputs_does_not_matter(prediction):
    p, y = prediction
    assert metrics.measures(p[::-1], y[::-1]) == pytest.approx(metrics.measures(p, y))


@given(predictions, st.integers(0, 2**32 - 1))
def test_kl_is_nonnegative_and_0_for_itself(prediction, seed):
    p, _ = prediction
    other, _ = random_predictions(seed, n=len(p), n_classes=p.shape[1])
    assert metrics.logit_kl(p, other) >= 0
    assert metrics.logit_kl(p, p) == pytest.approx(0, abs=1e-12)
    assert metrics.agreement(p, p) == 1.0
    assert metrics.agreement(p, other) == metrics.agreement(other, p)


def test_torch_agrees_on_kl():
    p, _ = random_predictions(0)
    q, _ = random_predictions(1)
    oracle = torch.distributions.kl_divergence(
        torch.distributions.Categorical(torch.tensor(p)), torch.distributions.Categorical(torch.tensor(q))
    )
    assert metrics.logit_kl(p, q) == pytest.approx(float(oracle.mean()))


def test_torch_agrees_on_entropy():
    p, _ = random_predictions(0)
    oracle = torch.distributions.Categorical(torch.tensor(p)).entropy()
    np.testing.assert_allclose(metrics.predictive_entropy(p), oracle.numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probability_0_stays_finite(dtype):
    sure, unsure = np.array([[1.0, 0.0]], dtype=dtype), np.array([[0.5, 0.5]], dtype=dtype)
    expected = -np.log(np.float64(np.finfo(dtype).tiny))
    assert metrics.nll(sure, np.array([1])) == pytest.approx(expected)
    assert metrics.logit_kl(unsure, sure) == pytest.approx(0.5 * expected + np.log(0.5))
    assert metrics.logit_kl(sure, unsure) == pytest.approx(np.log(2))


scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=20).map(np.array)


@settings(deadline=None)
@given(scores, scores)
def test_auroc_is_the_fraction_of_pairs_in_order_ties_counted_half(inside, outside):
    oracle = np.mean((np.sign(outside[:, None] - inside) + 1) / 2)
    assert metrics.auroc(inside, outside) == pytest.approx(oracle)
    assert metrics.auroc(outside, inside) == pytest.approx(1 - oracle)


@settings(deadline=None)
@given(scores, scores)
def test_scikit_learn_agrees_on_fpr95_with_ties(inside, outside):
    accepted = np.repeat([1, 0], [len(inside), len(outside)])
    fpr, tpr, _ = sklearn.metrics.roc_curve(accepted, -np.concatenate([inside, outside]), drop_intermediate=False)
    assert metrics.fpr95(inside, outside) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_torch_and_numpy_give_the_same_numbers():
    p, y = random_predictions(0)
    tensor = torch.tensor(p, requires_grad=True)
    assert metrics.measures(tensor, torch.tensor(y)) == metrics.measures(p, y)
    assert metrics.summary(torch.tensor(p).float(), torch.tensor(y)) == pytest.approx(metrics.summary(p, y), rel=1e-5)


def test_inputs_are_not_changed():
    p, y = random_predictions(0)
    before = p.copy(), y.copy()
    metrics.measures(p, y)
    metrics.logit_kl(p, p)
    np.testing.assert_array_equal(p, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_error_probabilities_not_two_dimensional():
    with pytest.raises(GbnnError, match=r"`probabilities` must have shape \(N, C\).*got \(3,\)"):
        metrics.accuracy(np.ones(3), np.zeros(3, dtype=int))


def test_error_no_input():
    with pytest.raises(GbnnError, match=r"N, C >= 1, got \(0, 3\)"):
        metrics.nll(np.ones((0, 3)), np.zeros(0, dtype=int))


def test_error_labels_of_another_length():
    with pytest.raises(GbnnError, match=r"`labels` must have shape \(2,\), one label per input, got \(3,\)"):
        metrics.ece(np.ones((2, 1)), np.zeros(3, dtype=int))


def test_error_labels_out_of_range():
    with pytest.raises(GbnnError, match=r"`labels` must lie in 0..1, got 0..2"):
        metrics.brier(np.full((2, 2), 0.5), np.array([0, 2]))


def test_error_predictions_of_two_shapes():
    with pytest.raises(GbnnError, match=r"got \(2, 3\) and \(2, 4\)"):
        metrics.agreement(np.ones((2, 3)), np.ones((2, 4)))


def test_error_no_scores():
    with pytest.raises(GbnnError, match=r"`scores_out` must have shape \(N,\) with N >= 1, got \(0,\)"):
        metrics.auroc(np.ones(2), np.ones(0))
