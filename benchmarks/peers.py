"""Other codecs on the same state dicts: NNCodec, k-means palettes and rounding to integers; whole files count."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

Tensors = Mapping[str, np.ndarray]

NNCODEC_VERSION = "2.1.3"
WORKER = Path(__file__).with_name("nncodec_worker.py")
ZSTD_LEVEL = 19
LLOYD_ROUNDS = 300


@dataclass(frozen=True)
class Coded:
    """What a codec made of a state dict.

    Attributes:
        size_bytes: The whole file.
        tensors: float32, decoded from that file alone.
        seconds: To compress, without imports and decoding.
    """

    size_bytes: int
    tensors: Tensors
    seconds: float


def palettise(tensors: Tensors, *, bits: int) -> bytes:
    """Each tensor of two or more dimensions as ids of 2^bits k-means centroids; others float16."""
    floats, ids = [], []
    for value in tensors.values():
        if value.ndim < 2:
            floats.append(_half(value))
            continue
        centroids = _half(kmeans(value.ravel(), n_centroids=2**bits))
        floats.append(centroids)
        ids.append(nearest(value.ravel(), centroids.astype(np.float32)))
    return _packed("palette", tensors, bits=bits, floats=floats, ids=ids)


def round_to_integers(tensors: Tensors, *, bits: int) -> bytes:
    """Each tensor of two or more dimensions as signed integers times a scale by output channel; others float16."""
    floats, ids, largest = [], [], 2 ** (bits - 1) - 1
    for value in tensors.values():
        if value.ndim < 2:
            floats.append(_half(value))
            continue
        rows = value.reshape(len(value), -1)
        scales = _half(np.abs(rows).max(axis=1) / largest)
        floats.append(scales)
        steps = np.where(scales > 0, scales, 1).astype(np.float32)[:, None]
        ids.append((np.clip(np.rint(rows / steps), -largest, largest) + largest).astype(np.uint8).ravel())
    return _packed("integers", tensors, bits=bits, floats=floats, ids=ids)


def unpack(file: bytes) -> dict[str, np.ndarray]:
    """The float32 tensors of a palette or integer file."""
    plain = zstandard.ZstdDecompressor().decompress(file)
    (header_bytes,) = struct.unpack_from("<I", plain)
    header = json.loads(plain[4 : 4 + header_bytes])
    bits, stop = header["bits"], 4 + header_bytes + 2 * header["floats"]
    floats = np.frombuffer(plain[4 + header_bytes : stop], np.float16).astype(np.float32)
    ids = np.frombuffer(plain[stop:], np.uint8)
    if header["bit_packed"]:
        count = sum(int(np.prod(shape)) for shape in header["shapes"].values() if len(shape) > 1)
        ids = np.packbits(np.unpackbits(ids)[: count * bits].reshape(count, bits), axis=1).ravel() >> (8 - bits)
    tensors = {}
    for name, shape in header["shapes"].items():
        size, palette = int(np.prod(shape)), header["kind"] == "palette"
        n_floats = size if len(shape) < 2 else 2**bits if palette else shape[0]
        values, floats = floats[:n_floats], floats[n_floats:]
        if len(shape) > 1:
            own, ids = ids[:size], ids[size:]
            integers = own.reshape(shape[0], -1).astype(np.float32) - (2 ** (bits - 1) - 1)
            values = values[own] if palette else integers * values[:, None]
        tensors[name] = values.reshape(shape)
    return tensors


def _packed(kind: str, tensors: Tensors, *, bits: int, floats: list[np.ndarray], ids: list[np.ndarray]) -> bytes:
    """One zstd frame; ids packed to `bits` or a byte each, whichever comes out shorter."""
    together = np.concatenate(ids)
    tight = np.packbits(np.unpackbits(together[:, None], axis=1)[:, 8 - bits :])
    header = {"kind": kind, "bits": bits, "floats": sum(map(len, floats))}
    shapes = {name: value.shape for name, value in tensors.items()}
    files = []
    for bit_packed, body in ((True, tight), (False, together)):
        text = json.dumps({**header, "bit_packed": bit_packed, "shapes": shapes}, separators=(",", ":")).encode()
        parts = [struct.pack("<I", len(text)), text, *(part.tobytes() for part in floats), body.tobytes()]
        files.append(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(b"".join(parts)))
    return min(files, key=len)


def kmeans(values: np.ndarray, *, n_centroids: int) -> np.ndarray:
    """Centroids of one-dimensional k-means, ascending: Lloyd's rounds from two starts, the better end.

    Args:
        values: float32 (N,).
        n_centroids: At least 1; several may be equal where there are fewer distinct values.

    Returns:
        float64 (n_centroids,).
    """
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    starts = (
        np.quantile(ordered, (np.arange(n_centroids) + 0.5) / n_centroids),
        np.linspace(ordered[0], ordered[-1], n_centroids),
    )
    ends = [_lloyd(ordered, sums, start) for start in starts]
    return min(ends, key=lambda centroids: np.sum((ordered - centroids[nearest(ordered, centroids)]) ** 2))


def _lloyd(ordered: np.ndarray, sums: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    for _ in range(LLOYD_ROUNDS):
        inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], inner, [len(ordered)]])
        counts = np.diff(edges)
        moved = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """uint8 (N,), index of the nearest of ascending centroids (at most 256)."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values).astype(np.uint8)


def _half(values: np.ndarray) -> np.ndarray:
    half = values.astype(np.float16).ravel()
    assert np.isfinite(half).all()
    return half


def timed(encode: Callable[..., bytes], tensors: Tensors, **options: Any) -> Coded:
    """Run `palettise` or `round_to_integers`, and decode its file."""
    start = time.perf_counter()
    file = encode(tensors, **options)
    seconds = time.perf_counter() - start
    return Coded(len(file), unpack(file), seconds)


def nncodec(tensors: Tensors, *, python: Path, epsilon: float, fold: bool, **options: Any) -> Coded:
    """NNCodec in its own environment.

    Args:
        tensors: float32, in the network's order.
        python: Interpreter with NNCodec.
        epsilon: Of the batch norms.
        fold: Whether batch norms are folded.
        options: Of `nncodec.nnc.compress`.
    """
    if fold:
        options |= {"blocks": norm_blocks(tensors), "epsilon": epsilon}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "in.npz", **tensors)
        command = [str(python), str(WORKER), str(folder / "in.npz"), name, json.dumps(options)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"NNCodec failed with {options}:\n{run.stderr[-2000:]}")
        with np.load(folder / "decoded.npz") as file:
            decoded = {key: file[key].reshape(tensors[key].shape) for key in file.files}
        seconds = json.loads((folder / "result.json").read_text())["seconds"]
        return Coded((folder / "bitstream.nnc").stat().st_size, decoded, seconds)


def norm_blocks(tensors: Tensors) -> dict[str, str]:
    """Convolution's tensor -> prefix of the batch norm behind it: the last weight before the norm, in stored order."""
    blocks, weight = {}, ""
    for name, value in tensors.items():
        if value.ndim > 1:
            weight = name
        elif name.endswith("running_var"):
            assert len(tensors[weight]) == len(value), f"`{name}` does not follow its convolution"
            blocks[weight] = name.removesuffix("running_var")
    return blocks


def nncodec_python(folder: Path) -> Path:
    """The interpreter of an environment with NNCodec; made on first use (it builds an extension: a C++ compiler)."""
    environment = folder / f"nncodec-{NNCODEC_VERSION}"
    python, done = environment / "bin" / "python", environment / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", f"nncodec=={NNCODEC_VERSION}"], check=True)
        done.touch()
    return python
