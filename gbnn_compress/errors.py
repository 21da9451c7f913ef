"""What can go wrong, as exceptions whose message is the one line a user reads."""

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


def require_seed(seed: int | None, *, option: str = "--seed") -> None:
    """Refuse a seed that generators would refuse; None is no seed.

    Raises:
        GbnnError: It is below 0 or above LARGEST_SEED.
    """
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise GbnnError(f"`{option}`: expected a whole number from 0 to {LARGEST_SEED}, got {seed}")
