"""Numbers and names as text for readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gbnn_compress.report.schema import DamageEntry, Report

MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "brier": "Brier",
    "coverage_at_5_percent_risk": "coverage",
}
"""Titles of the measures of predictions, in the order of tables."""

OUTPUT_MEASURES = {"relative_error": "relative error", "cosine": "cosine", "metric": "metric", "loss": "loss"}
"""Titles of the measures of outputs, in the order of tables."""


def printable(text: str) -> str:
    """The text with control characters escaped: names come from foreign files, and terminals run escape sequences."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def path_of(model: object) -> str:
    """A path or specification as given; of an object, the name of its type."""
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def name_of(path: object) -> str:
    """The last part of a path, resolved if it is `.` or ends in `..`; of an object, the name of its type. Printable."""
    if not isinstance(path, str | Path):
        return printable(type(path).__name__)
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


def percent(fraction: float) -> str:
    """A fraction as a percentage at one decimal; only 0 and 1 are shown as 0.0 % and 100.0 %."""
    if 0 < fraction < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= fraction < 1:
        return "> 99.9 %"
    return f"{100 * fraction:.1f} %"


def points(drop: float) -> str:
    """Accuracy points without a sign: `0.4`, `68`."""
    value = abs(drop)
    if 0 < value < 0.05:
        return "less than 0.1"
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def counted_points(number: float) -> str:
    """Accuracy points unrounded: `1 point`, `0.5 points`."""
    return f"{number:g} point{'s' * (number != 1)}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 epoch`, `1,000 components`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def losses(values: Mapping[str, float]) -> str:
    """The parts of the loss of a training: `CE 0.345, distillation 0.021, KL 0.12 nats`."""
    said = [f"CE {values['cross_entropy']:.3f}"] if "cross_entropy" in values else []
    said += [f"{values['loss']:.4g} (given)"] if "loss" in values else []
    precise = "" if said else "g"
    said += [f"distillation {values['distillation']:.3{precise or 'f'}}"]
    return ", ".join([*said, f"KL {values['divergence']:.2g} nats"])


def seconds(value: float) -> str:
    """A duration: `6.1 s`, `3 min`."""
    if value < 100:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.0f} min"


def decimals(value: float | None, places: int = 3) -> str:
    """A number, or a dash for None."""
    return "-" if value is None else f"{value:.{places}f}"


def shape(dimensions: list[int]) -> str:
    """`16 x 3 x 3 x 3`; `scalar` without dimensions."""
    return " x ".join(map(str, dimensions)) or "scalar"


CALIBRATION = "calibration inputs"
VALIDATION = "the validation data"


def damage(values: DamageEntry, *, measured_on: str | None = None) -> str:
    """The damage to the outputs in words.

    Args:
        values: The report's `damage`.
        measured_on: The data, if the damage was measured.
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


def short_damage(values: DamageEntry) -> str:
    """The damage in a cell of a table: accuracy points, or the relative error of the outputs."""
    how = "measured" if values["measured"] else "predicted"
    if values["drop"] is not None:
        return f"{points(values['drop'])} points {'gained' if values['drop'] < 0 else 'lost'}, {how}"
    return f"relative error {decimals(values.get('relative_error'))}, {how}"


def _difference(values: DamageEntry) -> str:
    """The difference of outputs, for a network that is not known as a classifier."""
    error, cosine = values.get("relative_error"), values.get("cosine")
    if not values["measured"]:
        return f"relative output error of the layers {decimals(error)} on average"
    if error is None and cosine is None and "outputs" in values:
        return "the outputs are not finite, or all of them are zero"
    if error is None:
        return "the checkpoint's outputs do not vary, so the damage cannot be measured"
    return f"relative output error {decimals(error)}, cosine {decimals(cosine, 4)}"


def changed(values: Mapping[str, Any]) -> Iterator[str]:
    """The user's metric and loss before and after, one sentence each.

    Args:
        values: A report with `metric` or `loss`, or its `damage`.
    """
    for name in ("metric", "loss"):
        if name in values:
            before, after = values[name]["before"], values[name]["after"]
            yield f"{name}: {after:.4g}" if before is None else f"{name}: {before:.4g} before, {after:.4g} after"


def output_errors(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and relative error of each output if there are several, the largest error first.

    Args:
        values: A report with `outputs`, or its `damage`.
    """
    found = values.get("outputs", {})
    if len(found) < 2:
        return []
    errors = {name: each["relative_error"] for name, each in found.items()}
    ordered = sorted(errors.items(), key=lambda pair: float("-inf") if pair[1] is None else -pair[1])
    return [(printable(name), decimals(error)) for name, error in ordered]


def output_measure(key: str, value: float | None) -> str:
    """A measure of outputs as text; a dash for None."""
    if value is None:
        return "-"
    return decimals(value, 4) if key == "cosine" else decimals(value) if key == "relative_error" else f"{value:.4g}"


UNKNOWN = (
    "the effect on this network's outputs is not predicted: measure it on your inputs (`--data`), or give"
    " `--task classifier` if it is an image classifier"
)
"""Advice for networks whose accuracy loss is not predicted."""


def safe(ratio: float, *, trained: bool = False) -> str:
    """The safe ratio, which is predicted without training also where the network is trained."""
    return f"safe ratio of about {times(ratio)}{' without training' if trained else ''} (within 1 point of accuracy)"


def target_and_ratio(report: Report) -> tuple[float | None, float]:
    """The target (None: a drop was given instead), and the ratio that it refers to."""
    by_bytes = report["ratio_of"] == "artifact"
    return report["target_ratio"], report["ratio" if by_bytes else "parameter_ratio"]


def _digits(value: float) -> str:
    """Three significant digits without trailing zeros."""
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
