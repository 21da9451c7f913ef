"""The arithmetic behind `benchmarks/speed.py`: what counts as equal, and what is extrapolated."""

from __future__ import annotations

import numpy as np
import pytest
import speed_fit
import speed_report

from gbnn_compress.mixture.em import fit_mixture


def results() -> dict[str, dict]:
    def ours(scores: dict[str, float]) -> dict:
        return {"cells_seconds": 1.0, "pool_seconds": 0.0, "iteration_seconds": 0.5, "scores": scores}

    theirs = {"trace": [0.1, 0.3, 0.5], "first_seconds": 3.0, "iteration_seconds": 2.0}
    return {
        "fit-ours-30000": ours({"5": 0.1995, "20": 0.25, "90": 0.4995}),
        "fit-ours-1000000": ours({}),
        "fit-start-30000": {"seconds": 8.0, "likelihood": 0.2},
        "fit-sklearn-30000": theirs,
        "fit-sklearn-100000": {**theirs, "first_seconds": 23.0, "iteration_seconds": 20.0},
    }


def test_races_end_at_equal_likelihoods() -> None:
    same, usual, last = speed_report.races(results())
    assert (same.theirs, same.ours, same.started) == (5, 5, False)
    assert (usual.theirs, usual.ours) == (1, 20)
    assert (last.theirs, last.ours) == (2, 90)


def test_a_million_points_are_extrapolated_with_their_start() -> None:
    rows = [line.split(" | ") for line in speed_report.fits(results()).splitlines()[2:]]
    # 10 x (3 + 2 x 20) seconds of theirs for 1 + 90 x 0.5 of ours; from the same start without theirs.
    assert rows[2][-2:] == ["430.0 / 46.00", "9 |"]
    assert rows[0][-2:] == ["1,000.0 / 3.50", "286 |"]
    assert rows[0][3] == "8.0 / 3.50"


def test_no_race_without_an_equal_likelihood() -> None:
    few = results()
    few["fit-ours-30000"]["scores"] = {"5": 0.1, "20": 0.2}
    assert [race.name for race in speed_report.races(few)] == ["the same start (ours)", "ours after 20"]


def test_clusters_are_a_mixture() -> None:
    random = np.random.default_rng(0)
    points = np.concatenate([random.normal(size=(500, 2)) * 0.1, 3 + random.normal(size=(1500, 2)) * 0.2])
    mixture = speed_fit.clusters(points, np.repeat([7, 4], [500, 1500]))
    fitted, _ = fit_mixture(points, np.ones(2000), n_components=2, floor=speed_fit.FLOOR, max_iterations=50)
    order = np.argsort(mixture.means[:, 0])
    assert mixture.weights[order] == pytest.approx(fitted.weights)
    np.testing.assert_allclose(mixture.covariances[order], fitted.covariances, rtol=1e-6)
    assert speed_fit.likelihood(mixture, points) == pytest.approx(speed_fit.likelihood(fitted, points))
