"""A network with what makes exporting hard, small enough to export in seconds, and its artifact."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import gbnn_compress

SHAPE = (3, 8, 8)


class HardNetwork(nn.Module):
    """Tied weights, a batch norm, outliers, an odd number of weights, a tensor of two components, an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 17, 3, padding=1)
        self.norm = nn.BatchNorm2d(17)
        self.depthwise = nn.Conv2d(17, 17, 3, groups=17, bias=False)
        self.signs = nn.Linear(17, 16, bias=False)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.classifier = nn.Linear(16, 17)
        self.unused = nn.Linear(16, 16)
        self.register_buffer("steps", torch.arange(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(images)))
        x = self.signs(self.depthwise(x).mean(dim=(2, 3)))
        return self.classifier(self.second(torch.relu(self.first(x))))


def hard_network() -> HardNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = HardNetwork()
        network.norm.running_var.uniform_(0.5, 2)
        with torch.no_grad():
            network.signs.weight.copy_(torch.randn(16, 17).sign() / 4)
            network.conv.weight[0, 0, 0, 0] = 40.0
            network.conv.weight[14, 2, 2, 2] = -30.0
        return network.eval()


def compressed(network: nn.Module, folder: Path, *, ratio: float = 1, **options: object) -> Path:
    torch.save(network.state_dict(), folder / "net.pth")
    path = folder / "net.gbnn.safetensors"
    options = {"settings": {"noise": 0.35}, **options}
    gbnn_compress.compress(folder / "net.pth", target_ratio=ratio, output=path, **options)
    return path


def vision_transformer() -> nn.Module:
    """torchvision's, small."""
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    nn.init.normal_(network.heads.head.weight)  # it starts at 0, and so would the logits
    return network
