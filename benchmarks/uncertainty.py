"""What trained files keep: accuracy, calibration and out-of-distribution detection beside the checkpoint and its peers.

usage: python benchmarks/uncertainty.py --data-dir DIR [DIR ...] --cache DIR [--ratios 16 25 50] [--epochs 8]
           [--rows checkpoint control laplace swag mc-dropout mean-field ours members] [--table FILE.md]

ResNet-20 on CIFAR-10. A data directory holds `cifar10_{train,dev,test}.npz`, `imagenet_even.npz` and the checkpoint;
Fashion-MNIST comes from Debian's dataset-fashion-mnist, and peers need laplace-torch and torch-uncertainty. Training
sees `cifar10_train`; temperatures, noise and stopping `cifar10_dev`; the table `cifar10_test`. `control` is the
uncompressed checkpoint given the same epochs, augmentation and distillation; `laplace` laplace-torch on the last layer
of the checkpoint. `swag`, `mc-dropout` and `mean-field` are those of torch-uncertainty, trained as the control is, with
16 draws (`bayesian_peers.py`). `members` are four networks in one file, trained from the checkpoint with `--members 4`:
a quarter of `--epochs` each, and the ratio is that of the checkpoint to the whole file. Files, networks and rows are
kept in the cache, so that a run continues where another stopped.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bayesian_peers import PEERS, train_on
from cases import NETWORKS
from timing import median_processor_seconds

import gbnn_compress
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.predict import metrics
from gbnn_compress.predict.bench import Bench, Evaluation, open_bench
from gbnn_compress.predict.models import read_model
from gbnn_compress.predict.temperature import fit_temperature, scale

ARCH = f"{NETWORKS}:resnet20"
FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
SEEN_BY_CIFAR = (
    1,
    *range(7, 25),
    *range(80, 101),
    *range(127, 147),
    *range(151, 298),
    *range(339, 342),
    *range(345, 356),
)
"""ImageNet classes that show a bird, cat, deer, dog, frog or horse; vehicles are told by VEHICLES."""

VEHICLES = (
    404,
    403,
    407,
    408,
    436,
    468,
    472,
    484,
    510,
    511,
    555,
    554,
    569,
    573,
    575,
    576,
    609,
    625,
    627,
    628,
    654,
    656,
)
VEHICLES += (661, 675, 705, 717, 724, 734, 751, 757, 779, 780, 803, 814, 817, 833, 864, 867, 871, 874, 895, 914)
SAMPLES, MEMBERS = 16, 4
TIMED_IMAGES = 128
LAPLACE_IMAGES = 10_000


def main() -> None:
    options = parse()
    rows: list[dict[str, Any]] = []
    if "checkpoint" in options.rows:
        rows.append(cached(options, "checkpoint", lambda: measured(options, checkpoint(options), samples=1)))
    if "control" in options.rows:
        rows.append(
            cached(options, f"control-{options.epochs}", lambda: measured(options, control(options), samples=1))
        )
    if "laplace" in options.rows:
        rows.append(cached(options, "laplace", lambda: laplace(options)))
    for name in PEERS:
        if name in options.rows:
            rows.append(cached(options, f"{name}-{options.epochs}", lambda name=name: peer(options, name)))
    for ratio in options.ratios if "ours" in options.rows else ():
        name = f"ours-{ratio:g}x-{options.epochs}-{source_hash()}"
        path = options.cache / f"{name}.gbnn.safetensors"
        compressed(options, path, ratio)
        rows.append(cached(options, f"{name}-mean", lambda path=path: measured(options, path, samples=1, mean=True)))
        rows.append(cached(options, f"{name}-mc", lambda path=path: measured(options, path, samples=SAMPLES)))
    for ratio in options.ratios if "members" in options.rows else ():
        name = f"members-{ratio:g}x-{options.epochs}-{source_hash()}"
        path = options.cache / f"{name}.gbnn.safetensors"
        compressed(options, path, ratio, members=MEMBERS)
        rows.append(cached(options, name, lambda path=path: measured(options, path, samples=SAMPLES // MEMBERS)))
    table = rendered(rows)
    print(table)
    if options.table:
        options.table.write_text(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trained files beside the checkpoint and its peers")
    parser.add_argument("--data-dir", nargs="+", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--ratios", nargs="*", type=float, default=[16, 25, 50])
    parser.add_argument("--epochs", type=int, default=8)
    known = ("checkpoint", "control", "laplace", *PEERS, "ours", "members")
    parser.add_argument("--rows", nargs="+", choices=known, default=list(known))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    return options


def find(options: argparse.Namespace, name: str) -> Path:
    for folder in options.data_dir:
        if (folder / name).exists():
            return folder / name
    raise SystemExit(f"`--data-dir`: no `{name}` in {', '.join(map(str, options.data_dir))}")


def checkpoint(options: argparse.Namespace) -> Path:
    return find(options, "resnet20_cifar10.pth")


def spec(options: argparse.Namespace, part: str) -> str:
    return f"npz:{find(options, f'cifar10_{part}.npz')}"


def cached(options: argparse.Namespace, name: str, row: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    file = options.cache / f"{name}.json"
    if not file.exists():
        file.write_text(json.dumps({"name": name, **row()}))
        print(file.read_text(), flush=True)
    return json.loads(file.read_text())


def compressed(options: argparse.Namespace, path: Path, ratio: float, *, members: int = 1) -> None:
    if path.exists():
        return
    gbnn_compress.compress(
        checkpoint(options),
        target_ratio=ratio,
        output=path,
        arch=ARCH,
        data=spec(options, "train"),
        val_data=spec(options, "dev"),
        epochs=options.epochs // members,
        members=members,
        progress=lambda line: print(line, flush=True),
    )


def measured(options: argparse.Namespace, path: Path, *, samples: int, mean: bool = False) -> dict[str, Any]:
    """A file on the test split, with a temperature from dev, and against both kinds of other images."""
    scored = path
    if mean:  # the posterior mean as dense weights
        scored = options.cache / f"{path.name.partition('.')[0]}-dense.safetensors"
        gbnn_compress.decompress(path, scored)
    start = time.perf_counter()
    found = {
        name: gbnn_compress.evaluate(
            scored,
            Evaluation(spec(options, "test"), samples=samples),
            arch=ARCH,
            ood=f"npz:{other}",
            val_data=spec(options, "dev") if name == "fashion" else None,
        )
        for name, other in (("fashion", fashion(options)), ("imagenet", imagenet(options)))
    }
    first = found["fashion"]
    raw = sum(t.numel() * 4 for t in read_checkpoint(checkpoint(options)).tensors.values() if t.is_floating_point())
    return {
        "size_bytes": path.stat().st_size,
        "ratio": raw / path.stat().st_size,
        **{key: first[key] for key in ("accuracy", "nll", "ece", "brier", "temperature")},
        "scaled": {key: first["scaled"][key] for key in ("nll", "ece")},
        "auroc": {name: best_auroc(each["ood"]) for name, each in found.items()},
        "seconds": time.perf_counter() - start,
        "batch_seconds": batch_seconds(options, scored, samples=samples),
    }


def batch_seconds(options: argparse.Namespace, path: Path, *, samples: int) -> float:
    """Processor seconds to predict TIMED_IMAGES, the median of three."""
    model = read_model(path)
    bench = open_bench(model, Evaluation(spec(options, "test"), samples=samples, device="cpu"), ARCH)
    batch = bench.on(bench.data.take(np.arange(TIMED_IMAGES)), option="--data")
    return median_processor_seconds(lambda: batch.predict(model))


def best_auroc(ood: dict[str, Any]) -> float:
    return max(ood["auroc"], *(each["auroc"] for each in ood.values() if isinstance(each, dict)))


def control(options: argparse.Namespace) -> Path:
    """The checkpoint trained on: SGD, a cosine, the same images, changes and distillation."""
    path = options.cache / f"control-{options.epochs}.pth"
    if path.exists():
        return path
    bench = training_bench(options)
    network = copy.deepcopy(bench.network)
    train_on(bench, network, epochs=options.epochs)
    torch.save(network.state_dict(), path)
    return path


def training_bench(options: argparse.Namespace) -> Bench:
    return open_bench(read_checkpoint(checkpoint(options)), Evaluation(spec(options, "train")), ARCH)


def peer(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """A peer of `bayesian_peers.py`: the mean of SAMPLES draws, trained for `--epochs`."""
    bench = training_bench(options)
    start = time.perf_counter()
    draws = PEERS[name](bench, epochs=options.epochs, draws=SAMPLES)

    def probabilities(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            parts = [torch.stack([draw(part).softmax(dim=1) for draw in draws]) for part in images.split(250)]
        return torch.cat(parts, dim=1).double()

    seconds = time.perf_counter() - start
    timed = bench.inputs(at_most=TIMED_IMAGES)
    batch = median_processor_seconds(lambda: probabilities(timed))
    return {**scored(options, probabilities), "seconds": seconds, "batch_seconds": batch}


def laplace(options: argparse.Namespace) -> dict[str, Any]:
    """laplace-torch: last layer, Kronecker factors, prior precision by marginal likelihood, probit approximation."""
    from laplace import Laplace

    read = read_checkpoint(checkpoint(options))
    bench = open_bench(read, Evaluation(spec(options, "train")), ARCH)
    images, labels = bench.inputs(at_most=LAPLACE_IMAGES), bench.data.sample(LAPLACE_IMAGES).labels
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, torch.from_numpy(labels)), batch_size=250
    )
    start = time.perf_counter()
    model = Laplace(bench.network.eval(), "classification", subset_of_weights="last_layer", hessian_structure="kron")
    model.fit(loader)
    model.optimize_prior_precision(method="marglik")

    def probabilities(inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(part, link_approx="probit") for part in inputs.split(250)])[None].double()

    return {**scored(options, probabilities), "seconds": time.perf_counter() - start}


def scored(options: argparse.Namespace, probabilities: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """A row of a peer without a file, from a function of images to the probabilities of its draws, (S, N, C)."""
    read = read_checkpoint(checkpoint(options))

    def of(data: str) -> tuple[torch.Tensor, np.ndarray | None]:
        bench = open_bench(read, Evaluation(data), ARCH, labels=None)
        return probabilities(bench.inputs(at_most=len(bench.data))), bench.data.labels

    (test, labels), (dev, dev_labels) = of(spec(options, "test")), of(spec(options, "dev"))
    temperature = fit_temperature(dev.mean(dim=0), torch.from_numpy(dev_labels))
    others = {"fashion": fashion(options), "imagenet": imagenet(options)}
    return {
        "size_bytes": checkpoint(options).stat().st_size,
        "ratio": 1.0,
        **metrics.summary(test.mean(dim=0), labels),
        "temperature": temperature,
        "scaled": metrics.summary(scale(test.mean(dim=0), temperature), labels),
        "auroc": {name: separation(test, of(f"npz:{path}")[0]) for name, path in others.items()},
    }


def separation(inside: torch.Tensor, outside: torch.Tensor) -> float:
    """AUROC by the best of entropy, largest probability and, with several draws, mutual information."""
    scores = [
        lambda p: metrics.predictive_entropy(p.mean(dim=0)),
        lambda p: -p.mean(dim=0).amax(dim=1).numpy(),
        lambda p: (
            metrics.predictive_entropy(p.mean(dim=0)) - np.mean([metrics.predictive_entropy(q) for q in p], axis=0)
        ),
    ]
    return max(metrics.auroc(score(inside), score(outside)) for score in scores[: 3 if len(inside) > 1 else 2])


def fashion(options: argparse.Namespace) -> Path:
    """Fashion-MNIST's test images as RGB, 32 x 32, zeros around; 2,000 of them."""
    path = options.cache / "fashion.npz"
    if not path.exists():
        pixels = np.frombuffer(gzip.decompress(FASHION.read_bytes()), dtype=np.uint8, offset=16).reshape(-1, 28, 28)
        grey = np.pad(pixels[:2000], ((0, 0), (2, 2), (2, 2)))
        np.savez(path, x=np.repeat(grey[..., None], 3, axis=3))
    return path


def imagenet(options: argparse.Namespace) -> Path:
    """The ImageNet sample at 32 x 32, without classes that CIFAR-10 shows too."""
    path = options.cache / "imagenet32.npz"
    if not path.exists():
        from PIL import Image

        with np.load(find(options, "imagenet_even.npz")) as data:
            keep = ~np.isin(data["y"], SEEN_BY_CIFAR + VEHICLES)
            images = data["x"][keep]
        squares = [
            np.asarray(_square(Image.fromarray(image)).resize((32, 32), Image.Resampling.BOX)) for image in images
        ]
        np.savez(path, x=np.stack(squares))
    return path


def _square(image: Any) -> Any:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def rendered(rows: list[dict[str, Any]]) -> str:
    titles = ("kB", "ratio", "accuracy", "NLL", "ECE", "NLL, scaled", "ECE, scaled", "AUROC Fashion", "AUROC ImageNet")
    lines = [f"| | {' | '.join(titles)} | processor s, {TIMED_IMAGES} images |", "| --- " * (len(titles) + 2) + "|"]
    for row in rows:
        numbers = (row["nll"], row["ece"], row["scaled"]["nll"], row["scaled"]["ece"], *row["auroc"].values())
        cells = [row["name"], f"{row['size_bytes'] / 1000:.1f}", f"{row['ratio']:.2f}", f"{100 * row['accuracy']:.2f}"]
        batch = f"{row['batch_seconds']:.2f}" if "batch_seconds" in row else "–"
        lines.append("| " + " | ".join([*cells, *(f"{number:.4f}" for number in numbers), batch]) + " |")
    return "\n".join(lines) + "\n"


def source_hash() -> str:
    root = Path(gbnn_compress.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


if __name__ == "__main__":
    main()
