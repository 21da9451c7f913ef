"""Numbers and names as people read them."""

from __future__ import annotations

from pathlib import Path

from gbnn_compress.report.schema import DamageEntry, Report

MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "brier": "Brier",
    "coverage_at_5_percent_risk": "coverage",
}
"""Titles of what predictions are measured by, in the order of tables."""


def printable(text: str) -> str:
    """The text without control characters: names come from foreign files, and terminals obey escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def name_of(path: str | Path) -> str:
    """The last part of a path, also where it is `.` or ends in `..`; printable."""
    found = Path(path).name
    return printable(Path(path).resolve().name or str(path) if found in ("", "..") else found)


def size(size_bytes: float) -> str:
    """Bytes at three digits: `135 kB`, `1.08 MB` (kB = 1000 B)."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{_digits(value)} {unit}"
        value /= 1000
    return f"{_digits(value)} GB"


def times(ratio: float) -> str:
    """A ratio at three digits: `8.07x`, `50x`."""
    return f"{_digits(ratio)}x"


def percent(share: float) -> str:
    """A share at one decimal; never rounded to all or nothing."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def points(drop: float) -> str:
    """Accuracy points without a sign: `0.4`, `68`."""
    value = abs(drop)
    if 0 < value < 0.05:
        return "less than 0.1"
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def counted_points(number: float) -> str:
    """Accuracy points as they were given: `1 point`, `0.5 points`."""
    return f"{number:g} point{'s' * (number != 1)}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 epoch`, `1,000 components`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def seconds(value: float) -> str:
    """A duration: `6.1 s`, `3 min`."""
    if value < 100:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.0f} min"


def decimals(value: float | None, places: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{places}f}"


def shape(dimensions: list[int]) -> str:
    """`16 x 3 x 3 x 3`; `scalar` without dimensions."""
    return " x ".join(map(str, dimensions)) or "scalar"


CALIBRATION = "calibration inputs"
CHOICES = "the data for choices"


def damage(values: DamageEntry, *, measured_on: str | None = None) -> str:
    """What compressing did to the outputs, in words.

    Args:
        values: The report's `damage`.
        measured_on: The data, when it was measured.
    """
    drop, measured = values["drop"], bool(values["measured"])
    source = (f"measured on {measured_on}" if measured_on else "measured") if measured else "predicted"
    if drop is None:
        return f"{source}: {_difference(values)}"
    about = "about " if not measured or measured_on == CALIBRATION else ""
    if drop == 0:
        lost = "no accuracy lost"
    else:
        amount = points(drop)
        about = "" if amount.startswith("less") else about
        lost = f"{about}{amount} points of accuracy {'lost' if drop > 0 else 'gained'}"
    assert values["agreement"] is not None
    condition = f" if this is an {values['assumes']}" if values.get("assumes") and not measured else ""
    return f"{source}{condition}: {lost}, {percent(values['agreement'])} of predictions unchanged"


def _difference(values: DamageEntry) -> str:
    """Outputs of a network that is no classifier, or whose outputs are not known."""
    error, cosine = values.get("relative_error"), values.get("cosine")
    if not values["measured"]:
        return f"relative output error of the layers {decimals(error)} on average"
    if error is None:
        return "the checkpoint's outputs do not vary, so that nothing is known of the damage"
    return f"relative output error {decimals(error)}, cosine {decimals(cosine, 4)}"


UNKNOWN = (
    "without inputs nobody knows what that means for this network's outputs: measure on yours (`--data`), or say"
    " `--task classifier` if it is an image classifier"
)
"""Said of networks whose lost points are not predicted."""


def safe(ratio: float, *, trained: bool = False, assumed: bool = False) -> str:
    """Up to where the damage is thought small; what training makes safe nobody knows before."""
    where = "without training thought" if trained else "thought"
    return f"{'then ' if assumed else ''}{where} safe (within 1 point of accuracy) up to about {times(ratio)}"


def target_and_ratio(report: Report) -> tuple[float | None, float]:
    """The target (None: a drop was given instead), and the ratio that it is about."""
    by_bytes = report["ratio_of"] == "artifact"
    return report["target_ratio"], report["ratio" if by_bytes else "parameter_ratio"]


def _digits(value: float) -> str:
    """Three significant digits without trailing zeros."""
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
