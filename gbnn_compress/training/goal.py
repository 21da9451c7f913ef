"""What a network is trained towards, and how it runs on a batch.

There are two kinds of networks. A classifier is compared with its checkpoint by KL(checkpoint || network), any other by
the squared error of each output over that output's variance. What the data know is added: labels of a classifier by
their cross-entropy, anything else by the user's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from gbnn_compress.data.batches import Batch, tensors_in
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError, listed, one_line
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.running import LOGITS, run_with

LossFunction = Callable[[Any, Any], Any]
"""`l(outputs, batch) -> scalar tensor`, of the whole outputs and of the batch as the data yield it."""


@dataclass(frozen=True)
class Goal:
    """What a network is trained towards.

    Attributes:
        forward: How the network runs on a batch, and which outputs count.
        classifier: Whether the output is logits.
        labelled: Whether the targets of each batch are a classifier's labels.
        loss: The user's loss; None without.
        variances: Name of an output -> its variance over the inputs, for networks that are no classifiers.
        option: The option that names the data, for messages.
    """

    forward: Forward = field(default_factory=Forward)
    classifier: bool = True
    labelled: bool = True
    loss: LossFunction | None = None
    variances: Mapping[str, float] = field(default_factory=dict)
    option: str = "--data"

    @property
    def has_targets(self) -> bool:
        """Whether there is more to learn from than the checkpoint."""
        return self.labelled or self.loss is not None

    @property
    def in_training_mode(self) -> bool:
        """Whether layers such as dropout and batch norm are in training mode.

        Only labels are worth their chance: a network that is to give the checkpoint's outputs is trained as it is used.
        """
        return self.classifier and self.labelled

    def run(self, network: torch.nn.Module, batch: Batch, weights: Mapping[str, torch.Tensor] | None = None) -> Any:
        """The network's whole outputs on a batch.

        Args:
            network: Its mode is kept.
            batch: On the network's device; the network may change it.
            weights: Name in the network -> weights to run it with instead of its own.

        Raises:
            ArchitectureError: The network fails.
        """
        try:
            with _differentiable(network):
                return self.forward(network, batch) if weights is None else self._run_with(network, weights, batch)
        except GbnnError:
            raise
        except Exception as error:  # whatever the user's own network raises
            if out_of_memory(error):
                raise
            raise ArchitectureError(f"the network fails on a batch of `{self.option}` ({one_line(error)})") from error

    def logits(self, outputs: Any) -> torch.Tensor:
        """The logits among a classifier's outputs, (B, C, ...).

        Raises:
            ArchitectureError: There are several outputs, and none is named `logits`.
        """
        if isinstance(outputs, torch.Tensor):
            return outputs
        if self.forward.output is None and isinstance(getattr(outputs, LOGITS, None), torch.Tensor):
            found: torch.Tensor = outputs.logits  # the output may also have logits of auxiliary heads
            return found
        chosen = self.forward.chosen(outputs)
        if LOGITS not in chosen and len(chosen) > 1:
            raise ArchitectureError(
                f"the network returns {listed(chosen)}: choose the logits with `--output`, or give `--task other`"
            )
        return chosen.get(LOGITS, next(iter(chosen.values())))

    def error(self, outputs: Any, wanted: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean over the outputs of their squared error over their variance: a scalar, with gradients.

        Outputs whose shape depends on the weights, such as lists of detections, are left out.

        Raises:
            ArchitectureError: No output has the shape of the checkpoint's.
        """
        got = self.forward.chosen(outputs)
        same = [name for name, target in wanted.items() if name in got and got[name].shape == target.shape]
        if not same:
            raise ArchitectureError(
                f"the shapes of {listed(wanted)} depend on the weights, so that they cannot be compared with the"
                " checkpoint's; choose another output (`--output`), or return others (`--forward`)"
            )
        errors = ((got[name].float() - wanted[name].float()).square().mean() for name in same)
        return torch.stack(
            [error / self.variances.get(name, 1.0) for name, error in zip(same, errors, strict=True)]
        ).mean()

    def loss_of(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """The user's loss.

        Raises:
            GbnnError: The loss raises an error, or returns something else than one floating number in a tensor, or one
                without a gradient in training.
        """
        assert self.loss is not None
        try:
            value = self.loss(outputs, batch.value)
        except Exception as error:  # whatever the user's own loss raises
            if out_of_memory(error):
                raise
            raise GbnnError(f"`loss` fails on a batch of `{self.option}` ({one_line(error)})") from error
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"`{type(value).__name__}`"
            raise GbnnError(
                f"`loss`: expected a floating tensor with one number, got {got}; return the mean, for example"
            )
        differentiable = any(tensor.requires_grad for tensor in tensors_in(outputs))
        if torch.is_grad_enabled() and differentiable and not value.requires_grad:
            raise GbnnError(
                "`loss`: expected a value that depends on the outputs and has a gradient, got one without; do not"
                " detach the outputs"
            )
        return value.reshape(())

    def _run_with(self, network: torch.nn.Module, weights: Mapping[str, torch.Tensor], batch: Batch) -> Any:
        if self.forward.function is None and isinstance(batch.inputs, torch.Tensor):
            return run_with(network, weights, batch.inputs)
        runner = _Runner(network, self.forward)
        return run_with(runner, {f"network.{name}": weight for name, weight in weights.items()}, batch)  # type: ignore[arg-type]


class _Runner(torch.nn.Module):
    """A network whose inputs are a batch, so that `run_with` can hand in weights whatever the forward pass is."""

    def __init__(self, network: torch.nn.Module, forward: Forward) -> None:
        super().__init__()
        self.network, self._forward_pass = network, forward

    def forward(self, batch: Batch) -> Any:
        """The network's outputs."""
        return self._forward_pass(self.network, batch)


def require_finite(outputs: Mapping[str, torch.Tensor], *, option: str) -> None:
    """Refuse outputs of the checkpoint that nothing can be trained towards.

    Raises:
        DataError: An output has an infinite or NaN value.
    """
    for name, output in outputs.items():
        if not bool(output.isfinite().all()):
            raise DataError(
                f"the checkpoint's output `{name}` has infinite or NaN values on a batch of `{option}`: leave such"
                " inputs out, or choose another output with `--output`"
            )


def output_variances(answers: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """Name -> variance of an output over the inputs, mean over its places; its mean square, or 1, if it is constant.

    Args:
        answers: Outputs by name, of one batch each.
    """
    by_output: dict[str, list[torch.Tensor]] = {}
    for answer in answers:
        for name, output in answer.items():
            by_output.setdefault(name, []).append(output.detach().double().cpu())
    found = {}
    for name, outputs in by_output.items():
        count = max(sum(output.numel() for output in outputs), 1)
        spread = sum(float(part.square().sum()) for part in centred(outputs)) / count
        square = sum(float(output.square().sum()) for output in outputs) / count
        found[name] = spread if spread > torch.finfo(torch.float32).eps ** 2 * square else square or 1.0
    return found


def centred(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs of several batches without their mean over the inputs at each place.

    Where shapes differ between batches, the mean is over everything.
    """
    outputs = [output if output.dim() else output[None] for output in outputs]
    if len({output.shape[1:] for output in outputs}) == 1 and sum(map(len, outputs)) > 1:
        mean = sum(output.sum(dim=0) for output in outputs) / sum(map(len, outputs))
    else:
        mean = sum(output.sum() for output in outputs) / max(sum(output.numel() for output in outputs), 1)
    return [output - mean for output in outputs]


def out_of_memory(error: Exception) -> bool:
    """Whether memory was short, on the CPU or on a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _differentiable(network: torch.nn.Module) -> AbstractContextManager[object]:
    """A context in which recurrent layers in evaluation mode have gradients on a GPU too, where cuDNN refuses them."""
    recurrent = (module for module in network.modules() if isinstance(module, torch.nn.RNNBase))
    evaluated = any(not module.training and module._flat_weights[0].is_cuda for module in recurrent)  # type: ignore[union-attr]
    if not evaluated or not torch.is_grad_enabled():
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=False)
