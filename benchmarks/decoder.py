"""Seconds to decode artifacts: the C library, the npm package in Node.js, and Python, side by side.

usage: python benchmarks/decoder.py [ARTIFACT ...] [--repeats 5] [--html FILE] [--made]

Times are processor seconds, the least of several repeats, from the bytes of the file to all dense weights. `--made`
adds two made files of 5.8 million weights whose ids are coded by context, one of each format version. `--html` writes a
page that measures the same in a browser, by the clock; it needs no server.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "format"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "decoder"))

from native import Library, build

NODE = """
const { readFileSync } = await import("node:fs");
const { decode } = await import(process.argv[1]);
for (const path of process.argv.slice(3)) {
  const bytes = readFileSync(path);
  let best = Infinity;
  for (let repeat = 0; repeat < Number(process.argv[2]); repeat++) {
    const start = process.cpuUsage();
    await decode(bytes);
    const { user, system } = process.cpuUsage(start);
    best = Math.min(best, (user + system) / 1e6);
  }
  console.log(best);
}
"""

PAGE = """<!doctype html><title>gbnn-decoder</title><pre id="out"></pre><script type="module">
const MODULE = "@MODULE@", FILES = @FILES@;
const { decode } = await import(URL.createObjectURL(new Blob([atob(MODULE)], { type: "text/javascript" })));
for (const [name, data, weights] of FILES) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  let best = Infinity;
  for (let repeat = 0; repeat < 5; repeat++) {
    const start = performance.now();
    await decode(bytes);
    best = Math.min(best, performance.now() - start);
  }
  out.textContent += `${name}: ${(weights / best / 1e3).toFixed(1)} million weights per second\\n`;
}
out.textContent += "done";
</script>"""


def main() -> None:
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        paths = [*arguments.artifacts, *(made(Path(folder)) if arguments.made else [])]
        library, package = Library(build("build/libgbnn.so")), build("dist/index.mjs")
        node = in_node(package, paths, arguments.repeats)
        print("| file | kB | million weights | C | Node.js | Python |")
        print("| --- | --- | --- | --- | --- | --- |")
        pages = []
        for path, seconds in zip(paths, node, strict=True):
            data = path.read_bytes()
            weights = library.skim(data)
            native = least(lambda data=data: library.skim(data), arguments.repeats)
            python = least(lambda path=path: rebuilt(path), arguments.repeats)
            speeds = " | ".join(f"{weights / each / 1e6:.1f}" for each in (native, seconds, python))
            print(f"| {path.name} | {len(data) / 1e3:.1f} | {weights / 1e6:.2f} | {speeds} |", flush=True)
            pages.append([path.name, base64.b64encode(data).decode(), weights])
    if arguments.html:
        module = base64.b64encode(package.read_bytes()).decode()
        arguments.html.write_text(PAGE.replace("@MODULE@", module).replace("@FILES@", json.dumps(pages)))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="*")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--html", type=Path)
    parser.add_argument("--made", action="store_true")
    return parser.parse_args()


def least(run: Callable[[], object], repeats: int) -> float:
    """The least processor seconds of several runs; the first of all is not counted."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


def in_node(package: Path, paths: list[Path], repeats: int) -> list[float]:
    command = ["node", "--input-type=module", "-e", NODE, str(package), str(repeats), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def rebuilt(path: Path) -> object:
    from gbnn_compress.format.artifact import read_artifact
    from gbnn_compress.predict.rebuild import rebuild

    return rebuild(read_artifact(path))


def made(folder: Path) -> list[Path]:
    """Files of convolutions and a matrix, at about 1.9 bits per weight with a trellis and 2.9 without."""
    import numpy as np
    from codec_facts import FACTS
    from trellis_ids import trellis_ids

    from gbnn_compress.format.artifact import encode_artifact
    from gbnn_compress.format.bank import round_bank
    from gbnn_compress.types import Bank, IndexMap, TensorInfo

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
        paths.append(folder / f"made, version {version}")
        paths[-1].write_bytes(data)
    return paths


if __name__ == "__main__":
    main()
