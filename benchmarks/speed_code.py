"""Index maps to bits and back, with contexts and by peers, for `speed_jobs.py`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import median_processor_seconds, processor_seconds

MAPS = {"matrix": ((1536, 2048), 33, 0.02), "kernels": ((512, 512, 3, 3), 33, 0.02)}


def index_map(name: str) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Ids, shape and components' means: Laplace weights whose rows, columns and kernels differ in scale."""
    shape, size, width = MAPS[name]
    random = np.random.RandomState(7)
    taps = int(np.prod(shape[2:]))
    rows, columns = (np.exp(0.5 * random.normal(size=length)) for length in shape[:2])
    scale = width * rows[:, None] * columns * np.exp(0.3 * random.normal(size=shape[:2]))
    x = random.laplace(size=(*shape[:2], taps)) + 0.5 * random.normal(size=(*shape[:2], 1))
    means = np.linspace(-1, 1, size)
    ids = np.rint((scale[..., None] * x + 1) / (means[1] - means[0]))
    return np.clip(ids, 0, size - 1).astype(np.uint8).ravel(), shape, means


def code(which: str, name: str, *peer: str) -> dict[str, Any]:
    ids, shape, means = index_map(name)
    size_bytes, encode, decode = {"ours": contexts, "zstd": zstd, "nncodec": nncodec}[which](ids, shape, means, *peer)
    return {"symbols": len(ids), "bytes": size_bytes, "encode_seconds": encode, "decode_seconds": decode}


def contexts(ids: np.ndarray, shape: tuple[int, ...], means: np.ndarray) -> tuple[int, float, float]:
    from gbnn_compress.format.contexts import whole_values
    from gbnn_compress.format.symbols import decode_maps, encode_maps

    values = whole_values(means)
    tables, stream = encode_maps([ids], [shape], values)
    assert tables[0].rule is not None
    decoded: list[np.ndarray] = []

    def decode() -> None:
        decode_maps(stream, tables, [shape], values, consume=lambda _, part: decoded.append(part))

    encode_seconds = median_processor_seconds(lambda: encode_maps([ids], [shape], values))
    decode_seconds = median_processor_seconds(decode)
    assert np.array_equal(decoded[0], ids)
    return len(stream), encode_seconds, decode_seconds


def zstd(ids: np.ndarray, shape: tuple[int, ...], means: np.ndarray) -> tuple[int, float, float]:
    import zstandard

    plain = ids.tobytes()
    coder, decoder = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    packed = coder.compress(plain)
    encode = processor_seconds(lambda: coder.compress(plain))
    return len(packed), encode, median_processor_seconds(lambda: decoder.decompress(packed))


def nncodec(ids: np.ndarray, shape: tuple[int, ...], means: np.ndarray, python: str) -> tuple[int, float, float]:
    """The same integers as weights, quantised by NNCodec's own step; so its time holds the quantisation."""
    import peers

    qp = -16
    step = (4 + qp % 4) * 2.0 ** (qp // 4 - 2)
    tensor = ((ids.astype(np.float32) - len(means) // 2) * np.float32(step)).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/in.npz", weight=tensor)
        command = [python, str(peers.WORKER), f"{folder}/in.npz", folder, json.dumps({"qp": qp, "use_dq": False})]
        subprocess.run(command, check=True, stdout=sys.stderr)
        result = json.loads(Path(f"{folder}/result.json").read_text())
        with np.load(f"{folder}/decoded.npz") as decoded:
            assert np.allclose(decoded["weight"], tensor, atol=step / 4)
        return Path(f"{folder}/bitstream.nnc").stat().st_size, result["encode_seconds"], result["decode_seconds"]
