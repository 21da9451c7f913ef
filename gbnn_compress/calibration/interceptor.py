"""Calls of layers with our weights, caught inside a network's forward pass whatever its modules look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

SAMPLES_PER_WEIGHT, FEWEST_SAMPLES = 16, 1024
"""A layer's covariance is estimated from so many input patches per weight of a filter, and no fewer than the second."""


@dataclass(frozen=True)
class Call:
    """One call of a linear or convolutional layer.

    Attributes:
        name: The weight's name in the checkpoint.
        run: Maps (input, weight, bias) to the layer's output.
        x: The input, batch first.
        weight: The parameter, (rows, ...).
        bias: The parameter or None.
        geometry: Stride, padding and dilation of a convolution as pairs, and groups; None for a linear layer.
    """

    name: str
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int] | None

    @property
    def groups(self) -> int:
        """Number of groups of filters; each group has its own inputs."""
        return 1 if self.geometry is None else self.geometry[3]


@dataclass(frozen=True)
class NormCall:
    """One call of a batch norm.

    Attributes:
        prefix: Prefix of the names of its vectors in the checkpoint.
        x: The input, (N, channels, ...).
        weight: gamma or None.
        bias: beta or None.
        mean: The running mean.
        variance: The running variance.
        eps: Added to the variance.
    """

    prefix: str
    x: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    mean: torch.Tensor
    variance: torch.Tensor
    eps: float

    def normalise(self, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """The batch norm's output with other statistics."""
        return functional.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)


class Interceptor(TorchFunctionMode):
    """Within this context, calls of known layers and batch norms go to `on_layer` and `on_norm`.

    Args:
        tensors: The network's own tensors by their names in the checkpoint.
        on_layer: Returns the layer's output.
        on_norm: Returns the batch norm's output.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        on_layer: Callable[[Call], torch.Tensor],
        on_norm: Callable[[NormCall], torch.Tensor],
    ) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._on_layer, self._on_norm = on_layer, on_norm

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function; the mode is off within this method."""
        call = self._call(func, args, kwargs or {})
        if call is None:
            return func(*args, **(kwargs or {}))
        return self._on_norm(call) if isinstance(call, NormCall) else self._on_layer(call)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | NormCall | None:
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is torch.conv2d:
            return self._convolution(*args, **kwargs)
        if func is functional.batch_norm:
            return self._norm(*args, **kwargs)
        return None

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Call | None:
        name = self._names.get(id(weight))
        return None if name is None else Call(name, functional.linear, input, weight, bias, None)

    def _convolution(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Call | None:
        name = self._names.get(id(weight))
        if name is None or padding == "same" or input.dim() != 4:
            return None

        def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
            return torch.conv2d(x, w, b, stride, padding, dilation, groups)

        pairs = (_pair(stride), _pair(0 if padding == "valid" else padding), _pair(dilation))
        return Call(name, run, input, weight, bias, (*pairs, groups))

    def _norm(
        self,
        input: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> NormCall | None:
        name = self._names.get(id(running_mean))
        if name is None or running_mean is None or running_var is None or not name.endswith("running_mean"):
            return None
        return NormCall(name.removesuffix("running_mean"), input, weight, bias, running_mean, running_var, eps)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def sampled_patches(call: Call, xs: list[torch.Tensor], *, seed: int) -> list[torch.Tensor]:
    """Input patches of filters at some of a layer's positions, the same positions for each input.

    Args:
        call: The layer.
        xs: Inputs of equal shape.
        seed: Seed of the choice of positions.

    Returns:
        (groups, n, d) for each input, of its dtype, with d the number of weights of a filter.
    """
    generator = torch.Generator().manual_seed(seed)
    width = call.weight[0].numel()
    wanted = max(FEWEST_SAMPLES, SAMPLES_PER_WEIGHT * width)
    if call.geometry is None:
        rows = [x.reshape(1, -1, width) for x in xs]
        chosen = _choose(rows[0].shape[1], wanted, generator)
        return [row[:, chosen] for row in rows]
    (stride, padding, dilation, groups), kernel = call.geometry, call.weight.shape[2:]
    n, channels, *size = xs[0].shape
    out = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    chosen = _choose(n * out[0] * out[1], wanted, generator)
    image, top, left = chosen // (out[0] * out[1]), chosen // out[1] % out[0] * stride[0], chosen % out[1] * stride[1]
    rows_ = top[:, None, None] + (torch.arange(kernel[0]) * dilation[0])[:, None]
    columns = left[:, None, None] + (torch.arange(kernel[1]) * dilation[1])[None, :]
    result = []
    for x in xs:
        padded = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        patches = padded.permute(0, 2, 3, 1)[image[:, None, None], rows_, columns]  # n, kh, kw, channels
        grouped = patches.reshape(len(chosen), *kernel, groups, channels // groups)
        result.append(grouped.permute(3, 0, 4, 1, 2).reshape(groups, len(chosen), width))
    return result


def _choose(total: int, wanted: int, generator: torch.Generator) -> torch.Tensor:
    """int64, sorted: all positions, or `wanted` random ones if there are more."""
    if total <= wanted:
        return torch.arange(total)
    return torch.randint(total, (wanted,), generator=generator).sort().values


def channel_moments(y: torch.Tensor, *, linear: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances of output channels, float64 (channels,); linear layers have channels last, others second."""
    axis = y.dim() - 1 if linear else 1
    others = [i for i in range(y.dim()) if i != axis]
    variance, mean = torch.var_mean(y.double() if y.numel() < 1 << 22 else y, dim=others, correction=0)
    return mean.double(), variance.double()
