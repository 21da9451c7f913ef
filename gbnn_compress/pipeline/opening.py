"""Opening of everything that a run reads, and preparation of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.checkpoint.select import Selection, select
from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import CheckpointError
from gbnn_compress.predict.bench import Bench, Evaluation, as_evaluation
from gbnn_compress.predict.models import (
    OpenedNetwork,
    extra_notes,
    is_artifact,
    left_out_warnings,
    match_of,
    open_network,
)
from gbnn_compress.types import Checkpoint

if TYPE_CHECKING:
    from gbnn_compress.pipeline.request import Request


@dataclass(frozen=True)
class RunInputs:
    """Everything that a run reads. Each file is read once.

    Attributes:
        checkpoint: The checkpoint.
        selection: Names of its tensors by kind.
        candidates: Architectures that fit the checkpoint: the given one, or those of the index.
        indexed_classes: Number of classes by the index of architectures; None if the index knows no fitting network.
        network: The network with the checkpoint's weights, which must not be changed; None if no option needs it.
        data: The network on the training or calibration data; None without.
        validation: The network on the validation data; None without.
        evaluation: The network on the data that the finished file is evaluated on; None without.
        warnings: Warnings that the network does not fit the whole checkpoint.
    """

    checkpoint: Checkpoint
    selection: Selection
    candidates: tuple[str, ...]
    indexed_classes: int | None
    network: OpenedNetwork | None
    data: Bench | None
    validation: Bench | None
    evaluation: Bench | None
    warnings: Sequence[str]

    @property
    def has_labels(self) -> bool:
        """Whether there is labelled data to measure accuracy on."""
        return self.evaluation is not None or self.validation is not None


def open_request(request: Request) -> RunInputs:
    """Read the checkpoint, build its network if an option needs it, and read the data.

    Data that the network cannot run on is refused here, before any work is done.

    Raises:
        GbnnError: The checkpoint, the architecture or the data cannot be read or do not fit.
    """
    if is_artifact(request.source):
        raise CheckpointError(
            f"`{request.source}` is already compressed: `gbnn-compress report` shows it, `gbnn-compress decompress`"
            " restores dense weights"
        )
    checkpoint = read_checkpoint(request.source, key=request.key)
    match, network, warnings = match_of(checkpoint), None, list[str]()
    wanted = (request.data, request.val_data, request.eval_data)
    if request.arch is not None or any(each is not None for each in wanted):
        network = open_network(checkpoint, request.arch, match=match)
    if request.arch is not None and network is not None:
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *extra_notes(network.fit, spec=request.arch)))
        warnings = left_out_warnings(network.fit, checkpoint, spec=request.arch)
    return RunInputs(
        checkpoint=checkpoint,
        selection=select(checkpoint),
        candidates=match.names if request.arch is None else _published(request.arch),
        indexed_classes=match.n_classes,
        network=network,
        warnings=warnings,
        **_benches(request, network),
    )


def _benches(request: Request, network: OpenedNetwork | None) -> dict[str, Bench | None]:
    """The network on each of the three data sets; None for those that are not given."""
    training = request.passes > 0
    measured = request.val_data is not None or request.eval_data is not None
    # Calibration, on data or on noise, needs the checkpoint's weights in the network while files are measured.
    separate = measured and not training
    measuring = network.copied() if network is not None and separate else network
    variational = request.configuration.posterior == "variational"
    labels = variational or (None if training else False)

    def bench(
        data: str | Evaluation | None, opened: OpenedNetwork | None, option: str, *, labels: bool | None
    ) -> Bench | None:
        if data is None or opened is None:
            return None
        evaluation = as_evaluation(data, samples=request.samples)
        return Bench(opened, load_data(evaluation.data, labels=labels), evaluation, option=option)

    found = {
        "evaluation": bench(request.eval_data, measuring, "--eval-data", labels=True),
        "validation": bench(request.val_data, measuring, "--val-data", labels=None if training else True),
        "data": bench(request.data, network, "--data", labels=labels),
    }
    for name, each in found.items():
        if each is not None and (training or name != "data"):
            each.require_usable()
    return found


def _published(arch: str) -> tuple[str, ...]:
    """The specification if it is of torchvision or timm, which others can build; empty for a user's own code."""
    return (arch,) if arch.startswith(("torchvision/", "timm/")) else ()
