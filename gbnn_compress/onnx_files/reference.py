"""The outputs that a file must give: those of the network in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gbnn_compress.data.batches import read_batch
from gbnn_compress.errors import ArchitectureError, GbnnError
from gbnn_compress.onnx_files.call import failed
from gbnn_compress.onnx_files.samples import ENTROPY, MUTUAL_INFORMATION, PROBABILITIES, deviation_name
from gbnn_compress.predict.prediction import at_temperature, average
from gbnn_compress.predict.running import evaluating, logits

if TYPE_CHECKING:
    import numpy as np
    import torch

    from gbnn_compress.onnx_files.call import Call
    from gbnn_compress.onnx_files.given import Given
    from gbnn_compress.onnx_files.signature import Signature

Outputs = dict[str, "np.ndarray"]


@dataclass(frozen=True, eq=False)
class Reference:
    """A network, run on the calls of the check.

    Attributes:
        network: The network.
        given: The calls.
        signature: Names of the outputs.
        place: Writes one draw into the network; None writes the posterior mean.
        temperature: The temperature of a classifier.
    """

    network: torch.nn.Module
    given: Given
    signature: Signature
    place: Callable[[int | None], None]
    temperature: float

    def at_mean(self) -> list[Outputs]:
        """For each call, the outputs of the posterior mean.

        Raises:
            ArchitectureError: The network fails, or an output has no finite value.
        """
        found = []
        for outputs in self._runs():
            named = dict(zip(self.signature.outputs, outputs, strict=True))
            if self.signature.classifier:
                named[self.signature.outputs[self.signature.logits]] /= self.temperature
            found.append({name: tensor.numpy() for name, tensor in named.items()})
        return found

    def averaged(self, seeds: Sequence[int]) -> list[Outputs]:
        """For each call, the outputs averaged over posterior draws; the network holds the posterior mean afterwards.

        Raises:
            ArchitectureError: The network fails, an output has no finite value, or its shape differs between draws.
        """
        draws = []
        for seed in seeds:
            self.place(seed)
            draws.append(self._runs())
        self.place(None)
        return [self._summary(list(each)) for each in zip(*draws, strict=True)]

    def _summary(self, draws: Sequence[Sequence[torch.Tensor]]) -> Outputs:
        """One call's outputs from those of each draw."""
        found: Outputs = {}
        for position, name in enumerate(self.signature.outputs):
            each = [outputs[position] for outputs in draws]
            if not self.signature.floating[position]:
                found[name] = each[0].numpy()
            elif self.signature.classifier:
                found |= _of_classifier(each, self.temperature)
            else:
                found |= _of_other(each, name)
        return found

    def _runs(self) -> list[list[torch.Tensor]]:
        """The outputs of each call, in order."""
        if self.given.images and self.signature.classifier and self.signature.rank == 2:
            batches = [read_batch(call.args[0]) for call in self.given.calls]
            forward = self.given.calls[0].forward
            if forward.function is None and len(self.signature.keys) == 1:
                return [[logits(self.network, [batch], option=self.given.option, forward=forward)] for batch in batches]
        return [self._run(call) for call in self.given.calls]

    def _run(self, call: Call) -> list[torch.Tensor]:
        outputs = run(self.network, call, option=self.given.option)
        missing = [key for key in self.signature.keys if key not in outputs]
        if missing:
            raise ArchitectureError(f"the network returns `{missing[0]}` for some inputs only; choose an `--output`")
        found = [outputs[key] for key in self.signature.keys]
        for key, tensor in zip(self.signature.keys, found, strict=True):
            if tensor.is_floating_point() and tensor.numel() and not tensor.isfinite().any():
                raise ArchitectureError(
                    f"the output `{key}` has only infinite or NaN values for inputs from `{self.given.option}`; give"
                    " inputs of the kind that the network was trained on"
                )
        return found


def run(network: torch.nn.Module, call: Call, *, option: str) -> dict[str, torch.Tensor]:
    """The outputs of a network for one call, by name, floating ones as float32.

    Raises:
        ArchitectureError: The network fails, or has no such output.
    """
    import torch

    try:
        with evaluating(network), torch.no_grad():
            found = call.copied().outputs(network)
    except GbnnError:
        raise
    except Exception as error:  # whatever the user's own network raises
        raise failed(error, call, option=option) from error
    detached = {name: each.detach().cpu().clone() for name, each in found.items()}
    return {name: each.float() if each.is_floating_point() else each for name, each in detached.items()}


def require_steady(network: torch.nn.Module, call: Call, first: Mapping[str, torch.Tensor], *, option: str) -> None:
    """Refuse a network that returns other outputs when it is called again.

    Args:
        network: The network.
        call: A call.
        first: Its outputs.
        option: The option that names the inputs, for messages.

    Raises:
        ArchitectureError: The outputs differ.
    """
    import torch

    second = run(network, call, option=option)
    for name, its in first.items():
        mine = second.get(name)
        if mine is None or mine.shape != its.shape or not torch.allclose(mine, its, rtol=1e-3, equal_nan=True):
            raise ArchitectureError(
                f"the network returns another `{name}` when it is called again with the same inputs: one with random"
                " outputs cannot be checked, and one that keeps a state cannot be exported; take state as an input"
            )


def _of_classifier(draws: Sequence[torch.Tensor], temperature: float) -> Outputs:
    """Probabilities (N, C, ...) averaged over draws of logits (N, C, ...), with their uncertainty (N, ...)."""
    shape = draws[0].movedim(1, -1).shape

    def rows() -> Iterator[torch.Tensor]:
        for each in draws:
            yield each.double().movedim(1, -1).reshape(-1, shape[-1]).softmax(dim=1)

    found = at_temperature(average(rows()), temperature)
    return {
        PROBABILITIES: found.probabilities.reshape(shape).movedim(-1, 1).numpy(),
        ENTROPY: found.entropy.reshape(shape[:-1]).numpy(),
        MUTUAL_INFORMATION: found.mutual_information.reshape(shape[:-1]).numpy(),
    }


def _of_other(draws: Sequence[torch.Tensor], name: str) -> Outputs:
    """Mean and standard deviation over draws, with S - 1 in the denominator; 0 for a single draw."""
    import torch

    if len({each.shape for each in draws}) > 1:
        raise ArchitectureError(
            f"the output `{name}` has another shape in each sample, so samples have no mean; give `--weights mean`, or"
            " choose an `--output`"
        )
    stacked = torch.stack([each.double() for each in draws])
    deviation = stacked.std(dim=0) if len(draws) > 1 else torch.zeros_like(stacked[0])
    return {name: stacked.mean(dim=0).numpy(), deviation_name(name): deviation.numpy()}
