"""Writing of a result: the file is read back and verified before it is put in place, and repaired if necessary."""

from __future__ import annotations

from pathlib import Path

from gbnn_compress.files import write_atomically
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.target.encode import Result
from gbnn_compress.target.faults import find_faults
from gbnn_compress.types import Artifact


class _Faulty(Exception):
    """A file does not decode to the tensors that it is meant to hold."""

    def __init__(self, faults: dict[str, str]) -> None:
        super().__init__(", ".join(f"`{name}` has {fault}" for name, fault in faults.items()))
        self.names = frozenset(faults)


def write_verified(path: Path, result: Result) -> tuple[Artifact, Result]:
    """Write a file and verify that it holds the tensors that it is meant to hold.

    Ids are compared one by one, and values as `find_faults` does. If tensors are faulty, the file is encoded again with
    these tensors kept exactly, and verified again.

    Args:
        path: Path of the file. It is not touched before the new file is verified.
        result: The encoded file.

    Returns:
        The decoded artifact, and the result that it was written from.

    Raises:
        OutputError: The file cannot be written.
        RuntimeError: A tensor is faulty although it is kept exactly; nothing is written.
    """
    try:
        return _written(path, result), result
    except _Faulty as faulty:
        repaired = result.with_exact(faulty.names)
    try:
        return _written(path, repaired), repaired
    except _Faulty as faulty:
        raise RuntimeError(f"the file does not hold the tensors that it should: {faulty}") from None


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
