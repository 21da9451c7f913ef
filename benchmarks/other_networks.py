"""Small networks of other fields than image classification, with random inputs for each."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torchvision
from torch import nn

FRAMES, WIDTH, TOKENS = 24, 64, 500


class Recurrent(nn.Module):
    """Token ids, one recurrent layer of a kind, two scores per token."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.recurrent = kind(WIDTH, 96, num_layers=2, batch_first=True, **options)
        self.head = nn.LazyLinear(2)
        self(torch.zeros(1, 2, dtype=torch.int64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0])


class Encoder(nn.Module):
    """Token ids with learned positions, four Transformer layers, a vector per sentence."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(TOKENS, WIDTH), nn.Parameter(torch.randn(FRAMES, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 256, batch_first=True, **options)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(tokens) + self.positions).mean(dim=1)


class Translator(nn.Module):
    """nn.Transformer, encoder and decoder: next-token scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.Transformer(WIDTH, 4, 2, 2, 256, batch_first=True)
        self.head = nn.Linear(WIDTH, TOKENS)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        return self.head(self.layers(x, x.flip(1)))


class Hourglass(nn.Module):
    """A U-Net of three levels: transposed convolutions, skips, a picture out."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        pairs = tuple(pairwise(widths))
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), norm(b), nn.LeakyReLU(0.2)) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b if b == 128 else 2 * b, a, 4, 2, 1) for a, b in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        x = self.up[-1](skips.pop())
        for layer in reversed(self.up[:-1]):
            x = layer(torch.cat([x.relu(), skips.pop()], dim=1))
        return x


class Regressor(nn.Module):
    """Two inputs of numbers, a bilinear layer, one number out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(20, WIDTH), nn.Linear(30, WIDTH)
        self.both, self.head = nn.Bilinear(WIDTH, WIDTH, 32), nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.both(self.left(x[:, :20]).relu(), self.right(x[:, 20:]).relu()).relu())


class Outputs(nn.Module):
    """A network whose output is a mapping."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)["out"]


def wave_network(wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> nn.Module:
    """Dilated convolutions over a wave, one number per sample."""
    layers = [wrap(nn.Conv1d(1 if i == 0 else WIDTH, WIDTH, 3, padding=2**i, dilation=2**i)) for i in range(5)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())), wrap(nn.Conv1d(WIDTH, 1, 1)))


def frame_network() -> nn.Module:
    """Convolutions with batch norm over frames of a spectrum, an embedding per sound."""
    blocks = [(nn.Conv1d(40 if i == 0 else 128, 128, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(128)) for i in range(4)]
    pooled = nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 128)
    return nn.Sequential(*(part for block in blocks for part in block), *pooled)


def volume_network() -> nn.Module:
    """Three-dimensional convolutions with instance norm, a class per voxel."""
    blocks = [
        (nn.Conv3d(a, b, 3, padding=1), nn.InstanceNorm3d(b, affine=True), nn.PReLU(b)) for a, b in ((1, 16), (16, 32))
    ]
    return nn.Sequential(*(part for block in blocks for part in block), nn.Conv3d(32, 4, 1))


def generator() -> nn.Module:
    """Noise to a picture by transposed convolutions with batch norm."""
    widths = (100, 128, 64, 32)
    blocks = [
        (nn.ConvTranspose2d(a, b, 4, 1 if a == 100 else 2, 0 if a == 100 else 1, bias=False), nn.BatchNorm2d(b))
        for a, b in pairwise(widths)
    ]
    last = nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh()
    return nn.Sequential(*(part for block in blocks for part in (*block, nn.ReLU())), *last)


def perceptron(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Linear layers over a table of numbers."""
    widths = (50, 256, 256)
    blocks = [(nn.Linear(a, b), norm(b), nn.GELU()) for a, b in pairwise(widths)]
    return nn.Sequential(*(part for block in blocks for part in block), nn.Linear(256, 3))


def _segmenter(name: str) -> nn.Module:
    return Outputs(torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=False))


def _lraspp() -> nn.Module:
    return Outputs(torchvision.models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None))


def _tokens(n: int) -> torch.Tensor:
    return torch.randint(TOKENS, (n, FRAMES))


def _numbers(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda n: torch.randn(n, *shape)


def _embedding_bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(TOKENS, WIDTH), nn.Linear(WIDTH, 5))


Case = tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]

OTHERS: dict[str, Case] = {
    "lstm": (lambda: Recurrent(nn.LSTM, bidirectional=True), _tokens),
    "lstm, projected": (lambda: Recurrent(nn.LSTM, proj_size=48), _tokens),
    "gru": (lambda: Recurrent(nn.GRU), _tokens),
    "rnn": (lambda: Recurrent(nn.RNN), _tokens),
    "transformer encoder": (Encoder, _tokens),
    "transformer encoder, norm first": (lambda: Encoder(norm_first=True), _tokens),
    "transformer, tied head": (Translator, _tokens),
    "embedding bag": (_embedding_bag, _tokens),
    "wave": (wave_network, _numbers(1, 400)),
    "wave, weight norm": (lambda: wave_network(nn.utils.parametrizations.weight_norm), _numbers(1, 400)),
    "wave, spectral norm": (lambda: wave_network(nn.utils.parametrizations.spectral_norm), _numbers(1, 400)),
    "frames": (frame_network, _numbers(40, 60)),
    "volume": (volume_network, _numbers(1, 12, 12, 12)),
    "generator": (generator, _numbers(100, 1, 1)),
    "u-net, group norm": (lambda: Hourglass(lambda width: nn.GroupNorm(8, width)), _numbers(3, 64, 64)),
    "u-net, batch norm": (lambda: Hourglass(nn.BatchNorm2d), _numbers(3, 64, 64)),
    "perceptron, batch norm": (lambda: perceptron(nn.BatchNorm1d), _numbers(50)),
    "perceptron, layer norm": (lambda: perceptron(nn.LayerNorm), _numbers(50)),
    "regressor": (Regressor, _numbers(50)),
    "lraspp_mobilenet_v3_large": (_lraspp, _numbers(3, 64, 64)),
    "deeplabv3_mobilenet_v3_large": (lambda: _segmenter("deeplabv3_mobilenet_v3_large"), _numbers(3, 64, 64)),
    "mc3_18": (lambda: torchvision.models.get_model("mc3_18", weights=None), _numbers(3, 4, 48, 48)),
}
"""Name -> what makes the network, and what makes that many inputs."""
