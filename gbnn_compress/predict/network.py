"""A compressed network in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.objects import is_module
from gbnn_compress.data.architectures import load_weights
from gbnn_compress.data.batches import Batch, read_batch, tensors_in
from gbnn_compress.data.kind import CLASSIFIER
from gbnn_compress.data.loaders import labels_of
from gbnn_compress.errors import DataError, GbnnError, is_whole, require_seed
from gbnn_compress.predict.draws import Sampler, sampler
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.models import check_arch, extra_notes, open_network
from gbnn_compress.predict.monte_carlo import monte_carlo
from gbnn_compress.predict.outputs import OutputPrediction, averaged, joined, of_posterior, prediction
from gbnn_compress.predict.prediction import Prediction
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.running import copied
from gbnn_compress.predict.task import recorded_task, settled_task
from gbnn_compress.report import sizes
from gbnn_compress.report.schema import Report
from gbnn_compress.types import Artifact

if TYPE_CHECKING:
    import torch


class CompressedNetwork:
    """An artifact, and the network that runs with its weights.

    Attributes:
        artifact: The decoded content of the file.
        notes: Sentences on tensors that the network of the last `to_module` call lacks.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.notes: tuple[str, ...] = ()
        self._module: torch.nn.Module | None = None
        self._source: Sampler | None = None
        self._strict: bool | None = None
        self._device: torch.device | None = None

    def report(self) -> Report:
        """The report (schema 1) of the file."""
        return sizes.report(self.artifact)

    def state_dict(self, *, seed: int | None = None) -> dict[str, torch.Tensor]:
        """Dense weights by name: the posterior mean, or one posterior sample.

        Args:
            seed: Seed of the posterior sample; None for the posterior mean.

        Raises:
            GbnnError: The seed is out of range.
        """
        require_seed(seed, option="seed")
        return rebuild(self.artifact, seed=seed)

    def to_module(
        self,
        network: torch.nn.Module | Callable[[], torch.nn.Module] | str | None = None,
        *,
        strict: bool | None = None,
    ) -> torch.nn.Module:
        """Load the posterior-mean weights into a network.

        Names of tensors may differ by the parts that wrappers add (`module.`, `_orig_mod.`, `model.`), or by one common
        prefix.

        Args:
            network: A module, which is changed in place; or a callable that makes one; or the specification of an
                architecture; or None for the architecture that the artifact records.
            strict: True: every tensor must have a counterpart in the network, and the reverse. None: tensors that the
                network lacks are left out and named in `notes`. False: tensors that the artifact lacks also keep the
                network's values.

        Returns:
            The network, in evaluation mode.

        Raises:
            GbnnError: The architecture is not known, or the weights do not fit it.
        """
        check_arch(network)
        if not is_module(network):
            opened = open_network(self.artifact, network, strict=strict)
            network, spec, fit = opened.network, opened.spec, opened.fit
        else:
            spec = type(network).__name__
            fit = load_weights(network, self.state_dict(), spec=spec, strict=strict)
        self.notes = extra_notes(fit, spec=spec)
        self._module, self._source, self._strict = network.eval(), None, strict
        return network

    def predict(
        self,
        x: Any,
        *,
        samples: int = 16,
        seed: int = 0,
        batch_size: int = 128,
        task: str | None = None,
        output: str | int | None = None,
        forward: Callable[[torch.nn.Module, Any], Any] | None = None,
    ) -> Any:
        """Class probabilities, or the outputs of a network that is no classifier, averaged over posterior draws.

        Args:
            x: A batch: a tensor of inputs, such as preprocessed images (N, channels, height, width); `(inputs,
                targets)`; a mapping of keyword arguments; or whatever the network's `forward` takes. The network runs
                on the device of its first tensor.
            samples: Number of draws. 0: the posterior mean.
            seed: Seed of the first draw. The same seed gives the same draws.
            batch_size: Number of inputs per forward pass, if `x` is a tensor. Other batches run whole.
            task: `classifier` or `other`. Default: the task that the file records, or else what the outputs suggest:
                images as inputs, and one output (N, C >= 2), make a classifier.
            output: Name or position of the one output that counts. Default: every floating output.
            forward: `f(network, batch) -> outputs`, where calling the network with the inputs does not fit.

        Returns:
            Of a classifier, probabilities, float64 (N, C), rows sum to 1; one row per position if outputs have more
            than two axes. Of another network, its outputs in its own nesting, or the chosen one. On the CPU.

        Raises:
            GbnnError: An argument is out of range, the inputs do not fit the network, or the architecture is not known
                (then call `to_module` first).
        """
        found = self.predict_with_uncertainty(
            x, samples=samples, seed=seed, batch_size=batch_size, task=task, output=output, forward=forward
        )
        return found.probabilities if isinstance(found, Prediction) else found.mean

    def predict_with_uncertainty(
        self,
        x: Any,
        *,
        samples: int = 16,
        seed: int = 0,
        batch_size: int = 128,
        task: str | None = None,
        output: str | int | None = None,
        forward: Callable[[torch.nn.Module, Any], Any] | None = None,
    ) -> Prediction | OutputPrediction:
        """`predict` with the uncertainty of the result. Takes the same arguments.

        Returns:
            Of a classifier, `probabilities` float64 (N, C), `entropy` and `mutual_information` float64 (N,) in nats,
            and `samples`. Of another network, `mean` and `standard_deviation` over the draws, each in the nesting of
            the network's outputs, and `samples`.

        Raises:
            GbnnError: An argument is out of range, the inputs do not fit the network, or the architecture is not known
                (then call `to_module` first).
        """
        check_drawing(samples=samples, seed=seed, batch_size=batch_size)
        batches, how = batches_of(x, batch_size), Forward(forward, output)
        source = self._sampler(_device(x))
        outputs = partial(outputs_at_mean, source, batches[0], how)
        settled = self._settled_task(batches[0], outputs, task=task)
        if settled == CLASSIFIER:
            known = CLASSIFIER in (task, recorded_task(self.artifact.facts))
            return monte_carlo(source, batches, samples=samples, seed=seed, option="x", forward=how, positions=known)
        weights = of_posterior(source, samples=samples, seed=seed)
        draws = averaged(weights, batches, forward=how, option="x")
        return joined([prediction(each, forward=how) for each in draws], [batch.size for batch in batches])

    def _settled_task(
        self, batch: Batch, outputs: Callable[[], Mapping[str, torch.Tensor]], *, task: str | None
    ) -> str:
        """`classifier` or `other`: the given task, that of the file, or what inputs and outputs suggest."""
        labelled = labels_of(batch) is not None
        return settled_task(batch, outputs, task=task, facts=self.artifact.facts, labelled=labelled)

    def _sampler(self, device: torch.device) -> Sampler:
        """The posterior with a copy of the network; the one that `to_module` returned belongs to the user."""
        if self._source is None or self._device != device:
            network = copied(self._module or self.to_module()).to(device)
            self._source = sampler(
                self.artifact,
                network,
                load=lambda tensors: load_weights(network, tensors, spec="the network", strict=self._strict),
            )
            self._device = device
        return self._source


def first_outputs(
    network: CompressedNetwork, x: Any, batch: Batch, forward: Forward, *, task: str | None
) -> tuple[Sampler, str, Mapping[str, torch.Tensor]]:
    """What a member of an ensemble is, before it predicts.

    Args:
        network: The member.
        x: All inputs, on their device.
        batch: The first of them.
        forward: How the network is run, and which outputs count.
        task: The task that the user gave.

    Returns:
        The posterior with a copy of the network, its task, and its outputs for the batch at the posterior mean.
    """
    source = network._sampler(_device(x))
    outputs = outputs_at_mean(source, batch, forward)
    return source, network._settled_task(batch, lambda: outputs, task=task), outputs


def check_drawing(*, samples: int, seed: int, batch_size: int) -> None:
    """Refuse numbers that are out of range.

    Raises:
        GbnnError: As described.
    """
    if not is_whole(samples) or samples < 0:
        raise GbnnError(f"`samples`: expected 0 or more, got {samples}")
    if batch_size < 1:
        raise GbnnError(f"`batch_size`: expected 1 or more, got {batch_size}")
    require_seed(seed, option="seed")


def outputs_at_mean(source: Sampler, batch: Batch, forward: Forward) -> Mapping[str, torch.Tensor]:
    """The outputs that count for one batch at the posterior mean, by name."""
    return averaged(of_posterior(source, samples=0), [batch], forward=forward, option="x")[0].mean


def batches_of(x: Any, batch_size: int) -> list[Batch]:
    """A tensor in parts, any other batch whole.

    Raises:
        DataError: The tensor is empty.
    """
    import torch

    if not isinstance(x, torch.Tensor) or not x.ndim:
        return [read_batch(x)]
    if len(x) == 0:
        raise DataError("`x` is empty, expected at least one input")
    return [read_batch(part) for part in x.split(batch_size)]


def _device(x: Any) -> torch.device:
    """The device of the first tensor; the CPU if there is none."""
    import torch

    return next((tensor.device for tensor in tensors_in(x)), torch.device("cpu"))
