"""Networks with every kind of layer that training must reach, each small enough to train in a second."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

CLASSES = 4


class Convolutions(nn.Module):
    """1-D, 2-D, 3-D, grouped, depthwise, dilated and transposed; batch, group, instance and layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=2, dilation=2)
        self.group_norm = nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.instance_norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.layer_norm = nn.LayerNorm((4, 16, 16))
        self.volume = nn.Conv3d(1, 4, 3, padding=1)
        self.sequence = nn.Conv1d(4, 8, 3)
        self.up_sequence = nn.ConvTranspose1d(8, 6, 3)
        self.classifier = nn.Linear(6, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.batch_norm(self.conv(images)))
        x = torch.relu(self.group_norm(self.grouped(x)))
        x = torch.relu(self.instance_norm(self.depthwise(x)))
        x = self.layer_norm(self.up(x))[:, None]
        x = torch.relu(self.volume(x)).mean(dim=(2, 3))
        return self.classifier(self.up_sequence(torch.relu(self.sequence(x))).mean(dim=2))


class Attention(nn.Module):
    """Patches and positions embedded, packed and separate projections, a fixed encoding, a frozen and a tied matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("encoding", torch.randn(1, 16, 16) / 8)
        self.patches = nn.Linear(12, 16)
        self.position = nn.Embedding(16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, dim_feedforward=24, dropout=0.1, batch_first=True)
        self.separate = nn.MultiheadAttention(16, 2, kdim=12, vdim=12, batch_first=True)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(16, 16, bias=False).requires_grad_(requires_grad=False)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = functional.unfold(images, 2, stride=2).transpose(1, 2)
        x = self.patches(patches) + self.position(torch.arange(16)) + self.encoding
        x = self.block(torch.cat([self.token.expand(len(x), -1, -1), x], dim=1))
        x = x + self.separate(x, patches, patches, need_weights=False)[0]
        return self.classifier(self.frozen(self.second(torch.relu(self.first(x.mean(dim=1))))))


class Reparametrised(nn.Module):
    """Weight norm, old and new, spectral norm; weights that a module makes from others."""

    def __init__(self) -> None:
        super().__init__()
        self.old = nn.utils.weight_norm(nn.Conv2d(3, 16, 3))
        self.new = parametrizations.weight_norm(nn.Conv2d(16, 16, 3))
        self.spectral = parametrizations.spectral_norm(nn.Linear(16, 12))
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.new(torch.relu(self.old(images)))).mean(dim=(2, 3))
        return self.classifier(torch.relu(self.spectral(x)))


class Recurrent(nn.Module):
    """Layers that keep their weights in a list of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 8, num_layers=2, bidirectional=True, batch_first=True, proj_size=6)
        self.gru = nn.GRU(12, 8, batch_first=True)
        self.rnn = nn.RNN(8, 8, batch_first=True)
        self.cell = nn.LSTMCell(8, 8)
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.permute(0, 2, 1, 3).flatten(start_dim=2)
        x = self.rnn(self.gru(self.lstm(rows)[0])[0])[0]
        state = self.cell(x[:, -1])
        return self.classifier(self.cell(x[:, 0], state)[0])


def _seeded(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind()


def convolutions() -> nn.Module:
    return _seeded(Convolutions)


def attention() -> nn.Module:
    return _seeded(Attention)


def reparametrised() -> nn.Module:
    return _seeded(Reparametrised)


def recurrent() -> nn.Module:
    return _seeded(Recurrent)
