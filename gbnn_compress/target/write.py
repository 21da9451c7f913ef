"""A result in its place: written, read back, compared with what it was meant to be, and made right before that."""

from __future__ import annotations

from pathlib import Path

from gbnn_compress.files import write_atomically
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.target.encode import Result
from gbnn_compress.target.faults import find_faults
from gbnn_compress.types import Artifact


class _Faulty(Exception):
    """A file that reads back as something else than was meant."""

    def __init__(self, faults: dict[str, str]) -> None:
        super().__init__(", ".join(f"`{name}` has {fault}" for name, fault in faults.items()))
        self.names = frozenset(faults)


def write_verified(path: Path, result: Result) -> tuple[Artifact, Result]:
    """Write a file that holds what it was meant to hold.

    Ids are compared one by one, and the numbers that they stand for as `find_faults` does. A tensor at fault is kept
    exactly, in a file that is made anew and verified again.

    Args:
        path: Where the file shall be; nothing else is there before it is verified.
        result: The file.

    Returns:
        What is in it, and what it was made of.

    Raises:
        OutputError: It cannot be written.
        RuntimeError: A tensor is at fault although it is kept exactly; nothing is written.
    """
    try:
        return _written(path, result), result
    except _Faulty as faulty:
        mended = result.with_exact(faulty.names)
    try:
        return _written(path, mended), mended
    except _Faulty as faulty:
        raise RuntimeError(f"the file does not hold what it should: {faulty}") from None


def _written(path: Path, result: Result) -> Artifact:
    verified: list[Artifact] = []

    def verify(file: Path) -> None:
        artifact = read_artifact(file, known=result.maps)
        faults = find_faults(artifact, result.cut.meant, relative_step=result.cut.relative_step)
        if faults:
            raise _Faulty(faults)
        verified.append(artifact)

    write_atomically(path, result.encoded, verify=verify)
    return verified[0]
