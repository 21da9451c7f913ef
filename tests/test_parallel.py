"""Results in order, from several threads, and not too many ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from gbnn_compress.parallel import MOST_THREADS, WORTHWHILE, in_order


@pytest.fixture(params=[1, 3, 64])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield min(request.param, MOST_THREADS)
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def late_if_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number**2

    assert list(in_order(late_if_first, range(20), weights=WORTHWHILE)) == [number**2 for number in range(20)]


def test_as_many_threads_as_torch_has_and_no_more_than_that_many_results_ahead(threads: int) -> None:
    begun: list[int] = []
    workers: set[int] = set()
    all_there = threading.Barrier(threads, timeout=60)

    def note(number: int) -> int:
        begun.append(number)
        workers.add(threading.get_ident())
        if number < threads:
            all_there.wait()
        return number

    for number in in_order(note, range(12), weights=WORTHWHILE):
        assert max(begun) <= number + threads
    assert len(workers) == threads


def test_a_small_network_is_worked_on_where_it_was_asked_for() -> None:
    found = set(in_order(lambda _: threading.get_ident(), range(5), weights=WORTHWHILE - 1))
    assert found == {threading.get_ident()}


def test_errors_reach_the_caller(threads: int) -> None:
    def refuse(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        list(in_order(refuse, range(9), weights=WORTHWHILE))


def test_nothing_more_is_begun_once_the_caller_gives_up(threads: int) -> None:
    begun: list[int] = []

    def note(number: int) -> int:
        begun.append(number)
        return number

    results = in_order(note, range(100), weights=WORTHWHILE)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    many = len(begun)
    time.sleep(0.05)
    assert len(begun) == many <= threads + 1
