"""Functions that take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from gbnn_compress.calibration.turns import Wait, take_turns


def asking(*questions: Any) -> Callable[[Wait], list[Any]]:
    return lambda wait: [wait(question) for question in questions]


def test_results_come_in_order_and_answers_reach_those_who_asked() -> None:
    assert take_turns([asking(1, 2), asking(), asking(3)], lambda asked: {i: 10 * q for i, q in asked.items()}) == [
        [10, 20],
        [],
        [30],
    ]
    assert take_turns([], lambda asked: {}) == []


def test_answers_come_when_all_others_wait_or_have_ended() -> None:
    rounds: list[Mapping[int, Any]] = []

    def answer(asked: Mapping[int, Any]) -> Mapping[int, Any]:
        rounds.append(dict(asked))
        return asked

    take_turns([asking("a", "b"), asking("c"), asking("d", "e", "f")], answer)
    assert rounds == [{0: "a", 1: "c", 2: "d"}, {0: "b", 2: "e"}, {2: "f"}]


def test_some_may_be_answered_before_others() -> None:
    rounds: list[list[Any]] = []

    def least(asked: Mapping[int, Any]) -> Mapping[int, Any]:
        rounds.append(list(asked.values()))
        first = min(asked.values())
        return {i: question for i, question in asked.items() if question == first}

    assert take_turns([asking(1, 3), asking(2, 3)], least) == [[1, 3], [2, 3]]
    assert rounds == [[1, 2], [3, 2], [3, 3]]


def test_one_runs_at_a_time() -> None:
    running, most = 0, 0

    def function(wait: Wait) -> None:
        nonlocal running, most
        for _ in range(3):
            running += 1
            most = max(most, running)
            running -= 1
            wait(None)

    take_turns([function] * 4, lambda asked: asked)
    assert most == 1


def test_an_exception_ends_all_and_comes_through() -> None:
    ended: list[str] = []

    def waits(wait: Wait) -> None:
        try:
            wait("for ever")
            ended.append("answered")
        finally:
            ended.append("over")

    def fails(wait: Wait) -> None:
        wait("once")
        raise ValueError("mine")

    before = threading.active_count()
    with pytest.raises(ValueError, match="mine"):
        take_turns([waits, fails, waits], lambda asked: {1: None})
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(timeout=1)
    assert ended == ["over", "over"]
    assert threading.active_count() <= before


def test_an_exception_of_the_answers_ends_all() -> None:
    def answer(asked: Mapping[int, Any]) -> Mapping[int, Any]:
        raise KeyError("answer")

    with pytest.raises(KeyError):
        take_turns([asking(1)], answer)


def test_a_network_that_catches_everything_is_ended_all_the_same() -> None:
    def stubborn(wait: Wait) -> str:
        try:
            wait(1)
        except Exception:
            return "went on"
        return "answered"

    def fails(wait: Wait) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        take_turns([stubborn, fails], lambda asked: asked)


def test_random_numbers_are_alike_in_each_and_none_are_taken_from_the_user() -> None:
    def draws(wait: Wait) -> list[float]:
        values = [float(torch.rand(()))]
        wait(None)
        values.append(float(torch.rand(())))
        return values

    state = torch.random.get_rng_state()
    results = take_turns([draws] * 3, lambda asked: asked)
    assert results[0] == results[1] == results[2]
    assert results[0][0] != results[0][1]
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.random.manual_seed(5)
    assert take_turns([draws], lambda asked: asked)[0] == results[0]
    torch.random.set_rng_state(state)


def test_each_runs_with_the_callers_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert take_turns([lambda wait: torch.get_num_threads()] * 2, lambda asked: asked) == [1, 1]
    finally:
        torch.set_num_threads(before)
