"""Uses of the network's own tensors, caught inside a forward pass whatever its modules look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gbnn_compress.calibration.uses import AnyUse, NormUse, Owners, read_use

aten = torch.ops.aten

_COMPOSITE = {
    getattr(aten, name)
    for name in (
        *("linear", "matmul", "einsum", "batch_norm", "lstm", "gru", "rnn_tanh", "rnn_relu", "embedding_bag"),
        *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("_convolution_mode", "tensordot", "inner"),
    )
}
"""Operations that torch makes of others, among them the products and convolutions that are looked for."""

OnUse = Callable[[AnyUse], torch.Tensor | None]
"""Returns the output of the operation, or None to run it as it is."""


@contextmanager
def intercepted(tensors: Mapping[str, torch.Tensor], on_use: OnUse) -> Iterator[None]:
    """Within this context, operations of this thread on known tensors go to `on_use`; no gradients are kept.

    Args:
        tensors: The network's own tensors by their names in the checkpoint.
        on_use: Called with each use. Operations that it calls itself are not caught.
    """
    with torch.no_grad(), _Interceptor(Owners(tensors), on_use):
        yield


@contextmanager
def unfused() -> Iterator[None]:
    """Within this context, transformers run layer by layer, in place of one fused operation that hides the layers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Interceptor(TorchDispatchMode):
    """Passes operations on known tensors on to a function."""

    def __init__(self, owners: Owners, on_use: OnUse) -> None:
        super().__init__()
        self._owners, self._on_use = owners, on_use

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation; the mode is off within this method."""
        if func is aten.mkldnn_rnn_layer.default:
            with self:
                return _lstm_in_steps(*args)
        if func.overloadpacket in _COMPOSITE:  # in inference mode, they come here whole
            with self:
                return func.decompose(*args, **(kwargs or {}))
        use = read_use(func, args, kwargs or {}, self._owners)
        output = None if use is None else self._on_use(use)
        if output is None:
            return func(*args, **(kwargs or {}))
        # The operation also returns the statistics of training, which are empty.
        return (output, output.new_empty(0), output.new_empty(0)) if isinstance(use, NormUse) else output


def _lstm_in_steps(
    x: torch.Tensor,
    w_input: torch.Tensor,
    w_hidden: torch.Tensor,
    b_input: torch.Tensor | None,
    b_hidden: torch.Tensor | None,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    reverse: bool,
    sizes: Any,
    mode: int,
    hidden_size: int,
    n_layers: int,
    has_biases: bool,
    *rest: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One layer and direction of an LSTM, (T, B, F) -> (T, B, H), as products (Hochreiter & Schmidhuber 1997).

    oneDNN computes it in one operation, which hides the products.
    """
    shape = hidden.shape  # (B, H), or (1, B, H) in inference mode
    hidden, cell = (each.reshape(-1, hidden_size) for each in (hidden, cell))
    b_input, b_hidden = (b_input, b_hidden) if has_biases else (None, None)
    gates, outputs = functional.linear(x, w_input, b_input), []
    for gate in reversed(gates.unbind()) if reverse else gates.unbind():
        i, f, g, o = (gate + functional.linear(hidden, w_hidden, b_hidden)).chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        outputs.append(hidden)
    states = torch.stack(outputs[::-1] if reverse else outputs)
    return states, hidden.reshape(shape), cell.reshape(shape), x.new_empty(0)
