"""Networks of a harness in `benchmarks/rate.py`: what is measured, and that peers run once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import peers
import pytest
import rate
import tasks
import torch

if TYPE_CHECKING:
    from pathlib import Path

HARNESS = '''
"""A regression network as a harness."""

import torch

class Task:
    def net(self):
        return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4)).eval()

    def inputs(self, seed):
        return torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def run(self, network):
        return network(self.inputs(0))

    def calibration(self):
        return list(self.inputs(1).split(20))

    @staticmethod
    def forward(network, batch):
        return network(batch)

TASKS = {"small": Task}
CHECKPOINTS = {"small": "small.pth"}
CASES = {"small": {"title": "Small", "inputs": ("x:float32:batch,8",), "ratios": (4,), "span": (2, 8)}}
'''


@pytest.fixture
def harness(tmp_path: Path) -> Any:
    path = tmp_path / "harness.py"
    path.write_text(HARNESS)
    torch.manual_seed(0)
    harness = tasks.open_harness(path)
    torch.save(harness.Task().net().state_dict(), tmp_path / "small.pth")
    return harness


@pytest.fixture
def network(harness: Any, tmp_path: Path) -> tasks.TaskNetwork:
    return tasks.TaskNetwork(harness, tasks.case_of(harness, "small"), tmp_path / "cache")


def run_rate(monkeypatch: pytest.MonkeyPatch, harness: Any, *words: str) -> None:
    folder = f"{harness.__file__}.cache"
    monkeypatch.setattr(sys, "argv", ["rate.py", "--harness", harness.__file__, "--cache", folder, *words])
    rate.main()


def test_cases_come_from_the_harness_and_from_the_known_ones(harness: Any) -> None:
    case = tasks.case_of(harness, "small")
    assert (case.title, case.ratios, case.folds) == ("Small", (4,), False)
    assert tasks.case_of(harness, "onet").inputs == ("x:float32:batch,3,48,48",)
    assert tasks.case_of(harness, "other") == tasks.TaskCase("other", "other")


def test_checkpoints_are_beside_the_harness_or_below_its_root(harness: Any, tmp_path: Path) -> None:
    assert tasks.checkpoint_path(harness, "small") == tmp_path / "small.pth"
    harness.R = "/weights"
    assert str(tasks.checkpoint_path(harness, "small")) == "/weights/unpacked/small.pth"


def test_the_error_is_that_of_all_outputs_together(network: tasks.TaskNetwork) -> None:
    decoded = dict(network.floating)
    assert network.scores(decoded, calibrated=False) == {"all": {"error": 0.0}}
    decoded |= {name: 1.1 * decoded[name] for name in ("2.weight", "2.bias")}
    assert network.scores(decoded, calibrated=False)["all"]["error"] == pytest.approx(0.1, abs=1e-6)


def test_relative_error_is_norm_over_norm() -> None:
    assert tasks.relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(0.2)


def test_ours_gets_inputs_or_their_description(network: tasks.TaskNetwork) -> None:
    assert network.options(calibrated=False)["inputs"] == ("x:float32:batch,8",)
    options = network.options(calibrated=True)
    assert len(options["data"]) == 2
    assert options["forward"](lambda batch: batch + 1, 1) == 2


def test_peers_run_once(harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_rate(monkeypatch, harness, "--codecs", "integers")
    first = capsys.readouterr()
    assert "| integers | int8 |" in first.out
    assert "int8" in first.err
    run_rate(monkeypatch, harness, "--codecs", "integers", "k-means", "--cached-peers")
    second = capsys.readouterr()
    assert (second.out, second.err) == (first.out, "")


def test_ours_is_compared_at_equal_output_error(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def coded(network: tasks.TaskNetwork, ratio: float, path: Path, **options: Any) -> peers.Coded:
        assert options.keys() == {"arch", "inputs"}
        decoded = {name: 0.99 * value for name, value in network.floating.items()}
        return peers.Coded(int(network.raw_bytes / ratio), decoded, 1.0)

    monkeypatch.setattr(rate, "coded", coded)
    run_rate(monkeypatch, harness, "--codecs", "ours", "integers", "--ratios", "3")
    out = capsys.readouterr().out
    assert "| ours | 3x | 3.00 | 0.0" in out
    assert "### Small (outputs on the inputs of its task)" in out
    assert "| codec | setting | ratio | output error | seconds |" in out
    assert "Bytes at equal output error, `ours` over each peer at its best" in out


def test_unknown_networks_are_refused(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_rate(monkeypatch, harness, "--networks", "resnet20")
    assert (
        "`--networks`: resnet20 not found in `--data-dir` (image classifiers) or `--harness`" in capsys.readouterr().err
    )


def test_nncodec_stops_after_the_first_file_beyond_the_span(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def nncodec(network: tasks.TaskNetwork, options: Any, *, qp: int, **tools: Any) -> peers.Coded:
        tried.append(qp)
        return peers.Coded(network.raw_bytes // (len(tried) + 1), network.floating, 1.0)

    monkeypatch.setattr(rate, "nncodec", nncodec)
    monkeypatch.setattr(rate, "UNFOLDED_SETTINGS", {"default": (range(-38, 0, 4), {})})
    run_rate(monkeypatch, harness, "--codecs", "nncodec")
    assert tried == list(range(-38, -6, 4))
    run_rate(monkeypatch, harness, "--codecs", "nncodec")
    assert len(tried) == 8
