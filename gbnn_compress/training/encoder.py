"""A network in training, and the file that it comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from gbnn_compress.checkpoint.arrays import rounded
from gbnn_compress.errors import listed
from gbnn_compress.rate.control import solve_size
from gbnn_compress.rate.divided import with_parts_kept
from gbnn_compress.rate.maps import index_maps
from gbnn_compress.recipe import Recipe
from gbnn_compress.target.budget import TOLERANCE, Budget, budget_of
from gbnn_compress.target.encode import Assigned, Cut, Result, posterior_noise
from gbnn_compress.target.forecast import MARGIN
from gbnn_compress.target.prepared import Prepared, prepare
from gbnn_compress.training.schedule import fixed
from gbnn_compress.training.shared_weights import SharedWeights
from gbnn_compress.types import Damage

FIRST_RATIO = 8.0
"""The ratio that training starts at, unless the target is smaller: next to nothing is lost there."""

LAMBDA_BY_SIZE = 2.5
"""How lambda goes with the size of a file where weights stay as they are: lambda ~ size^-2.5, about, at 8x to 50x."""

ROOM = 1.02
"""Training aims so far below what the target allows: once thresholds stay, files grow by a percent or two."""

LATER_BYTES = 32
"""Left for what the manifest is yet to say: the measured damage, a temperature."""

FITTING_ATTEMPTS = 8
"""Files that are tried to come close to the target after training."""

FINEST_OCTAVES, COARSEST_OCTAVES, RESOLUTION_OCTAVES = 16.0, 2.0, 0.25
"""How much finer, or coarser, unshared values are coded at most where a file is too small, or by a few bytes too large,
and how exactly that is found."""

NAMES_SHOWN = 4
"""Tensors that a warning names."""

NUDGE = 0.02
"""Octaves of lambda beyond what the size asks for, so that attempts do not creep up to the limit; each goes twice as
far as the one before, as the size may hardly move where few weights are near a threshold."""


@dataclass(frozen=True)
class Trainer:
    """A network in training: what there is to encode at any time.

    Attributes:
        prepared: The checkpoint.
        recipe: The configuration.
        network: Trained in place; holds norms, biases and batch-norm statistics.
        names: Name in the checkpoint -> name in the network.
        shared: Its shared weights.
        target_ratio: Of the file in the end.
        ratio_of: As for `compress`.
        safe_ratio: For the report.
        facts: What the manifest says of training.
    """

    prepared: Prepared
    recipe: Recipe
    network: torch.nn.Module
    names: Mapping[str, str]
    shared: SharedWeights
    target_ratio: float
    ratio_of: str
    safe_ratio: float | None
    facts: Mapping[str, Any]

    def plain(self) -> dict[str, torch.Tensor]:
        """Name -> unshared tensors and tables as they have become, on the CPU, at the checkpoint's dtypes."""
        own, tensors = self.network.state_dict(), self.prepared.checkpoint.tensors
        selection = self.prepared.selection
        names = {name: self.names[name] for name in (*selection.unshared, *selection.tables) if name in self.names}
        return {name: rounded(own[mine].cpu(), tensors[name].dtype) for name, mine in names.items()}

    @torch.no_grad()
    def mean_weights(self) -> dict[str, torch.Tensor]:
        """Name in the network -> weights of the posterior mean."""
        return self.shared.weights(self.shared.ids())

    def untrained(self) -> list[str]:
        """A line on shared tensors whose own weights training left as they were."""
        stay = fixed(self.network, self.shared)
        latents = self.shared.latent
        stepped = any(latent.grad is not None for latent in latents.values())  # not where training was done before
        names = [name for name, latent in latents.items() if name in stay or (stepped and latent.grad is None)]
        if not names:
            return []
        shown = listed(names, most=NAMES_SHOWN)
        return [f"shared but not trained: {shown} (held fixed by the network, or the loss does not depend on them)"]

    def recode(self, share: float) -> None:
        """Find the codebook of a stage for the weights as they are; the ratio rises by equal factors."""
        first = min(FIRST_RATIO, self.target_ratio)
        ratio = first * (self.target_ratio / first) ** share
        checkpoint = self.prepared.checkpoint
        tensors = {**checkpoint.tensors, **self.plain(), **self.shared.tensors()}
        now = prepare(
            replace(checkpoint, tensors=tensors),
            self.prepared.selection,
            recipe=self.recipe,
            finest_ratio=ratio if self.ratio_of == "artifact" else FIRST_RATIO,
            facts=self.prepared.facts,
            kind=self.prepared.kind,
            precisions=self.prepared.precisions,
            size_power=self.recipe.finetune.size_power,
        )
        budget = budget_of(now, ratio, self.ratio_of)
        book, exponent = solve_size(
            now.problem, budget.predicted, limit=MARGIN * budget.limit, monotone=budget.monotone
        )
        outliers = {}
        if book.counts[:, -1].any():
            escape = len(book.bank.means)
            for found in index_maps(tensors, now.posteriors, book, value_bits=now.value_bits):
                if len(found.outliers):
                    mask = torch.from_numpy(found.ids == escape)
                    outliers[found.name] = mask.reshape(tensors[found.name].shape)
        self.shared.adopt(book, now.posteriors, exponent=exponent, noise=posterior_noise(now, book), outliers=outliers)

    def encoded(self, *, damage: Damage | None = None, finer: float = 1.0, **facts: Any) -> Result:
        """The file as things are, its unshared values that much finer, with further facts for its manifest."""
        shared = self.shared
        book = replace(shared.book, bank=shared.bank())
        scales = [posterior.scale for posterior in shared.posteriors]
        tensors = {**self.prepared.checkpoint.tensors, **shared.tensors()}
        maps = with_parts_kept(shared.maps(), tensors, means=book.bank.means, scales=scales)
        noise, said = float(f"{shared.noise:.4g}"), {**self.facts, **facts}
        assigned = Assigned(maps, self.plain(), damage, noise=noise, facts=said, finer=finer)
        prepared = replace(self.prepared, posteriors=shared.posteriors)
        cut = Cut(prepared, book, shared.exponent, assigned, self.safe_ratio)
        return Result(cut.encoded(), cut)

    def relative_size(self) -> float:
        """Bytes of the file over those aimed at; 1 for a target in numbers, which lambda does not move."""
        if self.ratio_of != "artifact":
            return 1.0
        budget = self._budget()
        return self._used(self.encoded(), budget) * ROOM / budget.limit

    def fit(self) -> None:
        """Move lambda where the file is too large; in one that is too small `filled` uses what is left.

        Thresholds that move now carry weights along that training cannot bring back. Bisection on log2(lambda) between
        a file that fits and one that does not.
        """
        if self.ratio_of != "artifact":
            return
        budget, inside, outside = self._budget(), None, None
        most, least = MARGIN * budget.limit - LATER_BYTES, budget.limit / TOLERANCE
        place, used = math.log2(self.shared.book.penalty), self._used(self.encoded(), budget)
        if used <= most:
            return
        for attempt in range(FITTING_ATTEMPTS):
            if used > most:
                outside = place
            else:
                inside = place
                if used >= least:
                    return
            if inside is None or outside is None:
                excess = LAMBDA_BY_SIZE * math.log2(used / most) + (NUDGE if inside is None else -NUDGE)
                place += 2**attempt * excess
            else:
                place = (inside + outside) / 2
            self.shared.reprice(2.0**place, recount=False)
            used = self._used(self.encoded(), budget)
        if used > most and inside is not None:
            self.shared.reprice(2.0**inside, recount=False)

    def filled(self, **said: Any) -> Result:
        """The file in the end, its unshared values as fine, or as coarse, as the target wants them.

        Args:
            said: As for `encoded`.
        """
        result = self.encoded(**said)
        if self.ratio_of != "artifact":
            return result
        budget, coarse, fine = self._budget(), 0.0, FINEST_OCTAVES
        used = self._used(result, budget)
        if used > budget.limit:
            coarse, fine = -COARSEST_OCTAVES, 0.0
            result = self.encoded(finer=2.0**coarse, **said)
            used = self._used(result, budget)
        while fine - coarse > RESOLUTION_OCTAVES and used < budget.limit / TOLERANCE:
            middle = (coarse + fine) / 2
            candidate = self.encoded(finer=2.0**middle, **said)
            size = self._used(candidate, budget)
            if size <= budget.limit:
                result, used, coarse = candidate, size, middle
            else:
                fine = middle
        return result

    def _budget(self) -> Budget:
        return budget_of(self.prepared, self.target_ratio, self.ratio_of)

    def _used(self, result: Result, budget: Budget) -> float:
        return budget.used(result.encoded, len(self.shared.means), result.maps)
