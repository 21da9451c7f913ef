"""Tables and a plot of what `speed.py` measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from rate_report import markdown
from speed_fit import SAME_START, USUAL

Results = Mapping[str, Any]

TOLERANCE = 1e-3
"""Nats a point between likelihoods that count as equal."""

COMPARED, WANTED = 30_000, 1_000_000
"""Points at which both fits run to one likelihood, and those that the target speaks of."""


def tables(results: Results) -> str:
    """Markdown, of what is there."""
    parts = (fits, growth, clusterings, codes, loads, compressions, helps)
    return "\n\n".join(table for part in parts if (table := part(results))) + "\n"


@dataclass(frozen=True)
class Race:
    """Both fits to one likelihood, on COMPARED points.

    Attributes:
        name: Which likelihood.
        theirs: Iterations of scikit-learn.
        ours: Iterations of ours.
        likelihoods: Of the points, theirs and ours.
        started: Whether scikit-learn's start, k-means, counts.
    """

    name: str
    theirs: int
    ours: int
    likelihoods: tuple[float, float]
    started: bool = True


def races(results: Results) -> list[Race]:
    ours, other = results[f"fit-ours-{COMPARED}"], results[f"fit-sklearn-{COMPARED}"]
    scores = {int(step): score for step, score in ours["scores"].items()}
    found = []
    start = results.get(f"fit-start-{COMPARED}")
    if start and (mine := first_at(start["likelihood"], scores)):
        likelihoods = start["likelihood"], scores[mine]
        found.append(Race("the same start (ours)", SAME_START, mine, likelihoods, started=False))
    after = dict(enumerate(other["trace"]))
    for name, level in ((f"ours after {USUAL}", scores[USUAL]), ("scikit-learn's last", other["trace"][-1])):
        theirs, mine = (first_at(level, trace) for trace in (after, scores))
        if theirs is not None and mine is not None:
            found.append(Race(name, theirs, mine, (after[theirs], scores[mine])))
    return found


def first_at(level: float, scores: Mapping[int, float]) -> int | None:
    """Fewest iterations to a likelihood, at least one."""
    return next((max(step, 1) for step, score in scores.items() if score >= level - TOLERANCE), None)


def fits(results: Results) -> str:
    """Both fits to one likelihood on the same points, then as many iterations on more points."""
    if f"fit-ours-{COMPARED}" not in results or f"fit-sklearn-{COMPARED}" not in results:
        return ""
    many, longer = results.get(f"fit-ours-{WANTED}"), results.get("fit-sklearn-100000")
    rows = []
    for race in races(results):
        row = [race.name, "{:.4f} / {:.4f}".format(*race.likelihoods), f"{race.theirs} / {race.ours}"]
        pairs = [(results[f"fit-sklearn-{COMPARED}"], results[f"fit-ours-{COMPARED}"], 1.0)]
        pairs += [(longer, many, WANTED / 100_000)] if longer and many else []
        for other, ours, scale in pairs:
            took = scale * seconds_of_theirs(other, race)
            if not race.started and other is pairs[0][0]:
                took = results[f"fit-start-{COMPARED}"]["seconds"]
            mine = fixed_seconds(ours) + race.ours * ours["iteration_seconds"]
            row += [f"{took:,.1f} / {mine:.2f}", f"{took / mine:,.0f}"]
        rows.append(row)
    header = ["likelihood", "nats a point, theirs / ours", "iterations"]
    header += [f"seconds, {COMPARED:,} points", "ratio"]
    header += ["seconds, 10^6 points (theirs extrapolated)", "ratio"] if longer and many else []
    return markdown(header, rows)


def seconds_of_theirs(result: Results, race: Race) -> float:
    start = result["first_seconds"] - result["iteration_seconds"] if race.started else 0.0
    return float(start + race.theirs * result["iteration_seconds"])


def fixed_seconds(result: Results) -> float:
    return result["cells_seconds"] + result["pool_seconds"]


def growth(results: Results) -> str:
    """Ours on more and more points."""
    rows, before = [], None
    for job, result in results.items():
        if not job.startswith("fit-ours"):
            continue
        size, took = int(job.split("-")[-1]), fixed_seconds(result)
        exponent = "" if before is None else f"{log(took / before[1]) / log(size / before[0]):.2f}"
        before = size, took
        rows.append(
            [
                f"{size:,}",
                f"{result['cells']:,}",
                f"{took:.2f}",
                exponent,
                f"{1000 * result['iteration_seconds']:.0f}",
                f"{result['likelihood_of_cells']:.4f}",
                f"{result['likelihood']:.4f}",
                f"{result['peak_bytes'] / 1e6:,.0f}",
            ]
        )
    header = ["points", "cells", "seconds to count", "exponent", "ms an iteration", "nats a cell", "a point", "peak MB"]
    return markdown(header, rows) if rows else ""


def clusterings(results: Results) -> str:
    names = {"minibatch": "MiniBatchKMeans", "faiss": "faiss k-means, 20 rounds"}
    rows = [
        [names[job.split("-")[1]], f"{result['seconds']:.1f}", f"{result['likelihood']:.4f}"]
        for job, result in results.items()
        if job.split("-")[1:2] and job.split("-")[1] in names
    ]
    return markdown(["hard clusters of 10^6 points", "seconds", "nats a point, as a mixture"], rows) if rows else ""


def codes(results: Results) -> str:
    rows = []
    for job, result in results.items():
        if not job.startswith("code-"):
            continue
        _, codec, name = job.split("-")
        rates = [result["symbols"] / result[f"{way}_seconds"] / 1e6 for way in ("encode", "decode")]
        bits = 8 * result["bytes"] / result["symbols"]
        rows.append([name, codec, f"{bits:.3f}", *(f"{rate:.1f}" for rate in rates)])
    return markdown(["map", "codec", "bits a symbol", "M/s to encode", "M/s to decode"], sorted(rows)) if rows else ""


def loads(results: Results) -> str:
    rows = [
        [way, f"{result['bytes'] / 1e6:.1f} MB", f"{result['seconds']:.2f}"]
        for way, result in results.get("load", {}).items()
    ]
    return markdown(["ResNet-101 into a module", "file", "seconds"], rows) if rows else ""


def compressions(results: Results) -> str:
    rows = []
    for job, result in results.items():
        if job.startswith("compress-"):
            _, network, ratio = job.split("-")
            seconds = f"{result['wall_seconds']:.1f}", f"{result['seconds']:.1f}"
            rows.append([f"{network}, {ratio}x", *seconds, f"{result['peak_bytes'] / 1e6:,.0f} MB"])
    header = ["whole command, data-free", "seconds on the clock", "of the processor", "peak memory"]
    return markdown(header, rows) if rows else ""


def helps(results: Results) -> str:
    result = results.get("help")
    rows = [["`gbnn-compress --help`", f"{result['wall_seconds']:.2f}", f"{result['seconds']:.2f}"]] if result else []
    return markdown(["", "seconds on the clock", "of the processor"], rows) if rows else ""


def plot(results: Results, path: Path) -> None:
    """Likelihood against seconds at one size, and seconds against points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    ours, other = results[f"fit-ours-{COMPARED}"], results[f"fit-sklearn-{COMPARED}"]
    times = [fixed_seconds(ours) + step * ours["iteration_seconds"] for step in range(len(ours["trace"]))]
    left.plot(times, ours["trace"], color="C3", label="ours, on cells")
    times = [other["first_seconds"] + step * other["iteration_seconds"] for step in range(len(other["trace"]) - 1)]
    left.plot(times, other["trace"][1:], color="C0", marker="o", ms=3, label="scikit-learn")
    left.set(title=f"{COMPARED:,} points, K = 256", xlabel="processor seconds", ylabel="log-likelihood, nats a point")
    sizes = sorted(int(job.split("-")[-1]) for job in results if job.startswith("fit-ours"))
    mine = [results[f"fit-ours-{size}"] for size in sizes]
    right.plot(
        sizes, [fixed_seconds(r) + 20 * r["iteration_seconds"] for r in mine], color="C3", marker="o", label="ours"
    )
    theirs = {
        size: results[f"fit-sklearn-{size}"]["first_seconds"] + 19 * results[f"fit-sklearn-{size}"]["iteration_seconds"]
        for size in (30_000, 100_000)
        if f"fit-sklearn-{size}" in results
    }
    right.plot(list(theirs), list(theirs.values()), color="C0", marker="o", label="scikit-learn")
    last = max(theirs)
    right.plot([last, 10**8], [theirs[last], theirs[last] * 10**8 / last], color="C0", ls="--", label="extrapolated")
    for name, colour in (("minibatch", "C2"), ("faiss", "C4")):
        if (result := results.get(f"fit-{name}-{WANTED}")) is not None:
            right.plot(WANTED, result["seconds"], color=colour, marker="s", ls="", label=f"{name}, k-means")
    right.set(title="20 iterations", xlabel="points", ylabel="processor seconds", xscale="log", yscale="log")
    left.set(xscale="log")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
