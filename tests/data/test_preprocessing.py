import numpy as np
import pytest
import torch
import torchvision

from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.preprocessing import Preprocessing, parse_numbers
from gbnn_compress.errors import DataError, GbnnError


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=shape).astype(np.uint8)


def batch_of(images, *, mean=(0.0,) * 3, std=(1.0,) * 3, image_size=None, crop_fraction=1.0) -> torch.Tensor:
    preprocessing = Preprocessing(mean=mean, std=std, image_size=image_size, crop_fraction=crop_fraction)
    return next(Dataset(spec="test", images=images, labels=None).batches(preprocessing))[0]


def test_mean_and_std_are_in_units_of_x_over_255():
    x = np.full((1, 2, 2, 3), 255, dtype=np.uint8)
    batch = batch_of(x, mean=(0.5, 0.0, 1.0), std=(0.5, 0.5, 0.5))
    assert batch[0, :, 0, 0].tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("image_size", [None, 8, 20])
def test_batches_are_contiguous_float32(image_size):
    batch = batch_of(pixels(2, 10, 14, 3), image_size=image_size)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()


def test_every_pixel_is_normalised_as_torchvision_does():
    x, mean, std = pixels(3, 9, 7, 3), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    functional = torchvision.transforms.functional
    expected = torch.stack([functional.normalize(functional.to_tensor(image), mean, std) for image in x])
    torch.testing.assert_close(batch_of(x, mean=mean, std=std), expected, rtol=0, atol=0)


def test_slightly_larger_images_are_cropped_at_the_centre():
    x = pixels(2, 10, 14, 3)
    expected = torch.tensor(x[:, 1:9, 3:11]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(batch_of(x, image_size=8, crop_fraction=0.875), expected)


@pytest.mark.parametrize(("size", "crop_fraction", "short"), [(8, 1.0, 8), (8, 0.8, 10), (40, 0.8, 40)])
def test_other_images_are_resized_as_torchvision_does(size, crop_fraction, short):
    x = pixels(2, 20, 33, 3)
    batch = torch.tensor(x).permute(0, 3, 1, 2) / 255
    functional = torchvision.transforms.functional
    expected = functional.center_crop(functional.resize(batch, [short], antialias=True), [size, size])
    torch.testing.assert_close(batch_of(x, image_size=size, crop_fraction=crop_fraction), expected)


def test_images_of_different_sizes_are_resized_one_by_one():
    images = [pixels(20, 33, 3), pixels(9, 8, 3), pixels(5, 8, 3)]
    alone = torch.cat([batch_of([image], image_size=8) for image in images])
    torch.testing.assert_close(batch_of(images, image_size=8), alone, rtol=0, atol=0)


@pytest.mark.parametrize("image_size", [None, 8, 18])
def test_stored_images_are_not_changed(image_size):
    x = pixels(2, 20, 30, 3)
    before = x.copy()
    batch_of(x, image_size=image_size)
    np.testing.assert_array_equal(x, before)


def test_error_mean_of_another_number_of_channels():
    message = r"`test` has images with 1 channel\(s\), `--mean` has 3 number\(s\); give one number per channel"
    with pytest.raises(DataError, match=message):
        batch_of(pixels(2, 4, 4))


def test_error_images_of_different_sizes():
    message = r"`test` has images of different sizes \(6 x 8 and 7 x 8\); give `--image-size`"
    with pytest.raises(DataError, match=message):
        batch_of([pixels(7, 8, 3), pixels(6, 8, 3)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "`--mean` and `--std` must have one number per channel each, got 1 and 3"),
        ({"std": (1.0, 0.0, 1.0)}, "`--std` must be above 0, got 1.0, 0.0, 1.0"),
        ({"image_size": 0}, "`--image-size` must be at least 1, got 0"),
        ({"crop_fraction": 1.5}, r"`crop_fraction` must lie in \(0, 1\], got 1.5"),
    ],
)
def test_error_preprocessing(options, message):
    with pytest.raises(GbnnError, match=message):
        Preprocessing(**{"mean": (0.0,) * 3, "std": (1.0,) * 3, "image_size": None, **options})


def test_numbers():
    assert parse_numbers("0.485, 0.5,1", option="--mean") == (0.485, 0.5, 1.0)


@pytest.mark.parametrize("text", ["", "a", "0.5,,0.5", "0.5 0.5", "nan", "1,inf"])
def test_error_numbers(text):
    with pytest.raises(GbnnError, match=f"`--std` must be numbers separated by commas, .*, got `{text}`"):
        parse_numbers(text, option="--std")
