"""Several networks in one file: the sections of each, with manifests that refer to the first one's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format import container
from gbnn_compress.format.artifact import decode, refused, sha256_of
from gbnn_compress.format.checks import Held
from gbnn_compress.format.container import FEWEST_MEMBERS, MOST_MEMBERS, Contents
from gbnn_compress.format.manifest import MOST_BYTES, deflate_manifest, inflate_manifest
from gbnn_compress.types import Artifact, Ensemble


class Member(NamedTuple):
    """One network of a file, with its manifest uncompressed.

    Attributes:
        contents: Its sections.
        digest: SHA-256 of its checkpoint.
        text: The JSON of its manifest.
    """

    contents: Contents
    digest: bytes
    text: bytes

    @property
    def parts(self) -> dict[str, bytes]:
        """Its sections, the manifest uncompressed."""
        return {**self.contents.sections, "manifest": self.digest + self.text}


def read_ensemble(path: Path) -> Ensemble:
    """Decode a file of any number of networks; a file of one is an ensemble of one.

    Raises:
        ArtifactError: The file is missing, of another format or damaged.
    """
    return decoded(path, members_of(path))


def decoded(path: Path, found: Sequence[Member]) -> Ensemble:
    """Decode the networks of a file.

    Args:
        path: The file.
        found: What `members_of` returned for it.

    Raises:
        ArtifactError: A network is damaged, or the file would unpack into too much.
    """
    size_bytes, sha256 = path.stat().st_size, sha256_of(path)
    held, artifacts = Held(), list[Artifact]()
    for number, (contents, digest, text) in enumerate(found):
        own = sha256 if len(found) == 1 else _sha256_of_part(contents)
        with _refused(path, number, of=len(found)):
            artifact, held = decode(contents, digest, text, sha256=own, before=held, file_bytes=size_bytes)
        artifacts.append(artifact)
    return Ensemble(tuple(artifacts), size_bytes, sha256)


def members_of(path: Path) -> list[Member]:
    """The networks of a file in order, their sections checked and not decoded.

    Raises:
        ArtifactError: The file is missing, of another format or damaged.
    """
    every = container.unpack_members(path)
    first, left, found = b"", MOST_BYTES, list[Member]()
    for number, contents in enumerate(every):
        with _refused(path, number, of=len(every)):
            digest, text = inflate_manifest(contents.sections["manifest"], first=first, most=left)
        first, left = first or text, left - len(text)
        found.append(Member(contents, digest, text))
    return found


def joined(members: Sequence[Member]) -> bytes:
    """The bytes of a file of these networks. Their sections are copied; only manifests are compressed anew.

    Args:
        members: At least one. A single one gives the bytes of a file of one network.

    Raises:
        ArtifactError: There are too many members.
    """
    if len(members) > MOST_MEMBERS:
        raise ArtifactError(f"expected {FEWEST_MEMBERS} to {MOST_MEMBERS} networks, got {len(members)}")
    first, *others = members
    if not others:
        return container.pack(first.contents.sections, version=first.contents.version)
    manifests = [deflate_manifest(first.digest, first.text)]
    manifests += [deflate_manifest(each.digest, each.text, first=first.text) for each in others]
    return container.pack_members(
        [
            ({**each.contents.sections, "manifest": manifest}, each.contents.version)
            for each, manifest in zip(members, manifests, strict=True)
        ]
    )


def _refused(path: Path, number: int, *, of: int) -> AbstractContextManager[None]:
    """Errors of one member as refusals; of a file of one network, those of the file."""
    if of == 1:
        return refused(f"`{path}`")
    return refused(container.name_of_member(path, number), subject="the network")


def _sha256_of_part(contents: Contents) -> str:
    return hashlib.sha256(container.laid_out(contents.sections, contents.version)).hexdigest()
