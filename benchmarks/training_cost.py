"""What sharing costs: a Monte-Carlo sample against a forward pass, a training step and its memory against a plain one.

usage: python benchmarks/training_cost.py [--rounds 5]

ResNet-20 with random weights on random images, one thread. Sides take turns, so that a machine with other work slows
both alike; each figure is the median over rounds of the processor's seconds, ratios are of medians. Memory is the peak
resident size of a process of its own, less what it held before the first step.
"""

import argparse
import copy
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from networks import resnet20
from timing import processor_seconds
from torch.nn import functional

import gbnn_compress
from gbnn_compress.data.batches import read_batch
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.training.objective import loss_of
from gbnn_compress.training.schedule import Optimisers, Schedule
from gbnn_compress.training.shared_weights import SharedWeights
from gbnn_compress.types import Bank, Posterior

SAMPLES, BATCH, STEPS = 16, 128, 4
INPUTS = (1, 2, 4, 8, 32, 128)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| {SAMPLES} draws of {', '.join(map(str, INPUTS))} images | over as many forward passes |\n| --- | --- |")
    for count, ratio in prediction(options.rounds):
        print(f"| {count} | {ratio:.3f} |", flush=True)
    seconds = {name: statistics.median(values) for name, values in steps(options.rounds).items()}
    memory = {name: peak(name) for name in KINDS}
    head = "| training step | seconds | over plain | over distilled | MB | over plain | over distilled |"
    print(head + "\n|" + " --- |" * 7)
    for name in KINDS:
        cells = [name]
        for values, digits in ((seconds, 3), (memory, 0)):
            cells += [
                f"{values[name]:.{digits}f}",
                *(f"{values[name] / values[o]:.2f}" for o in ("plain", "distilled")),
            ]
        print("| " + " | ".join(cells) + " |")


def prediction(rounds: int) -> list[tuple[int, float]]:
    """Inputs, and the time of `predict` over that of as many forward passes."""
    network = seeded()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(network.state_dict(), Path(folder) / "net.pth")
        report = gbnn_compress.compress(
            Path(folder) / "net.pth", target_ratio=16, output=Path(folder) / "net.gbnn.safetensors"
        )
        compressed = gbnn_compress.load(report["artifact"]["path"])
    compressed.to_module(resnet20())
    found = []
    for count in INPUTS:
        images = torch.randn(count, 3, 32, 32)
        taken = alternating(
            {
                "ours": lambda images=images: compressed.predict(images, samples=SAMPLES),
                "plain": lambda images=images: forwards(network, images),
            },
            rounds * max(32 // count, 1),
        )
        found.append((count, statistics.median(taken["ours"]) / statistics.median(taken["plain"])))
    return found


@torch.inference_mode()
def forwards(network: torch.nn.Module, images: torch.Tensor) -> None:
    for _ in range(SAMPLES):
        network(images)


def steps(rounds: int) -> dict[str, list[float]]:
    """Kind of training -> seconds of a step, one a round."""
    return alternating({name: trainer(name) for name in KINDS}, rounds * STEPS)


def alternating(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for name in sides:
        sides[name]()
    for _ in range(rounds):
        for name, run in sides.items():
            taken[name].append(processor_seconds(run))
    return taken


def plain_trainer(*, distilled: bool) -> Callable[[], object]:
    network, images, labels = seeded().train(), torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    teacher, optimiser = copy.deepcopy(network).eval(), torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        scores = network(images).log_softmax(dim=1)
        loss = functional.nll_loss(scores, labels)
        if distilled:
            with torch.no_grad():
                wanted = teacher(images).log_softmax(dim=1)
            loss = loss + functional.kl_div(scores, wanted, log_target=True, reduction="batchmean")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def shared_trainer() -> Callable[[], object]:
    network, images, labels = seeded().train(), torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    teacher, shared = copy.deepcopy(network).eval(), sharing(network)
    schedule = Schedule(1, 1, 0.5, 0.03, 0.01, 0.001, 0.5, 1.0, 0.0, 50_000, only_bank=False, noisy=True, half=False)
    optimisers, generator = Optimisers(network, shared, schedule), torch.Generator().manual_seed(0)
    batch = read_batch((images, labels))
    optimisers.watch_bank()
    optimisers.set_rates(0)

    def step() -> None:
        loss = loss_of(network, teacher, shared, batch, dataset_size=50_000, half=False, generator=generator)
        optimisers.step(loss.total(distillation=0.5, beta=1.0))

    return step


KINDS = {
    "plain": lambda: plain_trainer(distilled=False),
    "distilled": lambda: plain_trainer(distilled=True),
    "ours": shared_trainer,
}


def trainer(name: str) -> Callable[[], object]:
    return KINDS[name]()


def sharing(network: torch.nn.Module) -> SharedWeights:
    """All matrices and kernels on one bank of 33 components."""
    tensors = network.state_dict()
    names = [name for name, tensor in tensors.items() if tensor.dim() >= 2]
    shared = SharedWeights(tensors, names, device=torch.device("cpu"))
    posteriors = [Posterior(name, float(tensors[name].std()), np.zeros(len(tensors[name]))) for name in names]
    bank = Bank(np.linspace(-4, 4, 33), np.full(33, -2.0))
    counts = np.tile(np.append(np.exp(-(bank.means**2) / 2), 0.0), (len(names), 1))
    book = Codebook(bank, counts, 1e-3, np.ones(len(names)))
    shared.adopt(book, posteriors, exponent=-6, noise=0.1, outliers={})
    return shared


def peak(name: str) -> float:
    """MB that training takes at its peak, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured_peak, (name,))


def measured_peak(name: str) -> float:
    torch.set_num_threads(1)
    before = peak_kilobytes()
    step = trainer(name)
    for _ in range(2):
        step()
    return (peak_kilobytes() - before) / 1000


def peak_kilobytes() -> float:
    """Of this process alone: `getrusage` would count what its parent had before."""
    status = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1.024


def seeded() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet20().eval()


if __name__ == "__main__":
    main()
