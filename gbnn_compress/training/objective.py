"""The loss that training minimises.

    (1 - a) CE + a KL(checkpoint || network) + beta KL(q || prior) / N

with one posterior draw per step. CE is the negative log likelihood of the labels. The KL from the checkpoint's
probabilities is distillation (Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network"). The last
term is the divergence of the evidence lower bound (Graves 2011, "Practical variational inference for neural networks").
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from gbnn_compress.predict.running import run_with

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from gbnn_compress.training.shared_weights import SharedWeights


@dataclass(frozen=True)
class Loss:
    """The parts of the objective, scalars with gradients, in nats per input.

    Attributes:
        cross_entropy: CE of the labels.
        distillation: KL(checkpoint || network).
        divergence: KL(q || prior) / N.
    """

    cross_entropy: torch.Tensor
    distillation: torch.Tensor
    divergence: torch.Tensor

    def total(self, *, distillation: float, beta: float) -> torch.Tensor:
        """The weighted sum, with a = `distillation`."""
        likelihood = (1 - distillation) * self.cross_entropy + distillation * self.distillation
        return likelihood + beta * self.divergence


def loss_of(
    network: torch.nn.Module,
    teacher: torch.nn.Module,
    shared: SharedWeights,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    dataset_size: int,
    half: bool,
    generator: torch.Generator | None,
) -> Loss:
    """The loss of one batch under one posterior draw.

    Args:
        network: In training mode.
        teacher: The checkpoint, in evaluation mode.
        shared: The network's shared weights.
        images: float32 (B, C, H, W).
        labels: int64 (B,).
        dataset_size: N.
        half: Whether layers run in bfloat16.
        generator: Of the draw; None runs the posterior mean, whose divergence counts as 0.
    """
    ids = shared.ids()
    deviations = shared.coding.deviations(ids) if generator is not None else None
    with half_precision(shared.device, enabled=half):
        with torch.no_grad():
            wanted = teacher(images).float().log_softmax(dim=1)
        output = run_with(network, shared.weights(ids, generator, deviations=deviations), images)
        output = getattr(output, "logits", output)  # the output may also have logits of auxiliary heads
        got = output.float().log_softmax(dim=1)
    divergence = torch.zeros(()) if deviations is None else shared.coding.divergence_nats(deviations)
    return Loss(
        cross_entropy=functional.nll_loss(got, labels),
        distillation=functional.kl_div(got, wanted, log_target=True, reduction="batchmean"),
        divergence=divergence / dataset_size,
    )


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
