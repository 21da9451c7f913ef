"""Opening of everything that a run reads, and preparation of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.architecture_index import ArchitectureMatch
from gbnn_compress.checkpoint.objects import read_any
from gbnn_compress.checkpoint.select import Selection, select
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.kind import CLASSIFIER, settle_kind
from gbnn_compress.data.loaders import Batches, load_data
from gbnn_compress.data.made_inputs import made_batches
from gbnn_compress.errors import CheckpointError
from gbnn_compress.predict.bench import Bench, as_evaluation
from gbnn_compress.predict.measuring import measure, weights_of
from gbnn_compress.predict.models import (
    OpenedNetwork,
    extra_notes,
    is_artifact,
    left_out_warnings,
    match_of,
    open_network,
)
from gbnn_compress.predict.output_evaluation import BEFORE
from gbnn_compress.predict.trial import Trial, try_first
from gbnn_compress.predict.use import Use, use_of
from gbnn_compress.types import Checkpoint

if TYPE_CHECKING:
    from gbnn_compress.pipeline.request import Request


FEWEST_HELD_OUT = 4
"""Smallest number of images of which a part is held out."""


MADE_SIZES = (16,) * 16
"""Sizes of the batches that are made as `--input` describes them."""


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
        trial: What runs on the first batches say of the network; None without data.
        made: The network on inputs that are made as `--input` describes them; None with data, or without the option.
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
    trial: Trial | None = None
    made: Bench | None = None

    @property
    def has_labels(self) -> bool:
        """Whether there is data with integer labels that fit the network's output."""
        return self.trial is not None and self.trial.labelled


def open_request(request: Request) -> RunInputs:
    """Read the checkpoint, build its network if an option needs it, and read the data.

    Data that the network cannot run on is refused here, before any work is done.

    Raises:
        GbnnError: The checkpoint, the architecture or the data cannot be read or do not fit.
    """
    if request.source is not None and is_artifact(request.source):
        raise CheckpointError(
            f"`{request.source}` is already compressed: `gbnn-compress report` shows it, `gbnn-compress decompress`"
            " restores dense weights"
        )
    checkpoint = read_any(request.checkpoint, key=request.key)
    selection = select(checkpoint, keep=request.configuration.keep)
    match, network, warnings = match_of(checkpoint), None, list[str]()
    arch = request.architecture
    wanted = (request.data, request.val_data, request.eval_data)
    if arch is not None or any(each is not None for each in wanted) or request.inputs:
        network = open_network(checkpoint, arch, match=match)
    if arch is not None and network is not None:
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *extra_notes(network.fit, spec=network.spec)))
        warnings = left_out_warnings(network.fit, checkpoint, spec=network.spec)
    benches = _benches(request, network)
    trial = _trial(benches)
    if trial is not None:
        benches = _with_kind(request, benches, trial, match=match, checkpoint=checkpoint)
        if request.measures_on_data:
            benches, reused = _with_held_out(benches, seed=request.seed)
            warnings += reused
    return RunInputs(
        checkpoint=checkpoint,
        selection=selection,
        candidates=match.names if arch is None or network is None else _published(network.spec),
        indexed_classes=match.n_classes,
        network=network,
        warnings=warnings,
        trial=trial,
        **benches,
    )


def _benches(request: Request, network: OpenedNetwork | None) -> dict[str, Bench | None]:
    """The network on each of the three data sets; None for those that are not given."""
    training = request.passes > 0
    evaluated, its_option = request.evaluated
    measured = request.val_data is not None or evaluated is not None
    # Calibration, on data or on noise, needs the checkpoint's weights in the network while files are measured.
    separate = measured and not training
    measuring = network.copied() if network is not None and separate else network
    optional = training or request.measures_on_data
    labels = True if request.configuration.posterior == "variational" else None if optional else False
    use = use_of(
        forward=request.forward, output=request.chosen, metric=request.metric, loss=request.loss, task=request.task
    )

    def bench(data: Any, opened: OpenedNetwork | None, option: str, *, labels: bool | None) -> Bench | None:
        if data is None or opened is None:
            return None
        evaluation = as_evaluation(data, samples=request.samples)
        found = load_data(evaluation.data, labels=labels, option=option)
        return Bench(opened, found, evaluation, option=option, use=use)

    return {
        "evaluation": bench(evaluated, measuring, its_option, labels=None),
        "validation": bench(request.val_data, measuring, "--val-data", labels=None),
        "data": bench(request.data, network, "--data", labels=labels),
        "made": _made(request, network, use),
    }


def _made(request: Request, network: OpenedNetwork | None, use: Use) -> Bench | None:
    """The network on inputs that are made as the request describes them, where there are no data."""
    if not request.inputs or request.data is not None or network is None:
        return None
    run = None if use.forward.function is None else use.forward
    batches = list(made_batches(request.inputs, network.network, batch_sizes=MADE_SIZES, run=run, coloured=True))
    data = load_data([batch.value for batch in batches], option="--input")
    return Bench(network, data, as_evaluation(data, samples=1), option="--input", use=use)


def _trial(benches: Mapping[str, Bench | None]) -> Trial | None:
    """What runs on the first batch of each data set say of the network; None without data."""
    found = [try_first(bench) for bench in benches.values() if bench is not None]
    if not found:
        return None
    return replace(found[-1], labelled=any(trial.labelled for trial in found))


def _with_kind(
    request: Request,
    benches: Mapping[str, Bench | None],
    trial: Trial,
    *,
    match: ArchitectureMatch,
    checkpoint: Checkpoint,
) -> dict[str, Bench | None]:
    """The benches with the task of the network. Data that a classifier cannot be measured on are refused."""
    kind = settle_kind(
        request.task,
        labels=trial.labelled,
        indexed_classes=match.n_classes,
        outputs=trial.columns,
        images=trial.images,
        tensors=checkpoint.tensors,
    )
    found = {name: None if bench is None else bench.with_task(kind.task) for name, bench in benches.items()}
    for name, bench in found.items():
        if bench is None or name == "made" or (name == "data" and not request.passes):
            continue
        on_accuracy = not request.passes and request.max_error is None and request.metric is None
        if kind.task == CLASSIFIER and (name == "evaluation" or (name == "validation" and on_accuracy)):
            bench.required_labels()
        bench.require_usable()
        if name != "data" and (isinstance(bench.data, Batches) or bench.metric is not None or bench.loss is not None):
            _measure_once(bench, checkpoint)
    return found


def _with_held_out(benches: Mapping[str, Bench | None], *, seed: int) -> tuple[dict[str, Bench | None], list[str]]:
    """The benches with a held-out part of `--data` as validation data, and a warning if no part can be held out."""
    data = benches["data"]
    assert data is not None
    few = isinstance(data.data, Dataset) and len(data.data) < FEWEST_HELD_OUT
    if few:
        rest = held = data
    else:
        from gbnn_compress.training.train import training_benches

        rest, held = training_benches(data, None, seed=seed)
    reused = few or rest.data is held.data
    warning = "`--data` has too few inputs to hold some out: the target is measured on the inputs that calibrated"
    return {**benches, "data": rest, "validation": held.with_own_network()}, [warning] if reused else []


def _measure_once(bench: Bench, checkpoint: Checkpoint) -> None:
    """Run the checkpoint on all data, its loss and its metric included, so that what fails is refused before any work.

    Raises:
        GbnnError: The data, the network or a function of the user fails, or outputs are NaN for some inputs.
    """
    measure(bench, {BEFORE: weights_of(bench, checkpoint, samples=0)}, reference=BEFORE)


def _published(spec: str) -> tuple[str, ...]:
    """The specification if it is of torchvision or timm, which others can build; empty for a user's own code."""
    return (spec,) if spec.startswith(("torchvision/", "timm/")) else ()
