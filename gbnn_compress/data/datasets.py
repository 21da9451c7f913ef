"""Data sets of images and labels, opened from a data specification."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gbnn_compress.data.image_files import SUFFIXES, FolderImages, images_below
from gbnn_compress.data.preprocessing import Preprocessing, preprocess
from gbnn_compress.errors import DataError, did_you_mean, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    Batch = tuple[torch.Tensor, torch.Tensor | None]

_FORMS = (
    "digits, digits:train, digits:test, npz:FILE, safetensors:FILE, imagefolder:DIR, torchvision/NAME:ROOT,"
    " path/to/data.py:callable, package.module:callable"
)
# Name of the attribute with the labels. Data sets with `labels` also take the split as a string.
_TORCHVISION_LABELS = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"), "targets"),
    **dict.fromkeys(("STL10", "SVHN"), "labels"),
}


class Images(Protocol):
    """A sequence of images that are read when indexed, each uint8 (H, W, C) or (H, W)."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """One image."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set of N images, with or without labels.

    Attributes:
        spec: Data specification, for messages.
        images: The images, read when they are indexed.
        labels: int64 (N,), or None.
    """

    spec: str
    images: Images
    labels: np.ndarray | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def n_channels(self) -> int:
        """Number of channels of the first image; 1 for greyscale."""
        return _with_channels(self.images[0]).shape[2]

    def sample(self, at_most: int) -> Dataset:
        """A fixed random subset of at most `at_most` images, in the stored order."""
        if len(self) <= at_most:
            return self
        return self.take(np.sort(np.random.RandomState(0).permutation(len(self))[:at_most]))

    def take(self, chosen: np.ndarray) -> Dataset:
        """The images at the positions `chosen`, int64 (n,), with their labels."""
        return Dataset(
            self.spec, _Chosen(self.images, chosen), labels=None if self.labels is None else self.labels[chosen]
        )

    def in_one_channel(self) -> Dataset | None:
        """The same images with one channel; None if the first image has not three equal channels."""
        images = _in_one_channel(self.images)
        return None if images is None else replace(self, images=images)

    def batches(self, preprocessing: Preprocessing, *, batch_size: int = 128) -> Iterator[Batch]:
        """Yield preprocessed inputs in the stored order.

        Args:
            preprocessing: `mean` and `std` hold one number per channel of the images.
            batch_size: Number of images per batch; the last batch may have fewer.

        Yields:
            Images float32 (B, C, H, W) and labels int64 (B,) or None.

        Raises:
            DataError: An image cannot be read or has another number of channels; or its size differs from that of
                others in the batch, and no `image_size` is given.
        """
        import torch

        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            images = [_with_channels(self.images[index]) for index in range(start, stop)]
            labels = None if self.labels is None else torch.tensor(self.labels[start:stop])
            yield preprocess(images, preprocessing, spec=self.spec), labels


def load_data(spec: str, *, labels: bool | None = True) -> Dataset:
    """Open the data set of a data specification.

    Args:
        spec: One of

            * `digits`, `digits:train` or `digits:test`: scikit-learn's digits, all or a fixed stratified split of
              1,297 and 500 images;
            * `npz:FILE`: `x` uint8 (N, H, W, C) or (N, H, W), and `y` integers (N,);
            * `imagefolder:DIR`: one folder per class, sorted by name; images have three channels;
            * `torchvision/NAME:ROOT` or `torchvision/NAME/train:ROOT`: the test or training split of a downloaded data
              set.
        labels: True: labels are required. None: labels are kept if the data has them. False: labels are ignored; all
            images below the folder of an `imagefolder` are then used.

    Returns:
        A data set of at least one image.

    Raises:
        DataError: The specification is unknown, or the data is missing, empty or malformed.
    """
    scheme, _, rest = spec.partition(":")
    images: Images
    found: np.ndarray | None
    if scheme == "digits":
        images, found = _digits(spec, rest)
    elif scheme == "npz" and rest:
        images, found = _npz(spec, Path(rest), labels=labels)
    elif scheme == "imagefolder" and rest:
        images, found = _image_folder(spec, Path(rest), labels=labels)
    elif scheme.startswith("torchvision/") and rest:
        images, found = _torchvision(spec, scheme.removeprefix("torchvision/"), Path(rest))
    else:
        raise DataError(_unknown(spec))
    if len(images) == 0:
        raise DataError(f"`{spec}` is empty, expected at least one image")
    if labels is False or found is None:
        return Dataset(spec=spec, images=images, labels=None)
    return Dataset(spec=spec, images=images, labels=_checked_labels(spec, found, n_images=len(images)))


def _in_one_channel(images: Images) -> Images | None:
    if isinstance(images, FolderImages):
        return images.in_one_channel()
    if isinstance(images, _Chosen):
        fewer = _in_one_channel(images.images)
        return None if fewer is None else replace(images, images=fewer)
    return None


def _unknown(spec: str) -> str:
    hint = ""
    if spec.endswith(".npz"):
        hint = did_you_mean(f"npz:{spec.rpartition(':')[2]}")
    elif Path(spec).is_dir():
        hint = did_you_mean(f"imagefolder:{spec}")
    return f"unknown data `{spec}`{hint}, expected one of {_FORMS}"


def _with_channels(image: np.ndarray) -> np.ndarray:
    return image[:, :, np.newaxis] if image.ndim == 2 else image


def _checked_labels(spec: str, labels: np.ndarray, *, n_images: int) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"labels (`y`) of `{spec}` must be integers of shape (N,), got {labels.dtype} {labels.shape}")
    if len(labels) != n_images:
        raise DataError(f"`{spec}`: expected one label (`y`) per image (`x`), got {len(labels)} and {n_images}")
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise DataError(f"labels (`y`) of `{spec}` must be 0 or above, got {labels.min()}")
    return labels


def _digits(spec: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if spec not in ("digits", "digits:train", "digits:test"):
        raise DataError(f"unknown data `{spec}`, expected `digits`, `digits:train` or `digits:test`")
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int64)
    if not split:
        return images, labels
    train, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
    chosen = np.sort(train if split == "train" else test)
    return images[chosen], labels[chosen]


def _npz(spec: str, path: Path, *, labels: bool | None) -> tuple[np.ndarray, np.ndarray | None]:
    if not path.is_file():
        raise DataError(f"`{spec}`: no file `{path}`")
    if not zipfile.is_zipfile(path):
        raise DataError(f"`{path}` is no npz archive, write it with `numpy.savez_compressed(file, x=..., y=...)`")
    wanted = ("x",) if labels is False else ("x", "y")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            arrays = {name: archive[name] for name in wanted if name in names}
    except Exception as error:  # numpy, zipfile and zlib each raise their own exceptions
        raise DataError(
            f"`{path}` cannot be read ({one_line(error)}), save it again with plain numeric arrays"
        ) from error
    for name in wanted:
        if name not in arrays and not (name == "y" and labels is None):
            what = "images" if name == "x" else "labels, which are required here"
            raise DataError(
                f"`{path}`: expected an array `{name}` ({what}), got {', '.join(names) or 'no array'};"
                f" write it with `numpy.savez_compressed(file, {'=..., '.join(wanted)}=...)`"
            )
    _check_pixels(path, arrays["x"])
    return arrays["x"], arrays.get("y")


def _check_pixels(path: Path, x: np.ndarray) -> None:
    if x.dtype != np.uint8:
        raise DataError(f"`x` of `{path}` must be uint8 (0 to 255, not normalised), got {x.dtype}")
    if x.ndim not in (3, 4):
        raise DataError(f"`x` of `{path}` must be N x H x W x C or N x H x W, got shape {x.shape}")
    if x.size == 0:
        raise DataError(f"`x` of `{path}` is empty, got shape {x.shape}")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 2, 3, 4):
        raise DataError(
            f"`x` of `{path}` must be N x H x W x C, got shape {x.shape}, which looks channels-first;"
            " store `x.transpose(0, 2, 3, 1)`"
        )


@dataclass(frozen=True, eq=False)
class _Chosen:
    """A subset of images."""

    images: Images
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.images[int(self.chosen[index])]


@dataclass(frozen=True)
class _Lazy:
    """Images that are decoded when indexed."""

    n_images: int
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.read(index)


def _image_folder(spec: str, folder: Path, *, labels: bool | None) -> tuple[Images, np.ndarray | None]:
    if not folder.is_dir():
        raise DataError(f"`{spec}`: no folder `{folder}`")
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if labels is False or (labels is None and not classes):
        paths = images_below(folder)
        found = None
    else:
        files = [images_below(entry) for entry in classes]
        paths = [path for group in files for path in group]
        found = np.repeat(np.arange(len(files), dtype=np.int64), [len(group) for group in files])
    if not paths:
        inside = "" if found is None else "in class folders "
        raise DataError(f"`{spec}` has no images {inside}({', '.join(sorted(SUFFIXES))})")
    return FolderImages(paths), found


def _torchvision(spec: str, name: str, root: Path) -> tuple[Images, np.ndarray]:
    import torchvision

    name, _, split = name.partition("/")
    if name not in _TORCHVISION_LABELS:
        raise DataError(
            f"unknown data set `torchvision/{name}`, expected one of {', '.join(sorted(_TORCHVISION_LABELS))}"
        )
    split = split or "test"
    if split not in ("train", "test"):
        raise DataError(f"`{spec}` has no split `{split}`, expected `train` or `test`")
    attribute = _TORCHVISION_LABELS[name]
    options = {"train": split == "train"} if attribute == "targets" else {"split": split}
    try:
        dataset = getattr(torchvision.datasets, name)(root, download=False, **options)
    except Exception as error:  # each of torchvision's readers raises its own exceptions
        raise DataError(
            f"`{spec}`: {name} is not in `{root}` ({one_line(error)}), download it first with"
            f" torchvision.datasets.{name}(root, download=True)"
        ) from error
    images = _Lazy(len(dataset), lambda index: np.array(dataset[index][0]))
    return images, np.asarray(getattr(dataset, attribute))
