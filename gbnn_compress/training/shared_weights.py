"""Weights of a network as draws of shared components, around latent weights that training moves.

Every shared tensor has latent weights u (in units of its scale s_t). Each step assigns them to components (see
`coding.py`) and runs the network with one draw per component and tensor, which all members share:

    w_i = s_t (m_k + d_tk e_tk),    e_tk ~ N(0, 1),    k = k(u_i)

A draw therefore costs as much as the bank has components, not as much as the network has weights. The gradient of w
goes to the component and, unchanged, to the latent weight behind it ("straight through": Bengio, Leonard & Courville
2013), which can so move to another component. The network itself stays the user's: `torch.func.functional_call` runs it
with other weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gbnn_compress.checkpoint.arrays import rounded
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.maps import with_outliers
from gbnn_compress.training.coding import Coding, Deviations, Ids, assigned, new_coding, restored_coding
from gbnn_compress.types import IndexMap, Posterior


class SharedWeights:
    """Latent weights, and the coding that assigns and draws them.

    Attributes:
        latent: Name -> float32 latent weights of each shared tensor, in units of the weights; trainable leaves.
        own: Name in the checkpoint -> name in the network. Tensors that the network lacks are not trained.
        device: Of the latent weights and the bank.
        n_weights: Number of shared weights.
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
        self._coding: Coding | None = None

    @property
    def coding(self) -> Coding:
        """The coding; there is one from the first `adopt` or `restore` on."""
        assert self._coding is not None, "no codebook adopted yet"
        return self._coding

    def adopt(
        self,
        book: Codebook,
        posteriors: Sequence[Posterior],
        *,
        exponent: int,
        noise: float,
        outliers: Mapping[str, torch.Tensor],
    ) -> None:
        """Replace the coding by that of a codebook which rate control made for the current latent weights.

        Args:
            book: Components, counts and lambda.
            posteriors: One per shared tensor, in the order of the latent weights.
            exponent: Of rate control's grid of means.
            noise: Posterior deviation of a component with one member, over its e^log_sigma.
            outliers: Name -> bool mask of the weights that keep their own values; only tensors that have outliers.
        """
        self._coding = new_coding(
            self.latent, book, posteriors, exponent=exponent, noise=noise, outliers=outliers, device=self.device
        )

    def reprice(self, penalty: float, *, recount: bool = True) -> None:
        """Replace the coding by one at another lambda.

        Args:
            penalty: lambda.
            recount: Whether thresholds also follow the current means and members; otherwise only lambda moves them.
        """
        members = None
        if recount:
            size = len(self.coding.means) + 1
            members = np.stack([np.bincount(m.ids, minlength=size) for m in self.maps()])
        self._coding = self.coding.repriced(penalty, members=members)

    def set_noise(self, noise: float) -> None:
        """Replace the coding by one of other posterior noise."""
        self._coding = replace(self.coding, noise=noise)

    def ids(self) -> Ids:
        """The component of each latent weight."""
        return assigned(self.latent, self.coding.rules)

    def weights(
        self, ids: Ids, generator: torch.Generator | None = None, *, deviations: Deviations | None = None
    ) -> dict[str, torch.Tensor]:
        """Name in the network -> weights: a posterior draw, or the posterior mean without a generator.

        Args:
            ids: Of the latent weights.
            generator: Of the draw.
            deviations: Those of `ids`; computed here where they are not given.
        """
        coding, drawn = self.coding, {}
        means = coding.stored_means()
        if generator is not None and deviations is None:
            deviations = coding.deviations(ids)
        for name, own in ids.items():
            if name not in self.own:
                continue
            values = means
            if generator is not None and deviations is not None:
                values = means + deviations[name] * torch.randn(len(means), generator=generator, device=self.device)
            latent = self.latent[name]
            shared = _Gather.apply(latent, values * coding.rules[name].scale, own)
            mask = coding.outliers.get(name)
            drawn[self.own[name]] = shared if mask is None else torch.where(mask, latent, shared)
        return drawn

    def maps(self) -> list[IndexMap]:
        """One map per shared tensor; outliers have the latent values."""
        coding, found = self.coding, []
        escape = len(coding.means)
        for name, own in self.ids().items():
            mask, latent = coding.outliers.get(name), self._narrowed(name)
            chosen = own.view(-1) if mask is None else torch.where(mask.view(-1), escape, own.view(-1))
            flat = chosen.cpu().numpy().astype(np.min_scalar_type(escape))
            found.append(with_outliers(latent, name, flat, escape=escape))
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> latent weights on the CPU, at the checkpoint's dtypes."""
        return {name: self._narrowed(name) for name in self.latent}

    def state(self) -> dict[str, Any]:
        """Everything that training changes: detached tensors that share memory with the weights."""
        return {
            "latent": {name: latent.detach() for name, latent in self.latent.items()},
            "coding": self.coding.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of what `state` returned; leaves are new and have no gradients."""
        copied = copy.deepcopy(dict(state))
        self.latent = {name: latent.requires_grad_() for name, latent in copied["latent"].items()}
        self._coding = restored_coding(copied["coding"], device=self.device)

    @torch.no_grad()
    def keep_order(self) -> None:
        """Sort the means after a training step: a mean that passed its right neighbour stops there."""
        means = self.coding.means
        means.copy_(torch.cummax(means, dim=0).values)

    def _narrowed(self, name: str) -> torch.Tensor:
        """Latent weights on the CPU, at the checkpoint's dtype and within its range."""
        latent, dtype = self.latent[name].detach().cpu(), self._dtypes[name]
        return latent if latent.dtype == dtype else rounded(latent, dtype)


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
        """Pass the gradient straight through to the latent weights, and its sum over the members to the table."""
        (ids,) = ctx.saved_tensors
        summed = torch.bincount(ids.view(-1), weights=gradient.reshape(-1), minlength=ctx.size)
        return gradient, summed.to(gradient.dtype), None
