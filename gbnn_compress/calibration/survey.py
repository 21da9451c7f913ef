"""What the layers of a network see on given inputs: their order, how often they act, and the cost of their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from gbnn_compress.calibration.blocks import LONGEST_BLOCK, Block, blocks_of, chosen
from gbnn_compress.calibration.feedback import by_falling_variance, damped, inverse_factor, reordered
from gbnn_compress.calibration.interceptor import intercepted, unfused
from gbnn_compress.calibration.twins import Twin
from gbnn_compress.calibration.uses import AnyUse, BiasUse, Lookup, NormUse, Use, extent
from gbnn_compress.data.batches import Batch
from gbnn_compress.errors import DataError, listed
from gbnn_compress.parallel import seeded_draws
from gbnn_compress.predict.forward import Forward

MOST_BYTES, COPIES = 2_000_000_000, 4
"""Memory for the activations of all batches; and how many times its widest layer's input and output a batch needs, in
both networks."""

SMALL, LARGE = 1e-12, 1e12
"""Squares of inputs outside this range lose digits in float32, or overflow."""

Key = tuple[Any, ...]
"""Identifies a use: the piece of a weight, a bias that is added by itself, or a batch norm."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A weight, or a part of it, as one kind of use sees it.

    Attributes:
        name: Name of the tensor in the checkpoint.
        operand: The original network's tensor, or the view of it that is used.
        blocks: Its least-squares problems.
        calls: Most calls in one batch.
        counts: int64 (batches, blocks), number of input patches.
        bias: The bias that is added to the output, a tensor of the original network or a view of it; None without.
        centred: Whether the mean of the output's error can be corrected, by the bias or by a batch norm.
    """

    name: str
    operand: torch.Tensor
    blocks: Sequence[Block]
    calls: int
    counts: np.ndarray
    bias: torch.Tensor | None
    centred: bool

    @property
    def has_filters(self) -> bool:
        """Whether the weights of a filter follow each other in the tensor, as in `Linear` and `Conv2d`."""
        arranged = self.blocks[0].arrange(self.operand.detach())
        is_view = arranged.data_ptr() == self.operand.data_ptr()
        return len(self.blocks) == 1 and is_view and arranged.stride(1) == arranged.shape[2]


@dataclass(frozen=True)
class Trace:
    """One run of the original network.

    Attributes:
        order: Keys of all uses, in the order in which their tensors are used first.
        calls: Key -> most calls in one batch, and one more if the tensor is also looked up or used in another way.
        pieces: Key -> piece of a weight.
        lookups: Name of an embedding's table -> int64 (rows,), how often each row is looked up.
        outputs: Outputs of the first batch that count, by name.
    """

    order: Sequence[Key]
    calls: Mapping[Key, int]
    pieces: Mapping[Key, Piece]
    lookups: Mapping[str, np.ndarray]
    outputs: Mapping[str, torch.Tensor]

    @cached_property
    def places(self) -> Mapping[Key, int]:
        """Key -> place in the order."""
        return {key: place for place, key in enumerate(self.order)}


@dataclass(frozen=True)
class LayerStatistics:
    """What the survey measures of one tensor.

    Attributes:
        column: Squared output error of one weight's unit error after feedback, averaged over the weights.
        calls: How often a forward pass uses the layer.
        gain: The same without feedback, over `column`.
    """

    column: float
    calls: int
    gain: float


def key_of(use: AnyUse) -> Key:
    """The key of a use."""
    if isinstance(use, Use):
        return use.piece
    if isinstance(use, NormUse):
        return ("norm", use.prefix)
    return ("bias" if isinstance(use, BiasUse) else "lookup", use.name)


def trace(
    twin: Twin, batches: Iterable[Batch], forward: Forward, *, option: str | None = None
) -> tuple[Trace, list[Batch]]:
    """Run the original network, and count.

    Args:
        twin: The original network.
        batches: The inputs. They are read as far as both networks can hold all batches at their widest layers in
            MOST_BYTES.
        forward: How the network is run.
        option: The option that names the inputs, for messages; None for noise, on which outputs may be infinite.

    Returns:
        What was counted, and the batches that were used, at least one.

    Raises:
        DataError: Outputs on given inputs are not finite.
    """
    tracer = _Tracer(twin.tensors)
    first: Mapping[str, torch.Tensor] = {}
    used, needed = list[Batch](), 0
    for batch in batches:
        tracer.begin(len(used))
        with seeded_draws(), unfused(), intercepted(twin.tensors, tracer.on_use):
            outputs = run(twin, batch, forward)
        bad = [name for name, tensor in outputs.items() if not tensor.isfinite().all()]
        if bad and option is not None:
            raise DataError(
                f"`{option}`: expected finite outputs, got infinite or NaN values in {listed(bad)} for some inputs;"
                " leave such inputs out, or choose another output with `--output`"
            )
        first = first or outputs
        used.append(batch)
        needed += COPIES * tracer.widest
        if needed > MOST_BYTES:
            break
    return tracer.result(len(used), first), used


def run(twin: Twin, batch: Batch, forward: Forward) -> dict[str, torch.Tensor]:
    """Outputs of a fresh copy of a network, by name; the batch is not changed."""
    return forward.chosen(forward(twin.copied(), batch.on(torch.device("cpu"))))


@dataclass
class _Tracer:
    """Counts the uses of one network."""

    tensors: Mapping[str, torch.Tensor]
    first: dict[Key, Use] = field(default_factory=dict)
    blocks: dict[Key, list[Block]] = field(default_factory=dict)
    counts: dict[Key, dict[int, np.ndarray]] = field(default_factory=dict)
    biases: dict[Key, torch.Tensor] = field(default_factory=dict)
    normed: set[Key] = field(default_factory=set)
    calls: dict[Key, dict[int, int]] = field(default_factory=dict)
    lookups: dict[str, np.ndarray] = field(default_factory=dict)
    batch: int = 0
    latest: tuple[Key, torch.Tensor] | None = None
    widest: int = 0

    def begin(self, batch: int) -> None:
        self.batch, self.latest, self.widest = batch, None, 0

    def on_use(self, use: AnyUse) -> torch.Tensor | None:
        key = key_of(use)
        calls = self.calls.setdefault(key, {})
        calls[self.batch] = calls.get(self.batch, 0) + 1
        if isinstance(use, Lookup):
            rows = len(self.tensors[use.name])
            found = torch.bincount(use.indices.reshape(-1).clamp(0, rows - 1), minlength=rows).numpy()
            self.lookups[use.name] = self.lookups.get(use.name, 0) + found
            return None
        if not isinstance(use, Use):
            # The output is held, so that no other tensor gets its memory.
            if self.latest is not None and _same_memory(use.x, self.latest[1]):
                if isinstance(use, BiasUse):
                    self.biases.setdefault(self.latest[0], use.bias)
                else:
                    self.normed.add(self.latest[0])
            return None
        if key not in self.first:
            self.first[key] = use
            self.blocks[key] = blocks_of(use)
            self.counts[key] = {}
            if use.bias is not None:
                self.biases[key] = use.bias
        count = np.array([block.count(use) for block in self.blocks[key]])
        self.counts[key][self.batch] = self.counts[key].get(self.batch, 0) + count
        output = use.run()
        self.latest = (key, output)
        self.widest = max(self.widest, use.x.nbytes + output.nbytes)
        return output

    def result(self, n_batches: int, outputs: Mapping[str, torch.Tensor]) -> Trace:
        pieces = {}
        for key in self._kept():
            use, blocks = self.first[key], self.blocks[key]
            counts = np.stack([self.counts[key].get(i, np.zeros(len(blocks), dtype=int)) for i in range(n_batches)])
            most = max(self.calls[key].values())
            bias = self.biases.get(key)
            centred = bias is not None or (key in self.normed and most == 1)
            pieces[key] = Piece(use.name, use.weight, blocks, most, counts, bias, centred)
        order = self._order(pieces)
        calls = {key: max(self.calls[key].values()) + (key in pieces and self._also_used(key, pieces)) for key in order}
        of_tables = {name: rows for name, rows in self.lookups.items() if name not in {p.name for p in pieces.values()}}
        return Trace(order, calls, pieces, of_tables, outputs)

    def _order(self, pieces: Mapping[Key, Piece]) -> list[Key]:
        """Keys by their first call; a tensor that is also used otherwise has its place at its first use of any kind."""
        moved: dict[str | None, list[Key]] = {}
        for key, piece in pieces.items():
            if self._also_used(key, pieces):
                moved.setdefault(piece.name, []).append(key)
        found: dict[Key, None] = {}
        for key in self.calls:
            found |= dict.fromkeys(moved.get(self._name(key), [key]))
        return [key for key in found if key in pieces or (key not in self.first and key[0] != "lookup")]

    def _also_used(self, key: Key, pieces: Mapping[Key, Piece]) -> bool:
        """Whether a piece's tensor is looked up, or used in a way for which it is not chosen."""
        dropped = {self.first[other].name for other in self.first.keys() - pieces.keys()}
        return pieces[key].name in self.lookups or pieces[key].name in dropped

    def _name(self, key: Key) -> str | None:
        """Name of the weight or table of a use."""
        if key in self.first:
            return self.first[key].name
        return str(key[1]) if key[0] == "lookup" else None

    def _kept(self) -> list[Key]:
        """The pieces, without those that overlap with one that sees more inputs."""
        taken: dict[str, list[tuple[int, int]]] = {}
        kept = set()
        for key in sorted(self.first, key=lambda key: -sum(int(each.sum()) for each in self.counts[key].values())):
            first, last = extent(self.first[key].weight)
            ranges = taken.setdefault(self.first[key].name, [])
            if all(last < start or stop < first for start, stop in ranges):
                ranges.append((first, last))
                kept.add(key)
        return [key for key in self.first if key in kept]


class Sampler:
    """Input patches of one piece over all its calls, at positions that are chosen in advance."""

    def __init__(self, piece: Piece) -> None:
        self._blocks = piece.blocks
        starts = np.cumsum(piece.counts, axis=0) - piece.counts
        self._starts, self._seen = starts, np.zeros_like(starts)
        self._chosen = [chosen(int(piece.counts[:, i].sum()), block.wanted) for i, block in enumerate(piece.blocks)]
        self._parts: list[dict[int, list[torch.Tensor]]] = [{} for _ in piece.blocks]
        self._total = piece.counts.sum(axis=0)

    def add(self, batch: int, use: Use) -> None:
        """Take the patches of one call."""
        for i, block in enumerate(self._blocks):
            count = block.count(use)
            start = int(self._starts[batch, i] + self._seen[batch, i])
            self._seen[batch, i] += count
            edges = torch.tensor([start, start + count])
            low, high = torch.searchsorted(self._chosen[i], edges).tolist()
            if high > low:
                self._parts[i].setdefault(batch, []).append(block.patches(use, self._chosen[i][low:high] - start))

    @property
    def complete(self) -> bool:
        """Whether all calls were seen."""
        return bool((self._seen.sum(axis=0) >= self._total).all())

    def patches(self, i: int) -> torch.Tensor:
        """(groups, m, d), patches of block i in the order of batches and calls."""
        parts = [part for batch in sorted(self._parts[i]) for part in self._parts[i][batch]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def survey(
    twin: Twin,
    batches: Sequence[Batch],
    forward: Forward,
    traced: Trace,
    *,
    damping: float,
    match_batch_norm: bool,
) -> dict[str, LayerStatistics]:
    """Measure every layer whose weight is among the tensors.

    Args:
        twin: The original network.
        batches: The inputs.
        forward: How the network is run.
        traced: Result of `trace` on these inputs.
        damping: Damping of the inputs' covariance (`feedback.damped`).
        match_batch_norm: Whether batch norm normalises with the inputs' own statistics. Each layer then sees
            activations of the mean and variance that it saw in training, whatever the inputs.
    """
    samplers = {key: Sampler(piece) for key, piece in traced.pieces.items()}
    costs: dict[str, list[tuple[int, float, float, int]]] = {}

    def on_use(use: AnyUse, batch: int) -> torch.Tensor | None:
        if isinstance(use, NormUse):
            return matched(use) if match_batch_norm else None
        sampler = samplers.get(key_of(use)) if isinstance(use, Use) else None
        if sampler is not None and isinstance(use, Use):
            sampler.add(batch, use)
            if sampler.complete:
                piece = traced.pieces[key_of(use)]
                del samplers[key_of(use)]
                costs.setdefault(piece.name, []).append(_costs(piece, sampler, twin, damping))
        return None

    for i, batch in enumerate(batches):
        with seeded_draws(), unfused(), intercepted(twin.tensors, _bound(on_use, i)):
            run(twin, batch, forward)
    return {name: _joined(each) for name, each in costs.items()}


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _bound(on_use: Callable[[AnyUse, int], torch.Tensor | None], batch: int) -> Callable[[AnyUse], torch.Tensor | None]:
    return lambda use: on_use(use, batch)


def matched(use: NormUse) -> torch.Tensor:
    """The output of a batch norm that normalises with the inputs' own statistics."""
    mean, variance = channel_moments([use.x], axis=1)
    return use.normalise(mean.to(use.x.dtype), variance.to(use.x.dtype))


def channel_moments(ys: Sequence[torch.Tensor], *, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances of the channels along an axis over several tensors, float64 (channels,)."""
    pairs = []
    for y in ys:
        others = [i for i in range(y.dim()) if i != axis % y.dim()]
        variance, mean = torch.var_mean(y.double() if y.numel() < 1 << 22 else y, dim=others, correction=0)
        pairs.append((mean.double(), variance.double()))
    if len(pairs) == 1:
        return pairs[0]
    shares = torch.tensor([y.numel() for y in ys], dtype=torch.float64)
    shares = (shares / shares.sum())[:, None]
    means, variances = (torch.stack(each) for each in zip(*pairs, strict=True))
    mean = (shares * means).sum(dim=0)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(dim=0)


def covariance(patches: torch.Tensor, other: torch.Tensor | None = None, *, centred: bool = True) -> np.ndarray:
    """float64 (G, d, d), mean of the outer products of patches (G, n, d), centred or not, with others.

    Products of inputs that are all below SMALL, or some above LARGE, are taken in float64.
    """
    if not SMALL <= float(patches.abs().amax()) <= LARGE:
        patches, other = patches.double(), None if other is None else other.double()
    left = patches - patches.mean(dim=1, keepdim=True) if centred else patches
    right = left if other is None else other - other.mean(dim=1, keepdim=True) if centred else other
    return (left.transpose(1, 2) @ right / patches.shape[1]).double().numpy()


def trusted(seen: np.ndarray, *, n_samples: int, damping: float) -> np.ndarray:
    """A covariance float64 (G, d, d), damped by `damping` + d / n: few samples are less reliable."""
    return damped(seen, damping=damping + seen.shape[1] / n_samples)


def column_blocks(width: int) -> list[slice]:
    """Equal runs of at most LONGEST_BLOCK columns."""
    edges = np.linspace(0, width, -(-width // LONGEST_BLOCK) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def source_factors(twin: Twin, name: str, operand: torch.Tensor, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Factors from errors of a tensor to errors of the weight: float64 (G, r) of the rows, (G, d) of the columns.

    They are 1 unless the weight is computed from the tensor, as in `weight_norm`: then a row or a column of the weight
    is a multiple of the tensor's.
    """
    weight = block.arrange(operand.detach()).double().numpy()
    ones = np.ones(weight.shape[:2]), np.ones((weight.shape[0], weight.shape[2]))
    if name not in twin.sources:
        return ones
    source = block.arrange(seen_alike(twin.sources[name].detach(), operand)).double().numpy()
    powers = source**2
    by_row = (weight * source).sum(axis=2) / np.maximum(powers.sum(axis=2), 1e-300)
    by_column = (weight * source).sum(axis=1) / np.maximum(powers.sum(axis=1), 1e-300)
    row_error = ((by_row[:, :, None] * source - weight) ** 2).sum()
    column_error = ((by_column[:, None] * source - weight) ** 2).sum()
    return (np.abs(by_row), ones[1]) if row_error <= column_error else (ones[0], np.abs(by_column))


def seen_alike(tensor: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
    """The view of a tensor that an operand is of a contiguous tensor of the same shape."""
    return tensor.contiguous().as_strided(operand.shape, operand.stride(), operand.storage_offset())


def _costs(piece: Piece, sampler: Sampler, twin: Twin, damping: float) -> tuple[int, float, float, int]:
    """Number of weights, squared output error of one weight's unit error with and without feedback, and calls."""
    fed_back, plain = [], []
    for i, block in enumerate(piece.blocks):
        patches = sampler.patches(i)
        rows, columns = source_factors(twin, piece.name, piece.operand, block)
        power = float((rows**2).mean())
        repeats = rows.shape[1] * power
        for part in column_blocks(patches.shape[2]):
            seen = covariance(patches[:, :, part], centred=piece.centred)
            hessian = trusted(seen, n_samples=patches.shape[1], damping=damping)
            hessian = hessian * columns[:, part, None] * columns[:, None, part]
            factor = inverse_factor(reordered(hessian, by_falling_variance(hessian)))
            fed_back.append((repeats, (1 / np.einsum("gjj->gj", factor) ** 2).ravel()))
            plain.append((repeats, np.einsum("gjj->gj", hessian).ravel()))
    size = piece.operand.numel()
    return size, _mean(fed_back, piece), _mean(plain, piece), piece.calls


def _mean(parts: Sequence[tuple[float, np.ndarray]], piece: Piece) -> float:
    """Mean over the columns of all blocks, weighed by the rows."""
    if len(piece.blocks) == 1:
        rows = parts[0][0] / piece.blocks[0].arrange(piece.operand).shape[1]
        return rows * float(np.concatenate([each for _, each in parts]).mean())
    return sum(rows * float(each.sum()) for rows, each in parts) / sum(rows * each.size for rows, each in parts)


def _joined(costs: Sequence[tuple[int, float, float, int]]) -> LayerStatistics:
    if len(costs) == 1:
        _, column, plain, calls = costs[0]
        return LayerStatistics(column, calls, gain=plain / column)
    total = sum(size for size, *_ in costs)
    column = sum(size * fed_back for size, fed_back, _, _ in costs) / total
    plain = sum(size * each for size, _, each, _ in costs) / total
    return LayerStatistics(column, calls=max(calls for *_, calls in costs), gain=plain / column)
