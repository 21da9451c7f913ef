"""Exceptions with one-line messages for the user, and phrases of such messages."""

from __future__ import annotations

import difflib
from numbers import Integral
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LARGEST_SEED = (1 << 32) - 1
"""Largest seed that all random generators accept."""


class GbnnError(Exception):
    """Bad input or usage. The message names the file, tensor or option, and says what the user can do."""


class CheckpointError(GbnnError):
    """A checkpoint that cannot be read or cannot be compressed."""


class ArtifactError(GbnnError):
    """A file that is no artifact, or a damaged artifact."""


class ArchitectureError(GbnnError):
    """An architecture specification whose network cannot be built, or does not fit the weights."""


class DataError(GbnnError):
    """Data that cannot be read, or does not fit the network."""


class RecipeError(GbnnError):
    """An unknown recipe, key or value."""


class OutputError(GbnnError):
    """A file that cannot be written."""


def one_line(error: BaseException) -> str:
    """Type and message of another library's exception, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def listed(names: Iterable[object], *, most: int = 5, quote: str = "`") -> str:
    """The first few names, in backticks unless `quote` is empty, and how many more there are."""
    quoted = [f"{quote}{name}{quote}" for name in names]
    more = f" and {len(quoted) - most} more" if len(quoted) > most else ""
    return ", ".join(quoted[:most]) + more


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like a given one, or None."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(suggestion: str | None) -> str:
    """` (did you mean ...?)`, or nothing without a suggestion."""
    return f" (did you mean `{suggestion}`?)" if suggestion else ""


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, of Python or of numpy."""
    return isinstance(value, Integral)


def require_seed(seed: int | None, *, option: str = "--seed") -> None:
    """Check a seed; None is accepted and means no seed.

    Raises:
        GbnnError: The seed is below 0 or above LARGEST_SEED.
    """
    if seed is not None and not (is_whole(seed) and 0 <= seed <= LARGEST_SEED):
        raise GbnnError(f"`{option}`: expected a whole number from 0 to {LARGEST_SEED}, got {seed}")
