"""Original and compressed network side by side, in forward passes that compress on their way.

Each batch runs through both networks. They stop at each layer until all batches are there that take part in it. Then
the layer's shared weights are chosen so that the compressed network's outputs are as near as possible to the
original's, given the inputs of each. So a layer compensates for the errors of the layers before it. Statistics of batch
norms compensate for changed means and variances, and biases for changed means.

A layer that acts several times in a pass, such as a recurrent one, is chosen after a pass that has collected its inputs
over all calls; the next pass goes on with its shared weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from gbnn_compress.calibration.blocks import places_of
from gbnn_compress.calibration.channels import channel_moments, joined_moments, matched, moments_along
from gbnn_compress.calibration.moments import Halves, collected, moments_of
from gbnn_compress.calibration.positions import Positions, Sampler
from gbnn_compress.calibration.problem import LockstepOptions, Problem, Sharing, share, stored
from gbnn_compress.calibration.together import Inputs, Outputs, Run, Stops, run_together
from gbnn_compress.calibration.tracing import Key, Piece, Trace, key_of, run
from gbnn_compress.calibration.twins import Twin
from gbnn_compress.calibration.uses import AnyUse, BiasUse, Lookup, NormUse, Use
from gbnn_compress.data.batches import Batch
from gbnn_compress.parallel import on_threads, seeded_draws
from gbnn_compress.predict.forward import Forward
from gbnn_compress.rate.recentre import VARIANCE_RANGE

MOST_PASSES = 24
"""Most passes that collect inputs; with more layers that act several times, several are chosen after one pass."""


@dataclass(frozen=True)
class SideBySide:
    """What the passes found.

    Attributes:
        ids: Name -> (n,), of the dtype of the given ids, of every tensor that feedback reached.
        statistics: Name -> corrected vector (running means, running variances, biases).
        before: Outputs of the original network that count, by name, for each batch.
        after: The same of the compressed network.
    """

    ids: Mapping[str, np.ndarray]
    statistics: Mapping[str, torch.Tensor]
    before: Sequence[Mapping[str, torch.Tensor]]
    after: Sequence[Mapping[str, torch.Tensor]]


@torch.no_grad()
def run_in_lockstep(
    twins: tuple[Twin, Twin], inputs: Inputs, sharing: Mapping[str, Sharing], options: LockstepOptions
) -> SideBySide:
    """Compress the layers in the order in which they run.

    Args:
        twins: The original network, and one with weights of its own, which are replaced by shared ones.
        inputs: The batches.
        sharing: Name -> what its weights may become; other tensors keep their weights.
        options: How ids are chosen.
    """
    traced = inputs.traced
    lockstep = _Lockstep(twins, inputs, sharing, options)
    lockstep.share_without_feedback()
    places = traced.places
    reused = [key for key in places if key in traced.pieces and traced.calls[key] > 1]
    reused = [key for key in reused if traced.pieces[key].name in sharing]
    size = max(1, -(-len(reused) // MOST_PASSES))
    groups = [reused[start : start + size] for start in range(0, len(reused), size)]
    for group in groups:
        lockstep.run(limit=places[group[0]], collecting=group)
        for key in group:
            lockstep.choose_collected(key)
    before, after = lockstep.run(limit=len(places), collecting=())
    return lockstep.found(before, after)


@torch.no_grad()
def run_after(found: SideBySide, twins: tuple[Twin, Twin], batches: Sequence[Batch], forward: Forward) -> SideBySide:
    """The same with the outputs of both networks on other batches.

    Args:
        found: Result of `run_in_lockstep`.
        twins: The networks that it was given.
        batches: Other inputs.
        forward: How the networks are run.
    """

    def outputs(twin: Twin, batch: Batch) -> Mapping[str, torch.Tensor]:
        with seeded_draws():
            return run(twin, batch, forward)

    before, after = ([outputs(twin, batch) for batch in batches] for twin in twins)
    return replace(found, before=before, after=after)


@dataclass(frozen=True)
class _Lockstep:
    """Both networks, and what has been chosen so far.

    Attributes:
        twins: The original and the compressed network.
        inputs: The batches.
        sharing: Name -> what its weights may become.
        options: How ids are chosen.
        ids: Name -> (n,), of the dtype of the given ids, of tensors that feedback has reached.
        done: Keys of uses that are settled.
        corrected: Names of vectors that were corrected.
        samplers: Key -> samples of the original and of the compressed network's inputs, while they are collected.
    """

    twins: tuple[Twin, Twin]
    inputs: Inputs
    sharing: Mapping[str, Sharing]
    options: LockstepOptions
    ids: dict[str, np.ndarray] = field(default_factory=dict)
    done: set[Key] = field(default_factory=set)
    corrected: set[str] = field(default_factory=set)
    samplers: dict[Key, tuple[Sampler, Sampler]] = field(default_factory=dict)

    @property
    def traced(self) -> Trace:
        """Order and pieces."""
        return self.inputs.traced

    def share_without_feedback(self) -> None:
        """Replace the tensors that feedback does not reach."""
        reached = {piece.name for piece in self.traced.pieces.values()}
        for name, sharing in self.sharing.items():
            if name not in reached and name in self.twins[1].tensors:
                self._replace(name, sharing, sharing.ids)

    def run(self, *, limit: int, collecting: Sequence[Key]) -> list[list[Outputs]]:
        """One pass over all batches.

        Args:
            limit: Uses from this place of the order on are not chosen in this pass.
            collecting: Pieces whose inputs are collected.

        Returns:
            Outputs of both networks for each batch.
        """
        places, pieces = self.traced.places, self.traced.pieces
        self.samplers.clear()
        for key in collecting:
            present = self.traced.present(key)
            self.samplers[key] = Sampler(pieces[key], present), Sampler(pieces[key], present)

        def stops(use: AnyUse) -> bool:
            key = key_of(use)
            open_ = key in places and places[key] < limit and self.traced.calls[key] == 1
            if isinstance(use, Lookup):
                return False
            if isinstance(use, Use):
                return open_ and key not in self.done and use.name in self.sharing
            return open_ and (key not in self.done or (self.options.synthetic and isinstance(use, NormUse)))

        def on_the_way(use: AnyUse, batch: int, side: int) -> torch.Tensor | None:
            if isinstance(use, Use) and key_of(use) in self.samplers:
                self.samplers[key_of(use)][side].add(batch, use)
            return matched(use) if isinstance(use, NormUse) and self.options.synthetic else None

        how = Stops(stops, self._answer, self._as_it_is, on_the_way)
        return run_together(self.twins, self.inputs, how, leave=not collecting)

    def choose_collected(self, key: Key) -> None:
        """Choose a piece after a pass that has collected its inputs."""
        piece, (before, after) = self.traced.pieces[key], self.samplers[key]
        if not (before.complete and after.complete):
            return
        sums = [
            collected(block, before.patches(i), after.patches(i), centred=piece.centred)
            for i, block in enumerate(piece.blocks)
        ]
        self._choose(key, piece, sums)
        if piece.bias is None or len(piece.blocks) > 1 or not self.options.biases:
            return
        name = _name_of(piece.bias, self.twins[0])
        if name is not None and name not in self.corrected:
            own = self.twins[1].view(piece.bias, name, self.twins[0])
            own += self._mean_shift(piece, before.patches(0), after.patches(0)).to(own.dtype)
            self.corrected.add(name)

    def _mean_shift(self, piece: Piece, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """What is added to a bias so that the mean output of a piece with one block stays, float64 (rows,)."""
        operands = piece.operand, self.twins[1].view(piece.operand, piece.name, self.twins[0])
        means = [
            (piece.blocks[0].arrange(operand.detach()).double() @ x.double().mean(dim=1)[:, :, None])[:, :, 0]
            for operand, x in zip(operands, (before, after), strict=True)
        ]
        shift, bias = means[0] - means[1], piece.bias
        assert bias is not None
        return shift.reshape(len(shift), len(bias) // len(shift), -1).mean(dim=2).reshape(-1)

    def found(self, before: Sequence[Outputs], after: Sequence[Outputs]) -> SideBySide:
        """What has been chosen."""
        own = self.twins[1].tensors
        statistics = {name: own[name].detach().cpu().clone() for name in sorted(self.corrected)}
        return SideBySide(self.ids, statistics, before, after)

    def _answer(self, key: Key, uses: Mapping[int, Sequence[Any]]) -> Mapping[int, Sequence[Run]]:
        """What computes the outputs of both networks at a use, in which the compressed one's vectors are corrected."""
        first = next(iter(uses.values()))[1]
        if isinstance(first, NormUse):
            runs = self._norms(uses)
        elif isinstance(first, BiasUse):
            runs = self._sums(uses, first.bias, axis=-1)
        else:
            self._choose_first(key, uses)
            runs = self._sums(uses, first.bias, axis=first.axis)
        self.done.add(key)
        return runs

    def _as_it_is(self, use: AnyUse) -> Run:
        if isinstance(use, NormUse):
            if self.options.synthetic:
                return lambda: matched(use)
            return lambda: use.normalise(use.mean, use.variance)
        assert isinstance(use, Use | BiasUse)
        return use.run

    def _choose_first(self, key: Key, uses: Mapping[int, Sequence[Use]]) -> None:
        """Choose a piece from the inputs of its only call in each batch."""
        piece, present = self.traced.pieces[key], self.traced.present(key)
        there = [batch for batch in uses if batch in present]
        if not there:  # only batches that take another way
            present = there = list(uses)
        positions = Positions(piece, present)
        # On noise, layers do not correct the errors of those before them.
        pairs = {batch: uses[batch][1:] if self.options.synthetic else uses[batch] for batch in there}
        self._choose(key, piece, moments_of(piece, positions, pairs, threads=self.inputs.threads))

    def _sums(
        self, uses: Mapping[int, Sequence[Any]], bias: torch.Tensor | None, *, axis: int
    ) -> dict[int, Sequence[Run]]:
        """Outputs of both networks, with means that the bias, if there is one, corrects along an axis."""
        name = None if bias is None else _name_of(bias, self.twins[1])
        if bias is None or name is None or name in self.corrected or not self.options.biases:
            return {batch: [use.run for use in pair] for batch, pair in uses.items()}
        self.corrected.add(name)
        runs = [use.run for pair in uses.values() for use in pair]
        ys = list(on_threads(torch.no_grad()(_output), runs, threads=self.inputs.threads, alone=True))
        mean, mean_after = (channel_moments(each, axis=axis)[0] for each in (ys[::2], ys[1::2]))
        shift = (mean - mean_after).to(bias.dtype)
        bias.copy_(bias + shift)
        for y in ys[1::2]:
            y.movedim(axis, -1).add_(shift)
        return {batch: [_there(ys[2 * i]), _there(ys[2 * i + 1])] for i, batch in enumerate(uses)}

    def _norms(self, uses: Mapping[int, Sequence[NormUse]]) -> dict[int, Sequence[Run]]:
        """The batch norm's outputs, with corrected statistics in the compressed network."""
        (before, after), synthetic = next(iter(uses.values())), self.options.synthetic
        xs = [use.x for pair in uses.values() for use in pair]
        parts = list(on_threads(partial(moments_along, axis=1), xs, threads=self.inputs.threads, alone=True))
        seen, seen_after = (joined_moments(each) for each in (parts[::2], parts[1::2]))
        factor = _variance_factor(seen[1], seen_after[1])
        mean, variance = _corrected(before, seen[0], seen_after[0], factor, synthetic=synthetic)
        for name, value in (("running_mean", mean), ("running_var", variance)):
            self.twins[1].tensors[after.prefix + name].copy_(value)
            self.corrected.add(after.prefix + name)
        if synthetic:
            moments = (seen, (seen_after[0], seen[1] * factor))
        else:
            moments = ((before.mean, before.variance), (mean, variance))
        return {
            batch: [partial(_normalised, use, *each) for use, each in zip(pair, moments, strict=True)]
            for batch, pair in uses.items()
        }

    def _choose(self, key: Key, piece: Piece, halves: Sequence[Halves]) -> None:
        """Choose shared weights of a piece, and put them into the compressed network."""
        sharing, original = self.sharing[piece.name], self.twins[0]
        ids = self.ids.setdefault(piece.name, sharing.ids.copy())
        tensor = original.tensors[piece.name]
        places = places_of(piece.operand, tensor)
        for block, each in zip(piece.blocks, halves, strict=True):
            if each == (None, None):
                continue
            where = block.arrange(places).numpy()
            ids[where] = share(Problem(piece, block, where, each, sharing, self.options), original)
        self._replace(piece.name, sharing, ids)
        self.done.add(key)

    def _replace(self, name: str, sharing: Sharing, ids: np.ndarray) -> None:
        original = stored(self.twins[0], name)
        table = np.append(sharing.alphabet.means, np.nan)
        kept = original.double().cpu().numpy().ravel() / sharing.scale
        values = np.where(sharing.exact, kept, table[ids]) * sharing.scale
        self.twins[1].replace(name, torch.from_numpy(values).to(original.dtype).reshape(original.shape))


def _name_of(vector: torch.Tensor, twin: Twin) -> str | None:
    """Name of the tensor of a network that a vector is a part of."""
    storage = vector.untyped_storage().data_ptr()
    return next((name for name, own in twin.tensors.items() if own.untyped_storage().data_ptr() == storage), None)


def _output(run: Run) -> torch.Tensor:
    return run()


def _there(y: torch.Tensor) -> Run:
    return lambda: y


def _normalised(use: NormUse, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    return use.normalise(mean.to(use.x.dtype), variance.to(use.x.dtype))


def _variance_factor(variance: torch.Tensor, variance_after: torch.Tensor) -> torch.Tensor:
    """float64 (channels,), factor by which variances moved, within VARIANCE_RANGE."""
    # A channel that is constant on these inputs says nothing of its variance on others.
    return torch.where(variance > 0, variance_after / variance, 1.0).clamp(*VARIANCE_RANGE)


def _corrected(
    use: NormUse, mean: torch.Tensor, mean_after: torch.Tensor, factor: torch.Tensor, *, synthetic: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Running mean and variance, float64 (channels,), with which the batch norm's output keeps its moments.

    Args:
        use: The batch norm of the original network.
        mean: float64 (channels,), of the original network's inputs.
        mean_after: float64 (channels,), of the compressed network's inputs.
        factor: float64 (channels,), by which variances moved.
        synthetic: Whether the inputs are noise.
    """
    variance = use.variance.double() * factor
    # Away from the running mean, another variance moves the output's mean too; on noise the distance means nothing.
    away = torch.zeros(()) if synthetic else mean - use.mean.double()
    stretched = ((variance + use.eps) / (use.variance.double() + use.eps)).sqrt()
    return use.mean.double() + (mean_after - mean) + away * (1 - stretched), variance
