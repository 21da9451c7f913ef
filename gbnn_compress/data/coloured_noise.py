"""Noise in which neighbouring pixels are alike, as in photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbnn_compress.parallel import single_thread

if TYPE_CHECKING:
    import torch

EXPONENTS = (1.0, 1.5)
"""Amplitudes fall with frequency f as f^-a; half of the inputs have each a. Photographs have a of about 1."""


def coloured(white: torch.Tensor, exponent: float) -> torch.Tensor:
    """White noise whose amplitudes are made to fall with frequency f as f^-exponent.

    Args:
        white: Floating (n, channels, height, width).
        exponent: a.

    Returns:
        The same shape and dtype, mean 0 and variance 1 over all.
    """
    import torch

    height, width = white.shape[2:]
    vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
    frequency = torch.sqrt(vertical**2 + horizontal**2).clamp_min(1 / max(height, width))
    single = white.float()
    with single_thread():  # the sums over all inputs decide the last digits
        filtered = torch.fft.irfft2(torch.fft.rfft2(single) / frequency**exponent, s=(height, width))
        return ((filtered - filtered.mean()) / filtered.std()).to(white.dtype)
