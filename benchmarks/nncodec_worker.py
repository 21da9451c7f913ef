"""NNCodec on one state dict; runs in NNCodec's own environment, which needs an older numpy than ours.

usage: python benchmarks/nncodec_worker.py IN.npz OUT_DIR SETTINGS

IN.npz holds the floating tensors by name. SETTINGS is JSON: keyword arguments of `nncodec.nnc.compress`, and, to fold
batch norms, `blocks` (convolution's tensor -> prefix of its norm) and `epsilon` (that of the norms). OUT_DIR gets
`bitstream.nnc`, `decoded.npz` (read back from the bitstream alone) and `result.json`: `seconds` to compress, and of the
processor `encode_seconds` and `decode_seconds`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]

FOLDED_EPSILON = 1e-5
"""What NNCodec takes every norm's epsilon to be when it folds."""

NORM_TYPES = {"weight": "bn.gamma", "bias": "bn.beta", "running_mean": "bn.mean", "running_var": "bn.var"}


def main(source: str, folder: str, settings: str) -> None:
    from nncodec import nnc

    with np.load(source) as file:
        tensors = {name: file[name] for name in file.files}
    options: dict[str, Any] = json.loads(settings)
    blocks: dict[str, str] = options.pop("blocks", {})
    epsilon: float = options.pop("epsilon", FOLDED_EPSILON)
    start, busy = time.perf_counter(), time.process_time()
    bitstream = nnc.compress(
        with_epsilon(tensors, blocks, epsilon),
        bitstream_path=None,
        return_bitstream=True,
        bnf=bool(blocks),
        block_id_and_param_type=block_types(blocks) if blocks else None,
        **options,
    )
    seconds, coded = time.perf_counter() - start, time.process_time()
    decoded = nnc.decompress(bitstream, reconstruct_bnf=bool(blocks), reconstruct_lsa=bool(blocks))
    decoded_at = time.process_time()
    out = Path(folder)
    (out / "bitstream.nnc").write_bytes(bitstream)
    np.savez(out / "decoded.npz", **unfolded(decoded, blocks, epsilon))
    (out / "result.json").write_text(
        json.dumps({"seconds": seconds, "encode_seconds": coded - busy, "decode_seconds": decoded_at - coded})
    )


def with_epsilon(tensors: Tensors, blocks: dict[str, str], epsilon: float) -> Tensors:
    """Variances that make up for the fixed epsilon, so that folding is exact for every network."""
    variances = {f"{norm}running_var" for norm in blocks.values()}
    return {
        name: value + np.float32(epsilon - FOLDED_EPSILON) if name in variances else value.copy()
        for name, value in tensors.items()
    }


def block_types(blocks: dict[str, str]) -> dict[str, dict[str, str]]:
    """Which tensors belong together, in NNCodec's words."""
    identifiers, types = {}, {}
    for weight, norm in blocks.items():
        members = {weight: "weight", **{f"{norm}{name}": kind for name, kind in NORM_TYPES.items()}}
        identifiers |= dict.fromkeys(members, norm)
        types |= members
    return {"block_identifier": identifiers, "parameter_type": types}


def unfolded(decoded: Tensors, blocks: dict[str, str], epsilon: float) -> Tensors:
    """A folded norm's shift under the norm's own names; its scale is in the weight already."""
    tensors = dict(decoded)
    for weight, norm in blocks.items():
        shift = tensors.pop(f"{weight}.bias")
        values = {"weight": 1, "bias": shift, "running_mean": 0, "running_var": 1 - epsilon}
        tensors |= {f"{norm}{name}": np.broadcast_to(np.float32(value), shift.shape) for name, value in values.items()}
    return tensors


if __name__ == "__main__":
    main(*sys.argv[1:])
