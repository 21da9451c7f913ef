"""Assignment of weights to the components of a codebook, and encoding of the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gbnn_compress.checkpoint.arrays import raw_bytes_of, rounded
from gbnn_compress.data.kind import CLASSIFIER
from gbnn_compress.errors import listed
from gbnn_compress.format.artifact import encode_artifact
from gbnn_compress.parallel import in_order
from gbnn_compress.predict.differences import OutputDifference, lost_warnings
from gbnn_compress.rate.codebook import Codebook, noise_deviation, relative_step
from gbnn_compress.rate.divided import with_parts_kept
from gbnn_compress.rate.maps import index_maps, squared_errors, with_outliers
from gbnn_compress.rate.posterior import batch_norm_after
from gbnn_compress.rate.recentre import recentred_statistics
from gbnn_compress.rate.unshared import code_values, read_unshared
from gbnn_compress.target.forecast import damage_facts, feedback_gain
from gbnn_compress.target.prepared import Prepared, tensor_infos
from gbnn_compress.types import Damage, IndexMap

if TYPE_CHECKING:
    import torch


NOT_CALIBRATED = "not_calibrated"
"""Key of the manifest's entry with the names of shared tensors that calibration does not reach."""

MOST_PLAIN = 0.2
"""Fraction of the shared weights that calibration may miss before a warning says so."""


@dataclass(frozen=True)
class Assigned:
    """Ids of all weights for one codebook, and the corrections that go with them.

    Attributes:
        maps: One index map per shared tensor.
        statistics: Name -> corrected unshared tensor, such as re-centred batch-norm statistics.
        damage: Damage measured on the inputs; None without inputs, or if they did not reach every shared tensor.
        measured: Further measures of the damage, such as the user's metric before and after.
        inputs: The inputs that the damage was measured on, for messages.
        warnings: Warnings about the outputs of the compressed network.
        noise: Trained posterior noise, the argument of `noise_deviation`; None for the recipe's.
        facts: Further entries of the manifest.
        finer: Factor by which unshared values are coded more finely than lambda demands.
        exact: Names of unshared tensors that are coded exactly.
    """

    maps: Sequence[IndexMap]
    statistics: Mapping[str, torch.Tensor]
    damage: Damage | OutputDifference | None
    measured: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = "the validation data"
    warnings: tuple[str, ...] = ()
    noise: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    finer: float = 1.0
    exact: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Cut:
    """A codebook with everything else that a file is encoded from.

    Attributes:
        prepared: The checkpoint.
        book: Components, counts and lambda.
        exponent: Exponent of the bank's grid.
        assigned: Ids of the weights, and the corrections that go with them.
        safe_ratio: Predicted safe ratio, for the report; None if it cannot be predicted.
    """

    prepared: Prepared
    book: Codebook
    exponent: int
    assigned: Assigned
    safe_ratio: float | None

    @property
    def meant(self) -> dict[str, torch.Tensor]:
        """Name -> tensor that the file is meant to hold: the checkpoint's tensors, with corrected statistics."""
        return {**self.prepared.checkpoint.tensors, **self.assigned.statistics}

    @property
    def relative_step(self) -> float:
        """Quantisation step of an unshared value whose unit is 1."""
        return relative_step(self.book.penalty, self.prepared.typical) / self.assigned.finer

    def with_maps(self, maps: Sequence[IndexMap]) -> Cut:
        """The same with other ids."""
        return replace(self, assigned=replace(self.assigned, maps=maps))

    def with_exact(self, names: Collection[str]) -> Cut:
        """The same with some tensors kept exactly, without the corrections that compensated for their errors."""
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
        return _encoded(self)


@dataclass(frozen=True)
class Result:
    """A compressed network before it is written.

    Attributes:
        encoded: The bytes of the file.
        cut: What the file was encoded from.
        notes: Sentences for the user on how the file was made.
        unfinished: Whether training was interrupted and can be resumed.
        training: Losses (nats per input) and bits per weight after the last epoch.
    """

    encoded: bytes
    cut: Cut
    notes: tuple[str, ...] = ()
    unfinished: bool = False
    training: Mapping[str, float] = field(default_factory=dict)

    @property
    def maps(self) -> Sequence[IndexMap]:
        """The index maps that the file must decode to."""
        return self.cut.assigned.maps

    def with_exact(self, names: Collection[str]) -> Result:
        """The file with some tensors kept exactly."""
        cut = self.cut.with_exact(names)
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        note = f"kept exactly, because their codes failed verification: {listed}"
        return replace(self, encoded=cut.encoded(), cut=cut, notes=(*self.notes, note))


def assign(prepared: Prepared, book: Codebook) -> Assigned:
    """Assign all weights to components, with error feedback if there is a calibration; re-centre batch norms."""
    tensors, posteriors = prepared.checkpoint.tensors, prepared.posteriors
    book = _within_range(prepared, book)
    maps = index_maps(tensors, posteriors, book, value_bits=prepared.value_bits)
    scales = np.array([posterior.scale for posterior in posteriors])
    if prepared.calibration is None:
        maps = with_parts_kept(maps, tensors, means=book.bank.means, scales=scales)
        return Assigned(maps, recentred_statistics(tensors, maps, means=book.bank.means, scales=scales), None)
    from gbnn_compress.calibration.calibrated import compress_in_lockstep, measured_damage, measured_difference

    outcome = compress_in_lockstep(prepared.calibration, book, posteriors, maps)
    maps = [replace(each, ids=outcome.ids[each.name]) if each.name in outcome.ids else each for each in maps]
    maps = with_parts_kept(maps, tensors, means=book.bank.means, scales=scales)
    statistics = recentred_statistics(tensors, maps, means=book.bank.means, scales=scales)
    statistics |= {name: rounded(vector, tensors[name].dtype) for name, vector in outcome.statistics.items()}
    difference, inputs = measured_difference(outcome), "noise"
    damage: Damage | OutputDifference | None = None
    if not prepared.calibration.synthetic and all(each.name in prepared.calibration.names for each in maps):
        inputs = "held-out inputs" if prepared.calibration.held else "the calibration inputs"
        damage = measured_damage(outcome) if prepared.kind.task == CLASSIFIER else difference
    warnings = [] if damage is difference else lost_warnings(difference, inputs=inputs)
    missed = [] if prepared.calibration.synthetic else _not_reached(prepared, outcome.ids)
    facts = {NOT_CALIBRATED: missed} if missed else {}
    warnings += _plain_warnings(prepared, missed)
    return Assigned(maps, statistics, damage, inputs=inputs, warnings=tuple(warnings), facts=facts)


def _not_reached(prepared: Prepared, ids: Mapping[str, np.ndarray]) -> list[str]:
    """Names of shared tensors that calibration does not reach: neither by error feedback nor, as a table, by usage."""
    assert prepared.calibration is not None
    reached = {*ids, *prepared.calibration.lookups}
    return [posterior.name for posterior in prepared.posteriors if posterior.name not in reached]


def _plain_warnings(prepared: Prepared, names: Sequence[str]) -> list[str]:
    """A warning if calibration does not reach more than MOST_PLAIN of the weights."""
    tensors = prepared.checkpoint.tensors
    share = sum(tensors[name].numel() for name in names) / max(float(prepared.sizes.sum()), 1.0)
    if share <= MOST_PLAIN:
        return []
    return [
        f"calibration does not reach {100 * share:.0f} % of the shared weights ({listed(names)}): the inputs do not use"
        " them, or the network uses them in a way that is not known"
    ]


def _within_range(prepared: Prepared, book: Codebook) -> Codebook:
    """The codebook without components that are outside the range of a tensor's dtype, for that tensor."""
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


def _encoded(cut: Cut) -> bytes:
    prepared, book, assigned, meant = cut.prepared, cut.book, cut.assigned, cut.meant
    checkpoint, selection, maps = prepared.checkpoint, prepared.selection, assigned.maps
    scales = np.array([posterior.scale for posterior in prepared.posteriors])
    errors = in_order(
        lambda pair: squared_errors(checkpoint.tensors[pair[0].name], *pair, book.bank.means),
        zip(prepared.posteriors, maps, strict=True),
        weights=int(prepared.sizes.sum()),
    )
    return encode_artifact(
        tensors=tensor_infos(checkpoint, selection),
        bank=book.bank,
        exponent=cut.exponent,
        scales=scales,
        relative_rmse=np.array([np.sqrt(error / total) if total else 0.0 for error, total in errors]),
        maps=maps,
        vectors=code_values(
            read_unshared(meant, selection.unshared, tables=selection.tables, exact=assigned.exact),
            relative_step=cut.relative_step,
        ),
        raw=[raw_bytes_of(meant[name]) for name in selection.raw],
        facts={
            **prepared.facts,
            **damage_facts(
                prepared,
                book,
                assigned.damage,
                safe_ratio=cut.safe_ratio,
                warnings=assigned.warnings,
                inputs=assigned.inputs,
                further=assigned.measured,
            ),
            "noise": posterior_noise(prepared, book) if assigned.noise is None else assigned.noise,
            **({"blends": book.blends.tolist()} if len(book.blends) else {}),
            **assigned.facts,
        },
        contexts=prepared.contexts,
    )


def posterior_noise(prepared: Prepared, book: Codebook) -> float:
    """Posterior noise, in proportion to the quantisation error. Feedback reduces that error, but not the noise."""
    relative = float(prepared.facts["recipe"]["noise"]) / float(np.sqrt(feedback_gain(prepared)))
    return noise_deviation(book, relative=relative, typical=prepared.typical)
