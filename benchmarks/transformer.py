"""Time and memory on synthetic language models in half precision, 10 million to a billion weights; a Markdown table.

usage: python benchmarks/transformer.py [SIZE ...]      (10m, 100m, 1b; default: all, which takes 4 GB of disk)

Weights have heavy tails, and another scale in each row, each column and each kind of matrix, as trained ones do. Each
figure is of a whole process, imports and all: `gbnn-compress compress` at 50x, then `gbnn-compress decompress`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIZES = {"10m": (5_000, 256, 11), "100m": (10_000, 768, 13), "1b": (50_257, 2048, 18)}
"""Tokens, width and blocks."""

ROWS = 1024
"""Of a matrix, drawn at once."""

RATIO = 50


def main() -> None:
    columns = ("size", "weights", "command", "ratio", "seconds", "processor seconds", "peak memory")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for size in sys.argv[1:] or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, artifact = Path(folder, "model.safetensors"), Path(folder, "model.gbnn.safetensors")
            make(size, checkpoint)
            count = sum(int(np.prod(shape)) for _, shape in tensors(*SIZES[size]))
            for name, words in (
                ("compress", [checkpoint, "--target-ratio", RATIO, "-o", artifact]),
                ("decompress", [artifact, "-o", Path(folder, "dense.safetensors")]),
            ):
                seconds, processor, peak = measured([name, *map(str, words), "-q"])
                ratio = checkpoint.stat().st_size / artifact.stat().st_size
                cells = [size, f"{count / 1e6:.1f} M", name, f"{ratio:.2f}x"]
                cells += [f"{seconds:.1f}", f"{processor:.1f}", f"{peak / 1e6:.0f} MB"]
                print(f"| {' | '.join(cells)} |", flush=True)


def measured(words: list[str]) -> tuple[float, float, int]:
    """Seconds, processor seconds and peak bytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "gbnn_compress_cli.main", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"{words[0]} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def make(size: str, path: Path) -> None:
    shapes = dict(tensors(*SIZES[size]))
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(header(shapes))
        for name, shape in shapes.items():
            for part in values(name, shape, generator):
                file.write(part.astype("<f2").tobytes())


def tensors(tokens: int, width: int, blocks: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "wte.weight", (tokens, width)
    for block in range(blocks):
        for name, rows, columns in (
            ("attention.qkv", 3 * width, width),
            ("attention.out", width, width),
            ("mlp.up", 4 * width, width),
            ("mlp.down", width, 4 * width),
        ):
            yield f"blocks.{block}.{name}.weight", (rows, columns)
            yield f"blocks.{block}.{name}.bias", (rows,)
        for name in ("norm_1", "norm_2"):
            yield f"blocks.{block}.{name}.weight", (width,)
            yield f"blocks.{block}.{name}.bias", (width,)
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)


def header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries, start = {}, 0
    for name, shape in shapes.items():
        stop = start + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def values(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Iterator[np.ndarray]:
    """float32, some rows at a time."""
    if len(shape) == 1:
        is_gain = "norm" in name and name.endswith("weight")
        yield is_gain + 0.1 * generator.standard_normal(shape, dtype=np.float32)
        return
    deviation = 0.02 * float(np.exp(0.3 * generator.standard_normal()))
    columns = np.exp(0.3 * generator.standard_normal(shape[1], dtype=np.float32))
    for start in range(0, shape[0], ROWS):
        part = generator.standard_normal((min(ROWS, shape[0] - start), shape[1]), dtype=np.float32)
        rows = np.exp(0.4 * generator.standard_normal((len(part), 1), dtype=np.float32))
        # A kurtosis of 6.6, about that of Student's t with 6 degrees of freedom.
        yield part * (1 + 0.1 * part**2) * deviation * rows * columns


if __name__ == "__main__":
    main()
