"""One run of the original network: which weights it uses, in which order and how often, and samples of their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gbnn_compress.calibration.blocks import Block, blocks_of
from gbnn_compress.calibration.interceptor import intercepted, unfused
from gbnn_compress.calibration.stays import LiveBytes, bytes_of, find_stays
from gbnn_compress.calibration.twins import Twin
from gbnn_compress.calibration.uses import AnyUse, BiasUse, Lookup, NormUse, Use, extent
from gbnn_compress.data.batches import Batch, tensors_in
from gbnn_compress.errors import DataError, listed
from gbnn_compress.parallel import seeded_draws
from gbnn_compress.predict.forward import Forward

INPUT_BYTES = 1_000_000_000
"""Most memory of inputs that are read once and kept."""

NETWORKS = 2
"""The original and the compressed network run side by side."""

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

    def has_rows_of(self, tensor: torch.Tensor) -> bool:
        """Whether each filter is a row (axis 0) of the tensor that is stored, as in `Linear` and `Conv2d`."""
        arranged, width = self.blocks[0].arrange(self.operand.detach()), tensor.numel() // len(tensor)
        is_view = arranged.data_ptr() == self.operand.data_ptr()
        offset = (self.operand.data_ptr() - tensor.data_ptr()) // tensor.element_size()
        aligned = self.operand.numel() == tensor.numel() or offset % width == 0
        own_rows = is_view and arranged.shape[2] == width and arranged.stride(1) == width
        return len(self.blocks) == 1 and own_rows and aligned and tensor.is_contiguous()


@dataclass(frozen=True)
class Trace:
    """One run of the original network.

    Attributes:
        order: Keys of all uses, in the order in which their tensors are used first.
        calls: Key -> most calls in one batch, and one more if the tensor is also looked up or used in another way.
        pieces: Key -> piece of a weight.
        lookups: Name of an embedding's table -> int64 (rows,), how often each row is looked up.
        outputs: Outputs of the first batch that count, by name.
        draws: Whether the network draws random numbers.
        held: float64 (batches, places), bytes that both runs of a batch hold while they stop at a place of the order.
    """

    order: Sequence[Key]
    calls: Mapping[Key, int]
    pieces: Mapping[Key, Piece]
    lookups: Mapping[str, np.ndarray]
    outputs: Mapping[str, torch.Tensor]
    draws: bool
    held: np.ndarray

    @cached_property
    def places(self) -> Mapping[Key, int]:
        """Key -> place in the order."""
        return {key: place for place, key in enumerate(self.order)}

    @cached_property
    def stays(self) -> Sequence[range]:
        """For each batch, the places in the order at which it takes part."""
        weights = [self.pieces[key].operand.numel() if key in self.pieces else 0 for key in self.order]
        return find_stays(self.held, np.array(weights, dtype=float))

    @property
    def held_bytes(self) -> int:
        """Most memory that all runs of both networks hold while they stop."""
        return int(bytes_of(self.held, self.stays).max(initial=0))

    def without(self, batches: Sequence[int]) -> Trace:
        """The same without the batches of these numbers; rows of tables are counted over all."""
        pieces = {
            key: replace(piece, counts=np.delete(piece.counts, batches, axis=0)) for key, piece in self.pieces.items()
        }
        return replace(self, pieces=pieces, held=np.delete(self.held, batches, axis=0))

    def present(self, key: Key) -> list[int]:
        """Numbers of the batches that take part at a key."""
        place = self.places[key]
        return [batch for batch, stay in enumerate(self.stays) if place in stay]


def key_of(use: AnyUse) -> Key:
    """The key of a use."""
    if isinstance(use, Use):
        return use.piece
    if isinstance(use, NormUse):
        return ("norm", use.prefix)
    return ("bias" if isinstance(use, BiasUse) else "lookup", use.name)


def trace(
    twin: Twin, batches: Iterable[Batch], forward: Forward, *, option: str | None = None
) -> tuple[Trace, Sequence[Batch]]:
    """Run the original network, and count.

    Args:
        twin: The original network.
        batches: The inputs. Those of an iterator are read as far as they fit into INPUT_BYTES.
        forward: How the network is run.
        option: The option that names the inputs, for messages; None for noise, on which outputs may be infinite.

    Returns:
        What was counted, and the batches that were used, at least one.

    Raises:
        DataError: Outputs on given inputs are not finite.
    """
    tracer = _Tracer(twin.tensors)
    first: Mapping[str, torch.Tensor] = {}
    kept, size = list[Batch](), 0
    for batch in batches:
        with LiveBytes() as living, seeded_draws(), unfused():
            tracer.begin(living)
            state = torch.random.get_rng_state()
            with intercepted(twin.tensors, tracer.on_use):
                outputs = run(twin, batch, forward)
            tracer.draws |= not torch.equal(state, torch.random.get_rng_state())
        bad = [name for name, tensor in outputs.items() if not tensor.isfinite().all()]
        if bad and option is not None:
            raise DataError(
                f"`{option}`: expected finite outputs, got infinite or NaN values in {listed(bad)} for some inputs;"
                " leave such inputs out, or choose another output with `--output`"
            )
        first = first or outputs
        if not isinstance(batches, Sequence):
            kept.append(batch)
            size += sum(tensor.nbytes for tensor in tensors_in(batch.value))
            if size > INPUT_BYTES:
                break
    return tracer.result(first), batches if isinstance(batches, Sequence) else kept


def run(twin: Twin, batch: Batch, forward: Forward) -> dict[str, torch.Tensor]:
    """Outputs of a fresh copy of a network, by name, on the CPU; the batch is not changed."""
    outputs = forward.chosen(forward(twin.copied(), batch.on(twin.device)))
    return {name: output.cpu() for name, output in outputs.items()}


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
    held: dict[Key, dict[int, int]] = field(default_factory=dict)
    draws: bool = False
    batch: int = -1
    latest: tuple[Key, torch.Tensor] | None = None
    living: LiveBytes | None = None

    def begin(self, living: LiveBytes) -> None:
        """Begin a further batch, whose memory is counted."""
        self.batch, self.latest, self.living = self.batch + 1, None, living

    def on_use(self, use: AnyUse) -> torch.Tensor | None:
        assert self.living is not None
        key = key_of(use)
        held = self.held.setdefault(key, {})
        made = 0 if isinstance(use, Lookup) else use.x.nbytes
        before, held[self.batch] = held.get(self.batch, 0), self.living.now + made
        output = self._counted(key, use)
        if output is not None:
            held[self.batch] = self.living.now
        held[self.batch] = max(held[self.batch], before)
        return output

    def _counted(self, key: Key, use: AnyUse) -> torch.Tensor | None:
        calls = self.calls.setdefault(key, {})
        calls[self.batch] = calls.get(self.batch, 0) + 1
        if isinstance(use, Lookup):
            rows = len(self.tensors[use.name])
            found = torch.bincount(use.indices.reshape(-1).clamp(0, rows - 1), minlength=rows).cpu().numpy()
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
            self.first[key] = replace(use, x=use.x.new_empty(0), run=lambda: torch.empty(0))  # activations are freed
            self.blocks[key] = blocks_of(use)
            self.counts[key] = {}
            if use.bias is not None:
                self.biases[key] = use.bias
        count = np.array([block.count(use) for block in self.blocks[key]])
        self.counts[key][self.batch] = self.counts[key].get(self.batch, 0) + count
        output = use.run()
        self.latest = (key, output)
        return output

    def result(self, outputs: Mapping[str, torch.Tensor]) -> Trace:
        self.latest, pieces, n_batches = None, {}, self.batch + 1
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
        held = [[NETWORKS * self.held[key].get(i, 0) for key in order] for i in range(n_batches)]
        held_bytes = np.array(held, dtype=float).reshape(n_batches, len(order))
        return Trace(order, calls, pieces, of_tables, outputs, self.draws, held_bytes)

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


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
