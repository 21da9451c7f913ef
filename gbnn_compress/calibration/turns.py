"""Functions that take turns: each stops where it waits for an answer, until all others wait or have ended."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from gbnn_compress.parallel import seeded_draws

Result = TypeVar("Result")

Wait = Callable[[Any], Any]
"""Given to each function: hands in a question, and returns the answer when it is there."""

LEAVE = object()
"""An answer that ends a function; its result is None."""


class _Stopped(BaseException):
    """Ends a function whose answer will not come."""


def take_turns(
    functions: Sequence[Callable[[Wait], Result]],
    answer: Callable[[Mapping[int, Any]], Mapping[int, Any]],
    *,
    at_once: int = 1,
) -> list[Result | None]:
    """Run functions, each in a thread of its own, only so many of them at the same time.

    Args:
        functions: Each gets a function with which it waits. Random numbers of torch start alike in each.
        answer: Maps the questions of all functions that wait, by position, to the answers of some of them, at least
            one; LEAVE ends a function. Called when no function can go on.
        at_once: Number of functions that run at the same time. With more than one, they must not draw random numbers.

    Returns:
        The results, in order. An exception of a function ends all of them and is raised here.
    """
    with seeded_draws():
        state = torch.random.get_rng_state() if at_once == 1 else None
        players = [_Player(function, state) for function in functions]
        try:
            _go_on(players, dict.fromkeys(range(len(players))), at_once)
            while any(player.waits for player in players):
                waiting = {i: player.question for i, player in enumerate(players) if player.waits}
                _go_on(players, answer(waiting), at_once)
        finally:
            for player in players:
                player.stop()
    return [player.result for player in players]


def _go_on(players: Sequence[_Player], answers: Mapping[int, Any], at_once: int) -> None:
    """Let players run until each waits again or ends; the first error in their order is raised."""
    running, errors = deque[_Player](), list[BaseException]()
    for i, each in answers.items():
        if len(running) == at_once:
            errors += running.popleft().come_back()
        if errors:
            break
        players[i].go_on(each)
        running.append(players[i])
    while running:
        errors += running.popleft().come_back()
    if errors:
        raise errors[0]


class _Player:
    """One function in its thread."""

    def __init__(self, function: Callable[[Wait], Any], random_state: torch.Tensor | None) -> None:
        self.question: Any = None
        self.waits = False
        self.result: Any = None
        self._function, self._random_state = function, random_state
        self._answer: Any = None
        self._error: BaseException | None = None
        self._stopped = False
        self._ours, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self, answer: Any) -> None:
        """Let the function run."""
        self._answer, self.waits = answer, False
        if self._random_state is not None:
            torch.random.set_rng_state(self._random_state)
        self._ours.release()

    def come_back(self) -> list[BaseException]:
        """Wait until the function waits again or ends; its error, if any."""
        self._theirs.acquire()
        if self._random_state is not None:
            self._random_state = torch.random.get_rng_state()
        error, self._error = self._error, None
        return [] if error is None else [error]

    def stop(self) -> None:
        """End the function where it waits."""
        self._stopped = True
        self._ours.release()

    def _wait(self, question: Any) -> Any:
        self.question, self.waits = question, True
        self._theirs.release()
        self._ours.acquire()
        self.question = None
        answer, self._answer = self._answer, None
        if self._stopped or answer is LEAVE:
            raise _Stopped
        return answer

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # each thread has its own number
        self._ours.acquire()
        try:
            if not self._stopped:
                self.result = self._function(self._wait)
        except _Stopped:
            pass
        except BaseException as error:  # whatever the user's own network raises
            self._error = error
        self._theirs.release()
