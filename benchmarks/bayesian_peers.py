"""Bayesian peers of `uncertainty.py`: SWAG, MC dropout and mean-field variational inference of torch-uncertainty.

Each starts from the checkpoint, and is trained on with the epochs, images, changes and loss of the control, but SWAG at
a constant rate, and mean-field inference with its divergence added. A peer is a list of draws, each a function from
images to logits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from gbnn_compress.predict.bench import Bench
from gbnn_compress.training.augment import Augmentation
from gbnn_compress.training.objective import half_precision, runs_bfloat16

RATE, MOMENTUM, BATCH = 0.01, 0.9, 128
NORM_IMAGES = 5_000
"""Images that batch-norm statistics of SWAG's draws are computed from."""

SNAPSHOTS_PER_EPOCH = 8
DROPOUT = 0.2
INITIAL_SIGMA = 0.005
"""About a tenth of the weights' typical size."""

Draw = Callable[[torch.Tensor], torch.Tensor]


def train_on(
    bench: Bench,
    network: nn.Module,
    *,
    epochs: int,
    constant: bool = False,
    penalty: Callable[[], torch.Tensor] = lambda: torch.zeros(()),
    after_step: Callable[[int, int], None] = lambda step, steps: None,
) -> None:
    """Train on: SGD, a cosine, half labels and half the checkpoint's answers; `bench` has the checkpoint and images.

    Args:
        bench: The checkpoint's network and the training images.
        network: Trained in place.
        epochs: Passes over the images.
        constant: Whether the learning rate stays.
        penalty: Added to the loss of each step.
        after_step: Called with the number of the step, from 1, and the number of all steps.
    """
    torch.manual_seed(0)
    teacher = bench.network.eval()
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True)
    steps, step = epochs * (len(bench.data) // BATCH), 0
    generator, change = torch.Generator().manual_seed(0), Augmentation(shift=True, flip=True)
    for epoch in range(epochs):
        order = torch.randperm(len(bench.data), generator=generator)[: len(bench.data) // BATCH * BATCH].numpy()
        for images, labels in bench.data.take(order).batches(bench.preprocessing, batch_size=BATCH):
            if not constant:
                optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            images = change(images, generator)
            with half_precision(bench.device, enabled=runs_bfloat16(bench.device)):
                with torch.no_grad():
                    wanted = teacher(images).float().log_softmax(dim=1)
                got = network(images).float().log_softmax(dim=1)
            distilled = functional.kl_div(got, wanted, log_target=True, reduction="batchmean")
            optimiser.zero_grad()
            (0.5 * functional.nll_loss(got, labels) + 0.5 * distilled + penalty()).backward()
            optimiser.step()
            step += 1
            after_step(step, steps)
        print(f"epoch {epoch + 1}/{epochs}", flush=True)
    network.eval()


def swag(bench: Bench, *, epochs: int, draws: int) -> list[Draw]:
    """SWAG (Maddox et al. 2019): a constant rate, and eight snapshots per epoch in the second half."""
    from torch_uncertainty.methods import SWAG

    method = SWAG(copy.deepcopy(bench.network), cycle_start=0, cycle_length=1, num_estimators=draws)
    every = len(bench.data) // BATCH // SNAPSHOTS_PER_EPOCH

    def snapshot(step: int, steps: int) -> None:
        if step > steps // 2 and step % every == 0:
            method.update_wrapper(step // every)

    train_on(bench, method.core_model, epochs=epochs, constant=True, after_step=snapshot)
    images = bench.inputs(at_most=NORM_IMAGES)
    method.bn_update(images.split(BATCH), device=None)
    return [sample.to(bench.device).eval() for sample in method.samples]


def mc_dropout(bench: Bench, *, epochs: int, draws: int) -> list[Draw]:
    """MC dropout (Gal & Ghahramani 2016) before the last layer, which the checkpoint was not trained with."""
    from torch_uncertainty.methods import mc_dropout as with_dropout

    network = copy.deepcopy(bench.network)
    network.linear = nn.Sequential(nn.Dropout(DROPOUT), network.linear)
    train_on(bench, network, epochs=epochs)
    method = with_dropout(network, num_estimators=1).eval()
    return [method] * draws


def mean_field(bench: Bench, *, epochs: int, draws: int) -> list[Draw]:
    """Mean-field variational inference: every weight of a convolution or matrix has a mean and a deviation.

    The prior is the library's default, a Gaussian for each kind of layer.
    """
    from torch_uncertainty.layers.bayesian import BayesConv2d, BayesLinear
    from torch_uncertainty.losses import KLDiv

    network = copy.deepcopy(bench.network)
    rho = math.log(math.expm1(INITIAL_SIGMA))
    layers = 0
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            layer = BayesConv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                stride=module.stride,
                padding=module.padding,
                bias=module.bias is not None,
            )
        elif isinstance(module, nn.Linear):
            layer = BayesLinear(module.in_features, module.out_features, bias=module.bias is not None)
        else:
            continue
        layers += 1
        with torch.no_grad():
            for part in ("weight", "bias"):
                if getattr(module, part) is not None:
                    getattr(layer, f"{part}_mu").copy_(getattr(module, part))
                    getattr(layer, f"{part}_sigma").fill_(rho)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer)
    divergence = KLDiv(network)  # the mean over the layers, where the ELBO has the sum
    train_on(bench, network, epochs=epochs, penalty=lambda: (layers * divergence() / len(bench.data)).squeeze())
    return [network] * draws


PEERS = {"swag": swag, "mc-dropout": mc_dropout, "mean-field": mean_field}
