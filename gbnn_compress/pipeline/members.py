"""Several networks trained from one checkpoint into one file.

Members differ by their seeds alone: of shuffling, augmentation and posterior draws. Unless the recipe asks for it, they
have no temperature: the average of several networks is less sure than each of them. What else is to set members apart,
such as another learning-rate schedule, belongs into `member_request`, which makes the request of one member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.errors import OutputError
from gbnn_compress.format.container import NEWEST, SECTIONS, pack, pack_members
from gbnn_compress.format.ensembles import Member, members_of
from gbnn_compress.format.manifest import deflate_manifest, encode_manifest, inflate_manifest
from gbnn_compress.pipeline.opening import RunInputs
from gbnn_compress.pipeline.progress import OnProgress
from gbnn_compress.pipeline.request import SUFFIX, Request
from gbnn_compress.predict.loading import write_ensemble
from gbnn_compress.target.prepared import DAMAGE_PLACEHOLDER, Prepared, tensor_infos
from gbnn_compress.target.write import write_verified
from gbnn_compress.types import Ensemble

if TYPE_CHECKING:
    from gbnn_compress.target.encode import Result
    from gbnn_compress.training.state import StateFile

Train = Callable[[Request, RunInputs, Prepared, OnProgress], "tuple[Result, StateFile, dict[str, Any]]"]
"""Trains one network to its target: the file, its state, and what the report says of the training."""

MANIFEST = "manifest"

SPARE = 0.004
"""Fraction of the file that is left free for what the sizes of manifests and of trained files are not known to."""

SPARE_MANIFEST_BYTES = 60
"""Bytes by which the manifest of a later member is longer than that of a copy of the first: its own figures."""

TRAINED_PLACEHOLDER = {
    **DAMAGE_PLACEHOLDER,
    "temperature": 1.234,
    "training": {"epochs": 10, "beta": 1.0, "warm_up": 0.25},
}
"""Stands for a trained file's entries of the manifest in the prediction of its size."""


@dataclass(frozen=True)
class Trained:
    """The members of a run.

    Attributes:
        ensemble: The written file.
        results: The result of each member.
        facts: What the report says of the training of each.
    """

    ensemble: Ensemble
    results: tuple[Result, ...]
    facts: tuple[dict[str, Any], ...]

    @property
    def notes(self) -> list[str]:
        """Notes for the user, on single members and on all."""
        from gbnn_compress.training.choice import CALIBRATED

        notes = [f"member {number}: {note}" for number, each in enumerate(self.results) for note in each.notes]
        calibrated = sum(each.get("kept") == CALIBRATED for each in self.facts)
        if calibrated > 1:
            notes.append(
                f"for {calibrated} of {len(self.facts)} members the calibrated file was better than the trained one;"
                " these members are nearly equal, so that averaging them gains little: train for more epochs, or"
                " compress without `--members`"
            )
        return notes


def train_members(
    request: Request, opened: RunInputs, prepared: Prepared, train: Train, *, on_progress: OnProgress
) -> Trained:
    """Train the members one after the other, and write their file.

    The state of each member is kept until the file is written, so that the same call continues where it was stopped. If
    training is interrupted, the file holds the members up to then.

    Args:
        request: The request; its ratio is that of the checkpoint to the whole file.
        opened: What it reads.
        prepared: The checkpoint.
        train: Trains one member.
        on_progress: Called with one line of text, which names the member.

    Raises:
        GbnnError: As for training; or the file cannot be written.
    """
    _require_free([member_path(request.path, number) for number in range(request.members)])
    members: list[Member] = []
    results, facts, states = list["Result"](), list[dict[str, Any]](), list["StateFile"]()
    for number in range(request.members):
        own = member_request(request, number, ratio=_ratio(request, prepared, members))
        said = {"seed": own.seed, "target_ratio": own.ratio}
        of_member = replace(prepared, facts={**prepared.facts, **said})
        result, state, fact = train(own, opened, of_member, _named(number, on_progress))
        _, result = write_verified(own.path, result)
        members += members_of(own.path)
        own.path.unlink()
        results.append(result)
        facts.append(fact)
        states.append(state)
        if result.unfinished:
            break
    ensemble = write_ensemble(request.path, members)
    for state in [] if results[-1].unfinished else states:
        state.remove()
    return Trained(ensemble, tuple(results), tuple(facts))


def member_request(request: Request, number: int, *, ratio: float) -> Request:
    """The request of one member.

    Args:
        request: That of the ensemble.
        number: Number of the member, from 0.
        ratio: Of the member's own file.
    """
    path = member_path(request.path, number)
    folded = bool(request.configuration.finetune.fold_temperature)
    return replace(
        request,
        members=1,
        settings={**(request.settings or {}), "finetune.fold_temperature": folded},
        seed=request.seed + number,
        target_ratio=ratio,
        output=request.chosen,
        file=path,
        eval_data=None,
        html=None,
    )


def member_path(path: Path, number: int) -> Path:
    """`x.member0.gbnn.safetensors` beside `x.gbnn.safetensors`."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX).removesuffix('.safetensors')}.member{number}{SUFFIX}")


def _require_free(paths: Sequence[Path]) -> None:
    """Refuse files where members are written while they are trained, and removed afterwards."""
    for path in paths:
        if path.exists():
            raise OutputError(
                f"`{path}` is in the way: a member is written there for a time; move it, or choose another `-o`"
            )


def _named(number: int, on_progress: OnProgress) -> OnProgress:
    """Progress that names the member."""
    return lambda line: on_progress(line if line.startswith("note: ") else f"member {number}: {line}")


def _ratio(request: Request, prepared: Prepared, made: Sequence[Member]) -> float:
    """Ratio of the next member's own file, if the members to come share evenly the bytes that are left.

    A member takes fewer bytes in the ensemble than as a file, because manifests after the first one refer to it.

    Args:
        request: The request of the ensemble, for a ratio of bytes.
        prepared: The checkpoint.
        made: The members so far.
    """
    assert request.ratio is not None
    count = request.members
    budget = prepared.floating_bytes / request.ratio * (1 - SPARE)
    digest, text = (made[0].digest, made[0].text) if made else _placeholder(prepared)
    alone, later = (len(deflate_manifest(digest, text, first=first)) for first in (b"", text))
    manifests = [alone] + [len(deflate_manifest(each.digest, each.text, first=text)) for each in made[1:]]
    manifests += [later + SPARE_MANIFEST_BYTES] * (count - len(manifests))
    contents = sum(
        len(section) for each in made for name, section in each.contents.sections.items() if name != MANIFEST
    )
    share = (budget - _container_bytes(count, int(budget)) - sum(manifests) - contents) / (count - len(made))
    return max(prepared.floating_bytes / max(share + alone + _container_bytes(1, int(share)), 1.0), 1.0)


def _container_bytes(count: int, size_bytes: int) -> int:
    """Approximate bytes of a file of so many members that are no section."""
    sections = {name: bytes(200) for name in SECTIONS} | {"maps": bytes(max(size_bytes, 0) // count)}
    packed = pack(sections) if count == 1 else pack_members([(sections, NEWEST)] * count)
    return len(packed) - count * sum(map(len, sections.values()))


def _placeholder(prepared: Prepared) -> tuple[bytes, bytes]:
    """Digest and JSON of a manifest about as long as that of a member."""
    infos = tensor_infos(prepared.checkpoint, prepared.selection)
    return inflate_manifest(encode_manifest(infos, {**prepared.facts, **TRAINED_PLACEHOLDER}))
