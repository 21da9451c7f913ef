"""How a network is run and measured: the user's functions, and the output that counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.user_code import load_function
from gbnn_compress.errors import GbnnError
from gbnn_compress.predict.forward import Forward

if TYPE_CHECKING:
    import torch

TAKES = {
    "forward": "f(network, batch) -> outputs",
    "metric": "g(network, data) -> float",
    "loss": "l(outputs, batch) -> scalar tensor",
}
"""The functions that users give, by argument."""


@dataclass(frozen=True)
class Use:
    """How a network is run and measured.

    Attributes:
        forward: The forward pass, and which of the outputs count.
        metric: `g(network, data) -> float` of the user, more is better; None without.
        loss: `l(outputs, batch) -> scalar tensor` of the user; None without.
        task: `classifier` or `other`; None if the task is not known.
    """

    forward: Forward = field(default_factory=Forward)
    metric: Callable[[torch.nn.Module, Any], Any] | None = None
    loss: Callable[[Any, Any], Any] | None = None
    task: str | None = None


def use_of(
    *, forward: Any = None, output: str | int | None = None, metric: Any = None, loss: Any = None, task: Any = None
) -> Use:
    """The user's functions. Those that are given as text are loaded, which runs the user's code.

    Raises:
        GbnnError: An argument is of another type, or the code cannot be loaded.
    """
    check_functions(forward=forward, metric=metric, loss=loss)
    check_output(output)
    return Use(
        Forward(_loaded(forward, "--forward"), output),
        metric=_loaded(metric, "--metric"),
        loss=_loaded(loss, "--loss"),
        task=task,
    )


def check_functions(**given: Any) -> None:
    """Check the types of `forward`, `metric` and `loss`, without loading them.

    Raises:
        GbnnError: An argument is neither None nor text, nor a function.
    """
    for name, each in given.items():
        if each is not None and not isinstance(each, str) and not callable(each):
            got = type(each).__name__
            raise GbnnError(f"`{name}`: expected a function {TAKES[name]}, or text path.py:callable, got `{got}`")


def check_output(output: Any) -> None:
    """Check the type of `output`.

    Raises:
        GbnnError: It is neither None nor text, nor a whole number from 0.
    """
    fits = isinstance(output, str | int) and not isinstance(output, bool)
    if output is not None and (not fits or (isinstance(output, int) and output < 0)):
        got = output if isinstance(output, int) else type(output).__name__
        raise GbnnError(f"`output`: expected the name of one of the network's outputs, or its position, got `{got}`")


def parse_output(text: str | None) -> str | int | None:
    """Read `--output`: digits are a position, other text is a name."""
    return int(text) if text is not None and text.isdecimal() else text


def _loaded(given: Any, option: str) -> Callable[..., Any] | None:
    return load_function(given, option=option) if isinstance(given, str) else given
