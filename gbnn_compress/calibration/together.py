"""Runs of one or two networks over all batches that stop at chosen uses until all are there.

A batch takes part at some places of the order only, as far as memory allows (`stays.py`): it runs through the layers
before them when the others have come there, and ends after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gbnn_compress.calibration.interceptor import intercepted, unfused
from gbnn_compress.calibration.tracing import Key, Trace, key_of, run
from gbnn_compress.calibration.turns import LEAVE, Wait, take_turns
from gbnn_compress.calibration.twins import Twin
from gbnn_compress.calibration.uses import AnyUse
from gbnn_compress.data.batches import Batch
from gbnn_compress.parallel import give_back
from gbnn_compress.predict.forward import Forward

Run = Callable[[], torch.Tensor]
"""Computes the output of a use; called in the thread of its run."""

Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Inputs:
    """Batches, and how networks are run on them.

    Attributes:
        batches: The inputs.
        forward: How a network is run.
        traced: Result of `trace` on these inputs.
        threads: Number of runs, and of other independent computations, at the same time.
    """

    batches: Sequence[Batch]
    forward: Forward
    traced: Trace
    threads: int = 1


@dataclass(frozen=True)
class Stops:
    """What happens at the uses of a network's tensors.

    Attributes:
        at: Whether runs stop at a use until all are there.
        answer: Maps the uses of one key at which runs stopped, by number of the batch, one for each network, to what
            computes the outputs.
        alone: What computes the output where only one of two networks comes to a use.
        on_the_way: Called with other uses, the number of the batch and the number of the network; returns the output,
            or None to run the operation as it is.
    """

    at: Callable[[AnyUse], bool]
    answer: Callable[[Key, Mapping[int, Sequence[Any]]], Mapping[int, Sequence[Run]]]
    alone: Callable[[Any], Run]
    on_the_way: Callable[[AnyUse, int, int], torch.Tensor | None]


@dataclass(frozen=True)
class _Start:
    """Asked by a run before it begins."""

    batch: int


def run_together(twins: Sequence[Twin], inputs: Inputs, stops: Stops, *, leave: bool = True) -> list[list[Outputs]]:
    """Run networks on all batches.

    Args:
        twins: The networks.
        inputs: The batches.
        stops: What happens on the way.
        leave: Whether batches end after the last place at which they take part.

    Returns:
        For each network the outputs that count, of the batches that came to the end.
    """
    sides, traced = len(twins), inputs.traced

    def job(batch: int, side: int) -> Callable[[Wait], Outputs]:
        def on_use(use: AnyUse, wait: Wait) -> torch.Tensor | None:
            return wait(use)() if stops.at(use) else stops.on_the_way(use, batch, side)

        def passed(wait: Wait) -> Outputs:
            wait(_Start(batch))
            with intercepted(twins[side].tensors, lambda use: on_use(use, wait)):
                return run(twins[side], inputs.batches[batch], inputs.forward)

        return passed

    def answer(waiting: Mapping[int, Any]) -> Mapping[int, Any]:
        """Answers by number of the run, which is sides * batch + side."""
        starts = {i: each for i, each in waiting.items() if isinstance(each, _Start)}
        keys = {i: key_of(use) for i, use in waiting.items() if i not in starts}
        if not keys:
            return _earliest(starts, traced.stays)
        first = min(set(keys.values()), key=lambda key: traced.places[key])
        place = traced.places[first]
        begins = [i for i, each in starts.items() if traced.stays[each.batch].start <= place]
        if begins:
            return dict.fromkeys(begins)
        there = [i for i, key in keys.items() if key == first]
        gone = [i for i in there if leave and place >= traced.stays[i // sides].stop]
        if gone:
            return dict.fromkeys(gone, LEAVE)
        whole = sorted(
            {i // sides for i in there if all(sides * (i // sides) + side in there for side in range(sides))}
        )
        # Where the two networks take different ways, a use may have no partner.
        give_back()  # what one thread has freed, others cannot use
        found: dict[int, Run] = {i: stops.alone(waiting[i]) for i in there if i // sides not in whole}
        if whole:
            uses = {batch: [waiting[sides * batch + side] for side in range(sides)] for batch in whole}
            for batch, runs in stops.answer(first, uses).items():
                found |= {sides * batch + side: each for side, each in enumerate(runs)}
        return found

    with unfused():
        jobs = [job(batch, side) for batch in range(len(inputs.batches)) for side in range(sides)]
        results = take_turns(jobs, answer, at_once=1 if traced.draws else inputs.threads)
    give_back()  # each thread that has ended leaves freed memory behind
    ended = [results[start : start + sides] for start in range(0, len(results), sides)]
    return [[each[side] for each in ended if None not in each] for side in range(sides)]  # type: ignore[misc]


def _earliest(starts: Mapping[int, _Start], stays: Sequence[range]) -> dict[int, None]:
    """The runs that begin if no run waits at a use: those of the batches that take part earliest."""
    first = min(stays[each.batch].start for each in starts.values())
    return dict.fromkeys(i for i, each in starts.items() if stays[each.batch].start == first)
