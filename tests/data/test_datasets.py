import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from gbnn_compress.data.datasets import load_data
from gbnn_compress.data.preprocessing import Preprocessing
from gbnn_compress.errors import DataError

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), image_size=None)
GREY = Preprocessing(mean=(0.0,), std=(1.0,), image_size=None)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=shape).astype(np.uint8)


@pytest.fixture
def npz(tmp_path):
    def write(**arrays) -> str:
        np.savez(tmp_path / "data.npz", **arrays)
        return f"npz:{tmp_path / 'data.npz'}"

    return write


@pytest.fixture
def folder(tmp_path):
    for name, n in (("cat", 2), ("dog", 1)):
        (tmp_path / name).mkdir()
        for k in range(n):
            Image.fromarray(pixels(6 + k, 8, 3)).save(tmp_path / name / f"{k}.png")
    return tmp_path


@pytest.fixture
def mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("t10k", 3), ("train", 5)):
        images = struct.pack(">IIII", 0x803, n, 28, 28) + pixels(n, 28, 28).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + bytes(range(n)))
    return tmp_path


def test_npz_gives_the_stored_images_and_labels(npz):
    x, y = pixels(5, 4, 6, 3), np.arange(5, dtype=np.uint8)
    data = load_data(npz(x=x, y=y))
    batches = list(data.batches(PLAIN, batch_size=2))
    assert len(data) == 5
    assert data.n_channels == 3
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, torch.tensor(x).permute(0, 3, 1, 2) / 255)
    labels = torch.cat([labels for _, labels in batches])
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_greyscale_images_have_one_channel(npz):
    data = load_data(npz(x=pixels(2, 4, 6), y=np.zeros(2, dtype=int)))
    assert data.n_channels == 1
    assert next(data.batches(GREY))[0].shape == (2, 1, 4, 6)


@pytest.mark.parametrize(("labels", "expected"), [(None, [0, 1]), (False, None), (True, [0, 1])])
def test_labels_are_kept_or_left_out_as_asked(npz, labels, expected):
    data = load_data(npz(x=pixels(2, 4, 6), y=np.arange(2)), labels=labels)
    assert (None if data.labels is None else data.labels.tolist()) == expected


@pytest.mark.parametrize("labels", [None, False])
def test_unlabelled_npz(npz, labels):
    data = load_data(npz(x=pixels(2, 4, 6)), labels=labels)
    assert data.labels is None
    assert next(data.batches(GREY))[1] is None


def test_digits_are_scaled_to_uint8():
    data = load_data("digits")
    assert len(data) == 1797
    assert data.images.dtype == np.uint8
    assert data.images.shape == (1797, 8, 8)
    assert data.images.max() == 255


def test_digits_split_is_stratified_disjoint_and_fixed():
    train, test = load_data("digits:train"), load_data("digits:test")
    assert (len(train), len(test)) == (1297, 500)
    assert np.bincount(test.labels).tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    whole = sorted(image.tobytes() for image in load_data("digits").images)
    assert sorted(image.tobytes() for part in (train, test) for image in part.images) == whole
    np.testing.assert_array_equal(load_data("digits:test").images, test.images)


def test_image_folder_has_a_class_a_folder(folder):
    data = load_data(f"imagefolder:{folder}")
    assert data.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(data.images[1], pixels(7, 8, 3))
    images, _ = next(data.batches(Preprocessing(mean=(0,) * 3, std=(1,) * 3, image_size=4)))
    assert images.shape == (3, 3, 4, 4)


def test_image_folder_without_classes_serves_unlabelled(folder):
    data = load_data(f"imagefolder:{folder / 'cat'}", labels=None)
    assert len(data) == 2
    assert data.labels is None


@pytest.mark.parametrize(("spec", "n"), [("torchvision/MNIST", 3), ("torchvision/MNIST/train", 5)])
def test_torchvision_data(mnist, spec, n):
    data = load_data(f"{spec}:{mnist}")
    assert data.labels.tolist() == list(range(n))
    np.testing.assert_array_equal(data.images[0], pixels(n, 28, 28)[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("npzz:file", "unknown data `npzz:file`, expected one of digits, "),
        ("folder/a.npz", r"did you mean `npz:folder/a.npz`\?"),
        ("npz:", "unknown data `npz:`, expected one of"),
        ("digits:valid", "unknown data `digits:valid`, expected `digits`, `digits:train` or `digits:test`"),
        ("npz:nowhere.npz", "`npz:nowhere.npz`: no file `nowhere.npz`"),
        ("imagefolder:nowhere", "`imagefolder:nowhere`: no folder `nowhere`"),
        (
            "torchvision/CIFAR1:r",
            "unknown data set `torchvision/CIFAR1`, expected one of CIFAR10, .*MNIST",
        ),
        (
            "torchvision/MNIST/dev:r",
            "`torchvision/MNIST/dev:r` has no split `dev`, expected `train` or `test`",
        ),
        ("torchvision/MNIST:nowhere", r"MNIST is not in `nowhere` .*download it first"),
    ],
)
def test_error_data_specification(spec, message):
    with pytest.raises(DataError, match=message) as error:
        load_data(spec)
    assert "\n" not in str(error.value)


def test_error_folder_without_scheme(tmp_path):
    with pytest.raises(DataError, match="did you mean `imagefolder:"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels(2, 4, 4)}, r"expected an array `x` \(images\), got images"),
        ({}, r"expected an array `x` \(images\), got no array"),
        (
            {"x": pixels(2, 4, 4), "z": np.ones(2)},
            r"expected an array `y` \(labels, which are required here\), got x, z",
        ),
        ({"x": np.ones((2, 4, 4)), "y": [0, 1]}, r"`x` of .* must be uint8 .*, got float64"),
        ({"x": pixels(2, 16), "y": [0, 1]}, r"must be N x H x W x C or N x H x W, got shape \(2, 16\)"),
        ({"x": pixels(0, 4, 4), "y": np.zeros(0, dtype=int)}, r"is empty, got shape \(0, 4, 4\)"),
        ({"x": pixels(2, 3, 8, 8), "y": [0, 1]}, r"looks channels-first; store `x.transpose\(0, 2, 3, 1\)`"),
        (
            {"x": pixels(2, 4, 4), "y": [0.0, 1.0]},
            r"labels \(`y`\) .* must be integers .* got float64 \(2,\)",
        ),
        ({"x": pixels(2, 4, 4), "y": [[0], [1]]}, r"must be integers of shape \(N,\), got int64 \(2, 1\)"),
        ({"x": pixels(2, 4, 4), "y": [0, 1, 2]}, r"expected one label \(`y`\) per image \(`x`\), got 3 and 2"),
        ({"x": pixels(2, 4, 4), "y": [0, -1]}, r"must be 0 or above, got -1"),
        (
            {"x": np.array([{}, {}]), "y": [0, 1]},
            r"\(ValueError: Object arrays cannot be loaded .*\), save it again with plain",
        ),
    ],
)
def test_error_npz_content(npz, arrays, message):
    with pytest.raises(DataError, match=message):
        load_data(npz(**arrays))


def test_error_no_npz_archive(tmp_path):
    np.save(tmp_path / "x.npy", pixels(2, 4, 4))
    with pytest.raises(DataError, match=r"x.npy` is no npz archive, write it with `numpy.savez_compressed"):
        load_data(f"npz:{tmp_path / 'x.npy'}")


def test_error_damaged_npz(tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(DataError, match=r"data.npz` cannot be read \(.*\), save it again"):
        load_data(f"npz:{path}", labels=False)


def test_error_no_images_in_folder(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"has no images in class folders \(.bmp, .jpeg"):
        load_data(f"imagefolder:{tmp_path}")


def test_error_broken_image(folder):
    (folder / "cat" / "0.png").write_bytes(b"no image")
    data = load_data(f"imagefolder:{folder}")
    with pytest.raises(DataError, match=r"0.png` cannot be read as an image"):
        data.images[0]
