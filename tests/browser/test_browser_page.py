"""The page of examples/browser in Chromium: probabilities are those of Python, and it fits phone and desktop."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gbnn_compress_cli.digits_network import digits_cnn
from PIL import Image

import gbnn_compress
from gbnn_compress.data.datasets import load_data
from gbnn_compress.data.preprocessing import Preprocessing, preprocess
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict.rebuild import draw, rebuild, shared_tensors

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "browser"
MODELS = EXAMPLE / "models"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NETWORKS = ("digits-40x", "digits-8x")
DRAWS = 16

MISSING = next(
    (
        reason
        for missing, reason in (
            (CHROMIUM is None, "needs Chromium"),
            (shutil.which("node") is None, "needs Node.js"),
            (not (ROOT / "decoder" / "dist" / "index.mjs").exists(), "needs `make -C decoder package`"),
            (not (EXAMPLE / "node_modules" / "playwright-core").exists(), "needs `npm ci` in examples/browser"),
        )
        if missing
    ),
    "",
)

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

Drive = Callable[..., Any]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with subprocess.Popen(["node", EXAMPLE / "server.mjs", "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture(scope="module")
def drive(address: str) -> Iterator[Drive]:
    """Runs actions of drive.mjs and returns what they saw."""
    line = ["node", Path(__file__).with_name("drive.mjs"), CHROMIUM]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None

        def run(action: str, query: str = "", **details: Any) -> Any:
            print(
                json.dumps({"action": action, "address": address + query, **details}, default=str),
                file=driver.stdin,
                flush=True,
            )
            seen = json.loads(driver.stdout.readline())
            assert "failed" not in seen, seen["failed"]
            return seen

        yield run
        driver.stdin.close()


class Normals:
    """The normal numbers of src/normals.mjs."""

    def __init__(self, seed: int) -> None:
        self.state, self.kept = seed, None

    def uniform(self) -> float:
        self.state = (self.state + 0x6D2B79F5) & 0xFFFFFFFF
        mixed = (self.state ^ self.state >> 15) * (self.state | 1) & 0xFFFFFFFF
        mixed ^= mixed + (mixed ^ mixed >> 7) * (mixed | 61) & 0xFFFFFFFF
        return (mixed ^ mixed >> 14) / 2**32

    def next(self) -> float:
        if self.kept is not None:
            kept, self.kept = self.kept, None
            return kept
        radius, angle = math.sqrt(-2 * math.log(1 - self.uniform())), 2 * math.pi * self.uniform()
        self.kept = radius * math.sin(angle)
        return radius * math.cos(angle)

    def standard_normal(self, n: int) -> np.ndarray:
        return np.array([self.next() for _ in range(n)])


def probabilities(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> np.ndarray:
    network = digits_cnn().eval()
    network.load_state_dict(tensors)
    with torch.no_grad():
        return network(images).double().softmax(dim=1).numpy()


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(axis=-1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], torch.Tensor]:
    """Digits as PNG files, and as inputs of the network."""
    images = [load_data("digits:test").images[position] for position in (2, 17, 40, 449)]
    files = [tmp_path_factory.mktemp("digits") / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image.squeeze()).save(file)
    inputs = np.stack([image.reshape(1, 8, 8) for image in images]).astype(np.float32) / 255
    return files, torch.from_numpy(inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_probabilities_are_those_of_python(drive: Drive, pictures: tuple[list[Path], torch.Tensor], name: str) -> None:
    files, inputs = pictures
    seen = drive("predictions", f"?network=models/{name}.json", pictures=files)
    assert seen["errors"] == []
    artifact = read_artifact(MODELS / f"{name}.gbnn.safetensors")
    mean = rebuild(artifact)
    np.testing.assert_allclose([each["atMean"] for each in seen["found"]], probabilities(mean, inputs), atol=1e-6)
    draws = []
    for seed in range(DRAWS):
        normals, tensors = Normals(seed), dict(mean)
        for tensor in shared_tensors(artifact):
            tensors[tensor.name] = draw(tensor, normals).reshape(tensor.shape)
        draws.append(probabilities(tensors, inputs))
    average = np.mean(draws, axis=0)
    np.testing.assert_allclose([each["probabilities"] for each in seen["found"]], average, atol=1e-5)
    np.testing.assert_allclose([each["entropy"] for each in seen["found"]], entropy(average), atol=1e-4)
    information = entropy(average) - np.mean([entropy(each) for each in draws], axis=0)
    np.testing.assert_allclose([each["mutualInformation"] for each in seen["found"]], information, atol=1e-4)
    assert np.array_equal(np.transpose([each["votes"] for each in seen["found"]]), np.argmax(draws, axis=2))


def test_the_page_says_what_came_over_the_wire(drive: Drive) -> None:
    seen = drive("predictions", pictures=[])
    artifact = (MODELS / "digits-40x.gbnn.safetensors").stat().st_size
    assert f"artifact {artifact / 1000:.2f} kB, graph " in seen["tiles"]
    graph = float(re.search(r"graph ([\d.]+) kB", seen["tiles"])[1])
    assert graph < (MODELS / "digits.onnx").stat().st_size / 1000 / 2  # HTTP compresses it
    assert "0" in seen["words"]


@pytest.mark.parametrize(("height", "width"), [(45, 60), (20, 90), (33, 40)])
def test_larger_pictures_are_resized_as_in_python(drive: Drive, tmp_path: Path, height: int, width: int) -> None:
    picture = np.random.default_rng(height).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    settings = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), image_size=32, crop_fraction=0.875)
    image = {"size": 32, "channels": 3, "mean": settings.mean, "std": settings.std, "crop_fraction": 0.875}
    found = drive("input", picture=tmp_path / "picture.png", image=image)
    expected = preprocess([picture], settings, spec="picture")
    np.testing.assert_allclose(found, expected.flatten(), atol=1e-4)


def test_a_network_of_the_users_from_files(drive: Drive, pictures: tuple[list[Path], torch.Tensor]) -> None:
    files, inputs = pictures
    artifact = MODELS / "digits-8x.gbnn.safetensors"
    own = [artifact, MODELS / "digits.onnx"]
    seen = drive("own", files=own, picture=files[1])
    expected = probabilities(gbnn_compress.load(artifact).state_dict(), inputs[1:2])[0]
    np.testing.assert_allclose(seen["atMean"], expected, atol=1e-6)


def test_errors_are_sentences(drive: Drive, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((MODELS / "digits-8x.gbnn.safetensors").read_bytes()[:-9])
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "picture.png").write_text("no picture")
    graph = MODELS / "digits.onnx"
    files = [["notes.txt"], ["list.json"], ["picture.png"], [graph, damaged]]
    said = drive("problems", files=[[tmp_path / name for name in each] for each in files])
    assert said[0].startswith("“notes.txt” is neither a picture nor")
    assert said[1].startswith("“list.json” must hold a JSON object")
    assert said[2] == "“picture.png” is not a picture that this browser can open."
    assert all("\n" not in each and each.endswith(".") for each in said), said


def test_a_graph_of_another_dtype_is_refused(drive: Drive, tmp_path: Path) -> None:
    half = {
        name: value.half()
        for name, value in gbnn_compress.load(MODELS / "digits-8x.gbnn.safetensors").state_dict().items()
    }
    gbnn_compress.compress(half, target_ratio=2, output=tmp_path / "half.gbnn.safetensors")
    (said,) = drive("problems", files=[[MODELS / "digits.onnx", tmp_path / "half.gbnn.safetensors"]])
    assert "float16 in the artifact and " in said


def test_a_graph_of_another_network_is_refused(drive: Drive, tmp_path: Path) -> None:
    other = {name: torch.randn(shape) for name, shape in (("conv1.weight", (40, 1, 3, 3)), ("norm1.weight", (40,)))}
    gbnn_compress.compress(other, target_ratio=2, output=tmp_path / "other.gbnn.safetensors")
    (said,) = drive("problems", files=[[MODELS / "digits.onnx", tmp_path / "other.gbnn.safetensors"]])
    shapes = "40×1×3×3 float32 in the artifact and 32×1×3×3 float32 in the graph"
    assert said == f"“conv1.weight” is {shapes}: they are not of one network."


def test_an_address_that_leads_nowhere(drive: Drive) -> None:
    (said,) = drive("problems", "?network=models/nothing.json", files=[None])
    assert re.fullmatch(r"“http.*/models/nothing\.json” could not be fetched: the server answered 404\.", said)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(drive: Drive, width: int, scheme: str) -> None:
    assert drive("layout", width=width, scheme=scheme, picture="a cross, not a digit") == [width, width]


def test_a_digit_drawn_with_the_mouse(drive: Drive) -> None:
    seen = drive("drawn", strokes=[[0.3, 0.2], [0.7, 0.2], [0.45, 0.85]])
    assert np.argmax(seen["probabilities"]) == 7
