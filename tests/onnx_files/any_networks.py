"""Small networks that are no image classifiers, for exports."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


class Speaker(nn.Module):
    """An LSTM, a GRU and an LSTMCell, one after the other; one output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(10, 16, num_layers=2, batch_first=True)
        self.gru = nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.cell = nn.LSTMCell(32, 16)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        frames, _ = self.lstm(mels)
        frames, _ = self.gru(frames)
        return self.cell(frames[:, -1])[0]


@dataclass
class Heads:
    value: torch.Tensor
    parts: list[torch.Tensor]
    extra: dict[str, torch.Tensor]


class Nested(nn.Module):
    """Floating, integer and boolean outputs, one of them twice, an input among them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Heads:
        hidden = torch.relu(self.first(x)) * mask[:, None]
        value = self.second(hidden)
        return Heads(value, [hidden, value], {"x": x, "best": hidden.argmax(1), "active": mask > 0})


class Loops(nn.Module):
    """Can be exported for one batch size only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(each) for each in x])


class Counts(nn.Module):
    """Returns something else in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(8, 32), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(x) * self.calls
