"""The file of a network in training, at any step and at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from gbnn_compress.checkpoint.arrays import rounded
from gbnn_compress.errors import listed
from gbnn_compress.predict.differences import OutputDifference
from gbnn_compress.rate.codebook import Codebook
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
"""The ratio that training starts at, unless the target is smaller. A file of this ratio loses next to nothing."""

NAMES_SHOWN = 4
"""Tensors that a warning names."""


@dataclass(frozen=True)
class SizeFitting:
    """How the size of the trained file comes close to the target.

    Attributes:
        room: Training aims at a file smaller than the target allows by this factor. Files grow by one or two percent
            once thresholds stay.
        later_bytes: Bytes left for the manifest's last entries: the measured damage and a temperature.
        lambda_power: At fixed weights, lambda goes with size^-lambda_power, about, from 8x to 50x.
        attempts: Files that are encoded at most while lambda moves.
        nudge: Octaves of lambda beyond what the size asks for, so that attempts do not creep up to the limit. Each
            attempt goes twice as far as the one before, as few weights near a threshold hardly change the size.
        finest_octaves: How much finer unshared values are coded at most, where the file is too small.
        coarsest_octaves: How much coarser unshared values are coded at most, where it is a few bytes too large.
        resolution_octaves: How exactly the step of unshared values is found.
    """

    room: float = 1.02
    later_bytes: int = 32
    lambda_power: float = 2.5
    attempts: int = 8
    nudge: float = 0.02
    finest_octaves: float = 16.0
    coarsest_octaves: float = 2.0
    resolution_octaves: float = 0.25


@dataclass(frozen=True)
class Trainer:
    """A network in training, and how to encode it; the loop's `RateControl`.

    Attributes:
        prepared: The checkpoint.
        recipe: The configuration.
        network: Trained in place; holds the unshared tensors and the batch-norm statistics.
        names: Name in the checkpoint -> name in the network.
        shared: Its shared weights.
        target_ratio: Of the final file.
        ratio_of: `artifact` (bytes of the floating tensors over bytes of the file) or `parameters`.
        safe_ratio: For the report.
        facts: The manifest's entries on training.
        fitting: How the size comes close to the target.
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
    fitting: SizeFitting = SizeFitting()

    def unshared(self) -> dict[str, torch.Tensor]:
        """Name -> current unshared tensors and exact tables, on the CPU, at the checkpoint's dtypes."""
        own, tensors = self.network.state_dict(), self.prepared.checkpoint.tensors
        selection = self.prepared.selection
        names = {name: self.names[name] for name in (*selection.unshared, *selection.tables) if name in self.names}
        return {name: rounded(own[mine].cpu(), tensors[name].dtype) for name, mine in names.items()}

    @torch.no_grad()
    def mean_weights(self) -> dict[str, torch.Tensor]:
        """Name in the network -> weights of the posterior mean."""
        return self.shared.weights(self.shared.ids())

    def untrained(self) -> list[str]:
        """A warning that names the shared tensors whose latent weights were not trained, where there are some."""
        stay = fixed(self.network, self.shared)
        latents = self.shared.latent
        stepped = any(latent.grad is not None for latent in latents.values())  # not where a state was at its end
        names = [name for name, latent in latents.items() if name in stay or (stepped and latent.grad is None)]
        if not names:
            return []
        shown = listed(names, most=NAMES_SHOWN)
        return [f"shared but not trained: {shown} (held fixed by the network, or the loss does not depend on them)"]

    def recode(self, fraction: float) -> None:
        """Adopt the codebook of a stage for the current weights; the ratio rises by equal factors.

        Args:
            fraction: In [0, 1], from FIRST_RATIO to the target.
        """
        first = min(FIRST_RATIO, self.target_ratio)
        ratio = first * (self.target_ratio / first) ** fraction
        checkpoint = self.prepared.checkpoint
        tensors = {**checkpoint.tensors, **self.unshared(), **self.shared.tensors()}
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
        outliers = _outlier_masks(now, book, tensors)
        self.shared.adopt(book, now.posteriors, exponent=exponent, noise=posterior_noise(now, book), outliers=outliers)

    def encoded(self, *, damage: Damage | OutputDifference | None = None, finer: float = 1.0, **facts: Any) -> Result:
        """The current file.

        Args:
            damage: Measured on validation data.
            finer: Factor by which the steps of unshared values are smaller than usual.
            facts: Further entries of the manifest.
        """
        coding = self.shared.coding
        book = replace(coding.book, bank=coding.bank())
        scales = [posterior.scale for posterior in coding.posteriors]
        tensors = {**self.prepared.checkpoint.tensors, **self.shared.tensors()}
        maps = with_parts_kept(self.shared.maps(), tensors, means=book.bank.means, scales=scales)
        noise, said = float(f"{coding.noise:.4g}"), {**self.facts, **facts}
        assigned = Assigned(maps, self.unshared(), damage, noise=noise, facts=said, finer=finer)
        prepared = replace(self.prepared, posteriors=coding.posteriors)
        cut = Cut(prepared, book, coding.exponent, assigned, self.safe_ratio)
        return Result(cut.encoded(), cut)

    def first_ratio(self) -> float:
        """Ratio of a file to start from: it leaves room for what training changes and adds."""
        if self.ratio_of != "artifact":
            return self.target_ratio
        limit, later = self._budget().limit, len(json.dumps(self.facts)) + self.fitting.later_bytes
        return self.prepared.floating_bytes / max(limit / self.fitting.room - later, 0.8 * limit)

    def relative_size(self) -> float:
        """Bytes of the current file over the wanted bytes; 1 for a ratio of parameters, which lambda does not move."""
        if self.ratio_of != "artifact":
            return 1.0
        budget = self._budget()
        return self._used(self.encoded(), budget) * self.fitting.room / budget.limit

    def fit(self) -> None:
        """Raise lambda where the file is too large; a file that is too small is left to `filled`.

        A threshold that moves now carries along weights that training can no longer bring back. The search is a
        bisection on log2(lambda) between a file that fits and one that does not.
        """
        if self.ratio_of != "artifact":
            return
        budget, inside, outside = self._budget(), None, None
        most, least = MARGIN * budget.limit - self.fitting.later_bytes, budget.limit / TOLERANCE
        place, used = math.log2(self.shared.coding.book.penalty), self._used(self.encoded(), budget)
        if used <= most:
            return
        for attempt in range(self.fitting.attempts):
            if used > most:
                outside = place
            else:
                inside = place
                if used >= least:
                    return
            if inside is None or outside is None:
                nudge = self.fitting.nudge if inside is None else -self.fitting.nudge
                place += 2**attempt * (self.fitting.lambda_power * math.log2(used / most) + nudge)
            else:
                place = (inside + outside) / 2
            self.shared.reprice(2.0**place, recount=False)
            used = self._used(self.encoded(), budget)
        if used > most and inside is not None:
            self.shared.reprice(2.0**inside, recount=False)

    def filled(self, *, damage: Damage | OutputDifference | None = None, **facts: Any) -> Result:
        """The final file: its unshared values are as fine, or as coarse, as the target asks for.

        Args:
            damage: Measured on validation data.
            facts: Further entries of the manifest.
        """
        result = self.encoded(damage=damage, **facts)
        if self.ratio_of != "artifact":
            return result
        budget, coarse, fine = self._budget(), 0.0, self.fitting.finest_octaves
        used = self._used(result, budget)
        if used > budget.limit:
            coarse, fine = -self.fitting.coarsest_octaves, 0.0
            result = self.encoded(damage=damage, finer=2.0**coarse, **facts)
            used = self._used(result, budget)
        while fine - coarse > self.fitting.resolution_octaves and used < budget.limit / TOLERANCE:
            middle = (coarse + fine) / 2
            candidate = self.encoded(damage=damage, finer=2.0**middle, **facts)
            size = self._used(candidate, budget)
            if size <= budget.limit:
                result, used, coarse = candidate, size, middle
            else:
                fine = middle
        return result

    def _budget(self) -> Budget:
        return budget_of(self.prepared, self.target_ratio, self.ratio_of)

    def _used(self, result: Result, budget: Budget) -> float:
        return budget.used(result.encoded, len(self.shared.coding.means), result.maps)


def _outlier_masks(prepared: Prepared, book: Codebook, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name -> bool mask of the outliers of each tensor that has some."""
    if not book.counts[:, -1].any():
        return {}
    escape = len(book.bank.means)
    found = index_maps(tensors, prepared.posteriors, book, value_bits=prepared.value_bits)
    return {
        each.name: torch.from_numpy(each.ids == escape).reshape(tensors[each.name].shape)
        for each in found
        if len(each.outliers)
    }
