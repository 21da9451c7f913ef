"""What contexts save is predicted from a part of the network."""

from __future__ import annotations

import pytest
import torch
from small_networks import cells_of, problem_of, random_network

from gbnn_compress.format.contexts import whole_values
from gbnn_compress.format.table_choice import choose
from gbnn_compress.rate import context_savings
from gbnn_compress.rate.context_savings import fraction_meter
from gbnn_compress.rate.control import predicted_bytes
from gbnn_compress.rate.maps import index_maps
from gbnn_compress.rate.rate_problem import codebook_at


def smooth_network(seed: int) -> dict[str, torch.Tensor]:
    """The random network with kernels alike within themselves, and a larger convolution."""
    network = random_network(seed)
    generator = torch.Generator().manual_seed(seed)
    network["conv3.weight"] = torch.randn(96, 64, 3, 3, generator=generator)
    for name in ("conv1.weight", "conv2.weight", "conv3.weight"):
        size = network[name].shape[:2]
        alike = torch.randn(*size, 1, 1, generator=generator) * torch.randn(size[0], 1, 1, 1, generator=generator).exp()
        network[name] = 0.3 * network[name] + network[name].std() * alike
    return network


@pytest.mark.parametrize("sample", [1 << 14, 1 << 18])
def test_the_fraction_of_a_part_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch, sample: int) -> None:
    monkeypatch.setattr(context_savings, "SAMPLE", sample)
    network = smooth_network(0)
    posteriors, cells = cells_of(network)
    problem = problem_of(cells)
    book, _ = codebook_at(problem, 0.05)
    maps = index_maps(network, posteriors, book, value_bits=problem.value_bits)
    values = whole_values(book.bank.means)
    choices = [choose(m.ids, network[m.name].shape, values) for m in maps]
    actual = sum(choice.id_bits for choice in choices) / sum(choice.plain_bits for choice in choices)
    assert actual < 0.9
    measured = fraction_meter(network, posteriors, value_bits=problem.value_bits)(book)
    assert measured == pytest.approx(actual, rel=0.005 if sample > 100_000 else 0.04)


def test_random_weights_keep_all_their_bits() -> None:
    network = random_network(1)
    posteriors, cells = cells_of(network)
    problem = problem_of(cells)
    meter = fraction_meter(network, posteriors, value_bits=problem.value_bits)
    assert meter(codebook_at(problem, 0.05)[0]) == pytest.approx(1, abs=0.01)
    assert meter(codebook_at(problem, 2.0**28)[0]) == 1


def test_predicted_bytes_lie_between_those_at_the_fractions_around() -> None:
    network, asked = random_network(2), []

    def measure(book: object) -> float:
        asked.append(book.penalty)  # type: ignore[attr-defined]
        return 0.5 if book.penalty < 1 else 0.7  # type: ignore[attr-defined]

    _, cells = cells_of(network)
    plain, problem = problem_of(cells), problem_of(cells, measure_fraction=measure)
    book, exponent = codebook_at(plain, 0.5)
    without = predicted_bytes(plain, book, exponent)
    assert 0.5 * without < predicted_bytes(problem, book, exponent) < 0.75 * without
    predicted_bytes(problem, book, exponent)
    assert sorted(asked) == [0.25, 1.0]
