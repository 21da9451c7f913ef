"""How much the outputs of a file differ, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gbnn_compress.errors import OutputError
from gbnn_compress.onnx_files.check import largest_difference, require_equal, run_onnx

if TYPE_CHECKING:
    from pathlib import Path


def outputs(*values: float, name: str = "logits") -> dict[str, np.ndarray]:
    return {name: np.array(values)}


@pytest.mark.parametrize(
    ("name", "got", "expected", "difference"),
    [
        ("logits", (1.0, -19.0), (1.0, -20.0), 0.05),
        ("logits", (0.0, 0.02), (0.0, 0.01), 1.0),
        ("logits", (0.0,), (0.0,), 0.0),
        ("logits", (1e-9,), (0.0,), np.inf),
        ("logits", (np.nan,), (1.0,), np.inf),
        ("logits", (np.inf,), (1.0,), np.inf),
        ("logits", (1.0, 1.0), (1.0,), np.inf),
        ("mutual_information", (1e-7,), (0.0,), 1e-7),
        ("entropy", (2.0,), (4.0,), 0.5),
    ],
)
def test_difference(name: str, got: tuple[float, ...], expected: tuple[float, ...], difference: float) -> None:
    found = largest_difference(outputs(*got, name=name), outputs(*expected, name=name))
    assert found == pytest.approx(difference)


def test_the_worst_output_counts() -> None:
    expected = {"probabilities": np.ones(3), "entropy": np.ones(3)}
    assert largest_difference(expected | {"entropy": np.array([1, 1, 1.5])}, expected) == 0.5


@pytest.mark.parametrize("difference", [1.01e-4, np.inf, np.nan])
def test_a_file_that_differs_is_refused(difference: float) -> None:
    require_equal(1e-4)
    with pytest.raises(OutputError, match=r"nothing written: in ONNX Runtime .*, more than 1e-04"):
        require_equal(difference)


def test_a_file_that_the_runtime_does_not_take(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(OutputError, match="nothing written: ONNX Runtime cannot run the network") as refusal:
        run_onnx(tmp_path / "x.onnx", [])
    assert "\n" not in str(refusal.value)


@pytest.mark.long
def test_the_runtime_leaves_nothing_behind_that_it_could_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    script = "from gbnn_compress.onnx_files.check import runtime; runtime().SessionOptions()"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert list(tmp_path.iterdir()) == []
