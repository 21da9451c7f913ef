"""What each part of the method brings: every part switched, at equal bytes and at equal agreement.

usage: python benchmarks/ablation.py --checkpoint FILE --data SPEC --cache FILE [--calibration SPEC] [--jobs N]
           [--variants NAME ...] [RATIO ...]

Compresses ResNet-20 with each variant at each ratio, data-free and (with `--calibration`) with inputs, and prints one
Markdown table. Every result is a line of the cache at once, so that a run that was stopped goes on where it was.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from uniform_grid import fit_grid

import gbnn_compress
from gbnn_compress.calibration import calibrated
from gbnn_compress.data.datasets import load_data
from gbnn_compress.pipeline import preparing
from gbnn_compress.predict import metrics
from gbnn_compress.predict.bench import Bench, open_bench
from gbnn_compress.predict.models import dense, read_model
from gbnn_compress.rate.paper import PaperRules
from gbnn_compress.target.prepared import prepare

ARCHITECTURE = f"{Path(__file__).parent / 'networks.py'}:resnet20"

VARIANTS = {
    "default": {},
    "uniform grid, refined": {},
    "merging by W2 alone": {"merging": "wasserstein"},
    "outliers by magnitude": {"outliers": "magnitude"},
    "no contexts": {},
    "all blends": {"blending": "all"},
    "uniform grid": {"refinements": 1},
    "1-D mixture": {"log_sigma_weight": 1e-6},
    "feedback of one path": {},
    "no feedback": {"feedback": False},
    "no feedback, sigma as magnitude": {"feedback": False},
    "recipe `paper`": {"recipe": "paper"},
    "sigma by variational inference": {"posterior": "variational"},
    "allocation by norms": {"allocation": "norms"},
    "no feedback, sigma by variational inference": {"feedback": False, "posterior": "variational"},
}
"""Name -> what differs from the default recipe."""

PREPARED_WITH = {
    "uniform grid, refined": {"fit": fit_grid},
    "uniform grid": {"fit": fit_grid},
    "no contexts": {"contexts": False},
    "no feedback, sigma as magnitude": {"paper": PaperRules(magnitude_sigma=True)},
}
"""Name -> arguments of `prepare` that no recipe sets."""

MOST_PATHS = {"feedback of one path": 1}
"""Name -> another bound on the paths of a filter's search, which no recipe sets."""

ALONE = ("no feedback", "no feedback, sigma as magnitude", "recipe `paper`")
"""These look at no inputs."""

ON_INPUTS = tuple(variant for variant, settings in VARIANTS.items() if {"posterior", "allocation"} & settings.keys())
"""These need some."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ratios", nargs="*", type=float, default=[12.0, 16.0, 10.0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration")
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    cases = [
        {"inputs": inputs, "variant": variant, "ratio": ratio}
        for ratio in options.ratios
        for inputs in ([None, options.calibration] if options.calibration else [None])
        for variant in options.variants
        if variant not in (ON_INPUTS if inputs is None else ALONE)
    ]
    results = read(options.cache)
    missing = [case for case in cases if key(case) not in results]
    missing.sort(key=lambda case: case["variant"] != "default")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool, options.cache.open("a") as cache:
        for future in as_completed([pool.submit(measure, options, case) for case in missing]):
            result = future.result()
            results[key(result)] = result
            print(json.dumps(result), file=cache, flush=True)
    print(table([results[key(case)] for case in cases]))


def read(cache: Path) -> dict[str, dict]:
    lines = cache.read_text().splitlines() if cache.exists() else []
    return {key(result): result for result in map(json.loads, lines)}


def key(case: dict) -> str:
    return json.dumps([case["inputs"], case["variant"], VARIANTS[case["variant"]], case["ratio"]])


def measure(options: argparse.Namespace, case: dict) -> dict:
    """A case with the bytes of its file and what the file does on the data."""
    settings = dict(VARIANTS[case["variant"]])
    paths = MOST_PATHS.get(case["variant"], calibrated.MOST_PATHS)
    prepared = functools.partial(prepare, **PREPARED_WITH.get(case["variant"], {}))
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(calibrated, "MOST_PATHS", paths),
        patch.object(preparing, "prepare", prepared),
    ):
        path = Path(folder) / "out.gbnn.safetensors"
        report = gbnn_compress.compress(
            options.checkpoint,
            target_ratio=case["ratio"],
            output=path,
            arch=ARCHITECTURE,
            recipe=settings.pop("recipe", "default"),
            settings=settings,
            data=case["inputs"],
        )
        artifact = read_model(path)
    bench, before = original(options.checkpoint, options.data, options.limit)
    after = bench.run(dense(artifact))
    return {
        **case,
        "bytes": report["artifact"]["bytes"],
        "met": report["target_met"],
        "weights": report["weights"],
        "components": report["bank"]["components"],
        "drop": 100 * (metrics.accuracy(before, bench.labels) - metrics.accuracy(after, bench.labels)),
        "agreement": metrics.agreement(before, after),
        "logit_kl": metrics.logit_kl(before, after),
    }


@functools.cache
def original(checkpoint: str, spec: str, limit: int) -> tuple[Bench, torch.Tensor]:
    """The network on the first images of the data, and what the checkpoint makes of them."""
    model, data = read_model(Path(checkpoint)), load_data(spec)
    bench = open_bench(model, gbnn_compress.Evaluation(spec), ARCHITECTURE)
    bench = bench.on(dataclasses.replace(data, images=data.images[:limit], labels=data.labels[:limit]), option="--data")
    return bench, bench.run(dense(model))


def table(results: list[dict]) -> str:
    """One row a variant: what it does at equal bytes, and the bytes it takes at an equal effect."""
    ratios = sorted({result["ratio"] for result in results})
    head = ["inputs", "variant", *(f"{ratio:g}x: drop / agreement / KL" for ratio in ratios)]
    head += ["bytes at equal agreement", "bytes at equal KL"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for inputs in dict.fromkeys(result["inputs"] for result in results):
        mine = [result for result in results if result["inputs"] == inputs]
        default = sorted((r for r in mine if r["variant"] == "default"), key=lambda r: r["ratio"])
        for variant in dict.fromkeys(result["variant"] for result in mine):
            row = sorted((r for r in mine if r["variant"] == variant), key=lambda r: r["ratio"])
            by_ratio = {r["ratio"]: described(r) for r in row}
            cells = [by_ratio.get(ratio, "") for ratio in ratios]
            relative = [
                "" if variant == "default" else f"{100 * more_bytes(default, row, effect):+.1f} %"
                for effect in (lambda r: 1 - r["agreement"], lambda r: r["logit_kl"])
            ]
            shown = "none" if inputs is None else "512"
            lines.append("| " + " | ".join([shown, variant, *cells, *relative]) + " |")
    return "\n".join(lines)


def described(result: dict) -> str:
    effects = f"{result['drop']:.2f} / {100 * result['agreement']:.2f} % / {result['logit_kl']:.4f}"
    return effects + ("" if result["met"] else " (missed)")


def more_bytes(default: list[dict], other: list[dict], effect: Callable[[dict], float]) -> float:
    """Bytes of a variant's files over what the default takes for the same effect, less one, averaged over the files.

    log(bytes) of the default is taken as linear in log(effect) between its files, and beyond them.
    """
    x, y = (np.array([[np.log(effect(r)), np.log(r["bytes"])] for r in rows]).T for rows in (other, default))
    order = np.argsort(y[0])
    slope, offset = np.polyfit(*y, 1)
    inside = (x[0] >= y[0].min()) & (x[0] <= y[0].max())
    expected = np.where(inside, np.interp(x[0], y[0][order], y[1][order]), slope * x[0] + offset)
    return float(np.exp((x[1] - expected).mean()) - 1)


if __name__ == "__main__":
    main()
