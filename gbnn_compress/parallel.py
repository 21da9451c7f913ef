"""Parallel evaluation of a function on many tensors, with the same results at any number of threads."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTHWHILE = 1 << 22
"""Number of weights from which threads are used."""

STARTED_TOGETHER = "TORCHELASTIC_RUN_ID"
"""Set by `torchrun`, and so by `accelerate launch`; other variables of theirs are also set where no group is meant."""

MOST_THREADS = 4
"""Largest number of threads. Each thread needs memory for the tensor that it works on."""


def rank() -> int:
    """Which of the processes that `torchrun` started together this one is, from 0; 0 for a process of its own."""
    return int(os.environ["RANK"]) if STARTED_TOGETHER in os.environ else 0


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, weights: int) -> Iterator[Result]:
    """Yield the results of a function in the order of the items. Only the next few are computed ahead.

    Args:
        function: Must not change state that calls have in common.
        items: Arguments of the calls.
        weights: Approximate number of weights of all items together, from which the number of threads follows.

    Yields:
        One result per item.
    """
    yield from on_threads(function, items, threads=usable_threads() if weights >= WORTHWHILE else 1)


def on_threads(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, alone: bool = False
) -> Iterator[Result]:
    """Yield the results of a function in the order of the items, from so many threads.

    Args:
        function: Must not change state that calls have in common.
        items: Arguments of the calls.
        threads: Number of threads; with 1, the function is called in the caller's.
        alone: Whether torch may use only one thread within each of them.

    Yields:
        One result per item. Only the next few are computed ahead.
    """
    if threads == 1:
        yield from map(function, items)
        return
    first = _one_thread if alone else None
    pool, ahead = ThreadPoolExecutor(threads, initializer=first), deque[Future[Result]]()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        if not alone:
            give_back()


def give_back() -> None:
    """Return freed memory to the system. Otherwise glibc keeps hundreds of megabytes for later threads."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # each thread has its own number


def usable_threads() -> int:
    """The number of threads that torch uses (`OMP_NUM_THREADS`, or the number of cores), at most MOST_THREADS."""
    import torch

    return min(torch.get_num_threads(), MOST_THREADS)


@contextmanager
def single_thread() -> Iterator[int]:
    """Run torch and BLAS in one thread: the order of sums, and so the bytes, depend on the number of threads.

    Yields:
        The number of threads that independent calls may be spread over.
    """
    import torch
    from threadpoolctl import threadpool_limits

    threads, usable = torch.get_num_threads(), usable_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield usable
    finally:
        torch.set_num_threads(threads)


@contextmanager
def seeded_draws() -> Iterator[None]:
    """Within this context, random numbers of torch on the CPU are always the same; the user's are not touched."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        yield
