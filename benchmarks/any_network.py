"""Networks outside image classification, data-free and calibrated: errors that their users measure.

    python benchmarks/any_network.py HARNESS.py crepe_tiny onet:16 minilm:8,12 -o table.md

HARNESS.py is described in `tasks.py`. Tasks also have `measure(reference, outputs)`, name -> figure.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tasks import checkpoint_path, open_harness

import gbnn_compress
from gbnn_compress.checkpoint.read import read_checkpoint

RATIOS = (8.0, 16.0)


def rows(harness: Any, name: str, ratios: tuple[float, ...]) -> Iterator[tuple[str, str, str, str, str]]:
    """One row of the table for each ratio, without and with inputs."""
    task, path = harness.TASKS[name](), checkpoint_path(harness, name)
    network, strict = task.net(), getattr(task, "strict", True)
    network.load_state_dict(read_checkpoint(path).tensors, strict=strict)
    reference = task.run(network)
    for ratio in ratios:
        for inputs in (False, True):
            options = {"data": task.calibration(), "forward": type(task).forward, "arch": network} if inputs else {}
            with tempfile.TemporaryDirectory() as folder:
                file, start = Path(folder) / "net.gbnn.safetensors", time.perf_counter()
                report = gbnn_compress.compress(path, target_ratio=ratio, file=file, **options)
                seconds = time.perf_counter() - start
                compressed = task.net()
                compressed.load_state_dict(gbnn_compress.load(file).state_dict(), strict=strict)
            found = task.measure(reference, task.run(compressed))
            said = ", ".join(f"{key} {value:.4g}" for key, value in found.items() if isinstance(value, float))
            kind = "calibrated" if inputs else "data-free"
            yield name, kind, f"{report['ratio']:.2f}x", said, f"{seconds:.0f} s"


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harness", type=Path)
    parser.add_argument("networks", nargs="+", metavar="NAME[:RATIO,RATIO]")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    harness = open_harness(arguments.harness)
    lines = ["| network | inputs | ratio | on other inputs | time |", "| --- | --- | --- | --- | --- |"]
    for text in arguments.networks:
        name, _, given = text.partition(":")
        ratios = tuple(map(float, given.split(","))) if given else RATIOS
        for row in rows(harness, name, ratios):
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
