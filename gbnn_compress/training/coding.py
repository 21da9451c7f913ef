"""How latent weights become components: one frozen value that rate control replaces as a whole.

A latent weight u, in units of its tensor's scale s_t, goes to the component of the least cost

    argmin_k h (u - m_k)^2 + lambda L_tk

(h the curvature of its row, L_tk the code length of component k in tensor t), found by a search among thresholds. Means
and code lengths in this rule are those of the last pricing; the trained means move on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from gbnn_compress.format.bank import round_bank
from gbnn_compress.mixture.divergence import gaussian_divergence_nats
from gbnn_compress.mixture.intervals import decision_intervals
from gbnn_compress.rate.cells import LEVELS, sigma_levels
from gbnn_compress.rate.codebook import Codebook, curvature_of, ideal_lengths
from gbnn_compress.types import Bank, Posterior

FINER_OCTAVES = 6
"""Trained means are stored on a grid finer than rate control's by this many octaves, because training moves their last
digits too. With a coarse grid, the large component near zero could not leave zero, and ResNet-20 at 50x lost ten points
early in training."""

SILENT = -15.0
"""Log deviation that is stored for the component that rate control put at zero. That component is noiseless: most
weights are its members, and noise that they share adds up over a layer's inputs. Training may move it off zero; the
stored deviation then keeps it noiseless without a mark in the file."""

RARE = 0.5
"""Number of members that the price of a component without members assumes."""

NARROWEST = 1e-3
"""Smallest deviation of a prior, in units of s_t; members of equal weights have a deviation of zero."""

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Smallest divisor of weights; the scale of a tensor of zeros is 0 in float32."""

Ids = Mapping[str, torch.Tensor]
"""Name -> int64 (rows, weights per row), the component of each weight of every shared tensor."""

Deviations = Mapping[str, torch.Tensor]
"""Name -> float32 (K,), posterior deviation of the value that a component's members share; 0 without noise."""


@dataclass(frozen=True)
class CodingRule:
    """How the latent weights of one tensor become ids.

    Attributes:
        scale: s_t, at least SMALLEST_SCALE.
        thresholds: float32 (rows, J), ascending; infinite where a row has fewer thresholds.
        winners: int64 (rows, J + 1), the component between two thresholds.
    """

    scale: float
    thresholds: torch.Tensor
    winners: torch.Tensor


@dataclass(frozen=True)
class Coding:
    """The bank, its noise and its prices: everything that assigns latent weights to components and draws them.

    `means` and `log_sigmas` are leaf tensors that an optimiser updates in place; nothing else in here changes.

    Attributes:
        book: The codebook of the last pricing: bank, counts and lambda.
        posteriors: One per shared tensor, in the order of the latent weights.
        exponent: The file stores means in multiples of 2^exponent.
        noise: Posterior deviation of a component with one member, over its e^log_sigma.
        outliers: Name -> bool mask of the weights that keep their own values; tensors without outliers have no mask.
        means: float32 (K,), ascending, in units of the scales.
        log_sigmas: float32 (K,), log of the deviations in units of the scales.
        noisy: bool (K,), false for the component that rate control put at zero.
        prior_means: float32 (K,), `means` at the time of adoption.
        prior_widths: Name -> float32 (K,), root mean square of u - m_k over the members at the time of adoption.
        rules: Name -> rule, a function of `book` and `posteriors`.
    """

    book: Codebook
    posteriors: tuple[Posterior, ...]
    exponent: int
    noise: float
    outliers: Mapping[str, torch.Tensor]
    means: torch.Tensor
    log_sigmas: torch.Tensor
    noisy: torch.Tensor
    prior_means: torch.Tensor
    prior_widths: Mapping[str, torch.Tensor]
    rules: Mapping[str, CodingRule]

    def repriced(self, penalty: float, *, members: np.ndarray | None = None) -> Coding:
        """The same components at another lambda.

        Args:
            penalty: lambda.
            members: int64 (T, K + 1), the current members of each component, outliers last. With them the thresholds
                also follow the trained means and the members. Code lengths follow half of the way, as the geometric
                mean of old and new counts: followed all the way, few members would make a component expensive, which
                would leave it fewer. A component without current members can still be chosen: most often its members
                are the few large weights, which no other component replaces.
        """
        book = replace(self.book, penalty=penalty)
        if members is not None:
            counts = self.book.counts
            counts = np.where(counts > 0, np.sqrt(np.maximum(counts, RARE) * np.maximum(members, RARE)), 0.0)
            book = replace(book, bank=self.bank(), counts=counts)
        return replace(self, book=book, rules=assignment_rules(book, self.posteriors, device=self.means.device))

    def bank(self) -> Bank:
        """The trained bank on the file's grid."""
        silenced = torch.where(self.noisy, self.log_sigmas, SILENT)
        means, log_sigmas = (values.detach().double().cpu().numpy() for values in (self.means, silenced))
        return round_bank(Bank(means, log_sigmas), exponent=self.exponent)

    def stored_means(self) -> torch.Tensor:
        """float32 (K,), the means on the file's grid; gradients pass through the rounding."""
        grid = 2.0**self.exponent
        return self.means + (torch.round(self.means / grid) * grid - self.means).detach()

    def deviations(self, ids: Ids) -> Deviations:
        """d_tk = noise e^log_sigma_k / sqrt(n_tk): the precision of a shared value is the sum of its members'."""
        return {name: self._deviations_of(own) for name, own in ids.items()}

    def divergence_nats(self, deviations: Deviations) -> torch.Tensor:
        """KL of the posterior from the prior, summed over the values w_tk of all components and tensors.

        The posterior of a value is N(s_t m_k, (s_t d_tk)^2). Its prior is the Gaussian of the weights that it replaced:
        centred at the component's mean at adoption, as wide as the members lay around it.
        """
        total = torch.zeros((), device=self.means.device)
        for name, own in deviations.items():
            live = own.detach() > 0
            total = total + gaussian_divergence_nats(
                self.means[live], own[live], self.prior_means[live], self.prior_widths[name][live]
            )
        return total

    def bits(self, ids: Ids) -> float:
        """Code lengths of all ids at the counts of the last pricing; contexts save some of them in the file."""
        counts = self.book.counts[:, :-1]
        lengths = np.where(counts > 0, ideal_lengths(self.book.counts)[:, :-1], 0.0)
        members = np.stack([_members(own, len(self.means)).cpu().numpy() for own in ids.values()])
        return float((members * lengths).sum())

    def state(self) -> dict[str, Any]:
        """Every field but `rules`: detached tensors that share memory with the coding."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rules"}
        return kept | {"means": self.means.detach(), "log_sigmas": self.log_sigmas.detach()}

    def _deviations_of(self, own: torch.Tensor) -> torch.Tensor:
        members = _members(own, len(self.means))
        deviations = self.noise * self.log_sigmas.exp() / members.clamp_min(1).sqrt()
        return torch.where(self.noisy & (members > 0), deviations, 0.0)


def new_coding(
    latent: Mapping[str, torch.Tensor],
    book: Codebook,
    posteriors: Sequence[Posterior],
    *,
    exponent: int,
    noise: float,
    outliers: Mapping[str, torch.Tensor],
    device: torch.device,
) -> Coding:
    """The coding of a codebook that rate control made for latent weights.

    Args:
        latent: Name -> float32 latent weights.
        book: Components, counts and lambda.
        posteriors: One per shared tensor, in the order of the latent weights.
        exponent: Of rate control's grid; the coding's grid is FINER_OCTAVES finer.
        noise: See `Coding`.
        outliers: Name -> bool mask, see `Coding`.
        device: Of the latent weights.
    """
    means, log_sigmas = (
        torch.tensor(values, dtype=torch.float32, device=device, requires_grad=True)
        for values in (book.bank.means, book.bank.log_sigmas)
    )
    rules = assignment_rules(book, posteriors, device=device)
    return Coding(
        book=book,
        posteriors=tuple(posteriors),
        exponent=exponent - FINER_OCTAVES,
        noise=noise,
        outliers={name: mask.to(device) for name, mask in outliers.items()},
        means=means,
        log_sigmas=log_sigmas,
        noisy=means.detach() != 0,
        prior_means=means.detach().clone(),
        prior_widths=_widths(latent, means.detach(), rules),
        rules=rules,
    )


def restored_coding(state: Mapping[str, Any], *, device: torch.device) -> Coding:
    """The coding whose `state` this is; it takes over the tensors of the state, uncopied."""
    coding = Coding(**state, rules=assignment_rules(state["book"], state["posteriors"], device=device))
    coding.means.requires_grad_()
    coding.log_sigmas.requires_grad_()
    return coding


def assignment_rules(book: Codebook, posteriors: Sequence[Posterior], *, device: torch.device) -> dict[str, CodingRule]:
    """Name -> rule of every shared tensor.

    Args:
        book: Components, counts and lambda.
        posteriors: One per shared tensor; sigma is constant within a row.
        device: Of the latent weights.
    """
    lengths, curvature = ideal_lengths(book.counts)[:, :-1], curvature_of(LEVELS)
    found = {}
    for t, posterior in enumerate(posteriors):
        live = np.flatnonzero(np.isfinite(lengths[t]))
        levels = sigma_levels(posterior, slice(None), np.zeros((len(posterior.log_sigma), 1)))[:, 0]
        width = max(len(live) - 1, 1)
        thresholds, winners = np.full((len(LEVELS), width), np.inf), np.zeros((len(LEVELS), width + 1), dtype=np.int64)
        for level in np.unique(levels).tolist():
            won, between = decision_intervals(
                book.bank.means[live], lengths[t, live], penalty=book.penalty / float(curvature[level])
            )
            thresholds[level, : len(between)], winners[level, : len(won)] = between, live[won]
        found[posterior.name] = CodingRule(
            scale=max(posterior.scale, SMALLEST_SCALE),
            thresholds=torch.from_numpy(thresholds[levels]).float().to(device),
            winners=torch.from_numpy(winners[levels]).to(device),
        )
    return found


@torch.no_grad()
def assigned(latent: Mapping[str, torch.Tensor], rules: Mapping[str, CodingRule]) -> dict[str, torch.Tensor]:
    """The component of each latent weight, see `Ids`."""
    found = {}
    for name, rule in rules.items():
        weights = latent[name]
        rows = (weights / rule.scale).reshape(weights.shape[0], -1).contiguous()
        found[name] = rule.winners.gather(1, torch.searchsorted(rule.thresholds, rows))
    return found


def _members(own: torch.Tensor, size: int) -> torch.Tensor:
    return torch.bincount(own.view(-1), minlength=size)


def _widths(
    latent: Mapping[str, torch.Tensor], means: torch.Tensor, rules: Mapping[str, CodingRule]
) -> dict[str, torch.Tensor]:
    """Name -> float32 (K,), root mean square of u - m_k over the members and one more, at the average distance."""
    squares, members = {}, {}
    for name, own in assigned(latent, rules).items():
        weights = latent[name].detach().view(-1) / rules[name].scale
        errors = (weights - means[own.view(-1)]) ** 2
        squares[name] = torch.bincount(own.view(-1), weights=errors, minlength=len(means))
        members[name] = _members(own, len(means))
    total, count = (sum(part.values()) for part in (squares, members))
    usual = float(total.sum() / count.sum()) + NARROWEST**2  # type: ignore[union-attr]
    return {name: ((squares[name] + usual) / (members[name] + 1)).sqrt().float() for name in squares}
