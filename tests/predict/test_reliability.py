from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.predict.metrics import accuracy, ece
from gbnn_compress.predict.reliability import reliability


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), n_classes=st.integers(1, 6))
def test_a_diagram_adds_up_to_accuracy_and_ece(seed, n, n_classes):
    generator = np.random.default_rng(seed)
    p, y = generator.dirichlet(np.full(n_classes, 0.5), size=n), generator.integers(0, n_classes, size=n)
    diagram = reliability(p, y)
    assert diagram.count.sum() == n
    assert (diagram.count * diagram.accuracy).sum() / n == pytest.approx(accuracy(p, y))
    gaps = np.abs(diagram.accuracy - diagram.confidence)
    assert (diagram.count * gaps).sum() / n == pytest.approx(ece(p, y))


def test_confidence_0_and_1_have_bins():
    diagram = reliability(np.array([[1.0, 0.0]]), np.array([1]), n_bins=3)
    assert diagram.count.tolist() == [0, 0, 1]
    assert (diagram.confidence.tolist(), diagram.accuracy.tolist()) == ([0, 0, 1], [0, 0, 0])
