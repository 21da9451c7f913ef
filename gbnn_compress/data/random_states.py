"""Random generators that a loader draws from: each pass over the data starts from the same states."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import torch


def seeded(make: Callable[[], Iterator[Any]], *, loader: Any, seed: int) -> Generator[Any, None, None]:
    """Iterate with random states of its own, so that every pass shuffles and augments alike.

    The global generators of Python, numpy and torch, and the generators that a DataLoader owns, are as before whenever
    the caller's code runs.

    Args:
        make: Makes the iterator.
        loader: The user's data, whose own generators are found in its attributes.
        seed: Seed of the global generators. 0 keeps the states of the loader's own generators; any other seed seeds
            them.
    """
    import numpy as np
    import torch

    own = _own_generators(loader)
    before = [generator.get_state() for generator in own]
    with _kept():
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        for generator in own if seed else ():
            generator.manual_seed(seed)
        inside = _states()
    iterator: Iterator[Any] | None = None
    try:
        while True:
            with _kept():
                _set(inside)
                iterator = make() if iterator is None else iterator
                try:
                    value = next(iterator)
                except StopIteration:
                    return
                finally:
                    inside = _states()
            yield value
    finally:
        for generator, state in zip(own, before, strict=True):
            generator.set_state(state)


def _own_generators(loader: Any) -> list[torch.Generator]:
    """The generators of a DataLoader and its samplers."""
    import torch

    sampler = getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = {id(each): each for owner in owners if (each := getattr(owner, "generator", None)) is not None}
    return [each for each in found.values() if isinstance(each, torch.Generator)]


@contextmanager
def _kept() -> Iterator[None]:
    """Restore the global generators after the block."""
    before = _states()
    try:
        yield
    finally:
        _set(before)


def _states() -> tuple[Any, ...]:
    import numpy as np
    import torch

    return random.getstate(), np.random.get_state(), torch.random.default_generator.get_state()


def _set(states: tuple[Any, ...]) -> None:
    import numpy as np
    import torch

    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.random.default_generator.set_state(states[2])
