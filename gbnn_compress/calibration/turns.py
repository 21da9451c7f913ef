"""Functions that take turns: each stops where it waits for an answer, until all others wait or have ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from gbnn_compress.parallel import seeded_draws

Result = TypeVar("Result")

Wait = Callable[[Any], Any]
"""Given to each function: hands in a question, and returns the answer when it is there."""


class _Stopped(BaseException):
    """Ends a function whose answer will not come."""


def take_turns(
    functions: Sequence[Callable[[Wait], Result]], answer: Callable[[Mapping[int, Any]], Mapping[int, Any]]
) -> list[Result]:
    """Run functions, one at a time, each in a thread of its own.

    Args:
        functions: Each gets a function with which it waits. Random numbers of torch start alike in each.
        answer: Maps the questions of all functions that wait, by position, to the answers of some of them, at least
            one. Called when no function can go on.

    Returns:
        The results, in order. An exception of a function ends all of them and is raised here.
    """
    with seeded_draws():
        players = [_Player(function, torch.random.get_rng_state()) for function in functions]
        try:
            for player in players:
                player.go_on(None)
            while any(player.waits for player in players):
                waiting = {i: player.question for i, player in enumerate(players) if player.waits}
                for i, each in answer(waiting).items():
                    players[i].go_on(each)
        finally:
            for player in players:
                player.stop()
    return [player.result for player in players]


class _Player:
    """One function in its thread."""

    def __init__(self, function: Callable[[Wait], Any], random_state: torch.Tensor) -> None:
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
        """Let the function run until it waits again or ends."""
        self._answer, self.waits = answer, False
        torch.random.set_rng_state(self._random_state)
        self._ours.release()
        self._theirs.acquire()
        self._random_state = torch.random.get_rng_state()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def stop(self) -> None:
        """End the function where it waits."""
        self._stopped = True
        self._ours.release()

    def _wait(self, question: Any) -> Any:
        self.question, self.waits = question, True
        self._theirs.release()
        self._ours.acquire()
        self.question = None
        if self._stopped:
            raise _Stopped
        return self._answer

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
