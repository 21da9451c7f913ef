"""A network with inputs: surveyed once, then compressed in lockstep at any lambda."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch

from gbnn_compress.calibration.decisions import Alphabet
from gbnn_compress.calibration.problem import LockstepOptions, Sharing
from gbnn_compress.calibration.side_by_side import SideBySide, run_after, run_in_lockstep
from gbnn_compress.calibration.survey import LayerStatistics, survey
from gbnn_compress.calibration.together import Inputs
from gbnn_compress.calibration.tracing import Trace, run, trace
from gbnn_compress.calibration.twins import STATISTICS, Twin, make_twin
from gbnn_compress.data.batches import Batch, taken
from gbnn_compress.parallel import seeded_draws, single_thread
from gbnn_compress.predict.differences import OutputDifference, compared
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.running import logits_among
from gbnn_compress.predict.task import columns_of
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.damage import drop_at
from gbnn_compress.types import Damage, IndexMap, Posterior

FEWEST_PATHS, MOST_PATHS, PATH_WEIGHTS = 8, 16, 2**27
"""Fewest and most paths of each filter's search, and, between them, the product of paths and weights of the network. A
trellis has eight states, so fewer paths could not tell them apart."""

HELD_OUT = 16
"""One batch of so many is held out, to measure the damage on."""

SWEEPS, SWEPT_WEIGHTS = 2, 2**23
"""Rounds of searching the windows of a layer again, and the weights of the largest network in which that is done; it
takes as long as the first search."""

DAMPING, SYNTHETIC_DAMPING = 0.02, 0.05
"""Damping of the inputs' covariance: stronger for noise."""


@dataclass(frozen=True)
class Calibration:
    """A network, inputs, and what the survey measured.

    Attributes:
        network: In evaluation mode, holding the original weights.
        names: Name in the checkpoint -> name in the network, of the tensors that may be touched, without states.
        batches: The inputs.
        held: Further inputs, on which the damage is measured; empty if there are too few.
        forward: How the network is run.
        synthetic: Whether the inputs are noise.
        traced: Order in which the layers run.
        layers: Name -> statistics of every layer that the inputs reach.
    """

    network: torch.nn.Module
    names: Mapping[str, str]
    batches: Sequence[Batch]
    held: Sequence[Batch]
    forward: Forward
    synthetic: bool
    traced: Trace
    layers: Mapping[str, LayerStatistics]

    @property
    def columns(self) -> int:
        """C if the network returns one floating (N, C) tensor; 0 otherwise."""
        return columns_of(self.traced.outputs, n_inputs=self.batches[0].size)

    @property
    def lookups(self) -> Mapping[str, np.ndarray]:
        """Name of an embedding's table -> int64 (rows,), how often the inputs use each row."""
        return self.traced.lookups

    @property
    def has_norms(self) -> bool:
        """Whether the network has batch norms.

        They keep activations on noise near those of training; without them, means on noise say nothing about others.
        """
        return any(key[0] == "norm" for key in self.traced.order)

    @property
    def filters(self) -> frozenset[str]:
        """Names of the tensors whose rows (axis 0) are filters: each row sees the same inputs as the others."""
        return frozenset(self._reached - self._cut_otherwise)

    def keeps_rows(self, name: str) -> bool:
        """Whether the rows of a tensor are filters, or feedback does not reach it."""
        return name not in self._cut_otherwise

    @property
    def _reached(self) -> set[str]:
        return {piece.name for piece in self.traced.pieces.values()}

    @cached_property
    def _cut_otherwise(self) -> set[str]:
        """Names of the tensors whose filters are not rows, such as those that are used through a view."""
        own = self.network.state_dict(keep_vars=True)
        pieces = self.traced.pieces.values()
        return {piece.name for piece in pieces if not piece.has_rows_of(own[self.names[piece.name]])}

    @property
    def further_bytes(self) -> int:
        """About the memory that a pass side by side needs beyond the survey's: another network, and what it holds."""
        weights = sum(tensor.nbytes for tensor in self.network.state_dict().values())
        return weights + self.traced.held_bytes // 2

    @property
    def gain(self) -> float:
        """Cost of an error without feedback over its cost with feedback: the geometric mean over the layers."""
        return float(np.exp(np.mean([np.log(layer.gain) for layer in self.layers.values()]))) if self.layers else 1.0


def calibrate(
    network: torch.nn.Module,
    batches: Iterable[Batch],
    *,
    names: Mapping[str, str],
    forward: Forward | None = None,
    synthetic: bool = False,
    option: str = "--data",
) -> Calibration:
    """Survey a network.

    Args:
        network: In evaluation mode, holding the original weights; it is not changed.
        batches: The inputs, at least one batch. Of HELD_OUT batches or more, every HELD_OUT-th is held out.
        names: Name in the checkpoint -> name in the network, of the tensors that may be touched.
        forward: How the network is run. Default: called with the inputs.
        synthetic: Whether the inputs are noise; batch norm then uses their statistics.
        option: The option that names the inputs, for messages.

    Raises:
        DataError: Outputs on given inputs are not finite.
    """
    forward = forward or Forward()
    with single_thread() as threads:
        if not isinstance(batches, Sequence):
            batches = iter(batches)
            first = next(batches)
            batches = chain([first], batches)
        else:
            first = batches[0]
        names = _without_states(network, first, names, forward)
        twin = make_twin(network, names, own_weights=False)
        traced, used = trace(twin, batches, forward, option=None if synthetic else option)
        numbers = range(HELD_OUT - 1, len(used), HELD_OUT)
        held = taken(used, numbers)
        if held:
            traced, used = traced.without(numbers), taken(used, [i for i in range(len(used)) if i not in numbers])
        inputs = Inputs(used, forward, traced, _usable(threads, twin))
        layers = survey(twin, inputs, damping=_damping(synthetic), match_batch_norm=synthetic)
    return Calibration(network, names, used, held, forward, synthetic, traced, layers)


def _without_states(
    network: torch.nn.Module, batch: Batch, names: Mapping[str, str], forward: Forward
) -> Mapping[str, str]:
    """The names without those of buffers that a pass changes."""
    own = network.state_dict(keep_vars=True)
    buffers = {name: mine for name, mine in names.items() if not isinstance(own[mine], torch.nn.Parameter)}
    buffers = {name: mine for name, mine in buffers.items() if not mine.endswith(STATISTICS)}
    if not buffers:
        return names
    twin = make_twin(network, buffers, own_weights=False)
    versions = {name: tensor._version for name, tensor in twin.tensors.items()}
    with seeded_draws(), torch.no_grad():
        run(twin, batch, forward)
    changed = {name for name, tensor in twin.tensors.items() if tensor._version != versions[name]}
    return {name: mine for name, mine in names.items() if name not in changed}


def compress_in_lockstep(
    calibration: Calibration,
    book: Codebook,
    posteriors: Sequence[Posterior],
    maps: Sequence[IndexMap],
) -> SideBySide:
    """Choose ids with error feedback, and correct biases and batch-norm statistics.

    Args:
        calibration: From `calibrate`.
        book: Components, counts and lambda.
        posteriors: One per shared tensor.
        maps: Assignments without feedback; their outliers stay outliers.
    """
    size = len(book.bank.means)
    sharing = {
        posterior.name: Sharing(
            alphabet=Alphabet(book.bank.means, book.counts[t, :size], trellis=maps[t].trellis),
            scale=posterior.scale,
            rows=np.exp(-2 * posterior.log_sigma),
            unit=1 / calibration.layers[posterior.name].column if posterior.name in calibration.layers else 1.0,
            exact=maps[t].ids == size,
            ids=maps[t].ids,
        )
        for t, posterior in enumerate(posteriors)
        if posterior.name in calibration.names
    }
    n_weights = sum(len(index_map.ids) for index_map in maps)
    with single_thread() as threads:
        options = LockstepOptions(
            penalty=book.penalty,
            damping=_damping(calibration.synthetic),
            paths=n_paths(n_weights),
            sweeps=SWEEPS if n_weights <= SWEPT_WEIGHTS else 0,
            synthetic=calibration.synthetic,
            biases=not calibration.synthetic or calibration.has_norms,
            threads=threads,
        )
        original, compressed = (
            make_twin(calibration.network, calibration.names, own_weights=own) for own in (False, True)
        )
        twins, forward = (original, compressed), calibration.forward
        inputs = Inputs(calibration.batches, forward, calibration.traced, _usable(threads, original))
        found = run_in_lockstep(twins, inputs, sharing, options)
        return run_after(found, twins, calibration.held, forward) if calibration.held else found


def _usable(threads: int, twin: Twin) -> int:
    """Threads for runs of a network: several only on the CPU."""
    return threads if twin.device.type == "cpu" else 1


def n_paths(n_weights: int) -> int:
    """Paths of each filter's search in a network of `n_weights`."""
    return min(max(PATH_WEIGHTS // n_weights, FEWEST_PATHS), MOST_PATHS)


def measured_damage(outcome: SideBySide) -> Damage:
    """Damage on the inputs of a lockstep pass, without labels; the drop is the usual one at this agreement.

    Args:
        outcome: Of a classifier: logits (N, C) or (N, C, ...), C >= 2.
    """
    before, after = (
        torch.cat([logits_among(each) for each in outputs]).double().log_softmax(dim=1)
        for outputs in (outcome.before, outcome.after)
    )
    agreement = float((before.argmax(dim=1) == after.argmax(dim=1)).double().mean())
    divergence = float((before.exp() * (before - after)).sum(dim=1).mean())
    return Damage(drop_at(agreement), agreement, max(divergence, 0.0))


def measured_difference(outcome: SideBySide) -> OutputDifference:
    """How the outputs of a lockstep pass differ."""
    return compared(zip(outcome.before, outcome.after, strict=True))


def _damping(synthetic: bool) -> float:
    return SYNTHETIC_DAMPING if synthetic else DAMPING
