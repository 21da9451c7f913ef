"""Exceptions with one-line messages for the user."""

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


def one_line(error: Exception) -> str:
    """Type and message of another library's exception, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def require_seed(seed: int | None, *, option: str = "--seed") -> None:
    """Check a seed; None is accepted and means no seed.

    Raises:
        GbnnError: The seed is below 0 or above LARGEST_SEED.
    """
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise GbnnError(f"`{option}`: expected a whole number from 0 to {LARGEST_SEED}, got {seed}")
