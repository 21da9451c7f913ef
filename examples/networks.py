"""Networks of the recipes that train their own small checkpoint; `--arch examples/networks.py:NAME`."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from timm.models import VisionTransformer
    from torchvision.models import ResNet


def lenet5() -> nn.Sequential:
    """Caffe's LeNet-5 (20-50-500-10) for 28 x 28 greyscale images: 430,500 weights and 580 biases."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            ip1=nn.Linear(800, 500),
            relu1=nn.ReLU(),
            ip2=nn.Linear(500, 10),
        )
    )


def vit_small() -> VisionTransformer:
    """timm's vision transformer for 32 x 32 colour images: patches of 4, 4 blocks of width 96, 459 thousand weights."""
    from timm.models import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=10, class_token=False,
        global_pool="avg",
    )  # fmt: skip


def resnet18_cifar10() -> ResNet:
    """torchvision's ResNet-18 as is usual for 32 x 32 images: a 3 x 3 stem, no pooling; 11.2 million weights."""
    return _resnet18(n_classes=10)


def resnet18_cifar100() -> ResNet:
    """The same for 100 classes."""
    return _resnet18(n_classes=100)


def _resnet18(*, n_classes: int) -> ResNet:
    from torchvision.models import resnet18

    network = resnet18(num_classes=n_classes)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network
