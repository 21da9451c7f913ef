"""The geometry of the page's figures; templates turn it into SVG.

Every figure is a mapping for the macro `frame` of the template `figures.svg`: its size, axes with ticks, titles, and
shapes. A figure is as wide as a phone's screen, so that its labels are readable without scaling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gbnn_compress.report import words
from gbnn_compress.report.axes import Axis
from gbnn_compress.types import Histogram, Mixture, Plane, Reliability

WIDTH = 400
LEFT, RIGHT = 56, 392

SHADES = 6
"""Steps of the density, each four times the one before."""

DEVIATIONS = 2.0
"""Radius of an ellipse, in standard deviations."""

UNSEEN, MARGIN_ROWS = 0.001, 4
"""Fraction of the weights from which a row of the density is shown, and rows shown around those."""

LEAST_DROP = 0.01
"""Accuracy points at the lower end of the rate-distortion curve."""


def plane_figure(plane: Plane, components: Mixture, *, dots: bool = False) -> dict[str, Any]:
    """Components as ellipses over the density of the weights.

    Args:
        plane: The weights.
        components: What to draw.
        dots: Whether to draw components as dots, with an area that grows with the number of weights.
    """
    top, bottom = 8, 216
    rows = _rows_in_use(plane.density)
    low, high = (plane.y_limit * (2 * row / len(plane.density) - 1) for row in (rows.start, rows.stop))
    x, y = Axis(-plane.x_limit, plane.x_limit, LEFT, RIGHT), Axis(low, high, bottom, top)
    shown = (np.abs(components.means) <= [plane.x_limit, plane.y_limit]).all(axis=1)
    shapes = zip(components.means[shown], components.covariances[shown], components.weights[shown], strict=True)
    return {
        **_frame(x, y, top=top, bottom=bottom, x_title="μ / s", y_title="log (σ / s)"),
        "shades": _shades(plane.density[rows], x, y),
        "ellipses": [_ellipse(*shape, x=x, y=y, dots=dots) for shape in shapes],
    }


def stem_figure(plane: Plane) -> dict[str, Any]:
    """The percentage of weights in each component, as stems at the components' means."""
    top, bottom = 8, 216
    shown = np.abs(plane.components.means[:, 0]) <= plane.x_limit
    places, percentages = plane.components.means[shown, 0], 100 * plane.components.weights[shown]
    x = Axis(-plane.x_limit, plane.x_limit, LEFT, RIGHT)
    y = Axis(min(percentages, default=1) / 2, max(percentages, default=1) * 1.5, bottom, top, logarithmic=True)
    return {
        **_frame(x, y, top=top, bottom=bottom, x_title="μ / s", y_title="% of the weights"),
        "stems": list(zip(map(x.at, places.tolist()), map(y.at, percentages.tolist()), strict=True)),
    }


def curve_figure(curve: Mapping[int, Mapping[str, Any]], damage: Mapping[str, Any]) -> dict[str, Any]:
    """The merge path as a rate-distortion curve: predicted accuracy loss against the ratio.

    Args:
        curve: From `target.rate_curve`.
        damage: The report's `damage`; marked in the figure if it was measured.
    """
    top, bottom = 8, 276
    rates = sorted(curve.values(), key=lambda rate: rate["ratio"])
    cut = curve[0]
    x = Axis(rates[0]["ratio"] / 1.05, rates[-1]["ratio"] * 1.05, LEFT, RIGHT, logarithmic=True)
    highest = max(rates[-1]["drop"], damage["drop"], 1.0)
    y = Axis(LEAST_DROP, 1.4 * highest, bottom, top, logarithmic=True)
    marked = [{"x": x.at(r["ratio"]), "y": y.at(r["drop"]), "label": _rate_label(r)} for r in rates]
    return {
        **_frame(x, y, top=top, bottom=bottom, x_title="times smaller", y_title="accuracy points lost", x_suffix="x"),
        "line": _polyline((x.at(rate["ratio"]), y.at(rate["drop"])) for rate in rates),
        "points": marked,
        "rates": [{**rate, "chosen": rate is cut} for rate in rates],
        "cut": {"x": x.at(cut["ratio"]), "y": y.at(cut["drop"]), "label": _rate_label(cut)},
        "measured": y.at(damage["drop"]) if damage["measured"] and damage["drop"] > LEAST_DROP else None,
        "safe": y.at(1.0),
    }


def reliability_figure(diagram: Reliability) -> dict[str, Any]:
    """Accuracy against confidence; a dot's area grows with its number of inputs, and on the diagonal the two agree."""
    top, bottom, total = 12, 256, int(diagram.count.sum())
    x, y = Axis(0, 1, LEFT, RIGHT - 8), Axis(0, 1, bottom, top)
    dots = [
        {
            "x": x.at(confidence),
            "y": y.at(accuracy),
            "radius": round(2 + 8 * (count / total) ** 0.5, 1),
            "label": f"{count:,} inputs: confidence {confidence:.2f}, accuracy {accuracy:.2f}",
        }
        for confidence, accuracy, count in zip(
            diagram.confidence.tolist(), diagram.accuracy.tolist(), diagram.count.tolist(), strict=True
        )
        if count
    ]
    return {
        **_frame(x, y, top=top, bottom=bottom, x_title="confidence", y_title="accuracy"),
        "dots": dots,
        "line": _polyline((dot["x"], dot["y"]) for dot in dots),
    }


def histogram_figure(spread: Histogram, *, title: str) -> dict[str, Any]:
    """Two overlaid histograms: percentage of the inputs against their score.

    Args:
        spread: The histograms.
        title: Title of the score.
    """
    top, bottom = 8, 216
    highest = 100 * max(float(spread.inside.max()), float(spread.outside.max()))
    x, y = Axis(0, float(spread.edges[-1]), LEFT, RIGHT - 8), Axis(0, 1.05 * highest, bottom, top)
    shapes = {name: _steps(spread.edges, 100 * getattr(spread, name), x=x, y=y) for name in ("inside", "outside")}
    return {**_frame(x, y, top=top, bottom=bottom, x_title=title, y_title="% of the inputs"), "shapes": shapes}


def depth_figure(layers: Sequence[Mapping[str, Any]], key: str, *, title: str) -> dict[str, Any]:
    """One number per layer, from input to output.

    Args:
        layers: The report's `layers`.
        key: Key of the number.
        title: Title of the axis.
    """
    top, bottom = 8, 126
    y = Axis(0, 1.05 * (max(layer[key] for layer in layers) or 1.0), bottom, top)
    pitch = (RIGHT - LEFT) / len(layers)
    bars = [
        {
            "x": round(LEFT + pitch * (place + 0.1), 2),
            "y": y.at(layer[key]),
            "width": round(min(0.8 * pitch, 24), 2),
            "height": round(bottom - y.at(layer[key]), 1),
            "label": f"{layer['name']}: {layer[key]:.3g}",
        }
        for place, layer in enumerate(layers)
    ]
    frame = _frame(None, y, top=top, bottom=bottom, x_title="layers, from input to output", y_title=title)
    return {**frame, "bars": bars}


def _frame(
    x: Axis | None, y: Axis, *, top: float, bottom: float, x_title: str, y_title: str, x_suffix: str = ""
) -> dict[str, Any]:
    x_ticks = x.ticks(suffix=x_suffix) if x else []
    return {
        "width": WIDTH,
        "height": bottom + (38 if x_ticks else 22),
        "left": LEFT,
        "right": RIGHT,
        "top": top,
        "bottom": bottom,
        "x_ticks": x_ticks,
        "y_ticks": y.ticks(at_most=5),
        "x_title": x_title,
        "y_title": y_title,
    }


def _steps(edges: np.ndarray, heights: np.ndarray, *, x: Axis, y: Axis) -> str:
    """The outline of a histogram as a path."""
    steps = "".join(f"V{y.at(height)}H{x.at(edge)}" for edge, height in zip(edges[1:], heights, strict=True))
    return f"M{x.at(edges[0])} {y.at(0)}{steps}V{y.at(0)}z"


def _rows_in_use(density: np.ndarray) -> slice:
    """The rows that hold all but a few weights, and MARGIN_ROWS on either side."""
    weights = density.sum(axis=1)
    used = np.flatnonzero(weights > UNSEEN * weights.sum())
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, len(density))
    return slice(max(first - MARGIN_ROWS, 0), min(last + 1 + MARGIN_ROWS, len(density)))


def _shades(density: np.ndarray, x: Axis, y: Axis) -> list[str]:
    """One path per shade, over all cells at least as dense; overlaid paths darken."""
    rows, columns = density.shape
    width, height = (x.stop - x.start) / columns, (y.start - y.stop) / rows
    steps = density.max() / 4.0 ** np.arange(SHADES, 0, -1)
    return [
        "".join(
            f"M{x.start + start * width:.1f} {y.start - row * height:.1f}h{(stop - start) * width:.1f}v{-height:.1f}"
            f"h{(start - stop) * width:.1f}z"
            for row in range(rows)
            for start, stop in _runs(density[row] >= max(step, 1))
        )
        for step in steps
    ]


def _runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """Starts and ends of the runs of True."""
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _ellipse(mean: np.ndarray, covariance: np.ndarray, share: float, *, x: Axis, y: Axis, dots: bool) -> dict[str, Any]:
    """In the picture's units: centre, radii, and the angle of the first radius in degrees."""
    unit = np.diag([(axis.stop - axis.start) / (axis.high - axis.low) for axis in (x, y)])
    variances, directions = np.linalg.eigh(unit @ covariance @ unit.T)
    least = 0.8 + 9 * float(np.sqrt(share)) if dots else 0.6
    radii = np.maximum(DEVIATIONS * np.sqrt(np.maximum(variances, 0)), least)
    return {
        "x": x.at(float(mean[0])),
        "y": y.at(float(mean[1])),
        "rx": round(float(radii[1]), 1),
        "ry": round(float(radii[0]), 1),
        "angle": round(float(np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))) % 180, 1),
    }


def _rate_label(rate: Mapping[str, Any]) -> str:
    lost = "no points" if rate["drop"] <= 0 else f"{words.points(rate['drop'])} points"
    size, times = words.size(rate["bytes"]), words.times(rate["ratio"])
    return f"{times}, {size}, {rate['components']:,} components: {lost} lost"


def _polyline(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
