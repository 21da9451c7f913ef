"""The writer's choice: whether to code a tensor's ids by context, and with which rule and table.

Nothing here is part of the format: a file records the choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gbnn_compress import compiled
from gbnn_compress.format import compiled_coder
from gbnn_compress.format.contexts import (
    N_LEVELS,
    N_PREDICTIONS,
    ContextRule,
    walk,
)
from gbnn_compress.format.counts import id_counts
from gbnn_compress.format.first_rule import by_tap, first_rule
from gbnn_compress.format.lanes import slots_of
from gbnn_compress.format.slot_counts import count_slots
from gbnn_compress.format.smoothing import smooth_levels
from gbnn_compress.format.table_fit import Counts, coded_bits, fit
from gbnn_compress.format.tables import Table, coarse_levels, code_lengths, rule_bits, table_bits

LARGE = 1 << 18
"""Tensors with more weights are tried on LARGE / 4 weights first: contexts take time also where they save nothing."""

FEWEST = 32
"""Tensors with fewer weights are coded without contexts."""


@dataclass(frozen=True)
class Block:
    """Ids of one block, sorted by context.

    Attributes:
        contexts: uint16 (n,), ascending.
        ids: int (n,).
    """

    contexts: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class Choice:
    """How to code the ids of a tensor.

    Attributes:
        table: The cheaper of a table without and one with contexts.
        blocks: The ids in the order of their contexts; empty without contexts.
        id_bits: Bits of the ids.
        plain_bits: Bits of the ids without contexts.
        slots: In format version 2, uint16 (n,), the slots of the ids in coding order, in place of blocks.
    """

    table: Table
    blocks: list[Block]
    id_bits: float
    plain_bits: float
    slots: np.ndarray | None = None


def choose(
    ids: np.ndarray,
    shape: Sequence[int],
    values: np.ndarray,
    *,
    smooth: bool = True,
    contexts: bool = True,
    trellis: bool = False,
) -> Choice:
    """Choose between a table without contexts and one with them.

    Args:
        ids: (n,) ids of a tensor, C order.
        shape: Its shape.
        values: int64 (K + 1,), from `whole_values`.
        smooth: Whether to search for the cheapest levels, which takes time.
        contexts: Whether contexts are allowed.
        trellis: Whether the ids follow the trellis; they are then coded as in format version 2.
    """
    if trellis:
        return choose_by_lanes(ids, shape, values, smooth=smooth, contexts=contexts, trellis=True)
    counts = id_counts(ids, len(values))
    used = np.flatnonzero(counts)
    plain = Table(_plain_levels(counts, smooth=smooth))
    plain_bits = float((counts[used] * code_lengths(plain.levels)[used]).sum())
    without = Choice(plain, [], plain_bits, plain_bits)
    if not contexts or len(used) == 1 or len(ids) < FEWEST or not _pays_in_part(ids, shape, values):
        return without
    rule = first_rule(ids, counts, shape, values)
    blocks = _blocks(ids, shape, values, rule)
    symbols = np.arange(used[0], used[-1] + 1)
    counted = [_count(blocks, symbols)]
    fitted = Table(*fit(rule, counted, symbols, values, smooth=smooth))
    id_bits = coded_bits(fitted.levels, fitted.rule, counted, symbols, values)
    saved = plain_bits + table_bits(plain.levels) - id_bits - table_bits(fitted.levels) - rule_bits(shape)
    return Choice(fitted, blocks, id_bits, plain_bits) if saved > 0 else without


def choose_by_lanes(
    ids: np.ndarray, shape: Sequence[int], values: np.ndarray, *, smooth: bool, contexts: bool, trellis: bool
) -> Choice:
    """The same choice for format version 2, where a slot is a context and a parity."""
    used = np.flatnonzero(id_counts(ids, len(values)))
    symbols = np.arange(used[0], used[-1] + 1)
    slots = slots_of(ids, shape, values, None, trellis=trellis and len(used) > 1)
    counted = count_slots(ids, shape, slots, symbols, escape=len(values) - 1, trellis=trellis and len(used) > 1)
    levels, _ = fit(None, counted, symbols, values, smooth=smooth)
    plain = Table(levels, None, trellis and len(used) > 1)
    plain_bits = coded_bits(levels, None, counted, symbols, values)
    without = Choice(plain, [], plain_bits, plain_bits, slots)
    if not contexts or len(used) == 1 or len(ids) < FEWEST:
        return without
    rule: ContextRule | None = first_rule(ids, id_counts(ids, len(values)), shape, values)
    slots = slots_of(ids, shape, values, rule, trellis=trellis)
    counted = count_slots(ids, shape, slots, symbols, escape=len(values) - 1, trellis=trellis)
    levels, rule = fit(rule, counted, symbols, values, smooth=smooth)
    id_bits = coded_bits(levels, rule, counted, symbols, values)
    saved = plain_bits + table_bits(plain.levels) - id_bits - table_bits(levels) - rule_bits(shape)
    return Choice(Table(levels, rule, trellis), [], id_bits, plain_bits, slots) if saved > 0 else without


def _pays_in_part(ids: np.ndarray, shape: Sequence[int], values: np.ndarray) -> bool:
    """Whether contexts save bytes for the first rows and columns of a large tensor; True for other tensors."""
    if len(ids) < LARGE:
        return True
    part = math.sqrt(LARGE / 4 / len(ids))
    corner = ids.reshape(shape)[: math.ceil(part * shape[0]), : math.ceil(part * shape[1])]
    # Where the kernel is nearly all of a tensor, its corner is no smaller.
    return corner.size >= LARGE or choose(corner.ravel(), corner.shape, values, smooth=False).table.rule is not None


def _plain_levels(counts: np.ndarray, *, smooth: bool) -> np.ndarray:
    levels = coarse_levels(counts)
    if smooth:
        used = np.flatnonzero(counts)
        run = slice(used[0], used[-1] + 1)
        levels[run] = smooth_levels(np.maximum(counts[run], 1.0), counts[run], np.ones(run.stop - run.start))
    return levels


def _blocks(ids: np.ndarray, shape: Sequence[int], values: np.ndarray, rule: ContextRule) -> list[Block]:
    if compiled_coder.usable(len(values), work=len(ids)):
        contexts, ids, ends = compiled_coder.sorted_ids(ids, shape, values, rule)
        return [Block(contexts[a:b], ids[a:b]) for a, b in pairwise((0, *ends.tolist()))]
    taps = by_tap(ids, shape)
    blocks = []

    def visit(tap: int, band: slice, places: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        part = taps[tap, band].reshape(-1).take(places)
        order = np.argsort(contexts, kind="stable")
        blocks.append(Block(contexts.take(order), part.take(order)))
        return part

    walk(shape, values, rule, visit)
    return blocks


def _count(blocks: Sequence[Block], symbols: np.ndarray) -> Counts:
    """The contexts that occur, and the count of each symbol in each."""
    loops = compiled.loops("format.count_loops", work=sum(len(block.ids) for block in blocks))
    occurs = np.zeros(N_LEVELS * N_PREDICTIONS, dtype=bool)
    for block in blocks:
        if loops is None:
            occurs[block.contexts] = True
        else:
            loops.mark(block.contexts, occurs)
    contexts, row = np.flatnonzero(occurs), np.cumsum(occurs) - 1
    table = np.zeros(len(contexts) * len(symbols))
    if loops is not None:
        by_context = table.reshape(len(contexts), len(symbols))
        for block in blocks:
            loops.count_pairs(block.contexts, block.ids, row, symbols[0], len(symbols), by_context)
        return Counts(contexts, np.arange(len(symbols)), by_context)
    place = len(symbols) * row - symbols[0]
    for part in _batches(blocks, len(table)):
        entries = [place.take(block.contexts) + block.ids for block in part]
        table += np.bincount(np.concatenate(entries), minlength=len(table))
    return Counts(contexts, np.arange(len(symbols)), table.reshape(len(contexts), len(symbols)))


def _batches(blocks: Sequence[Block], size: int) -> Iterator[list[Block]]:
    """Batches of blocks with at least `size` ids in all."""
    batch: list[Block] = []
    for block in blocks:
        batch.append(block)
        if sum(len(part.ids) for part in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
