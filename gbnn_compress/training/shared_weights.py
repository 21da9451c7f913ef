"""Weights of a network as draws of shared components, around latent weights that training moves.

Every shared tensor keeps latent weights u (in units of its scale s_t). At each step they are assigned to components by
the rate rule, argmin_k h (u - m_k)^2 + lambda L_tk, with means and lengths as they were when last priced, and the
network runs with one draw a component and tensor that serves all its members,

    w_i = s_t (m_k + d_tk e_tk),    e_tk ~ N(0, 1),    k = k(u_i)

so a draw costs the bank, not the network. Gradients of w go to the component and, unchanged, to the latent weight
behind it ("straight through": Bengio, Leonard & Courville 2013), which so can leave its component for another one.
The network itself stays the user's: weights are handed in by `torch.func.functional_call`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gbnn_compress.checkpoint.arrays import rounded
from gbnn_compress.format.bank import round_bank
from gbnn_compress.mixture.divergence import gaussian_divergence_nats
from gbnn_compress.mixture.intervals import decision_intervals
from gbnn_compress.rate.cells import LEVELS, sigma_levels
from gbnn_compress.rate.codebook import Codebook, curvature_of, ideal_lengths
from gbnn_compress.rate.maps import with_outliers
from gbnn_compress.types import Bank, IndexMap, Posterior

FINER = 6
"""Octaves by which trained means are stored finer than those of rate control: their last digits are trained too. Where
the large component near zero could not leave it, ResNet-20 at 50x lost ten points early in training."""

SILENT = -15.0
"""Log deviation of the component that rate control put at zero. It is noiseless: most weights are its members, and
noise that they share adds up over a layer's inputs. Training moves it off zero, where the file needs no telling."""

RARE = 0.5
"""Members that a component without any is priced as if it had."""

NARROWEST = 1e-3
"""Least deviation of a prior, in units of s_t: a component of equal weights has none of its own."""

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""What weights are divided by at least: that of a tensor of zeros is 0 in float32."""


@dataclass(frozen=True)
class Rule:
    """How the latent weights of one tensor become ids.

    Attributes:
        scale: s_t, or SMALLEST_SCALE.
        thresholds: float32 (rows, J), ascending; infinite where a row has fewer.
        winners: int64 (rows, J + 1), the component between two thresholds.
    """

    scale: float
    thresholds: torch.Tensor
    winners: torch.Tensor


def rules(book: Codebook, posteriors: Sequence[Posterior], *, device: torch.device) -> dict[str, Rule]:
    """Name -> rule of every shared tensor.

    Args:
        book: Components, counts and lambda.
        posteriors: One a shared tensor; sigma follows the rows.
        device: Where the weights are.
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
        found[posterior.name] = Rule(
            scale=max(posterior.scale, SMALLEST_SCALE),
            thresholds=torch.from_numpy(thresholds[levels]).float().to(device),
            winners=torch.from_numpy(winners[levels]).to(device),
        )
    return found


GIVEN = ("device", "own", "_dtypes", "_rules")
"""Attributes that follow from what a network and its codebook are."""

Ids = Mapping[str, torch.Tensor]
"""Name -> int64 (rows, weights a row), the component of each weight of every shared tensor."""

Deviations = Mapping[str, torch.Tensor]
"""Name -> float32 (K,), posterior deviation of the value that a component's members share; 0 without any."""


class SharedWeights:
    """Latent weights, the bank and its noise, all of them trainable.

    Attributes:
        latent: Name -> float32 latent weights of each shared tensor, in units of the weights.
        means: float32 (K,), ascending, in units of the scales.
        log_sigmas: float32 (K,), log of the deviations in units of the scales.
        noise: Posterior deviation of a component with one member, over its e^log_sigma.
        book: What the bank and the rules were made from, with the members counted last.
        n_weights: Shared weights in all.
        own: Name in the network, of those that it has; the others stay as they are.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        names: Sequence[str],
        *,
        device: torch.device,
        own: Mapping[str, str] | None = None,
    ) -> None:
        self.device = device
        self.own = {name: name for name in names} if own is None else {n: own[n] for n in names if n in own}
        self.latent = {
            name: tensors[name].detach().to(device, torch.float32, copy=True).contiguous().requires_grad_()
            for name in names
        }
        self.n_weights = sum(latent.numel() for latent in self.latent.values())
        self._dtypes = {name: tensors[name].dtype for name in names}

    def adopt(
        self,
        book: Codebook,
        posteriors: Sequence[Posterior],
        *,
        exponent: int,
        noise: float,
        outliers: Mapping[str, torch.Tensor],
    ) -> None:
        """Take over a codebook that rate control made for the latent weights as they are.

        Args:
            book: Components, counts and lambda.
            posteriors: One a shared tensor, in the order of the latent weights.
            exponent: Of the bank's grid.
            noise: See the attribute.
            outliers: Name -> bool mask of the weights that are kept as they are, where there are some.
        """
        self.posteriors, self.exponent, self.noise, self.book = tuple(posteriors), exponent - FINER, noise, book
        self.outliers = {name: mask.to(self.device) for name, mask in outliers.items()}
        self.means, self.log_sigmas = (
            torch.tensor(values, dtype=torch.float32, device=self.device, requires_grad=True)
            for values in (book.bank.means, book.bank.log_sigmas)
        )
        self._noisy = self.means.detach() != 0
        self._set_rules()
        self._prior_means, self._prior_widths = self.means.detach().clone(), self._widths()

    def reprice(self, penalty: float, *, recount: bool = True) -> None:
        """Go on with another lambda.

        Args:
            penalty: lambda.
            recount: Whether thresholds also follow the means and the members as they have become; else they move with
                lambda alone, and no more than it does. Code lengths follow the members half of the way: all the way,
                few members would make a component dear and so have fewer. A component that a tensor has no member of
                just now can still be chosen: most often these are the few large weights, which nothing makes good.
        """
        counts, bank = self.book.counts, self.book.bank
        if recount:
            members = np.stack([np.bincount(m.ids, minlength=len(self.means) + 1) for m in self.maps()])
            counts = np.where(counts > 0, np.sqrt(np.maximum(counts, RARE) * np.maximum(members, RARE)), 0.0)
            bank = self.bank()
        self.book = replace(self.book, bank=bank, counts=counts, penalty=penalty)
        self._set_rules()

    @torch.no_grad()
    def ids(self) -> Ids:
        """The component of each latent weight."""
        found = {}
        for name, rule in self._rules.items():
            latent = self.latent[name]
            rows = (latent / rule.scale).reshape(latent.shape[0], -1).contiguous()
            found[name] = rule.winners.gather(1, torch.searchsorted(rule.thresholds, rows))
        return found

    def deviations(self, ids: Ids) -> Deviations:
        """d_tk, in units of the scales: the precision of a shared value is that of its members' sum."""
        return {name: self._deviations(own) for name, own in ids.items()}

    def weights(
        self, ids: Ids, generator: torch.Generator | None = None, *, deviations: Deviations | None = None
    ) -> dict[str, torch.Tensor]:
        """Name in the network -> weights: a posterior draw, or the posterior mean without a generator.

        Args:
            ids: Of the latent weights.
            generator: Of the draw.
            deviations: Those of `ids`, where they are at hand.
        """
        means, drawn = self._stored_means(), {}
        if generator is not None and deviations is None:
            deviations = self.deviations(ids)
        for name, own in ids.items():
            if name not in self.own:
                continue
            values = means
            if generator is not None and deviations is not None:
                values = means + deviations[name] * torch.randn(len(means), generator=generator, device=self.device)
            latent = self.latent[name]
            shared = _Gather.apply(latent, values * self._rules[name].scale, own)
            mask = self.outliers.get(name)
            drawn[self.own[name]] = shared if mask is None else torch.where(mask, latent, shared)
        return drawn

    def divergence_nats(self, ids: Ids, *, deviations: Deviations | None = None) -> torch.Tensor:
        """KL of the posterior from the prior, summed over the values w_tk of all components and tensors.

        A value's posterior is N(s_t m_k, (s_t d_tk)^2). Its prior is the component that the weights were taken to be
        drawn from: centred where the component was when it was adopted, as wide as its members lay around it.

        Args:
            ids: Of the latent weights.
            deviations: Those of `ids`, where they are at hand.
        """
        total = torch.zeros((), device=self.device)
        for name, own in (self.deviations(ids) if deviations is None else deviations).items():
            live = own.detach() > 0
            total = total + gaussian_divergence_nats(
                self.means[live], own[live], self._prior_means[live], self._prior_widths[name][live]
            )
        return total

    def bits(self, ids: Ids) -> float:
        """Code lengths of all ids, by the counts there were last; contexts save some of them."""
        counts = self.book.counts[:, :-1]
        lengths = np.where(counts > 0, ideal_lengths(self.book.counts)[:, :-1], 0.0)
        members = np.stack([self._members(own).cpu().numpy() for own in ids.values()])
        return float((members * lengths).sum())

    def bank(self) -> Bank:
        """The bank on the file's grid."""
        silenced = torch.where(self._noisy, self.log_sigmas, SILENT)
        means, log_sigmas = (values.detach().double().cpu().numpy() for values in (self.means, silenced))
        return round_bank(Bank(means, log_sigmas), exponent=self.exponent)

    def maps(self) -> list[IndexMap]:
        """One map a shared tensor; outliers have the latent values."""
        escape, found = len(self.means), []
        for name, own in self.ids().items():
            mask, latent = self.outliers.get(name), self._narrowed(name)
            chosen = own.view(-1) if mask is None else torch.where(mask.view(-1), escape, own.view(-1))
            flat = chosen.cpu().numpy().astype(np.min_scalar_type(escape))
            found.append(with_outliers(latent, name, flat, escape=escape))
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> latent weights on the CPU, at the checkpoint's dtypes."""
        return {name: self._narrowed(name) for name in self.latent}

    def _narrowed(self, name: str) -> torch.Tensor:
        """Latent weights on the CPU, at the checkpoint's dtype and within its range."""
        latent, dtype = self.latent[name].detach().cpu(), self._dtypes[name]
        return latent if latent.dtype == dtype else rounded(latent, dtype)

    def state(self) -> dict[str, Any]:
        """All that training changes, by attribute; without gradients, and no copy."""
        changed = {name: value for name, value in vars(self).items() if name not in GIVEN}
        latent = {name: latent.detach() for name, latent in self.latent.items()}
        return changed | {"latent": latent, "means": self.means.detach(), "log_sigmas": self.log_sigmas.detach()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what they were when `state` was called; the state is left to itself."""
        vars(self).update(copy.deepcopy(dict(state)))
        for leaf in (*self.latent.values(), self.means, self.log_sigmas):
            leaf.requires_grad_()
        self._set_rules()

    def keep_order(self) -> None:
        """After a training step: components stay in the order of their means."""
        with torch.no_grad():
            self.means.copy_(torch.cummax(self.means, dim=0).values)

    def _set_rules(self) -> None:
        self._rules = rules(self.book, self.posteriors, device=self.device)

    def _stored_means(self) -> torch.Tensor:
        grid = 2.0**self.exponent
        return self.means + (torch.round(self.means / grid) * grid - self.means).detach()

    def _members(self, own: torch.Tensor) -> torch.Tensor:
        return torch.bincount(own.view(-1), minlength=len(self.means))

    def _deviations(self, own: torch.Tensor) -> torch.Tensor:
        """float32 (K,), d_tk; 0 without noise, or without members."""
        members = self._members(own)
        deviations = self.noise * self.log_sigmas.exp() / members.clamp_min(1).sqrt()
        return torch.where(self._noisy & (members > 0), deviations, 0.0)

    def _widths(self) -> dict[str, torch.Tensor]:
        """Name -> float32 (K,), root mean square of u - m_k over the members, and one that is as far off as most."""
        squares, members = {}, {}
        for name, own in self.ids().items():
            latent = self.latent[name].detach().view(-1) / self._rules[name].scale
            errors = (latent - self.means.detach()[own.view(-1)]) ** 2
            squares[name] = torch.bincount(own.view(-1), weights=errors, minlength=len(self.means))
            members[name] = self._members(own)
        total, count = (sum(part.values()) for part in (squares, members))
        usual = float(total.sum() / count.sum()) + NARROWEST**2  # type: ignore[union-attr]
        return {name: ((squares[name] + usual) / (members[name] + 1)).sqrt().float() for name in squares}


class _Gather(torch.autograd.Function):
    """table[ids] in the shape of the latent weights; its gradient goes to both."""

    @staticmethod
    def forward(ctx: Any, latent: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Look up."""
        ctx.save_for_backward(ids)
        ctx.size = len(table)
        return table[ids].view(latent.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Straight through to the latent weights, summed over the members to the table."""
        (ids,) = ctx.saved_tensors
        summed = torch.bincount(ids.view(-1), weights=gradient.reshape(-1), minlength=ctx.size)
        return gradient, summed.to(gradient.dtype), None
