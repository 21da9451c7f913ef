"""Tables and a plot of measured points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from pathlib import Path

LOOKS = {
    "ours": ("C3", "ours, data-free"),
    "ours-data": ("C1", "ours, with inputs"),
    "ours-trained": ("C4", "ours, trained"),
    "nncodec": ("C0", "NNCodec, best data-free setting"),
    "k-means": ("C2", "k-means palette + zstd"),
    "integers": ("C7", "integers by channel + zstd"),
}
"""Colour and name of each codec in the plot."""


@dataclass(frozen=True)
class Point:
    """One file of one codec, scored.

    Attributes:
        network: Title.
        scored: The images it was scored on.
        codec: A colour of the plot.
        setting: What makes one curve; its points differ in one dial.
        label: The dial.
        raw_bytes: Of the floating tensors.
        size_bytes: Of the whole file.
        seconds: To compress.
        drop: Accuracy lost, points. This and the next two are those of image classifiers.
        agreement: Share of inputs with the uncompressed network's class.
        logit_kl: Mean KL from the uncompressed network's probabilities, nats.
        error: Relative error of the outputs, of all other networks.
    """

    network: str
    scored: str
    codec: str
    setting: str
    label: str
    raw_bytes: int
    size_bytes: int
    seconds: float
    drop: float = 0.0
    agreement: float = 0.0
    logit_kl: float = 0.0
    error: float | None = None

    @property
    def ratio(self) -> float:
        """Of the whole file."""
        return self.raw_bytes / self.size_bytes


Quality = Callable[[Point], float]


def grouped(points: Iterable[Point], *names: str) -> dict[tuple[str, ...], list[Point]]:
    """Points by some of their attributes, in order of appearance."""
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(getattr(point, name) for name in names), []).append(point)
    return groups


def agreement(point: Point) -> float:
    """One of two ways to say how good a file is: higher is better."""
    return point.agreement


def closeness(point: Point) -> float:
    """The other way, less noisy on few images: minus the logarithm of the logit KL."""
    return -log(max(point.logit_kl, 1e-9))


def fidelity(point: Point) -> float:
    """That of networks that are no image classifiers: minus the logarithm of the error of the outputs."""
    assert point.error is not None
    return -log(max(point.error, 1e-9))


QUALITIES: dict[str, Quality] = {"agreement": agreement, "logit KL": closeness, "output error": fidelity}


def measures(points: Sequence[Point]) -> dict[str, Callable[[Point], str]]:
    """Name -> text of what is measured on one network."""
    if points[0].error is not None:
        return {"output error": lambda point: f"{point.error:.4f}"}
    return {
        "drop": lambda point: f"{point.drop:.2f}",
        "agreement": lambda point: f"{100 * point.agreement:.2f} %",
        "logit KL": lambda point: f"{point.logit_kl:.4f}",
    }


def front(points: Iterable[Point], *, quality: Quality = agreement) -> list[Point]:
    """Those that no other point beats in both bytes and quality, from the largest file to the smallest."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size_bytes, -quality(point))):
        if not best or quality(point) > quality(best[-1]):
            best.append(point)
    return best[::-1]


def bytes_at(points: Sequence[Point], level: float, *, quality: Quality = agreement) -> tuple[float, str] | None:
    """The smallest file of a codec at a quality, and the setting that gives it.

    Log-bytes are interpolated linearly in the quality, on the front of each setting and on that of all settings
    together; the smallest counts.

    Returns:
        None where no front spans the level.
    """
    curves = {setting: curve for (setting,), curve in grouped(points, "setting").items()}
    curves |= {"several settings": list(points)} if len(curves) > 1 else {}
    found = []
    for setting, curve in curves.items():
        for better, worse in pairwise(front(curve, quality=quality)):
            if quality(worse) <= level <= quality(better):
                share = (level - quality(worse)) / (quality(better) - quality(worse))
                found.append((exp((1 - share) * log(worse.size_bytes) + share * log(better.size_bytes)), setting))
    return min(found, default=None)


def tables(points: Sequence[Point]) -> str:
    """Markdown: what was measured, then bytes at equal quality, by network and images scored."""
    parts = []
    for (network, scored), group in grouped(points, "network", "scored").items():
        parts += [f"### {network} ({scored})", measured(group)]
        for (codec,) in grouped(group, "codec"):
            if codec.startswith("ours"):
                parts += [equal_quality(group, codec, name) for name in measures(group) if name in QUALITIES]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured(points: Sequence[Point]) -> str:
    """One row a point, by codec and setting, ascending in ratio."""
    columns = measures(points)
    rows = [
        [
            point.codec,
            point.label if point.setting == point.codec else f"{point.setting}, {point.label}",
            f"{point.ratio:.2f}",
            *(text(point) for text in columns.values()),
            f"{point.seconds:.1f}",
        ]
        for curve in grouped(points, "codec", "setting").values()
        for point in sorted(curve, key=lambda point: point.ratio)
    ]
    return markdown(["codec", "setting", "ratio", *columns, "seconds"], rows)


def equal_quality(points: Sequence[Point], ours: str, name: str) -> str:
    """Bytes of ours over bytes of each peer, at each point of ours; below 1 ours is smaller.

    Args:
        points: Of one network.
        ours: The codec.
        name: One of QUALITIES.
    """
    codecs = grouped(points, "codec")
    others = {codec: curve for (codec,), curve in codecs.items() if not codec.startswith("ours")}
    if not others:
        return ""
    quality, text, rows = QUALITIES[name], measures(points)[name], []
    for point in sorted(codecs[(ours,)], key=lambda point: point.ratio):
        row = [f"{point.ratio:.2f}", text(point), f"{point.size_bytes:,}"]
        for curve in others.values():
            same = bytes_at(curve, quality(point), quality=quality)
            row += [f"{point.size_bytes / same[0]:.3f}", same[1]] if same else ["–", "–"]
        rows.append(row)
    header = ["ratio", name, "bytes"]
    for codec in others:
        header += [f"bytes / bytes of {codec}", "its setting"]
    return f"Bytes at equal {name}, `{ours}` over each peer at its best:\n\n{markdown(header, rows)}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


PANELS: dict[str, Quality] = {
    "same class as the original, %": lambda point: 100 * point.agreement,
    "accuracy drop, points": lambda point: point.drop,
}
ERROR_PANELS: dict[str, Quality] = {"relative error of the outputs": lambda point: exp(-fidelity(point))}


def plot(points: Sequence[Point], path: Path) -> None:
    """Agreement and drop, or output error, against ratio, one row per network; a codec's line joins its front."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = plotted(points)
    figure, axes = pyplot.subplots(len(groups), 2, figsize=(11, 3.6 * len(groups)), squeeze=False, layout="constrained")
    figure.suptitle("Quality against the ratio of the whole file")
    for panels, (title, group) in zip(axes, groups.items(), strict=True):
        heights = PANELS if group[0].error is None else ERROR_PANELS
        quality = agreement if group[0].error is None else fidelity
        for (codec,), curve in grouped(group, "codec").items():
            colour, label = LOOKS[codec]
            style = {"color": colour, "zorder": 3 if codec.startswith("ours") else 2}
            line = front(curve, quality=quality)
            for panel, height in zip(panels, heights.values(), strict=False):
                dots = [(point.ratio, height(point)) for point in curve]
                panel.scatter(*zip(*dots, strict=True), s=8, alpha=0.4, linewidths=0, **style)
                panel.plot([p.ratio for p in line], [height(p) for p in line], marker="o", ms=3, label=label, **style)
        for panel, label in zip(panels, heights, strict=False):
            panel.set(title=title, xlabel="ratio (floating tensors / whole file)", ylabel=label)
            panel.grid(alpha=0.3)
        if heights is PANELS:
            panels[0].set_ylim(bottom=80, top=100.2)
            panels[1].set_ylim(top=12, bottom=min(-0.5, *(p.drop for p in group)))
        else:
            panels[0].set_yscale("log")
            panels[1].set_axis_off()
    entries = [panel.get_legend_handles_labels() for panel in axes[:, 0]]
    drawn = {label: line for lines, labels in entries for line, label in zip(lines, labels, strict=True)}
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=len(drawn))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def plotted(points: Sequence[Point]) -> dict[str, list[Point]]:
    """For each network the images that every codec was scored on: those of `ours-data` where it is there."""
    chosen = {}
    for (network,), group in grouped(points, "network").items():
        parts = grouped(group, "scored")
        calibrated = [part for part, curve in parts.items() if any(point.codec == "ours-data" for point in curve)]
        part = (calibrated or list(parts))[0]
        chosen[f"{network} ({part[0]})"] = parts[part]
    return chosen
