"""Million weights decoded per second: C, WebAssembly in Node.js and Chromium, Python, and NNCodec.

usage: python benchmarks/decoder.py [CHECKPOINT[=ARCH] ...] --cache DIR [--ratio 16] [--repeats 3] [--made]

Each checkpoint is compressed once and kept in the cache. Times go from the bytes of a file to all dense weights, and
are the least of several repeats (of NNCodec one): processor seconds, in Chromium seconds of the clock. C writes all
tensors into one buffer; Python also reads the file and computes its SHA-256. `--made` adds two made files of
5.8 million weights whose ids are coded by context, one of each format version. A second table adds the time to download
a file over slow links. ARCH, as `--arch` takes it, adds the size of the codebook in ONNX to it.

Chromium runs with the packages of examples/browser. NNCodec gets an environment of its own in the cache; its file is
the one whose size is nearest to ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "format"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "decoder"))

import numpy as np
from native import Library, build
from peers import WORKER, nncodec_python

import gbnn_compress
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.format.artifact import encode_artifact
from gbnn_compress.format.bank import round_bank
from gbnn_compress.types import Bank, IndexMap, TensorInfo

EXAMPLE = Path(__file__).parents[1] / "examples" / "browser"

NODE = """
const { readFileSync } = await import("node:fs");
const { decode } = await import(process.argv[1]);
for (const path of process.argv.slice(3)) {
  const bytes = readFileSync(path);
  let best = Infinity;
  for (let repeat = 0; repeat <= Number(process.argv[2]); repeat++) {
    const start = process.cpuUsage();
    await decode(bytes);
    const { user, system } = process.cpuUsage(start);
    if (repeat > 0) best = Math.min(best, (user + system) / 1e6);
  }
  console.log(best);
}
"""

CHROMIUM = """
const { readFileSync } = await import("node:fs");
const { createRequire } = await import("node:module");
const [executablePath, example, index, repeats, ...paths] = process.argv.slice(1);
const { chromium } = createRequire(example)("playwright-core");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage();
for (const path of paths) {
  const [text, file] = [readFileSync(index, "utf8"), readFileSync(path).toString("base64")];
  console.log(await page.evaluate(async ([text, file, repeats]) => {
    const { decode } = await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
    let best = Infinity;
    for (let repeat = 0; repeat <= repeats; repeat++) {
      const start = performance.now();
      await decode(bytes);
      if (repeat > 0) best = Math.min(best, performance.now() - start);
    }
    return best / 1e3;
  }, [text, file, Number(repeats)]));
}
await browser.close();
"""

PYTHON = """
import sys, time
from pathlib import Path
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict.rebuild import rebuild
for path in sys.argv[2:]:
    best = float("inf")
    for repeat in range(int(sys.argv[1]) + 1):
        start = time.process_time()
        rebuild(read_artifact(Path(path)))
        best = min(best, time.process_time() - start) if repeat else best
    print(best)
"""

LINKS = (1, 10, 100)
"""Megabits per second."""

FIRST_QP, QP_PER_BIT, PROBES = -18, 4, 3
"""Of NNCodec: four steps of QP halve the precision, which takes about one bit from each weight."""


@dataclass(frozen=True)
class Network:
    """An artifact and what it is compared with.

    Attributes:
        artifact: The file.
        checkpoint: What it was made from; None for a made file.
        arch: As `--arch` takes it; None where the architecture is not known.
    """

    artifact: Path
    checkpoint: Path | None = None
    arch: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its suffixes."""
        return self.artifact.name.removesuffix(".gbnn.safetensors")


def main() -> None:
    options = parsed()
    networks = [compressed(options, given) for given in options.checkpoints]
    with tempfile.TemporaryDirectory() as folder:
        networks += [Network(path) for path in made(Path(folder))] if options.made else []
        paths = [str(network.artifact) for network in networks]
        library, package = Library(build("build/libgbnn.so")), str(build("dist/index.mjs"))
        repeats = str(options.repeats)
        node = timed(["node", "--input-type=module", "-e", NODE, package, repeats, *paths])
        browser = in_chromium(package, repeats, paths)
        python = timed([sys.executable, "-c", PYTHON, repeats, *paths])
        print("| file | kB | million weights | C | Node.js | Chromium | Python | NNCodec |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        native, weights = {}, {}
        for network, *others in zip(networks, node, browser, python, strict=True):
            data = network.artifact.read_bytes()
            weights[network] = library.skim(data)
            native[network] = least(partial(library.skim, data), options.repeats)
            peer = nncodec_seconds(options, network) if network.checkpoint else None
            speeds = (speed(weights[network], seconds) for seconds in (native[network], *others, peer))
            size = f"{len(data) / 1e3:.1f} | {weights[network] / 1e6:.2f}"
            print(f"| {network.name} | {size} | {' | '.join(speeds)} |", flush=True)
        print(f"\n| | kB | {' | '.join(f'{link} Mbit/s' for link in LINKS)} |\n| --- | --- {'| --- ' * len(LINKS)}|")
        for network, seconds in zip(networks, browser, strict=True):
            print_downloads(options, network, weights[network], native[network], seconds)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT[=ARCH]")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--made", action="store_true")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    return options


def compressed(options: argparse.Namespace, given: str) -> Network:
    """The artifact of a checkpoint, data-free."""
    name, _, arch = given.partition("=")
    digest = hashlib.sha256(str(Path(name).resolve()).encode()).hexdigest()[:6]
    path = options.cache / f"{Path(name).stem}-{digest}-{options.ratio:g}x.gbnn.safetensors"
    if not path.exists():
        gbnn_compress.compress(name, target_ratio=options.ratio, output=path, arch=arch or None, progress=print)
    return Network(path, Path(name), arch or None)


def speed(weights: int, seconds: float | None) -> str:
    return "–" if seconds is None else f"{weights / seconds / 1e6:.1f}"


def least(run: Callable[[], object], repeats: int) -> float:
    """The least processor seconds of several runs; the first of all is not counted."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


def timed(command: list[str]) -> list[float]:
    """The seconds that a command prints, one line for each file."""
    return [
        float(line) for line in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    ]


def in_chromium(package: str, repeats: str, paths: list[str]) -> list[float | None]:
    browser = shutil.which("chromium")
    if browser is None or not (EXAMPLE / "node_modules").exists():
        print("Chromium is left out: it needs `chromium` and `npm ci --prefix examples/browser`", file=sys.stderr)
        return [None] * len(paths)
    files = [browser, str(EXAMPLE / "package.json"), package, repeats, *paths]
    return [*timed(["node", "--input-type=module", "-e", CHROMIUM, *files])]


def nncodec_seconds(options: argparse.Namespace, network: Network) -> float:
    """Processor seconds of NNCodec's decoder for the checkpoint in a file about as large as ours."""
    assert network.checkpoint is not None
    kept = options.cache / f"{network.name}-nncodec.json"
    if not kept.exists():
        tensors = read_checkpoint(network.checkpoint).tensors
        arrays = {name: value.float().numpy() for name, value in tensors.items() if value.is_floating_point()}
        np.savez(options.cache / "in.npz", **arrays)
        wanted, weights = network.artifact.stat().st_size, sum(map(np.size, arrays.values()))
        found, qp = [], FIRST_QP
        for _ in range(PROBES):
            found.append(with_nncodec(options.cache, qp))
            excess = 8 * (found[-1]["bytes"] - wanted) / weights
            qp += round(QP_PER_BIT * excess)
            if any(each["qp"] == qp for each in found):
                break
        nearest = min(found, key=lambda each: abs(each["bytes"] - wanted))
        kept.write_text(json.dumps(nearest))
    result = json.loads(kept.read_text())
    print(f"{kept.stem}: {result['bytes'] / 1e3:.1f} kB at QP {result['qp']}", file=sys.stderr)
    return float(result["decode_seconds"])


def with_nncodec(cache: Path, qp: int) -> dict[str, Any]:
    settings = json.dumps({"qp": qp, "opt_qp": True, "nonweight_qp": -44})
    command = [nncodec_python(cache), WORKER, cache / "in.npz", cache, settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((cache / "result.json").read_text())
    return {**found, "qp": qp, "bytes": (cache / "bitstream.nnc").stat().st_size}


def print_downloads(
    options: argparse.Namespace, network: Network, weights: int, native: float, browser: float | None
) -> None:
    """Rows of the table of downloads: seconds to download and decode each kind of file."""
    name = network.name
    size = network.artifact.stat().st_size
    rows = [(f"{name}, artifact in C", size, native)]
    rows += [] if browser is None else [(f"{name}, artifact in Chromium", size, browser)]
    if network.arch is not None:
        graph = options.cache / f"{name}-codebook.onnx"
        if not graph.exists():
            gbnn_compress.export_onnx(network.artifact, graph, arch=network.arch, weights="codebook")
        rows.append((f"{name}, codebook in ONNX", graph.stat().st_size, 0.0))
    rows += [(f"{name}, dense float16", 2 * weights, 0.0), (f"{name}, dense float32", 4 * weights, 0.0)]
    for title, size, seconds in rows:
        times = (f"{8 * size / link / 1e6 + seconds:.2f}" for link in LINKS)
        print(f"| {title} | {size / 1e3:.0f} | {' | '.join(times)} |", flush=True)


def made(folder: Path) -> list[Path]:
    """Files of convolutions and a matrix, at about 1.9 bits per weight with a trellis and 2.9 without."""
    from codec_facts import FACTS
    from trellis_ids import trellis_ids

    shapes = [(512, 512, 3, 3), (256, 1024, 1, 1), (512, 256, 3, 3), (1000, 2048)]
    components, paths = 61, []
    ids = [
        trellis_ids(shape, components=components, step=0.9, seed=index).astype(np.uint8)
        for index, shape in enumerate(shapes)
    ]
    for version in (1, 2):
        data = encode_artifact(
            tensors=[TensorInfo(f"{index}.weight", shape, "float32", "shared") for index, shape in enumerate(shapes)],
            bank=round_bank(Bank(np.linspace(-1, 1, components), np.zeros(components)), exponent=-12),
            exponent=-12,
            scales=np.ones(len(shapes)),
            relative_rmse=np.zeros(len(shapes)),
            maps=[
                IndexMap(f"{index}.weight", part, np.empty(0, np.uint32), version == 2)
                for index, part in enumerate(ids)
            ],
            vectors=[],
            raw=[],
            facts=FACTS,
        )
        paths.append(folder / f"made, version {version}.gbnn.safetensors")
        paths[-1].write_bytes(data)
    return paths


if __name__ == "__main__":
    main()
