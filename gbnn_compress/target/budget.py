"""One target: find the codebook whose file meets it, and encode it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gbnn_compress.checkpoint.arrays import raw_bytes_of, rounded
from gbnn_compress.data.kind import CLASSIFIER
from gbnn_compress.format.artifact import encode_artifact
from gbnn_compress.parallel import in_order
from gbnn_compress.rate.codebook import Codebook, noise_deviation, relative_step
from gbnn_compress.rate.control import codebook_at, parameters_of, predicted_bytes, solve_damage, solve_size
from gbnn_compress.rate.damage import (
    DEAD_ERROR,
    SAFE_DROP,
    WARN_DROP,
    WARN_ERROR,
    Difference,
    layer_error,
    predict_damage,
    relative_error,
)
from gbnn_compress.rate.divided import with_parts_kept
from gbnn_compress.rate.maps import index_maps, spend_on_outliers, squared_errors, with_outliers
from gbnn_compress.rate.posterior import batch_norm_after
from gbnn_compress.rate.recentre import recentred_statistics
from gbnn_compress.rate.unshared import code_values, read_unshared
from gbnn_compress.target.prepared import Prepared, tensor_infos
from gbnn_compress.types import Damage, IndexMap

if TYPE_CHECKING:
    import torch


TOLERANCE = 1.03
"""A target is met when the ratio is not below it and at most this factor above."""

MARGIN = 0.998
"""Share of the budget that each attempt aims for."""

CLOSE = 0.993
"""Share of the budget that a file uses before rate control stops trying for more."""

CLOSE_IN_LOCKSTEP = 0.98
"""The same where each attempt runs the network."""

ATTEMPTS = 6

LOST = "the network is lost"
"""How a warning of outputs begins that say nothing of the checkpoint's any more."""

NO_FORECAST = dict.fromkeys(("drop", "agreement", "logit_kl"))
"""What is predicted of lost points where nothing is known."""

CURVE_OCTAVES = range(-6, 7)
"""Where the rate-distortion curve is worked out, in octaves of lambda from the chosen cut."""


@dataclass(frozen=True)
class Assigned:
    """Ids at one codebook, and what they changed around them.

    Attributes:
        maps: One a shared tensor.
        statistics: Name -> corrected unshared tensor.
        damage: Measured on the inputs; None without, or where they did not meet every shared tensor.
        warnings: What outputs say against the file.
        noise: Trained posterior noise (see `noise_deviation`); None for the recipe's.
        facts: What the manifest says besides.
        finer: How much finer unshared values are coded than lambda says.
        exact: Unshared tensors that are coded exactly.
    """

    maps: Sequence[IndexMap]
    statistics: Mapping[str, torch.Tensor]
    damage: Damage | Difference | None
    warnings: tuple[str, ...] = ()
    noise: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    finer: float = 1.0
    exact: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Cut:
    """A codebook and everything that is encoded with it.

    Attributes:
        prepared: The checkpoint.
        book: Components, counts and lambda.
        exponent: Of the bank's grid.
        assigned: The ids, and what goes with them.
        safe_ratio: For the report.
    """

    prepared: Prepared
    book: Codebook
    exponent: int
    assigned: Assigned
    safe_ratio: float | None

    @property
    def meant(self) -> dict[str, torch.Tensor]:
        """Name -> tensor that the file stands for: the checkpoint's, with corrected statistics."""
        return {**self.prepared.checkpoint.tensors, **self.assigned.statistics}

    @property
    def relative_step(self) -> float:
        """Step of an unshared value of unit 1."""
        return relative_step(self.book.penalty, self.prepared.typical) / self.assigned.finer

    def with_maps(self, maps: Sequence[IndexMap]) -> Cut:
        """The same with other ids."""
        return replace(self, assigned=replace(self.assigned, maps=maps))

    def with_exact(self, names: Collection[str]) -> Cut:
        """The same with some tensors kept exactly, whatever they cost; what made up for their errors goes with them."""
        tensors, escape = self.prepared.checkpoint.tensors, len(self.book.bank.means)
        maps = [
            with_outliers(tensors[each.name], each.name, np.full_like(each.ids, escape), escape=escape)
            if each.name in names
            else each
            for each in self.assigned.maps
        ]
        followers = {name.removesuffix("weight") + "bias" for name in names}
        for name in {each.name for each in maps} & {*names}:
            prefix = batch_norm_after(name, tensors)
            followers |= set() if prefix is None else {f"{prefix}running_mean", f"{prefix}running_var"}
        statistics = {name: each for name, each in self.assigned.statistics.items() if name not in followers}
        exact = self.assigned.exact | {*names}
        return replace(self, assigned=replace(self.assigned, maps=maps, statistics=statistics, exact=exact))

    def encoded(self) -> bytes:
        """The bytes of the file."""
        return encode(self.prepared, self.book, self.exponent, self.assigned, self.safe_ratio)


@dataclass(frozen=True)
class Result:
    """A compressed network before it is written.

    Attributes:
        encoded: The bytes of the file.
        cut: What they were made of.
        notes: What a user should know of how it came about.
        unfinished: Whether training was interrupted, and can go on.
        training: Parts of the loss after the last epoch (see `variational.finetune.Progress`), bits per weight.
    """

    encoded: bytes
    cut: Cut
    notes: tuple[str, ...] = ()
    unfinished: bool = False
    training: Mapping[str, float] = field(default_factory=dict)

    @property
    def maps(self) -> Sequence[IndexMap]:
        """What the file must decode to."""
        return self.cut.assigned.maps

    def with_exact(self, names: Collection[str]) -> Result:
        """The file with some tensors kept exactly, whatever that costs."""
        cut = self.cut.with_exact(names)
        note = f"kept exactly, as their codes were not right: {', '.join(f'`{name}`' for name in sorted(names))}"
        return replace(self, encoded=cut.encoded(), cut=cut, notes=(*self.notes, note))


def meet(prepared: Prepared, *, target_ratio: float | None, max_drop: float | None, ratio_of: str) -> Result:
    """Find the codebook that meets the target, and encode it."""
    safe_ratio = find_safe_ratio(prepared)
    if target_ratio is None:
        book, exponent = predicted_cut(prepared, max_drop=float(max_drop or 0.0))
        cut = Cut(prepared, book, exponent, assign(prepared, book), safe_ratio)
        return Result(cut.encoded(), cut)
    return _meet_budget(prepared, budget_of(prepared, target_ratio, ratio_of), safe_ratio)


@dataclass(frozen=True)
class Budget:
    """What a ratio allows, in bytes of the file or in numbers of the paper's measure.

    Attributes:
        limit: Not to be exceeded.
        predicted: What a codebook (with its grid's exponent) will use.
        used: What a file, of so many components and with these maps, does use.
        monotone: Whether coarser always uses less; numbers do not: outliers come and go.
    """

    limit: float
    predicted: Callable[[Codebook, int], float]
    used: Callable[[bytes, int, Sequence[IndexMap]], float]
    monotone: bool


def budget_of(prepared: Prepared, target_ratio: float, ratio_of: str) -> Budget:
    """What a target ratio allows."""
    if ratio_of == "artifact":
        return Budget(
            prepared.floating_bytes / target_ratio,
            lambda book, exponent: predicted_bytes(prepared.problem, book, exponent),
            lambda encoded, n_components, maps: len(encoded),
            monotone=True,
        )
    weights = float(prepared.sizes.sum()) + prepared.n_unshared
    return Budget(
        2 * weights / target_ratio,
        lambda book, exponent: parameters_of(book, prepared.n_unshared),
        lambda encoded, n_components, maps: (
            2 * n_components + 2 * sum(len(m.outliers) for m in maps) + prepared.n_unshared
        ),
        monotone=False,
    )


def _meet_budget(prepared: Prepared, budget: Budget, safe_ratio: float | None) -> Result:
    """Aim, write, correct the aim by what the prediction missed; spend what is left on exact outliers."""
    aim, seen, overs = MARGIN * budget.limit, set[float](), 0
    best: _Attempt | None = None
    latest: _Attempt | None = None
    close = CLOSE if prepared.calibration is None else CLOSE_IN_LOCKSTEP
    for _ in range(ATTEMPTS):
        book, exponent = solve_size(prepared.problem, budget.predicted, limit=aim, monotone=budget.monotone)
        foreseen = budget.predicted(book, exponent)
        if foreseen in seen:  # another aim, but the same codebook as before, and it would give the same file
            if best is not None:
                break
            aim *= CLOSE
            continue
        seen.add(foreseen)
        latest, best = None, _slim(prepared, best)
        assigned = assign(prepared, book)
        encoded = encode(prepared, book, exponent, assigned, safe_ratio)
        used = budget.used(encoded, len(book.bank.means), assigned.maps)
        latest = _Attempt(book, exponent, encoded, used, assigned)
        del assigned
        if used <= budget.limit and (best is None or best.used < used):
            best = latest
        surprise = abs(used - foreseen) / budget.limit
        if (best is not None and close * budget.limit <= best.used) or foreseen > aim:
            break
        if used <= budget.limit and surprise < 1 - CLOSE:
            break  # sizes jump here: aiming again would give the same file
        # Under: add what is left. Over: less by more than the excess, as the next file may be over by as much again;
        # each time by more, as files may shrink by less than their predictions.
        if used <= budget.limit:
            aim += MARGIN * budget.limit - used
        else:
            aim *= (MARGIN * budget.limit / used) ** (1.5 * 2**overs)
            overs += 1
    chosen = best or latest
    assert chosen is not None
    book, exponent, encoded, used = chosen.book, chosen.exponent, chosen.encoded, chosen.used
    kept = chosen.assigned
    del latest, best, chosen  # the latest attempt's ids, before those of the best are made again
    cut = Cut(prepared, book, exponent, kept or assign(prepared, book), safe_ratio)
    if used * TOLERANCE < budget.limit:
        size = len(book.bank.means)
        maps, encoded = spend_on_outliers(
            prepared.checkpoint.tensors,
            prepared.posteriors,
            cut.assigned.maps,
            book.bank.means,
            encode=lambda maps: cut.with_maps(maps).encoded(),
            left=lambda encoded, maps: budget.limit - budget.used(encoded, size, maps),
            encoded=encoded,
            close=(1 - CLOSE) * budget.limit,
        )
        return Result(encoded, cut.with_maps(maps))
    return Result(encoded, cut)


@dataclass(frozen=True)
class _Attempt:
    """A file of about the wanted size.

    Attributes:
        book: Its codebook.
        exponent: Of the bank's grid.
        encoded: Its bytes.
        used: What it takes of the budget.
        assigned: Its ids; None where they were let go.
    """

    book: Codebook
    exponent: int
    encoded: bytes
    used: float
    assigned: Assigned | None


def _slim(prepared: Prepared, attempt: _Attempt | None) -> _Attempt | None:
    """Without its ids, a byte a weight, where they are quickly made again: the next attempt has as many."""
    if attempt is None or prepared.calibration is not None:
        return attempt
    return replace(attempt, assigned=None)


def assign(prepared: Prepared, book: Codebook) -> Assigned:
    """Plainly, or with error feedback where the network is known; batch norm is re-centred either way."""
    tensors, posteriors = prepared.checkpoint.tensors, prepared.posteriors
    book = _within_range(prepared, book)
    maps = index_maps(tensors, posteriors, book, value_bits=prepared.value_bits)
    scales = np.array([posterior.scale for posterior in posteriors])
    if prepared.calibration is None:
        maps = with_parts_kept(maps, tensors, means=book.bank.means, scales=scales)
        return Assigned(maps, recentred_statistics(tensors, maps, means=book.bank.means, scales=scales), None)
    from gbnn_compress.calibration.calibrated import compress_in_lockstep, measured_damage, measured_difference

    outcome = compress_in_lockstep(prepared.calibration, book, posteriors, maps)
    dtype = np.min_scalar_type(len(book.bank.means))
    maps = [
        replace(index_map, ids=outcome.ids[index_map.name].astype(dtype))
        if index_map.name in outcome.ids
        else index_map
        for index_map in maps
    ]
    maps = with_parts_kept(maps, tensors, means=book.bank.means, scales=scales)
    statistics = recentred_statistics(tensors, maps, means=book.bank.means, scales=scales)
    statistics |= {name: rounded(vector, tensors[name].dtype) for name, vector in outcome.statistics.items()}
    difference = measured_difference(outcome.logits)
    damage: Damage | Difference | None = None
    if not prepared.calibration.synthetic and len(outcome.ids) == len(maps):
        damage = measured_damage(outcome.logits) if prepared.kind.task == CLASSIFIER else difference
    inputs = "noise" if prepared.calibration.synthetic else "the calibration inputs"
    warnings = () if difference is None else tuple(dead_warnings(difference, inputs=inputs))
    return Assigned(maps, statistics, damage, warnings=warnings)


def _within_range(prepared: Prepared, book: Codebook) -> Codebook:
    """The codebook in which no tensor uses components that are past the range of its dtype."""
    import torch

    dtypes = (prepared.checkpoint.tensors[posterior.name].dtype for posterior in prepared.posteriors)
    most = np.array([torch.finfo(dtype).max for dtype in dtypes])
    scales = np.array([posterior.scale for posterior in prepared.posteriors])
    beyond = np.abs(np.multiply.outer(scales, book.bank.means)) > most[:, None]
    if not beyond.any():
        return book
    counts = book.counts.copy()
    counts[:, :-1][beyond] = 0
    return replace(book, counts=counts)


def encode(prepared: Prepared, book: Codebook, exponent: int, assigned: Assigned, safe_ratio: float | None) -> bytes:
    """The bytes of the file."""
    checkpoint, selection, maps = prepared.checkpoint, prepared.selection, assigned.maps
    meant = {**checkpoint.tensors, **assigned.statistics}
    scales = np.array([posterior.scale for posterior in prepared.posteriors])
    errors = in_order(
        lambda pair: squared_errors(checkpoint.tensors[pair[0].name], *pair, book.bank.means),
        zip(prepared.posteriors, maps, strict=True),
        weights=int(prepared.sizes.sum()),
    )
    return encode_artifact(
        tensors=tensor_infos(checkpoint, selection),
        bank=book.bank,
        exponent=exponent,
        scales=scales,
        relative_rmse=np.array([np.sqrt(error / total) if total else 0.0 for error, total in errors]),
        maps=maps,
        vectors=code_values(
            read_unshared(meant, selection.unshared, tables=selection.tables, exact=assigned.exact),
            relative_step=relative_step(book.penalty, prepared.typical) / assigned.finer,
        ),
        raw=[raw_bytes_of(meant[name]) for name in selection.raw],
        facts={
            **prepared.facts,
            **_damage_facts(prepared, book, assigned, safe_ratio),
            "noise": posterior_noise(prepared, book) if assigned.noise is None else assigned.noise,
            **({"blends": book.blends.tolist()} if len(book.blends) else {}),
            **assigned.facts,
        },
        contexts=prepared.facts["recipe"].get("contexts", True),
    )


def posterior_noise(prepared: Prepared, book: Codebook) -> float:
    """Noise in proportion to the quantisation error: feedback makes the error good, but not the noise."""
    relative = float(prepared.facts["recipe"]["noise"]) / float(np.sqrt(_gain(prepared)))
    return noise_deviation(book, relative=relative, typical=prepared.typical)


def _gain(prepared: Prepared) -> float:
    return 1.0 if prepared.calibration is None else prepared.calibration.gain


def _damage(prepared: Prepared, book: Codebook) -> Damage:
    # What feedback on noise gains on real inputs is not known; none is counted.
    known = prepared.calibration is not None and not prepared.calibration.synthetic
    base = prepared.before or prepared
    book = replace(book, distortion=book.distortion * _importances(base) / _importances(prepared))
    error = relative_error(book, typical=prepared.typical) / (_gain(prepared) if known else 1.0)
    return predict_damage(error, n_classes=prepared.n_classes)


def predicted_cut(prepared: Prepared, *, max_drop: float) -> tuple[Codebook, int]:
    """The coarsest codebook, and its grid's exponent, whose predicted drop stays within so many points."""
    base = prepared.before or prepared
    return solve_damage(base.problem, lambda book: _damage(base, book).drop, limit=max_drop)


def find_safe_ratio(prepared: Prepared) -> float | None:
    """The largest ratio at which the predicted drop stays within SAFE_DROP; None where it cannot be predicted."""
    if not prepared.kind.has_forecast:
        return None
    book, exponent = predicted_cut(prepared, max_drop=SAFE_DROP)
    return prepared.floating_bytes / predicted_bytes((prepared.before or prepared).problem, book, exponent)


def _damage_facts(prepared: Prepared, book: Codebook, assigned: Assigned, safe_ratio: float | None) -> dict[str, Any]:
    """What the manifest says of damage; lost points only of classifiers, known or assumed."""
    measured = assigned.damage
    damage = measured or (_damage(prepared, book) if prepared.kind.has_forecast else None)
    facts: dict[str, Any] = {**NO_FORECAST, "measured": measured is not None, "safe_ratio": safe_ratio}
    if isinstance(damage, Damage):
        facts |= asdict(damage)
        if measured is None and prepared.kind.assumes is not None:
            facts["assumes"] = prepared.kind.assumes
        warnings = damage_warnings(damage.drop, safe_ratio, measured=measured is not None, assumes=facts.get("assumes"))
    elif damage is not None:
        facts |= asdict(damage)
        warnings = []
    else:
        facts["relative_error"] = layer_error(layer_errors(prepared, book))
        warnings = layer_warnings(facts["relative_error"])
    return {
        "components_before_merging": prepared.problem.mixture_size,
        "damage": {key: _recorded(value) for key, value in facts.items()},
        "warnings": [*assigned.warnings, *warnings],
    }


def _recorded(value: Any) -> Any:
    """Three digits of a number; null for one that JSON has not."""
    if type(value) is not float:
        return value
    return float(f"{value:.3g}") if np.isfinite(value) else None


def layer_errors(prepared: Prepared, book: Codebook) -> np.ndarray:
    """float64 (T,), predicted relative output error of each shared tensor, squared: noise over signal power."""
    return np.asarray(book.distortion / prepared.typical / _importances(prepared))


def _importances(prepared: Prepared) -> np.ndarray:
    """float64 (T,), how much more an error of each shared tensor costs than its norm says."""
    return np.array([prepared.importances.get(posterior.name, 1.0) for posterior in prepared.posteriors])


def damage_warnings(drop: float, safe_ratio: float | None, *, measured: bool, assumes: str | None = None) -> list[str]:
    """What to warn of at a drop in points: nothing up to WARN_DROP."""
    if drop <= WARN_DROP:
        return []
    if measured:
        return [f"accuracy dropped by {drop:.1f} points, measured; ask for a smaller ratio"]
    condition = f", if this is an {assumes}" if assumes else ""
    return [
        f"predicted accuracy drop of {drop:.0f} points{condition}: without data this network is thought safe up to "
        f"about {safe_ratio:.2g}x; evaluate the file before use, or ask for a smaller ratio"
    ]


def layer_warnings(error: float) -> list[str]:
    """What to warn of at a predicted relative output error of the layers: nothing up to WARN_ERROR."""
    if error <= WARN_ERROR:
        return []
    return [
        f"predicted relative output error of the layers: {error:.2g} on average; what that means for this network is"
        " not known; run the file before use, or ask for a smaller ratio"
    ]


def dead_warnings(difference: Difference, *, inputs: str) -> list[str]:
    """What to warn of where outputs of the compressed network say nothing of the checkpoint's.

    Args:
        difference: Between them.
        inputs: On what they were compared.
    """
    error = difference.relative_error
    if error is None or error < DEAD_ERROR:
        return []
    if error == float("inf"):
        return [f"{LOST}: on {inputs} its outputs are not finite; ask for a smaller ratio"]
    return [
        f"{LOST}: on {inputs} its outputs are no nearer to the checkpoint's than their mean"
        f" (relative error {error:.2g}); ask for a smaller ratio"
    ]


def planned_rate(prepared: Prepared, ratio: float) -> dict[str, Any]:
    """Predicted bytes, components and damage at one target ratio."""
    book, exponent = _of_size(prepared, MARGIN * prepared.floating_bytes / ratio)
    return {"target_ratio": float(ratio), **_foreseen(prepared, book, exponent)}


def rate_curve(prepared: Prepared, size_bytes: int) -> dict[int, dict[str, Any]]:
    """Predicted bytes, components and damage along the merge path.

    Args:
        prepared: The checkpoint.
        size_bytes: Of the file whose cut the curve is to go through.

    Returns:
        By octaves of lambda above that cut's: 0 is the cut itself; empty where lost points cannot be predicted.
    """
    if not prepared.kind.has_forecast:
        return {}
    cut = _of_size(prepared, size_bytes)
    around = {octaves: codebook_at(prepared.problem, cut[0].penalty * 2.0**octaves) for octaves in CURVE_OCTAVES}
    return {octaves: _foreseen(prepared, *codebook) for octaves, codebook in {**around, 0: cut}.items()}


def _of_size(prepared: Prepared, size_bytes: float) -> tuple[Codebook, int]:
    problem = prepared.problem
    return solve_size(problem, lambda book, exponent: predicted_bytes(problem, book, exponent), limit=size_bytes)


def _foreseen(prepared: Prepared, book: Codebook, exponent: int) -> dict[str, Any]:
    size = predicted_bytes(prepared.problem, book, exponent)
    return {
        "ratio": prepared.floating_bytes / size,
        "bytes": round(size),
        "components": len(book.bank.means),
        **(asdict(_damage(prepared, book)) if prepared.kind.has_forecast else NO_FORECAST),
        "relative_error": layer_error(layer_errors(prepared, book)),
    }
