"""What a run on the first batch says of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gbnn_compress.checkpoint.objects import read_any
from gbnn_compress.errors import GbnnError
from gbnn_compress.predict.bench import Bench, Evaluation, open_bench
from gbnn_compress.predict.trial import Trial, try_first
from gbnn_compress.predict.use import Use, check_output, parse_output, use_of

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(6, 3, 4, 4)


class Net(nn.Module):
    """A linear layer; `kind` says what it returns."""

    def __init__(self, kind: str = "plain", inputs: int = 5) -> None:
        super().__init__()
        self.layer, self.kind, self.calls = nn.Linear(inputs, 4), kind, 0

    def forward(self, x: torch.Tensor) -> Any:
        found = self.layer(x.flatten(1))
        self.calls += 1
        if self.kind == "several":
            return {"value": found, "parts": [found, found.argmax(dim=1)]}
        if self.kind == "stateful":
            return found + self.calls
        if self.kind == "random":
            return found + torch.randn_like(found)
        if self.kind == "in place":
            x.zero_()
        if self.kind == "nan":
            return torch.where(x[:, :1] > 1, torch.nan, found)
        return found.argmax(dim=1) if self.kind == "integers" else found


class Words(nn.Module):
    """Takes keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * (self.embedding(input_ids) * attention_mask[..., None]).sum(dim=1)


def bench(network: nn.Module, data: Any, **options: Any) -> Bench:
    return open_bench(read_any(network), Evaluation(data, device="cpu"), network, labels=None, use=use_of(**options))


@pytest.mark.parametrize(
    ("network", "data", "options", "expected"),
    [
        (Net(), [X], {}, Trial(4, images=False, labelled=False)),
        (Net(), [(X, torch.arange(6) % 4)], {}, Trial(4, images=False, labelled=True)),
        (Net(), [(X, torch.arange(6))], {}, Trial(4, images=False, labelled=False)),
        (Net(), [(X, X)], {}, Trial(4, images=False, labelled=False)),
        (Net(inputs=48), [IMAGES], {}, Trial(4, images=True, labelled=False)),
        (Net("several"), [X], {}, Trial(0, images=False, labelled=False)),
        (Net("several"), [X], {"output": "value"}, Trial(4, images=False, labelled=False)),
        (Net("several"), [X], {"output": 1}, Trial(4, images=False, labelled=False)),
        (Net("random"), [X], {}, Trial(4, images=False, labelled=False)),
        (Net("in place"), [X], {}, Trial(4, images=False, labelled=False)),
        (Net("stateful"), [X], {"forward": lambda network, batch: network.layer(batch)}, Trial(4, False, False)),
        (nn.Conv2d(3, 4, 1), [IMAGES], {}, Trial(0, images=True, labelled=False)),
    ],
)
def test_what_is_found(network: nn.Module, data: Any, options: dict[str, Any], expected: Trial) -> None:
    before = [tensor.clone() for tensor in (X, IMAGES)]
    assert try_first(bench(network, data, **options)) == expected
    assert torch.equal(X, before[0])
    assert torch.equal(IMAGES, before[1])


def test_images_of_a_file(tmp_path: Path) -> None:
    images = np.zeros((5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=images, y=np.arange(5) % 4)
    found = bench(Net(inputs=48), f"npz:{tmp_path / 'x.npz'}")
    assert try_first(found) == Trial(4, images=True, labelled=True)


IDS = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("network", "data", "options", "words"),
    [
        (Net(), [torch.randn(6, 7)], {}, r"the network fails on a batch of shape \(6, 7\) from `--data`"),
        (Net(), [X.double()], {}, r"the network fails on a batch.*(Double|double)"),
        (Net("integers"), [X], {}, "the network returns no floating tensor"),
        (Net("several"), [X], {"output": "other"}, "`--output other`: .* it has `value`, `parts.0`"),
        (Net("several"), [X], {"output": 7}, "`--output 7`: .* it has `value`, `parts.0`"),
        (Net("stateful"), [X], {}, "another `output` when it is run again on the same inputs.*`--forward`"),
        (Net("nan"), [2 * torch.eye(5)[[1, 0, 2]]], {}, "NaN values in `output` for input.s. 1 of the first batch"),
        (Net(), [torch.full((2, 5), torch.inf)], {}, "`--data` has infinite or NaN values; give finite inputs"),
        (
            Words(),
            [{"input_ids": IDS}],
            {},
            "`forward` of `Words` needs `attention_mask`, but the data have only `input_ids`",
        ),
        (Words(), [IDS], {}, "`forward` of `Words` needs `attention_mask`, but the data have one input per batch"),
        (
            Words(),
            [{"input_ids": IDS, "attention_mask": IDS, "token_type_ids": IDS}],
            {},
            "`forward` of `Words` does not take `token_type_ids`; it takes `input_ids`, `attention_mask`, `scale`",
        ),
        (Net(), [{"y": X, "z": X}], {}, "`forward` of `Net` needs `x`, but the data have only `z`; name them so"),
        (Net(), [X], {"forward": lambda network, batch: 1 / 0}, "ZeroDivisionError"),
    ],
)
def test_what_is_refused(network: nn.Module, data: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(GbnnError, match=words) as caught:
        try_first(bench(network, data, **options))
    assert "\n" not in str(caught.value)


def test_functions_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "NUMBER = 5\n"
        "def forward(network, batch):\n"
        "    from scale_beside import scale\n"
        "    return scale * network(batch)\n"
    )
    (tmp_path / "scale_beside.py").write_text("scale = 3\n")
    use = use_of(forward=f"{tmp_path / 'own.py'}:forward", output=parse_output("0"))
    assert use.forward.function is not None
    assert use.forward.function(lambda x: 2 * x, 5) == 30
    assert use.forward.output == 0
    assert use_of() == Use()
    assert (parse_output(None), parse_output("parts.0")) == (None, "parts.0")
    for spec, words in (
        (f"{tmp_path / 'own.py'}:NUMBER", "must be callable, got `int`"),
        (f"{tmp_path / 'own.py'}:forwrad", "did you mean `forward`"),
        ("own.py", "`--metric`: expected path/to/file.py:callable"),
        ("missing.py:f", "no file `missing.py`"),
    ):
        with pytest.raises(GbnnError, match=words):
            use_of(metric=spec)


@pytest.mark.parametrize("output", [True, -1, 1.5, ["value"]])
def test_bad_outputs(output: Any) -> None:
    with pytest.raises(GbnnError, match="`output`: expected the name of one of the network's outputs, or its position"):
        check_output(output)
