"""Train several networks of one architecture as members of an ensemble, with plain PyTorch.

    python examples/train_members.py --arch benchmarks/networks.py:resnet20 --data npz:DATA/cifar10_train.npz \
        --val-data npz:DATA/cifar10_dev.npz --members 4 --epochs 30 -o members

SGD with momentum under one cycle of the learning rate, with shifted and flipped images. Member k has the seed
`--seed` + k, for its first weights, its batches and its images. After each epoch the state is written, so that the same
command goes on where it was stopped. Several processes may train different members: give each `--members 1` and a
`--seed` of its own. Then compress each checkpoint, and join the files with `gbnn-compress ensemble`.

Members start from new weights, or from `--start CHECKPOINT`. Those need fewer epochs, but differ less.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from train_checkpoint import Inputs, accuracy, inputs_of

from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.data.architectures import build_network, default_preprocessing, load_weights
from gbnn_compress.data.datasets import load_data
from gbnn_compress.training.augment import Augmentation


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train members of an ensemble.")
    parser.add_argument("--arch", required=True, help="as for gbnn-compress")
    parser.add_argument("--data", required=True, help="labelled images, as for gbnn-compress")
    parser.add_argument("--val-data", help="labelled images to report the accuracy on")
    parser.add_argument("--start", type=Path, help="the checkpoint that all members start from; else new weights")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.2, help="the highest of the cycle")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0, help="of the first member")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder of the checkpoints")
    return parser.parse_args()


def train_member(
    network: torch.nn.Module, inputs: Inputs, chosen: argparse.Namespace, *, seed: int, state: Path
) -> None:
    """Fit the network in place.

    Args:
        network: With its first weights.
        inputs: Images float32 (N, C, H, W) and labels int64 (N,).
        chosen: The command line.
        seed: Of batches and images.
        state: The file of the state after the last epoch; training goes on from it.
    """
    images, labels = inputs
    optimiser = torch.optim.SGD(
        network.parameters(), lr=chosen.learning_rate, momentum=0.9, nesterov=True, weight_decay=chosen.weight_decay
    )
    steps = chosen.epochs * -(-len(labels) // chosen.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, chosen.learning_rate, total_steps=steps)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
    first = resumed(parts, state)
    change = Augmentation(shift=True, flip=True)
    network.train()
    for epoch in range(first, chosen.epochs):
        start, total = time.perf_counter(), 0.0
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        for batch in torch.randperm(len(labels), generator=generator).split(chosen.batch_size):
            loss = functional.cross_entropy(network(change(images[batch], generator)), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        keep(parts, state, epoch=epoch + 1)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{chosen.epochs}: CE {total / len(labels):.3f}, {seconds:.0f} s", flush=True)
    network.eval()


def resumed(parts: dict[str, Any], state: Path) -> int:
    """Number of epochs that are done; the parts get their state after them."""
    if not state.exists():
        return 0
    kept = torch.load(state, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(kept[name])
    return int(kept["epoch"])


def keep(parts: dict[str, Any], state: Path, *, epoch: int) -> None:
    """Write the state as a whole or not at all."""
    temporary = state.with_suffix(".tmp")
    torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, temporary)
    temporary.replace(state)


def main() -> None:
    """Train the members one after the other, write their checkpoints, and report."""
    chosen = options()
    chosen.output.mkdir(parents=True, exist_ok=True)
    data = load_data(chosen.data)
    preprocessing = default_preprocessing(chosen.arch, n_channels=data.n_channels)
    inputs = inputs_of(data, preprocessing)
    held = inputs_of(load_data(chosen.val_data), preprocessing) if chosen.val_data else None
    for seed in range(chosen.seed, chosen.seed + chosen.members):
        checkpoint = chosen.output / f"member{seed}.pth"
        if checkpoint.exists():
            print(f"{checkpoint} is there")
            continue
        torch.manual_seed(seed)
        network = build_network(chosen.arch)
        if chosen.start:
            load_weights(network, read_checkpoint(chosen.start).tensors, spec=chosen.arch)
        network.to(memory_format=torch.channels_last)
        state = chosen.output / f"member{seed}.state"
        train_member(network, inputs, chosen, seed=seed, state=state)
        torch.save(network.state_dict(), checkpoint)
        state.unlink(missing_ok=True)
        print(f"wrote {checkpoint}", flush=True)
        if held is not None:
            print(f"accuracy {100 * accuracy(network, held):.2f} %", flush=True)


if __name__ == "__main__":
    main()
