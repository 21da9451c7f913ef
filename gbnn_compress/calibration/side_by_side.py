"""Original and compressed network side by side, in forward passes that compress on their way.

Each batch runs through both networks. They stop at each layer until all batches are there. Then the layer's shared
weights are chosen so that the compressed network's outputs are as near as possible to the original's, given the inputs
of each. So a layer compensates for the errors of the layers before it. Statistics of batch norms compensate for changed
means and variances, and biases for changed means.

A layer that acts several times in a pass, such as a recurrent one, is chosen after a pass that has collected its inputs
over all calls; the next pass goes on with its shared weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from gbnn_compress.calibration.blocks import places_of
from gbnn_compress.calibration.interceptor import intercepted, unfused
from gbnn_compress.calibration.problem import LockstepOptions, Problem, Sharing, share, stored
from gbnn_compress.calibration.survey import channel_moments, matched
from gbnn_compress.calibration.tracing import Key, Piece, Sampler, Trace, key_of, run
from gbnn_compress.calibration.turns import Wait, take_turns
from gbnn_compress.calibration.twins import Twin
from gbnn_compress.calibration.uses import AnyUse, BiasUse, Lookup, NormUse, Use
from gbnn_compress.data.batches import Batch
from gbnn_compress.parallel import seeded_draws
from gbnn_compress.predict.forward import Forward
from gbnn_compress.rate.recentre import VARIANCE_RANGE

MOST_PASSES = 24
"""Most passes that collect inputs; with more layers that act several times, several are chosen after one pass."""


@dataclass(frozen=True)
class SideBySide:
    """What the passes found.

    Attributes:
        ids: Name -> int64 (n,) of every tensor that feedback reached.
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
    twins: tuple[Twin, Twin],
    batches: Sequence[Batch],
    forward: Forward,
    traced: Trace,
    sharing: Mapping[str, Sharing],
    options: LockstepOptions,
) -> SideBySide:
    """Compress the layers in the order in which they run.

    Args:
        twins: The original network, and one with weights of its own, which are replaced by shared ones.
        batches: The inputs.
        forward: How the networks are run.
        traced: Result of `trace` of the original network on these inputs.
        sharing: Name -> what its weights may become; other tensors keep their weights.
        options: How ids are chosen.
    """
    lockstep = _Lockstep(twins, traced, sharing, options)
    lockstep.share_without_feedback()
    places = traced.places
    reused = [key for key in places if key in traced.pieces and traced.calls[key] > 1]
    reused = [key for key in reused if traced.pieces[key].name in sharing]
    size = max(1, -(-len(reused) // MOST_PASSES))
    groups = [reused[start : start + size] for start in range(0, len(reused), size)]
    for group in groups:
        lockstep.run(batches, forward, limit=places[group[0]], collecting=group)
        for key in group:
            lockstep.choose_collected(key)
    before, after = lockstep.run(batches, forward, limit=len(places), collecting=())
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
        traced: Order and pieces.
        sharing: Name -> what its weights may become.
        options: How ids are chosen.
        ids: Name -> int64 (n,), of tensors that feedback has reached.
        done: Keys of uses that are settled.
        corrected: Names of vectors that were corrected.
        samplers: Key -> samples of the original and of the compressed network's inputs, while they are collected.
    """

    twins: tuple[Twin, Twin]
    traced: Trace
    sharing: Mapping[str, Sharing]
    options: LockstepOptions
    ids: dict[str, np.ndarray] = field(default_factory=dict)
    done: set[Key] = field(default_factory=set)
    corrected: set[str] = field(default_factory=set)
    samplers: dict[Key, tuple[Sampler, Sampler]] = field(default_factory=dict)

    def share_without_feedback(self) -> None:
        """Replace the tensors that feedback does not reach."""
        reached = {piece.name for piece in self.traced.pieces.values()}
        for name, sharing in self.sharing.items():
            if name not in reached and name in self.twins[1].tensors:
                self._replace(name, sharing, sharing.ids)

    def run(
        self, batches: Sequence[Batch], forward: Forward, *, limit: int, collecting: Sequence[Key]
    ) -> tuple[list[Mapping[str, torch.Tensor]], list[Mapping[str, torch.Tensor]]]:
        """One pass over all batches.

        Args:
            batches: The inputs.
            forward: How the networks are run.
            limit: Uses from this place of the order on are not chosen in this pass.
            collecting: Pieces whose inputs are collected.

        Returns:
            Outputs of both networks for each batch.
        """
        places = self.traced.places
        self.samplers.clear()
        self.samplers.update(
            {key: (Sampler(self.traced.pieces[key]), Sampler(self.traced.pieces[key])) for key in collecting}
        )

        def stops(use: AnyUse) -> bool:
            key = key_of(use)
            open_ = key in places and places[key] < limit and self.traced.calls[key] == 1
            if isinstance(use, Use):
                return open_ and key not in self.done and use.name in self.sharing
            return open_ and (key not in self.done or (self.options.synthetic and isinstance(use, NormUse)))

        def on_use(use: AnyUse, wait: Wait, batch: int, side: int) -> torch.Tensor | None:
            if isinstance(use, Lookup):
                return None
            if stops(use):
                return wait(use)
            if isinstance(use, Use) and key_of(use) in self.samplers:
                self.samplers[key_of(use)][side].add(batch, use)
            if isinstance(use, NormUse) and self.options.synthetic:
                return matched(use)
            return None

        def job(batch: int, side: int) -> Callable[[Wait], Mapping[str, torch.Tensor]]:
            twin = self.twins[side]

            def passed(wait: Wait) -> Mapping[str, torch.Tensor]:
                with intercepted(twin.tensors, lambda use: on_use(use, wait, batch, side)):
                    return run(twin, batches[batch], forward)

            return passed

        jobs = [job(batch, side) for batch in range(len(batches)) for side in (0, 1)]
        with unfused():
            outputs = take_turns(jobs, self._answer)
        return outputs[::2], outputs[1::2]

    def choose_collected(self, key: Key) -> None:
        """Choose a piece after a pass that has collected its inputs."""
        piece, (before, after) = self.traced.pieces[key], self.samplers[key]
        if not (before.complete and after.complete):
            return
        self._choose(key, piece, before, after)
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

    def found(
        self, before: Sequence[Mapping[str, torch.Tensor]], after: Sequence[Mapping[str, torch.Tensor]]
    ) -> SideBySide:
        """What has been chosen."""
        own = self.twins[1].tensors
        statistics = {name: own[name].detach().clone() for name in sorted(self.corrected)}
        return SideBySide(self.ids, statistics, before, after)

    def _answer(self, waiting: Mapping[int, AnyUse]) -> Mapping[int, torch.Tensor]:
        """Outputs of the earliest use that some of the runs wait for; runs are numbered 2 * batch + side."""
        keys = {i: key_of(use) for i, use in waiting.items()}
        first = min(set(keys.values()), key=lambda key: self.traced.places[key])
        there = {i: use for i, use in waiting.items() if keys[i] == first}
        pairs = {i // 2: (there[i], there[i + 1]) for i in there if i % 2 == 0 and i + 1 in there}
        # Where the two networks take different ways, a use may have no partner.
        alone = {i: self._as_it_is(use) for i, use in there.items() if i // 2 not in pairs}
        if not pairs:
            return alone
        _, use = next(iter(pairs.values()))
        if isinstance(use, NormUse):
            outputs = self._norms(pairs)
        elif isinstance(use, BiasUse):
            outputs = self._sums(pairs, use.bias, axis=-1)
        else:
            outputs = self._products(first, pairs)
        self.done.add(first)
        for batch, (before, after) in zip(pairs, outputs, strict=True):
            alone |= {2 * batch: before, 2 * batch + 1: after}
        return alone

    def _as_it_is(self, use: AnyUse) -> torch.Tensor:
        if isinstance(use, NormUse):
            return matched(use) if self.options.synthetic else use.normalise(use.mean, use.variance)
        assert isinstance(use, Use | BiasUse)
        return use.run()

    def _products(self, key: Key, pairs: Mapping[int, tuple[Any, Any]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Outputs of both networks, with newly chosen weights in the compressed one; a bias corrects the means."""
        piece = self.traced.pieces[key]
        samplers = Sampler(piece), Sampler(piece)
        for batch, uses in pairs.items():
            for sampler, use in zip(samplers, uses, strict=True):
                sampler.add(batch, use)
        self._choose(key, piece, *samplers)
        first = next(iter(pairs.values()))[1]
        return self._sums(pairs, first.bias, axis=first.axis)

    def _sums(
        self, pairs: Mapping[int, tuple[Any, Any]], bias: torch.Tensor | None, *, axis: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Outputs of both networks, with means that the bias, if there is one, corrects along an axis."""
        wanted = [before.run() for before, _ in pairs.values()]
        got = [after.run() for _, after in pairs.values()]
        if bias is not None and self.options.biases and self._correct(bias, wanted, got, axis=axis):
            got = [after.run() for _, after in pairs.values()]
        return list(zip(wanted, got, strict=True))

    def _correct(
        self, bias: torch.Tensor, wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor], *, axis: int
    ) -> bool:
        """Add the difference of the channels' means to a bias, unless another use has done so."""
        name = _name_of(bias, self.twins[1])
        if name is None or name in self.corrected:
            return False
        mean, mean_after = (channel_moments(ys, axis=axis)[0] for ys in (wanted, got))
        bias.copy_(bias + (mean - mean_after).to(bias.dtype))
        self.corrected.add(name)
        return True

    def _norms(self, pairs: Mapping[int, tuple[Any, Any]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The batch norm's outputs, with corrected statistics in the compressed network."""
        befores, afters = zip(*pairs.values(), strict=True)
        first, synthetic = afters[0], self.options.synthetic
        seen, seen_after = (channel_moments([use.x for use in uses], axis=1) for uses in (befores, afters))
        factor = _variance_factor(seen[1], seen_after[1])
        mean, variance = _corrected(befores[0], seen[0], seen_after[0], factor, synthetic=synthetic)
        for name, value in (("running_mean", mean), ("running_var", variance)):
            self.twins[1].tensors[first.prefix + name].copy_(value)
            self.corrected.add(first.prefix + name)
        if synthetic:
            moments = (seen, (seen_after[0], seen[1] * factor))
        else:
            moments = ((befores[0].mean, befores[0].variance), (mean, variance))
        return [(_normalised(before, *moments[0]), _normalised(after, *moments[1])) for before, after in pairs.values()]

    def _choose(self, key: Key, piece: Piece, before: Sampler, after: Sampler) -> None:
        """Choose shared weights of a piece, and put them into the compressed network."""
        sharing, original = self.sharing[piece.name], self.twins[0]
        ids = self.ids.setdefault(piece.name, sharing.ids.astype(np.int64))
        tensor = original.tensors[piece.name]
        places = places_of(piece.operand, tensor)
        for i, block in enumerate(piece.blocks):
            where = block.arrange(places).numpy()
            samples = before.patches(i), after.patches(i)
            ids[where] = share(Problem(piece, block, where, samples, sharing, self.options), original)
        self._replace(piece.name, sharing, ids)
        self.done.add(key)

    def _replace(self, name: str, sharing: Sharing, ids: np.ndarray) -> None:
        original = stored(self.twins[0], name)
        table = np.append(sharing.alphabet.means, np.nan)
        kept = original.double().numpy().ravel() / sharing.scale
        values = np.where(sharing.exact, kept, table[ids]) * sharing.scale
        self.twins[1].replace(name, torch.from_numpy(values).to(original.dtype).reshape(original.shape))


def _name_of(vector: torch.Tensor, twin: Twin) -> str | None:
    """Name of the tensor of a network that a vector is a part of."""
    storage = vector.untyped_storage().data_ptr()
    return next((name for name, own in twin.tensors.items() if own.untyped_storage().data_ptr() == storage), None)


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
