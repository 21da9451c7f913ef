"""Inputs made of noise, for networks whose batch norms hold the statistics of their layers in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gbnn_compress.calibration.fitted import Descent, fitted_inputs
from gbnn_compress.calibration.interceptor import intercepted, unfused
from gbnn_compress.calibration.uses import AnyUse, Use
from gbnn_compress.data.coloured_noise import EXPONENTS, coloured

SIZES = (32, 64, 96, 128, 192, 224, 256, 299, 384)

SMALL_SIZES = (28, 16, 8)
"""For networks that run on none of SIZES, such as those for handwritten digits."""

WANTED_MAP, SMALLEST_MAP = 7, 4
"""Inputs are large enough that every convolution sees this height and width; the smaller one where that is too slow."""

FEWEST_INPUTS, MOST_INPUTS = 16, 256

MOST_PIXELS, MOST_PRODUCTS = 800_000, 50e9
"""Most pixels of all inputs, and most multiplications of a pass over them; FEWEST_INPUTS are always used."""

MOST_FITTED_INPUTS, MOST_FITTED_PRODUCTS = 128, 400e9
"""Most inputs that are fitted to batch norms, and most multiplications of that; a minute at most."""

PASSES = 3
"""Forward passes that a step of gradient descent costs."""


def noise_inputs(n: int, *, channels: int, size: int) -> torch.Tensor:
    """Normalised coloured noise, float32 (n, channels, size, size), mean 0 and variance 1 over all."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(n, channels, size, size, generator=generator)
    parts = white.tensor_split(len(EXPONENTS))
    return torch.cat([coloured(part, exponent) for part, exponent in zip(parts, EXPONENTS, strict=True)])


def synthetic_inputs(
    network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, channels: int
) -> torch.Tensor | None:
    """Noise of a size that the network takes, as many inputs as MOST_PIXELS and MOST_PRODUCTS allow.

    It is fitted to the network's batch norms if MOST_FITTED_PRODUCTS allows that for FEWEST_INPUTS.

    Args:
        network: In evaluation mode.
        tensors: The network's own tensors by their names in the checkpoint.
        channels: Channels of the inputs.

    Returns:
        float32 (n, channels, size, size), or None if the network runs on no size.
    """
    usable: list[tuple[int, int]] = []
    for size in SIZES:
        smallest, products = _probe(network, tensors, noise_inputs(2, channels=channels, size=size))
        if smallest >= SMALLEST_MAP and (not usable or FEWEST_INPUTS * products <= MOST_PRODUCTS):
            usable.append((size, products))
        if smallest >= WANTED_MAP:
            break
    for size in () if usable else SMALL_SIZES:
        smallest, products = _probe(network, tensors, noise_inputs(2, channels=channels, size=size))
        if smallest:
            usable.append((size, products))
            break
    if not usable:
        return None
    size, products = usable[-1]
    n = int(min(MOST_PIXELS // size**2, MOST_PRODUCTS // max(products, 1)))
    noise = noise_inputs(min(max(n, FEWEST_INPUTS), MOST_INPUTS), channels=channels, size=size)
    n = min(int(MOST_FITTED_PRODUCTS // max(PASSES * Descent().steps * products, 1)), MOST_FITTED_INPUTS)
    if n < FEWEST_INPUTS:
        return noise
    order = torch.randperm(len(noise), generator=torch.Generator().manual_seed(1))
    try:
        fitted = fitted_inputs(network, noise[order[:n]])
    except Exception:  # whatever the user's own network raises: noise will do
        return noise
    return noise if fitted is None else fitted


def _probe(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> tuple[int, int]:
    """Smallest side that a convolution wider than 1 x 1 sees, and products per input; zeros if the network fails."""
    sides, products = [WANTED_MAP], 0

    def on_use(use: AnyUse) -> torch.Tensor | None:
        nonlocal products
        if not isinstance(use, Use):
            return None
        y = use.run()
        if use.geometry is not None and max(use.weight.shape[2:]) > 1:
            sides.append(min(use.x.shape[2:]))
        if not use.x.isfinite().all():
            sides.append(0)
        width = use.weight.shape[-2] if use.transposed else use.weight[0].numel()
        products += y.numel() // len(inputs) * width
        return y

    try:
        with torch.random.fork_rng(devices=[]), unfused(), intercepted(tensors, on_use):
            network(inputs)
    except Exception:  # whatever the user's own network raises: it does not take this size
        return 0, 0
    return min(sides), products
