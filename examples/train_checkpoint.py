"""Train a checkpoint for a recipe that has none to start from, with plain PyTorch.

    python examples/train_checkpoint.py --arch examples/networks.py:lenet5 --data npz:DATA/fashion_train.npz \
        --epochs 12 -o lenet5.pth

AdamW under one cycle of the learning rate; prints the accuracy on `--val-data` at the end.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional

from gbnn_compress.data.architectures import build_network, default_preprocessing
from gbnn_compress.data.datasets import Dataset, load_data
from gbnn_compress.data.preprocessing import Preprocessing
from gbnn_compress.training.augment import Augmentation
from gbnn_compress.training.objective import half_precision, runs_bfloat16

Inputs = tuple[torch.Tensor, torch.Tensor]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small checkpoint.")
    parser.add_argument("--arch", required=True, help="as for gbnn-compress")
    parser.add_argument("--data", required=True, help="labelled data, as for gbnn-compress")
    parser.add_argument("--val-data", help="labelled data to report the accuracy on")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--augment", nargs="*", choices=("shift", "flip"), default=("flip",))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the checkpoint")
    return parser.parse_args()


def train(network: torch.nn.Module, inputs: Inputs, chosen: argparse.Namespace) -> None:
    """Fit the network in place."""
    images, labels = inputs
    steps_an_epoch = -(-len(labels) // chosen.batch_size)
    optimiser = torch.optim.AdamW(network.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, chosen.learning_rate, total_steps=chosen.epochs * steps_an_epoch
    )
    generator, change = (
        torch.Generator().manual_seed(chosen.seed),
        Augmentation(shift="shift" in chosen.augment, flip="flip" in chosen.augment),
    )
    half = runs_bfloat16(images.device)
    network.train()
    for epoch in range(chosen.epochs):
        start, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(labels), generator=generator).split(chosen.batch_size):
            with half_precision(images.device, enabled=half):
                loss = functional.cross_entropy(network(change(images[batch], generator)).float(), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{chosen.epochs}: CE {total / len(labels):.3f}, {seconds:.0f} s", flush=True)
    network.eval()


@torch.no_grad()
def accuracy(network: torch.nn.Module, inputs: Inputs) -> float:
    """Share of labels that are the likeliest output."""
    hits = [(network(x).argmax(dim=1) == y).sum() for x, y in zip(*(part.split(500) for part in inputs), strict=True)]
    return float(torch.stack(hits).sum()) / len(inputs[1])


def inputs_of(data: Dataset, preprocessing: Preprocessing) -> Inputs:
    """All images float32 (N, C, H, W), as `gbnn-compress` will read them, and labels int64 (N,)."""
    images, labels = zip(*data.batches(preprocessing), strict=True)
    return torch.cat(images), torch.cat(labels)


def main() -> None:
    """Train, write, report."""
    chosen = options()
    torch.manual_seed(chosen.seed)
    network, data = build_network(chosen.arch), load_data(chosen.data)
    preprocessing = default_preprocessing(chosen.arch, n_channels=data.n_channels)
    train(network, inputs_of(data, preprocessing), chosen)
    torch.save(network.state_dict(), chosen.output)
    print(f"wrote {chosen.output}")
    if chosen.val_data:
        print(f"accuracy {100 * accuracy(network, inputs_of(load_data(chosen.val_data), preprocessing)):.2f} %")


if __name__ == "__main__":
    main()
