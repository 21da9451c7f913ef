"""Feedback reaches every kind of layer, and lowers the errors of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from layer_kinds import KINDS
from lockstep_runs import Snapshot, compressed, in_lockstep, nearest, read, sharing_of
from torch import nn

from gbnn_compress.predict.forward import Forward

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:.*even kernel", "ignore:LSTM with projections"),
]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@torch.no_grad()
def outputs(network: nn.Module, batches: Any, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    network.load_state_dict(state)
    forward = Forward()
    return torch.cat([forward(network.eval(), batch).reshape(-1) for batch in read(batches)])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_feedback_reaches_the_layer_and_lowers_its_output_error(kind: Any) -> None:
    network, batches = kind.network().eval(), kind.batches()
    untouched = Snapshot.of(network)
    sharing = sharing_of(network, means=kind.means)
    outcome = in_lockstep(network, batches, sharing, sweeps=2)
    assert untouched.equals(network)
    assert set(kind.reached) == outcome.ids.keys()
    for name in kind.reached:
        assert outcome.ids[name].shape == (network.state_dict()[name].numel(),)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    made = [compressed(network, sharing, outcome), nearest(network, sharing) | dict(outcome.statistics)]
    wanted, fed_back, plain = (outputs(network, batches, state) for state in (before, *made))
    assert (fed_back - wanted).square().sum() < kind.factor * (plain - wanted).square().sum()
    after = torch.cat([each.reshape(-1) for batch in outcome.after for each in batch.values()])
    torch.testing.assert_close(after, fed_back, rtol=1e-3, atol=1e-4)
