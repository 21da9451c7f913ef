"""Predictions averaged over posterior draws, in bounded memory.

Inputs are processed in blocks of at most BLOCK_BYTES. Each draw is written into the network once per block. Draws run
one at a time, except for very few inputs: `vmap` over the weights turns convolutions into grouped convolutions, which
are slow on CPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbnn_compress.data.batches import Batch, read_batch, tensors_in
from gbnn_compress.predict.draws import Sampler, place, stacked, stacked_bytes
from gbnn_compress.predict.prediction import Prediction, at_temperature, average, joined
from gbnn_compress.predict.running import evaluating, probabilities
from gbnn_compress.predict.temperature import folded_temperature

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch

    from gbnn_compress.predict.forward import Forward
    from gbnn_compress.predict.running import AnyBatch

BLOCK_BYTES = 256_000_000
"""Largest size of a block of inputs, in bytes."""

STACK_BYTES = 256_000_000
"""Largest size of the weights of draws that run at once, in bytes."""

FEW_INPUTS = 2
"""Largest number of inputs for which draws run at once: `vmap` then saves more than grouped convolutions cost."""


def monte_carlo(
    source: Sampler,
    batches: Iterable[AnyBatch],
    *,
    samples: int,
    seed: int = 0,
    option: str = "--data",
    forward: Forward | None = None,
    positions: bool = False,
) -> Prediction:
    """Average a network's probabilities over posterior draws, and apply the temperature that the artifact holds.

    Args:
        source: The posterior and its network. The network holds the last draw afterwards.
        batches: Batches, or images float32 (B, channels, height, width) with labels int64 (B,) or None.
        samples: Number of draws. 0: the posterior mean.
        seed: Seed of the first draw; draw i has seed + i.
        option: The option that names the data, for messages.
        forward: How the network is run, and which output counts. Default: it is called with the inputs.
        positions: Whether outputs may have further axes, (B, C, ...); then each position counts as an input.

    Returns:
        The prediction for all inputs, on the CPU.

    Raises:
        ArchitectureError: The network fails on the images, or its outputs are no finite logits of two or more classes.
        DataError: Wrong number of channels, labels beyond the network's classes, or no batch.
    """
    seeds: list[int | None] = [seed + draw for draw in range(samples)] if samples else [None]
    made = (
        average(_draws(source, block, seeds, option=option, forward=forward, positions=positions))
        for block in _blocks(batches)
    )
    return at_temperature(joined(list(made)), folded_temperature(source.artifact))


def _blocks(batches: Iterable[AnyBatch]) -> Iterator[list[Batch]]:
    """Group batches into blocks of at most BLOCK_BYTES, or of one batch. Without batches, yield one empty block."""
    block: list[Batch] = []
    size = 0
    for given in batches:
        batch = given if isinstance(given, Batch) else read_batch(given)
        n_bytes = sum(tensor.nbytes for tensor in tensors_in(batch.inputs))
        if block and size + n_bytes > BLOCK_BYTES:
            yield block
            block, size = [], 0
        block.append(batch)
        size += n_bytes
    yield block


def _draws(
    source: Sampler,
    block: list[Batch],
    seeds: Sequence[int | None],
    *,
    option: str,
    forward: Forward | None,
    positions: bool,
) -> Iterator[torch.Tensor]:
    """Probabilities of each draw, float64 (N, C)."""
    at_once = _at_once(source, block, seeds) if forward is None or forward.is_plain else None
    if at_once is not None:
        yield from at_once
        return
    for seed in seeds:
        place(source, seed)
        yield probabilities(source.network, block, option=option, forward=forward, positions=positions)


def _at_once(source: Sampler, block: list[Batch], seeds: Sequence[int | None]) -> Iterable[torch.Tensor] | None:
    """The results of `_draws` with several draws at once; None if that is slower or not possible."""
    import torch

    drawn = [seed for seed in seeds if seed is not None]
    n_at_once = STACK_BYTES // max(1, stacked_bytes(source))
    if min(len(drawn), n_at_once) < 2 or not _suits(source, block):
        return None
    images = block[0].inputs
    chunks = [drawn[start : start + n_at_once] for start in range(0, len(drawn), n_at_once)]
    try:
        outputs = torch.cat([_side_by_side(source, images, chunk) for chunk in chunks])
    except Exception:  # `vmap` and the user's network may raise anything; one draw at a time works or says why not
        return None
    fits = outputs.ndim == 3 and outputs.shape[1] == len(images) and outputs.shape[2] >= 2
    fits = fits and bool(outputs.isfinite().all())
    return outputs.double().softmax(dim=2) if fits else None


def _suits(source: Sampler, block: list[Batch]) -> bool:
    """Whether several draws can run at once, and run faster then."""
    import torch

    few = len(block) == 1 and isinstance(block[0].inputs, torch.Tensor) and len(block[0].inputs) <= FEW_INPUTS
    # Recurrent layers read their weights from their own list, which `functional_call` does not replace.
    reached = not any(isinstance(module, torch.nn.RNNBase) for module in source.network.modules())
    return few and reached and block[0].targets is None and source.names is not None


def _side_by_side(source: Sampler, images: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Outputs of S draws with `vmap` over the weights, float32 (S, B, C), on the CPU."""
    import torch
    from torch.func import functional_call, vmap

    weights = stacked(source, seeds)
    inputs = images.to(next(iter(weights.values())).device)
    with evaluating(source.network), torch.inference_mode():
        outputs = vmap(lambda drawn: functional_call(source.network, drawn, (inputs,)))(weights)
    return outputs.float().cpu()
