"""The network of the demo, and its training."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EPOCHS = 8
BATCH_SIZE = 64
LEARNING_RATE = 3e-3


def digits_cnn() -> torch.nn.Module:
    """A small convolutional network for 8 x 8 greyscale digits, with 82 thousand random weights."""
    from torch import nn

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(32),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(64),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(64, 64, 3, padding=1, bias=False),
            norm3=nn.BatchNorm2d(64),
            relu3=nn.ReLU(),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(256, 96),
            relu4=nn.ReLU(),
            classifier=nn.Linear(96, 10),
        )
    )


def train(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """Train the network on `digits:train`.

    Returns:
        Its state dict.
    """
    import torch

    images, labels = _training_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = digits_cnn().train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
        steps = EPOCHS * -(-len(labels) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    return network.eval().state_dict()


def _training_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 (N, 1, 8, 8) and labels int64 (N,), preprocessed as in `evaluate`."""
    import torch

    from gbnn_compress.data.architectures import default_preprocessing
    from gbnn_compress.data.datasets import load_data

    data = load_data("digits:train")
    batches = list(data.batches(default_preprocessing(None, n_channels=data.n_channels)))
    labels = [batch for _, batch in batches if batch is not None]
    return torch.cat([batch for batch, _ in batches]), torch.cat(labels)
