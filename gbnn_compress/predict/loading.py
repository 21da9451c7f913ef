"""From files to networks: opening artifacts, joining them, and writing their dense weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gbnn_compress.checkpoint.original import laid_out, open_original
from gbnn_compress.checkpoint.select import dtype_name
from gbnn_compress.errors import GbnnError, OutputError, is_whole, listed, require_seed
from gbnn_compress.files import require_writable, same_file, write_atomically
from gbnn_compress.format.ensembles import Member, decoded, joined, members_of, read_ensemble
from gbnn_compress.predict.ensemble import CompressedEnsemble
from gbnn_compress.predict.network import CompressedNetwork
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.report.schema import EnsembleReport, Report
from gbnn_compress.report.sizes import described, report_of
from gbnn_compress.types import Artifact, Ensemble


def load(path: str | Path) -> CompressedNetwork | CompressedEnsemble:
    """Read an artifact: a network, or an ensemble of several.

    Raises:
        ArtifactError: The file is missing, is no artifact, or is damaged.
    """
    found = read_ensemble(Path(path))
    return CompressedNetwork(found.members[0]) if len(found.members) == 1 else CompressedEnsemble(found)


def ensemble(artifacts: Sequence[str | Path], output: str | Path) -> EnsembleReport | Report:
    """Join several artifacts into one file, whose predictions are the average of theirs.

    The networks may differ in architecture and ratio, but must have outputs of one kind and shape. Nothing is
    compressed anew. The file has about the size of its parts, or less where members have one architecture.

    Args:
        artifacts: The files. An ensemble among them gives its members. A single network gives the file itself.
        output: The file to write.

    Returns:
        The report; docs/reports.md describes every key.

    Raises:
        GbnnError: A file is no artifact or is damaged, there are too many or none, or the output cannot be written.
    """
    target = Path(output)
    if isinstance(artifacts, str | Path) or not artifacts:
        raise GbnnError("`artifacts`: expected a list of files, such as ['a.gbnn.safetensors', 'b.gbnn.safetensors']")
    paths = [Path(each) for each in artifacts]
    for path in paths:
        if same_file(target, path):
            raise OutputError(f"cannot write `{target}`: it is one of the files to join; choose another `-o`")
    require_writable(target)
    return report_of(write_ensemble(target, [member for path in paths for member in members_of(path)]))


def write_ensemble(path: Path, members: Sequence[Member]) -> Ensemble:
    """Write the file of some networks, which is decoded and compared with what it must hold before it is put in place.

    Raises:
        GbnnError: There are too many members, or the file cannot be written.
    """
    written: list[Ensemble] = []

    def verify(file: Path) -> None:
        found = members_of(file)
        for number, (got, expected) in enumerate(zip(found, members, strict=True)):
            if got.parts != expected.parts:
                raise OutputError(
                    f"member {number} of `{path}` is not what was written; nothing was changed, try again"
                )
        written.append(decoded(file, found))

    write_atomically(path, joined(members), verify=verify)
    return written[0]


def decompress(
    path: str | Path,
    output: str | Path,
    *,
    seed: int | None = None,
    like: str | Path | None = None,
    member: int | None = None,
) -> int:
    """Write an artifact's dense weights as a safetensors file, or in the layout of the original checkpoint.

    Args:
        path: The artifact.
        output: The file to write. Tied tensors are written under each of their names.
        seed: Seed of a posterior sample; None for the posterior mean.
        like: The checkpoint file that the artifact was made from. Its layout is kept (wrappers, other entries, names,
            ties, metadata), and the artifact's weights replace its own.
        member: Number of the network to take from an ensemble, from 0; None for a file of one network.

    Returns:
        Size of the written file in bytes.

    Raises:
        GbnnError: The artifact is damaged, or is an ensemble and no member is given, safetensors lacks the dtype of a
            tensor, the output cannot be written, or the checkpoint does not hold the artifact's tensors.
    """
    target = Path(output)
    if like is None and target.suffix != ".safetensors":
        raise GbnnError(
            f"`-o {target}`: expected a name that ends in .safetensors; or name a checkpoint with `--like` to keep its"
            " format"
        )
    if like is not None and same_file(target, Path(like)):
        raise GbnnError(f"cannot write `{target}`: it is the checkpoint that `--like` names; choose another `-o`")
    if same_file(target, Path(path)):
        raise GbnnError(f"cannot write `{target}`: it is the artifact itself; choose another `-o`")
    require_writable(target)
    require_seed(seed, option="--sample")
    artifact = _one_of(read_ensemble(Path(path)), member, path=path)
    if like is not None:
        original = open_original(Path(like))
        data = laid_out(original, rebuild(artifact, seed=seed), sha256=artifact.facts["checkpoint"]["sha256"])
    else:
        data = _as_safetensors(artifact, target, path=path, seed=seed)
    write_atomically(target, data)
    return len(data)


def _one_of(found: Ensemble, member: int | None, *, path: str | Path) -> Artifact:
    """The chosen network of a file.

    Raises:
        GbnnError: There is no such member, or several and none is chosen.
    """
    count = len(found.members)
    if member is None and count == 1:
        return found.members[0]
    if member is None or not is_whole(member) or not 0 <= member < count:
        got = "none" if member is None else member
        named = listed([f"{n} ({described(each)})" for n, each in enumerate(found.members)], quote="")
        holds = f"is an ensemble of {count} networks" if count > 1 else "holds one network"
        raise GbnnError(f"`{path}` {holds}: expected `--member` with one of {named}, got {got}")
    return found.members[member]


def _as_safetensors(artifact: Artifact, target: Path, *, path: str | Path, seed: int | None) -> bytes:
    """The bytes of a safetensors file with the checkpoint's names."""
    import torch
    from safetensors.torch import save

    ties = {info.name for info in artifact.tensors if info.kind == "tied"}
    tensors = rebuild(artifact, seed=seed)
    del artifact
    for name, tensor in tensors.items():
        if tensor.dtype in (torch.complex32, torch.complex128):
            raise GbnnError(
                f"cannot write `{target}`: `{name}` has the dtype {dtype_name(tensor)}, which safetensors lacks; use"
                f" `gbnn_compress.load({str(path)!r}).state_dict()` instead"
            )
    owned = {name: tensor.clone() if name in ties else tensor for name, tensor in tensors.items()}
    return save(owned, metadata={"format": "pt"})
