"""Shared weights: assignment, draws, divergence, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from gbnn_compress.mixture.divergence import gaussian_divergence_nats
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.training.shared_weights import SharedWeights
from gbnn_compress.types import Bank, Posterior

CPU = torch.device("cpu")

MEANS = np.array([-1.0, 0.0, 0.5, 2.0])


def shared(weights: torch.Tensor, *, penalty: float = 1e-3, noise: float = 0.1, **masks: torch.Tensor) -> SharedWeights:
    """One tensor, `w`, on four components, scale 0.5."""
    found = SharedWeights({"w": weights}, ["w"], device=CPU)
    posterior = Posterior("w", 0.5, np.zeros(len(weights)))
    book = Codebook(
        Bank(MEANS, np.array([0.1, 0.0, -0.2, 0.3])),
        np.array([[5.0, 20.0, 10.0, 1.0, 0.0]]),
        penalty,
        np.ones(1),
    )
    found.adopt(book, [posterior], exponent=-3, noise=noise, outliers=masks)
    return found


def random_weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.5


def test_ids_are_those_of_the_rate_rule() -> None:
    weights = random_weights(6, 8)
    found = shared(weights, penalty=0.05)
    lengths = -np.log2(np.array([5, 20, 10, 1]) / 36)
    costs = (weights.numpy()[..., None] / 0.5 - MEANS) ** 2 + 0.05 * lengths
    assert (found.ids()["w"].numpy() == costs.argmin(axis=-1)).all()


def test_the_mean_weights_are_the_means_of_their_components() -> None:
    found = shared(random_weights(6, 8))
    ids = found.ids()
    assert torch.equal(found.weights(ids)["w"], torch.tensor(MEANS, dtype=torch.float32)[ids["w"]] * 0.5)


def test_outliers_stay_as_they_are_and_come_back_in_the_map() -> None:
    weights = random_weights(6, 8)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2, 3] = True
    found = shared(weights, w=mask)
    assert found.weights(found.ids())["w"][2, 3] == weights[2, 3]
    (index_map,) = found.maps()
    assert (index_map.ids == 4).sum() == 1
    assert index_map.outliers.view(np.float32)[0] == weights[2, 3].item()


def test_all_members_of_a_component_share_one_draw() -> None:
    found = shared(random_weights(6, 8))
    ids = found.ids()
    drawn = found.weights(ids, torch.Generator().manual_seed(1))["w"]
    for k in ids["w"].unique():
        assert len(drawn[ids["w"] == k].unique()) == 1
    again = found.weights(ids, torch.Generator().manual_seed(1))["w"]
    assert torch.equal(drawn, again)


def test_moments_of_a_layers_outputs_are_those_of_the_shared_posterior() -> None:
    """With w_k ~ N(m_k, d_k^2) shared, y = sum_k w_k s_k, s_k the sum of the inputs of k's members."""
    found = shared(random_weights(1, 12), noise=1.0)
    ids, x = found.ids(), torch.linspace(0.2, 2, 12)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        y = torch.stack([found.weights(ids, generator)["w"][0] @ x for _ in range(4000)])
    members = torch.bincount(ids["w"].view(-1), minlength=4)
    sums = torch.bincount(ids["w"].view(-1), weights=x, minlength=4)
    deviations = 0.5 * found.coding.noise * found.coding.log_sigmas.exp() / members.clamp_min(1).sqrt()
    deviations = torch.where(found.coding.means != 0, deviations, 0.0)  # zero is noiseless
    mean = (0.5 * found.coding.means * sums).sum()
    deviation = ((deviations * sums) ** 2).sum().sqrt()
    assert y.mean().item() == pytest.approx(mean.item(), abs=4 * deviation.item() / 60)
    assert y.std().item() == pytest.approx(deviation.item(), rel=0.05)


def test_gradients_go_to_components_and_straight_through_to_latent_weights() -> None:
    found = shared(random_weights(6, 8))
    ids = found.ids()
    factor = random_weights(6, 8) + 1
    (found.weights(ids)["w"] * factor).sum().backward()
    assert torch.equal(found.latent["w"].grad, factor)
    sums = torch.bincount(ids["w"].view(-1), weights=factor.view(-1), minlength=4)
    torch.testing.assert_close(found.coding.means.grad, 0.5 * sums)


def test_a_tensor_of_zeros_stays_one_and_costs_nothing() -> None:
    found = SharedWeights({"w": torch.zeros(2, 3)}, ["w"], device=CPU)
    counts = np.array([[0.0, 6.0, 0.0, 0.0, 0.0]])
    book = Codebook(Bank(MEANS, np.zeros(4)), counts, 1e-3, np.ones(1))
    found.adopt(book, [Posterior("w", 2.0**-1000, np.zeros(2))], exponent=-3, noise=0.1, outliers={})
    ids = found.ids()
    assert bool((found.weights(ids, torch.Generator())["w"] == 0).all())
    assert bool(found.coding.divergence_nats(found.coding.deviations(ids)).isfinite())


def test_repricing_follows_members_and_lets_a_component_come_back() -> None:
    found = shared(torch.full((4, 4), 0.25))
    found.reprice(1e-3)
    assert set(found.ids()["w"].unique().tolist()) == {2}
    with torch.no_grad():
        found.latent["w"][0, 0] = 1.0
    assert found.ids()["w"][0, 0] == 3


def test_a_coding_is_replaced_and_the_one_before_stays_as_it_was() -> None:
    found = shared(random_weights(6, 8))
    before = found.coding
    counts, thresholds = before.book.counts.copy(), before.rules["w"].thresholds.clone()
    found.set_noise(0.5)
    found.reprice(0.05)
    assert (before.noise, before.book.penalty) == (0.1, 1e-3)
    assert np.array_equal(before.book.counts, counts)
    assert torch.equal(before.rules["w"].thresholds, thresholds)
    assert (found.coding.noise, found.coding.book.penalty) == (0.5, 0.05)
    assert not torch.equal(found.coding.rules["w"].thresholds, thresholds)


def test_a_restored_state_is_a_copy_and_gives_the_same_draws() -> None:
    found, other = shared(random_weights(6, 8)), SharedWeights({"w": torch.zeros(6, 8)}, ["w"], device=CPU)
    state = found.state()
    other.restore(state)
    ids = other.ids()
    assert torch.equal(ids["w"], found.ids()["w"])
    drawn = [each.weights(ids, torch.Generator().manual_seed(1))["w"] for each in (found, other)]
    assert torch.equal(*drawn)
    with torch.no_grad():
        other.latent["w"] += 1
        other.coding.means.add_(1)
    assert torch.equal(state["latent"]["w"], found.latent["w"])
    assert torch.equal(state["coding"]["means"], torch.tensor(MEANS, dtype=torch.float32))


def test_bits_are_the_code_lengths_of_the_members() -> None:
    found = shared(random_weights(6, 8))
    ids = found.ids()
    members = np.bincount(ids["w"].numpy().ravel(), minlength=4)
    assert found.coding.bits(ids) == pytest.approx(float(members @ -np.log2(np.array([5, 20, 10, 1]) / 36)))


def test_the_checkpoint_is_left_as_it_was() -> None:
    weights = random_weights(6, 8)
    before = weights.clone()
    found = shared(weights)
    with torch.no_grad():
        found.latent["w"] += 1
    assert torch.equal(weights, before)


positive = st.floats(1e-3, 1e3)


@given(st.floats(-10, 10), positive, st.floats(-10, 10), positive)
def test_the_divergence_is_that_of_torch_and_never_negative(m: float, s: float, m0: float, s0: float) -> None:
    values = (torch.tensor(v, dtype=torch.float64) for v in (m, s, m0, s0))
    q_mean, q_deviation, p_mean, p_deviation = values
    got = gaussian_divergence_nats(q_mean, q_deviation, p_mean, p_deviation)
    torch.testing.assert_close(got, kl_divergence(Normal(q_mean, q_deviation), Normal(p_mean, p_deviation)))
    assert got >= -1e-12


def test_the_divergence_is_zero_at_the_prior() -> None:
    mean, deviation = torch.randn(5), torch.rand(5) + 0.1
    assert gaussian_divergence_nats(mean, deviation, mean, deviation) == 0


@pytest.mark.long
def test_a_conjugate_posterior_is_recovered() -> None:
    """Bayesian linear regression on one shared value: its posterior is known in closed form."""
    found = shared(torch.full((1, 8), 0.9), noise=0.2)
    ids = found.ids()
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    y = x.sum(dim=1) * 0.8 + 0.3 * torch.randn(40, generator=torch.Generator().manual_seed(4))
    generator, precision = torch.Generator().manual_seed(5), 1 / 0.3**2
    optimiser = torch.optim.Adam([found.coding.means, found.coding.log_sigmas], lr=0.02)
    prior_mean, prior_deviation = found.coding.prior_means[3], found.coding.prior_widths["w"][3]
    for step in range(1500):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / 1500)
        draws = [found.weights(ids, generator)["w"][0] for _ in range(8)]
        misfit = sum(0.5 * precision * ((x @ w - y) ** 2).sum() for w in draws) / len(draws)
        optimiser.zero_grad()
        (misfit + found.coding.divergence_nats(found.coding.deviations(ids))).backward()
        optimiser.step()
    sums = 0.5 * x.sum(dim=1)  # what one unit of the shared value adds to y
    inverse_variance = precision * (sums**2).sum() + prior_deviation**-2
    wanted = (precision * (sums * y).sum() + prior_mean / prior_deviation**2) / inverse_variance
    assert found.coding.means[3].item() == pytest.approx(wanted.item(), abs=0.01)
    assert found.coding.deviations(ids)["w"][3].item() == pytest.approx(inverse_variance.rsqrt().item(), rel=0.1)
