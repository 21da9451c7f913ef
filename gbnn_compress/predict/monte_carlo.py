"""Predictions averaged over posterior draws, within a bound of memory.

Inputs come in blocks of at most BLOCK_BYTES; each draw is put into the network once a block, so that it costs the bank
and a gather beside the forward passes. Draws run one at a time, save for few inputs: `vmap` over the weights turns
convolutions into grouped ones, which CPUs are slow at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbnn_compress.predict.draws import Sampler, place, stacked, stacked_bytes
from gbnn_compress.predict.prediction import Prediction, at_temperature, average, joined
from gbnn_compress.predict.running import evaluating, probabilities
from gbnn_compress.predict.temperature import folded_temperature

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch

    from gbnn_compress.predict.running import Batch

BLOCK_BYTES = 256_000_000
"""Inputs held at once."""

STACK_BYTES = 256_000_000
"""Weights of draws that run at once."""

FEW_INPUTS = 2
"""Up to so many inputs, draws run at once: `vmap` then saves more than grouped convolutions cost."""


def monte_carlo(
    source: Sampler, batches: Iterable[Batch], *, samples: int, seed: int = 0, option: str = "--data"
) -> Prediction:
    """A network's prediction over posterior draws, at the temperature that the artifact holds.

    Args:
        source: The posterior in its network, which holds one of the draws afterwards.
        batches: As for `logits`.
        samples: Draws; 0 for the posterior mean alone.
        seed: Of the first draw; the others follow it.
        option: The option that the batches come from, for messages.

    Returns:
        Of all inputs, on the CPU.

    Raises:
        ArchitectureError, DataError: As `logits`.
    """
    seeds: list[int | None] = [seed + draw for draw in range(samples)] if samples else [None]
    parts = [average(_draws(source, block, seeds, option=option)) for block in _blocks(batches)]
    return at_temperature(joined(parts), folded_temperature(source.artifact))


def _blocks(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Batches together up to BLOCK_BYTES, at least one batch; where there is none, one empty block."""
    block: list[Batch] = []
    size = 0
    for images, labels in batches:
        if block and size + images.nbytes > BLOCK_BYTES:
            yield block
            block, size = [], 0
        block.append((images, labels))
        size += images.nbytes
    yield block


def _draws(source: Sampler, block: list[Batch], seeds: Sequence[int | None], *, option: str) -> Iterator[torch.Tensor]:
    """float64 (N, C), probabilities of each draw."""
    at_once = _at_once(source, block, seeds)
    if at_once is not None:
        yield from at_once
        return
    for seed in seeds:
        place(source, seed)
        yield probabilities(source.network, block, option=option)


def _at_once(source: Sampler, block: list[Batch], seeds: Sequence[int | None]) -> Iterable[torch.Tensor] | None:
    """What `_draws` gives, with draws side by side; None where that does not pay or does not work."""
    import torch

    drawn = [seed for seed in seeds if seed is not None]
    n_at_once = STACK_BYTES // max(1, stacked_bytes(source))
    if min(len(drawn), n_at_once) < 2 or not _suits(source, block):
        return None
    chunks = [drawn[start : start + n_at_once] for start in range(0, len(drawn), n_at_once)]
    try:
        outputs = torch.cat([_side_by_side(source, block[0][0], chunk) for chunk in chunks])
    except Exception:  # whatever `vmap` or the user's network raises: one at a time it works, or says why not
        return None
    fits = outputs.ndim == 3 and outputs.shape[1] == len(block[0][0]) and outputs.shape[2] >= 2
    fits = fits and bool(outputs.isfinite().all())
    return outputs.double().softmax(dim=2) if fits else None


def _suits(source: Sampler, block: list[Batch]) -> bool:
    """Whether draws may run side by side, and are faster so."""
    import torch

    few = len(block) == 1 and len(block[0][0]) <= FEW_INPUTS
    # Recurrent layers keep their weights in a list of their own, which `functional_call` does not reach.
    reached = not any(isinstance(module, torch.nn.RNNBase) for module in source.network.modules())
    return few and reached and block[0][1] is None and source.names is not None


def _side_by_side(source: Sampler, images: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """float32 (S, B, C) on the CPU: the outputs of S draws, with `vmap` over the weights."""
    import torch
    from torch.func import functional_call, vmap

    weights = stacked(source, seeds)
    inputs = images.to(next(iter(weights.values())).device)
    with evaluating(source.network), torch.inference_mode():
        outputs = vmap(lambda drawn: functional_call(source.network, drawn, (inputs,)))(weights)
    return outputs.float().cpu()
