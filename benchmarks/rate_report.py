"""Tables and a plot of measured points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from pathlib import Path


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
        drop: Accuracy lost, points.
        agreement: Share of inputs with the uncompressed network's class.
        logit_kl: Mean KL from the uncompressed network's probabilities, nats.
    """

    network: str
    scored: str
    codec: str
    setting: str
    label: str
    raw_bytes: int
    size_bytes: int
    seconds: float
    drop: float
    agreement: float
    logit_kl: float

    @property
    def ratio(self) -> float:
        """Of the whole file."""
        return self.raw_bytes / self.size_bytes


def grouped(points: Iterable[Point], *names: str) -> dict[tuple[str, ...], list[Point]]:
    """Points by some of their attributes, in order of appearance."""
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(getattr(point, name) for name in names), []).append(point)
    return groups


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other point beats in both bytes and agreement, from the largest file to the smallest."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size_bytes, -point.agreement)):
        if not best or point.agreement > best[-1].agreement:
            best.append(point)
    return best[::-1]


def bytes_at(points: Sequence[Point], agreement: float) -> tuple[float, str] | None:
    """The smallest file of a codec at an agreement, and the setting that gives it.

    Log-bytes are interpolated linearly in agreement, on the front of each setting and on that of all settings
    together; the smallest counts.

    Returns:
        None where no front spans the agreement.
    """
    curves = {setting: curve for (setting,), curve in grouped(points, "setting").items()}
    curves |= {"several settings": list(points)} if len(curves) > 1 else {}
    found = []
    for setting, curve in curves.items():
        for better, worse in pairwise(front(curve)):
            if worse.agreement <= agreement <= better.agreement:
                share = (agreement - worse.agreement) / (better.agreement - worse.agreement)
                found.append((exp((1 - share) * log(worse.size_bytes) + share * log(better.size_bytes)), setting))
    return min(found, default=None)


def tables(points: Sequence[Point]) -> str:
    """Markdown: what was measured, then bytes at equal agreement, by network and images scored."""
    parts = []
    for (network, scored), group in grouped(points, "network", "scored").items():
        parts += [f"### {network} ({scored})", measured(group)]
        parts += [equal_agreement(group, codec) for (codec,) in grouped(group, "codec") if codec.startswith("ours")]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured(points: Sequence[Point]) -> str:
    """One row a point, by codec and setting, ascending in ratio."""
    rows = [
        [
            point.codec,
            point.label if point.setting == point.codec else f"{point.setting}, {point.label}",
            f"{point.ratio:.2f}",
            f"{point.drop:.2f}",
            f"{100 * point.agreement:.2f} %",
            f"{point.logit_kl:.4f}",
            f"{point.seconds:.1f}",
        ]
        for curve in grouped(points, "codec", "setting").values()
        for point in sorted(curve, key=lambda point: point.ratio)
    ]
    return markdown(["codec", "setting", "ratio", "drop", "agreement", "logit KL", "seconds"], rows)


def equal_agreement(points: Sequence[Point], ours: str) -> str:
    """Bytes of ours over bytes of each peer, at each agreement of ours; below 1 ours is smaller."""
    codecs = grouped(points, "codec")
    others = {codec: curve for (codec,), curve in codecs.items() if not codec.startswith("ours")}
    if not others:
        return ""
    rows = []
    for point in sorted(codecs[(ours,)], key=lambda point: point.ratio):
        row = [f"{point.ratio:.2f}", f"{100 * point.agreement:.2f} %", f"{point.size_bytes:,}"]
        for curve in others.values():
            same = bytes_at(curve, point.agreement)
            row += [f"{point.size_bytes / same[0]:.3f}", same[1]] if same else ["–", "–"]
        rows.append(row)
    header = ["ratio", "agreement", "bytes"]
    for codec in others:
        header += [f"bytes / {codec}'s", "its setting"]
    return f"Bytes at equal agreement, `{ours}`:\n\n{markdown(header, rows)}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


COLOURS = {"ours": "C3", "ours-data": "C1", "nncodec": "C0", "k-means": "C2", "integers": "C7"}


def plot(points: Sequence[Point], path: Path) -> None:
    """Agreement and drop against ratio, a row of panels for each network; a codec's line joins its front."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(points, "network", "scored")
    figure, axes = pyplot.subplots(len(groups), 2, figsize=(11, 3.6 * len(groups)), squeeze=False, layout="constrained")
    figure.suptitle("Agreement and accuracy drop against the ratio of the whole file")
    for (left, right), ((network, scored), group) in zip(axes, groups.items(), strict=True):
        for (codec,), curve in grouped(group, "codec").items():
            style = {"color": COLOURS[codec], "zorder": 3 if codec.startswith("ours") else 2}
            line = front(curve)
            for panel, height in ((left, lambda p: 100 * p.agreement), (right, lambda p: p.drop)):
                dots = [(point.ratio, height(point)) for point in curve]
                panel.scatter(*zip(*dots, strict=True), s=8, alpha=0.4, linewidths=0, **style)
                panel.plot([p.ratio for p in line], [height(p) for p in line], marker="o", ms=3, label=codec, **style)
        for panel, label in ((left, "agreement with the original, %"), (right, "accuracy drop, points")):
            panel.set(title=f"{network} ({scored})", xlabel="ratio, whole file", ylabel=label)
            panel.grid(alpha=0.3)
        left.set_ylim(bottom=80, top=100.2)
        right.set_ylim(top=12, bottom=min(-0.5, *(p.drop for p in group)))
        left.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
