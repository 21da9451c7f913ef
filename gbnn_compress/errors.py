"""What can go wrong, as exceptions whose message is the one line a user reads, and phrases of such messages."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LARGEST_SEED = (1 << 32) - 1


class GbnnError(Exception):
    """Bad input or usage; the message names the file, tensor or option and the way out."""


class CheckpointError(GbnnError):
    """A checkpoint that cannot be read or cannot be compressed."""


class ArtifactError(GbnnError):
    """A file that is no artifact, or a damaged one."""


class ArchitectureError(GbnnError):
    """A network specification that cannot be built, or that the weights do not fit."""


class DataError(GbnnError):
    """A data specification that cannot be read."""


class RecipeError(GbnnError):
    """An unknown recipe, key or value."""


class OutputError(GbnnError):
    """A place that cannot be written."""


def one_line(error: Exception) -> str:
    """An exception of another library, short enough for the brackets of a message."""
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


def require_seed(seed: int | None, *, option: str = "--seed") -> None:
    """Refuse a seed that generators would refuse; None is no seed.

    Raises:
        GbnnError: It is below 0 or above LARGEST_SEED.
    """
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise GbnnError(f"`{option}`: expected a whole number from 0 to {LARGEST_SEED}, got {seed}")
