"""A report in words, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from gbnn_compress.errors import listed
from gbnn_compress.report import words
from gbnn_compress.report.schema import CheckpointEntry, EnsembleReport, Report, TrainingEntry, total_values

SECTION_MEANINGS = {
    "bank": "the components' means and deviations",
    "index_maps": "the component of each shared weight",
    "outliers": "weights kept exactly",
    "unshared": "biases, norms, counters",
    "header": "names, shapes, provenance, checksums",
}

MOST_OUTPUTS = 5
"""Outputs whose relative errors are listed, the largest first."""


def measured_on(report: Report) -> str | None:
    """The data on which the damage was measured; None where they are unknown."""
    if report["evaluation"]:
        return str(report["evaluation"]["data"])
    if "training" in report:
        return words.VALIDATION
    return words.CALIBRATION if report["target_ratio"] is not None else None


def damage(report: Report) -> Iterator[str]:
    """The damage to the outputs, and the predicted safe ratio."""
    values = report["damage"]
    yield words.damage(values, measured_on=measured_on(report))
    yield from words.changed(values)
    if errors := words.output_errors(values):
        yield "relative error of each output: " + ", ".join(
            f"`{name}` {error}" for name, error in errors[:MOST_OUTPUTS]
        )
    if missed := report.get("not_calibrated"):
        sizes = {layer["name"]: layer["parameters"] for layer in report["layers"]}
        share = sum(sizes[name] for name in missed) / max(sum(sizes.values()), 1)
        yield f"not reached by calibration: {words.percent(share)} of the shared weights ({listed(missed)})"
    if values["safe_ratio"] is not None:
        condition = "if so, " if values.get("assumes") and not values["measured"] else ""
        yield f"{condition}predicted {words.safe(values['safe_ratio'], trained='training' in report)}"
    elif not values["measured"]:
        worst = max(report["layers"], key=lambda layer: layer["relative_rmse"])
        yield f"worst layer: `{words.printable(worst['name'])}`, {words.decimals(worst['relative_rmse'])}"
        if report.get("task") is None:
            yield words.UNKNOWN


def ensemble(report: EnsembleReport) -> str:
    """How an ensemble compares with one of its networks, and with the target if there is one."""
    count, ratio = len(report["members"]), report["ratio_to_one"]
    alike = len({each["floating_bytes"] for each in report["members"]}) == 1
    size = f"{words.times(ratio)} smaller" if ratio >= 1 else f"{words.times(1 / ratio)} larger"
    said = f"{count} networks in a file {size} than {'one' if alike else 'the first'} of them"
    target = report.get("target_ratio")
    if target is None:
        return said
    return f"{said} (target {words.times(target)}: {'met' if report['target_met'] else 'missed'})"


def missed_by(report: EnsembleReport) -> str:
    """A warning that an ensemble misses its target."""
    target = report.get("target_ratio")
    assert target is not None
    return (
        f"target missed: ratio to one network {words.times(report['ratio_to_one'])}, target {words.times(target)}; the"
        " file is written nevertheless"
    )


def ensemble_facts(report: EnsembleReport) -> Iterator[tuple[str, str]]:
    """Both ratios of an ensemble, as pairs of name and text."""
    size, first = report["artifact"]["bytes"], report["members"][0]["floating_bytes"]
    of_file = f"{size:,} bytes of the file"
    yield "ratio to one", f"{words.times(report['ratio_to_one'])}: {first:,} bytes of the first network / {of_file}"
    every = f"{report['floating_bytes']:,} bytes of floating tensors of all networks"
    yield "ratio", f"{words.times(report['ratio'])}: {every} / {of_file}"


MEMBER_TITLES = ("architecture", "parameters", "bytes", "ratio", "temperature", "damage")
"""Titles of the cells of `member_rows`."""


def member_rows(report: EnsembleReport) -> list[tuple[str, ...]]:
    """Number and cells of each member, and the bytes of the container."""
    rows = []
    for number, member in enumerate(report["members"]):
        checkpoint = member["checkpoint"]
        rows.append(
            (
                str(number),
                words.printable(checkpoint["architecture"] or "not recorded"),
                f"{checkpoint['parameters']:,}",
                f"{member['artifact']['bytes']:,}",
                words.times(member["ratio"]),
                f"{member['temperature']:.4g}" if "temperature" in member else "",
                words.short_damage(member["damage"]),
            )
        )
    return [*rows, ("container", "", "", f"{report['container_bytes']:,}", "", "", "")]


def verdict(report: Report) -> str:
    """The target, and whether the file meets it."""
    target, ratio = words.target_and_ratio(report)
    if target is None:
        met = "" if report["target_met"] else ", missed"
        if "max_error" in report:
            return f"target: relative output error of at most {report['max_error']:g}{met}"
        assert report["max_drop"] is not None
        if "metric" in report["damage"]:
            return f"target: metric lower by at most {report['max_drop']:g}{met}"
        return f"target: at most {words.counted_points(report['max_drop'])} lost"
    what = "" if report["ratio_of"] == "artifact" else " of parameters"
    met = "met" if report["target_met"] else f"missed, {words.times(ratio)} reached"
    return f"target {words.times(target)}{what}: {met}"


def facts(report: Report, *, arch: str | None) -> Iterator[tuple[str, str]]:
    """Ratios, numbers of components and other values, and the architecture, as pairs of name and text.

    Args:
        report: The report on the file.
        arch: The architecture that the user named.
    """
    checkpoint, counts, bank = report["checkpoint"], report["weights"], report["bank"]
    before, after = report["floating_bytes"], report["artifact"]["bytes"]
    yield (
        "ratio",
        f"{words.times(report['ratio'])}: {before:,} bytes of floating tensors / {after:,} bytes of the file",
    )
    yield (
        "parameter ratio",
        f"{words.times(report['parameter_ratio'])}: parameters before / parameters kept, the paper's measure",
    )
    yield (
        "bits per weight",
        f"{report['bits_per_weight']:.2f}, over {counts['shared']:,} shared weights",
    )
    yield "components", f"{bank['components_before_merging']:,} -> {bank['components']:,} after merging"
    kept = f"{counts['unshared']:,} unshared values (biases, norms), {counts['outliers']:,} outliers"
    yield "also kept", kept if not counts["blended"] else f"{counts['blended']:,} blended weights, {kept}"
    if "training" in report:
        training = report["training"]
        yield "trained", _trained(training)
    if "temperature" in report:
        yield "temperature", f"{report['temperature']:.4g}, fitted and applied to every prediction"
    yield "architecture", architecture(checkpoint, arch)
    for note in checkpoint.get("notes", []):
        yield "unwrapped", note


def _trained(training: TrainingEntry) -> str:
    """The settings of the training, and the loss in its last epoch where that is known."""
    said = f"{words.counted(training['epochs'], 'epoch')}, beta {training['beta']:g}"
    if "warm_up" in training:
        said += f", warm-up over the first {100 * training['warm_up']:g} % of the steps"
    if training.get("kept") == "calibrated":
        said += "; not used, because calibration alone is better"
    last = training.get("last_epoch")
    if not last:
        return said
    losses = cast("dict[str, float]", {name: value for name, value in last.items() if name != "bits_per_weight"})
    return f"{said}; last epoch: {words.losses(losses)}, {last['bits_per_weight']:.2f} bits per weight"


def architecture(checkpoint: CheckpointEntry, arch: str | None = None) -> str:
    """The architecture in words.

    Args:
        checkpoint: The report's `checkpoint`.
        arch: The architecture that the user named.
    """
    candidates = checkpoint.get("architecture_candidates") or []
    if checkpoint["architecture"]:
        return str(checkpoint["architecture"])
    if len(candidates) > 1:
        return f"several fit: {listed(candidates, most=4, quote='')}; name one with --arch"
    if arch:
        return f"{arch} (your own code: give --arch again to run it)"
    return "not recorded: not needed to compress; to run the network, name it with --arch"


def missed_target(report: Report) -> str:
    """A warning that the target was missed, with the reason if it is known."""
    written = "the file is written nevertheless"
    target, ratio = words.target_and_ratio(report)
    if target is None and "max_error" in report:
        error = words.decimals(report["damage"].get("relative_error"))
        return f"target missed: relative output error {error}, target at most {report['max_error']:.2g}; {written}"
    if target is None:
        drop, wanted = report["damage"]["drop"], report["max_drop"]
        metric = report["damage"].get("metric")
        if metric is not None and metric["before"] is not None:
            lower = metric["before"] - metric["after"]
            return f"target missed: metric lower by {lower:.3g}, target at most {wanted:.3g}; {written}"
        how = "measured" if report["damage"]["measured"] else "predicted"
        return f"target missed: {how} drop of {drop:.2g} points, target at most {wanted:.2g}; {written}"
    missed = f"target missed: ratio {words.times(ratio)}, target {words.times(target)}"
    if report["ratio_of"] == "artifact":
        allowed, kept = report["floating_bytes"] / target, report["sections"]["unshared"]
        exact = f"; biases, norms and tensors kept bit for bit take {words.size(kept)}"
        needed = f"{exact}, the target allows {words.size(allowed)} for the whole file"
        too_large = f"the file has {target / ratio:.3g} times the target's size"
        return f"{missed} ({too_large}){needed if kept > allowed else ''}; {written}"
    weights = report["weights"]
    most = 2 * total_values(weights) / (weights["unshared"] + 2)
    if most >= target:
        counts = f"{report['bank']['components']:,} components and {weights['outliers']:,} outliers"
        return f"{missed}, with {counts}; {written}"
    return (
        f"{missed}; {weights['unshared']:,} unshared values (biases, norms) count in full and limit the ratio to"
        f" {words.times(most)}; {written}"
    )
