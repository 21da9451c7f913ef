"""What a report says in words, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator

from gbnn_compress.errors import listed
from gbnn_compress.report import words
from gbnn_compress.report.schema import CheckpointEntry, Report, TrainingEntry

SECTION_MEANINGS = {
    "bank": "the components' means and deviations",
    "index_maps": "the component of each shared weight",
    "outliers": "weights kept exactly",
    "unshared": "biases, norms, counters",
    "header": "names, shapes, provenance, checksums",
}


def measured_on(report: Report) -> str | None:
    """The data by which damage was measured, as far as is known."""
    if report["evaluation"]:
        return str(report["evaluation"]["data"])
    if "training" in report:
        return words.CHOICES
    return words.CALIBRATION if report["max_drop"] is None else None


def damage(report: Report) -> Iterator[str]:
    """What compressing did to the outputs, and as far as what ratio it is thought to do little."""
    values = report["damage"]
    yield words.damage(values, measured_on=measured_on(report))
    if values["safe_ratio"] is not None:
        assumed = bool(values.get("assumes")) and not values["measured"]
        yield words.safe(values["safe_ratio"], trained="training" in report, assumed=assumed)
    elif not values["measured"]:
        worst = max(report["layers"], key=lambda layer: layer["relative_rmse"])
        yield f"worst layer: `{words.printable(worst['name'])}`, {words.decimals(worst['relative_rmse'])}"
        if report.get("task") is None:
            yield words.UNKNOWN


def verdict(report: Report) -> str:
    """What was asked for, and whether the file meets it."""
    target, ratio = words.target_and_ratio(report)
    if target is None:
        assert report["max_drop"] is not None
        return f"asked for: at most {words.counted_points(report['max_drop'])} lost"
    what = "" if report["ratio_of"] == "artifact" else " of parameters"
    met = "met" if report["target_met"] else f"missed, {words.times(ratio)} reached"
    return f"target {words.times(target)}{what}: {met}"


def facts(report: Report, *, arch: str | None) -> Iterator[tuple[str, str]]:
    """Ratios, components, what is kept besides, and what is known of the network, as pairs of name and text.

    Args:
        report: Schema 1.
        arch: The architecture that the user named.
    """
    checkpoint, counts, bank = report["checkpoint"], report["weights"], report["bank"]
    before, after = report["floating_bytes"], report["artifact"]["bytes"]
    yield (
        "ratio",
        f"{words.times(report['ratio'])}: {before:,} bytes of floating tensors over {after:,} of the file",
    )
    yield (
        "parameter ratio",
        f"{words.times(report['parameter_ratio'])}: numbers before over numbers kept, the paper's measure",
    )
    yield (
        "bits a weight",
        f"{report['bits_per_weight']:.2f}, for {counts['shared']:,} weights that share components",
    )
    yield "components", f"{bank['components_before_merging']:,} -> {bank['components']:,} after merging"
    kept = f"{counts['unshared']:,} unshared values (biases, norms), {counts['outliers']:,} outliers"
    yield "besides", kept if not counts["blended"] else f"{counts['blended']:,} blended weights, {kept}"
    if "training" in report:
        training = report["training"]
        yield "trained", _trained(training)
    if "temperature" in report:
        yield "temperature", f"{report['temperature']:.4g}, fitted and applied to every prediction"
    yield "architecture", architecture(checkpoint, arch)
    for note in checkpoint.get("notes", []):
        yield "unwrapped", note


def _trained(training: TrainingEntry) -> str:
    """How long and with what, and what the loss came to where that is known."""
    said = f"for {words.counted(training['epochs'], 'epoch')}, beta {training['beta']:g}"
    if "warm_up" in training:
        said += f" after a warm-up over {100 * training['warm_up']:g} % of the steps"
    last = training.get("last_epoch")
    if not last:
        return said
    return (
        f"{said}; in the last: CE {last['cross_entropy']:.3f}, distillation {last['distillation']:.3f}, "
        f"KL {last['divergence']:.2g} nats, {last['bits_per_weight']:.2f} bits a weight"
    )


def architecture(checkpoint: CheckpointEntry, arch: str | None = None) -> str:
    """What is known of the network.

    Args:
        checkpoint: The report's `checkpoint`.
        arch: What the user named.
    """
    candidates = checkpoint.get("architecture_candidates") or []
    if checkpoint["architecture"]:
        return str(checkpoint["architecture"])
    if len(candidates) > 1:
        return f"several fit: {listed(candidates, most=4, quote='')}; name one with --arch"
    if arch:
        return f"{arch} (your own code: name it again to run it)"
    return "not recorded: compressing needs none; to run the network, name it with --arch"
