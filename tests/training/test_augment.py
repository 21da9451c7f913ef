"""Augmentation: what it changes, and what a network minds."""

from __future__ import annotations

import torch

from gbnn_compress.training.augment import Augmentation, harmless


def images(count: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_nothing_chosen_changes_nothing() -> None:
    batch = images()
    assert torch.equal(Augmentation(shift=False, flip=False)(batch, torch.Generator()), batch)


def test_flips_turn_whole_images() -> None:
    batch = images(64)
    changed = Augmentation(shift=False, flip=True)(batch, torch.Generator().manual_seed(0))
    flipped = [torch.equal(new, old.flip(2)) for new, old in zip(changed, batch, strict=True)]
    same = [torch.equal(new, old) for new, old in zip(changed, batch, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 16 < sum(flipped) < 48


def test_shifts_move_by_at_most_an_eighth() -> None:
    batch = images()
    changed = Augmentation(shift=True, flip=False)(batch, torch.Generator().manual_seed(0))
    for new, old in zip(changed, batch, strict=True):
        windows = [
            torch.equal(new[:, 2 + i : 14 + i, 2 + j : 14 + j], old[:, 2:14, 2:14])
            for i in range(-2, 3)
            for j in range(-2, 3)
        ]
        assert sum(windows) == 1


def test_a_network_that_tells_left_from_right_minds_flips_only() -> None:
    batch = torch.zeros(40, 1, 16, 16)
    labels = torch.arange(40) % 2
    batch[labels == 0, :, :, 2:6] = 1
    batch[labels == 1, :, :, 10:14] = 1

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[..., :8].sum(dim=(1, 2, 3)), x[..., 8:].sum(dim=(1, 2, 3))], dim=1)

    assert harmless(predict, batch, labels) == Augmentation(shift=True, flip=False)


def test_a_network_that_sees_sums_minds_nothing() -> None:
    batch = (
        torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        * (1 + torch.arange(40) % 2)[:, None, None, None]
    )

    def predict(x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([0.75 - mean, mean - 0.75], dim=1)

    assert harmless(predict, batch, torch.arange(40) % 2) == Augmentation(shift=True, flip=True)
