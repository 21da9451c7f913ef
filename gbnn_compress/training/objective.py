"""The loss that training minimises.

    (1 - a) L + a D(checkpoint, network) + beta KL(q || prior) / N

with one posterior draw per step. L is the negative log likelihood of the labels, or the user's loss; without either,
a is 1. D is KL(checkpoint || network) of a classifier, which is distillation (Hinton, Vinyals & Dean 2015, "Distilling
the knowledge in a neural network"), and of any other network the squared error of its outputs over their variance. The
last term is the divergence of the evidence lower bound (Graves 2011, "Practical variational inference for neural
networks").
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from gbnn_compress.predict.running import CLASS_AXIS, class_rows
from gbnn_compress.training.goal import Goal, require_finite

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from gbnn_compress.data.batches import Batch
    from gbnn_compress.training.shared_weights import SharedWeights


@dataclass(frozen=True)
class Loss:
    """The parts of the objective, scalars with gradients.

    Attributes:
        cross_entropy: CE of the labels, in nats per input; None without labels.
        distillation: KL(checkpoint || network), in nats per input, or the squared error over the variance.
        divergence: KL(q || prior) / N, in nats per input.
        given: The user's loss; None without.
    """

    cross_entropy: torch.Tensor | None
    distillation: torch.Tensor
    divergence: torch.Tensor
    given: torch.Tensor | None = None

    def total(self, *, distillation: float, beta: float) -> torch.Tensor:
        """The weighted sum, with a = `distillation`."""
        likelihood = self.cross_entropy if self.given is None else self.given
        if likelihood is None:
            return self.distillation + beta * self.divergence
        return (1 - distillation) * likelihood + distillation * self.distillation + beta * self.divergence

    def values(self) -> dict[str, float]:
        """The parts that there are, by name."""
        parts = {
            "cross_entropy": self.cross_entropy,
            "loss": self.given,
            "distillation": self.distillation,
            "divergence": self.divergence,
        }
        return {name: float(part.detach()) for name, part in parts.items() if part is not None}


def loss_of(
    network: torch.nn.Module,
    teacher: torch.nn.Module,
    shared: SharedWeights,
    batch: Batch,
    *,
    goal: Goal | None = None,
    dataset_size: int,
    half: bool,
    generator: torch.Generator | None,
) -> Loss:
    """The loss of one batch under one posterior draw.

    Args:
        network: In training mode.
        teacher: The checkpoint, in evaluation mode.
        shared: The network's shared weights.
        batch: On the device of the shared weights; the network may change it.
        goal: What is compared; default: labels and logits.
        dataset_size: N.
        half: Whether layers run in bfloat16.
        generator: Of the draw; None runs the posterior mean, whose divergence counts as 0.

    Raises:
        GbnnError: The network or the user's loss fails.
    """
    goal = goal or Goal()
    ids = shared.ids()
    deviations = shared.coding.deviations(ids) if generator is not None else None
    with half_precision(shared.device, enabled=half):
        with torch.no_grad():
            wanted = goal.run(teacher, batch.on(shared.device))
        outputs = goal.run(network, batch, shared.weights(ids, generator, deviations=deviations))
        compared = _classes(goal, outputs, wanted) if goal.classifier else None
    if compared is not None:
        distance = _divergence(*compared)
    else:
        chosen = goal.forward.chosen(wanted)
        require_finite(chosen, option=goal.option)
        distance = goal.error(outputs, chosen)
    labelled = compared is not None and goal.labelled and goal.loss is None
    divergence = torch.zeros(()) if deviations is None else shared.coding.divergence_nats(deviations)
    return Loss(
        cross_entropy=functional.nll_loss(compared[0], batch.targets) if labelled and compared is not None else None,
        distillation=distance,
        divergence=divergence / dataset_size,
        given=None if goal.loss is None else goal.loss_of(outputs, batch),
    )


def _classes(goal: Goal, outputs: Any, wanted: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the network and of the checkpoint, float32 (B, C, ...)."""
    got, checkpoint = goal.logits(outputs), goal.logits(wanted)
    return got.float().log_softmax(dim=CLASS_AXIS), checkpoint.float().log_softmax(dim=CLASS_AXIS)


def _divergence(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL(checkpoint || network) per input; positions of outputs of higher rank count as inputs."""
    return functional.kl_div(class_rows(got), class_rows(wanted), log_target=True, reduction="batchmean")


def half_precision(device: torch.device, *, enabled: bool) -> AbstractContextManager[object]:
    """A context in which layers run in bfloat16, if enabled."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def runs_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively, and so faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    return capability in ("AVX512", "AMX") and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
