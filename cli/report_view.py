"""The report as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gbnn_compress_cli import tables, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

LAYERS_SHOWN = 5

SECTION_MEANINGS = {
    "bank": "the components' means and deviations",
    "index_maps": "the component of each shared weight",
    "outliers": "weights kept exactly",
    "unshared": "biases, norms, counters",
    "header": "names, shapes, provenance, checksums",
}


def report_view(
    report: dict[str, Any],
    *,
    name: str,
    max_drop: float | None = None,
    arch: str | None = None,
    every_layer: bool = False,
) -> Iterator[RenderableType]:
    """Headline, ratios, damage, bytes, layers, metrics.

    Args:
        report: Schema 1; paths and timings are shown where it has them.
        name: What the headline is about.
        max_drop: The accuracy points that were allowed, when that was the target.
        arch: The architecture that the user named.
        every_layer: All layers in the file's order instead of the worst few.
    """
    met = report["target_met"]
    yield tables.line(_headline(report, name=name, max_drop=max_drop), "bold" if met else "bold red")
    yield ""
    measured_on = report["evaluation"]["data"] if report["evaluation"] else None
    damage = report["damage"]
    style = tables.style_of(damage["drop"])
    yield tables.line(words.damage(damage, measured_on=measured_on), style or "green")
    yield tables.line(words.safe(damage["safe_ratio"]))
    yield from (tables.line(f"warning: {warning}", style or "yellow") for warning in report["warnings"])
    yield ""
    yield tables.facts(_facts(report, arch=arch))
    yield ""
    yield _sections(report)
    yield ""
    yield from _layers(report["layers"], every_layer=every_layer)
    if report["evaluation"]:
        yield ""
        yield _evaluation(report["evaluation"])
    if "path" in report["artifact"]:
        yield ""
        taken = words.seconds(report["timings"]["total"])
        yield tables.line(f"wrote {report['artifact']['path']} in {taken}", "bold")


def _headline(report: dict[str, Any], *, name: str, max_drop: float | None) -> str:
    before, after = _dense_bytes(report), report["artifact"]["bytes"]
    target, ratio = words.target_and_ratio(report)
    what = "" if report["ratio_of"] == "artifact" else " of parameters"
    if max_drop is not None:
        verdict = f" (asked for: at most {max_drop:g} points lost)"
    elif target is None:
        verdict = ""
    elif report["target_met"]:
        verdict = f" (target {words.times(target)}{what}: met)"
    else:
        verdict = f" (target {words.times(target)}{what}: missed, {words.times(ratio)} reached)"
    sizes = f"{words.size(before)} -> {words.size(after)}"
    return f"{name}   {sizes}   {words.times(report['ratio'])} smaller{verdict}"


def _facts(report: dict[str, Any], *, arch: str | None) -> Iterator[tuple[str, str]]:
    checkpoint, counts, bank = report["checkpoint"], report["weights"], report["bank"]
    before, after = _dense_bytes(report), report["artifact"]["bytes"]
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
    if "temperature" in report:
        yield "temperature", f"{report['temperature']:.4g}, fitted and applied to every prediction"
    yield "architecture", architecture(checkpoint, arch)
    for note in checkpoint.get("notes", []):
        yield "unwrapped", note


def architecture(checkpoint: dict[str, Any], arch: str | None = None) -> str:
    """What is known of the network.

    Args:
        checkpoint: The report's `checkpoint`.
        arch: What the user named.
    """
    candidates = checkpoint.get("architecture_candidates") or []
    if checkpoint["architecture"]:
        return checkpoint["architecture"]
    if len(candidates) > 1:
        more = f" and {len(candidates) - 4} more" if len(candidates) > 4 else ""
        return f"several fit: {', '.join(candidates[:4])}{more}; name one with --arch"
    if arch:
        return f"{arch} (your own code: name it again to run it)"
    return "not recorded: compressing needs none; to run the network, name it with --arch"


def _sections(report: dict[str, Any]) -> RenderableType:
    total = report["artifact"]["bytes"]
    rows = [
        (name.replace("_", " "), f"{size:,}", words.percent(size / total), SECTION_MEANINGS.get(name, ""))
        for name, size in [*report["sections"].items(), ("file", total)]
    ]
    styles = [*[""] * len(report["sections"]), "bold"]
    return tables.table(("where the bytes went", "bytes", "share", "holds"), rows, styles=styles, left=(0, 3))


def _layers(layers: Sequence[dict[str, Any]], *, every_layer: bool) -> Iterator[RenderableType]:
    if every_layer or len(layers) <= LAYERS_SHOWN:
        yield _layer_table("layers", layers)
        return
    yield _layer_table("layers that cost most", _most(layers, "bytes"))
    yield ""
    yield _layer_table("layers that lost most", _most(layers, "relative_rmse"))


def _most(layers: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return sorted(layers, key=lambda layer: -layer[key])[:LAYERS_SHOWN]


def _layer_table(title: str, layers: Sequence[dict[str, Any]]) -> RenderableType:
    return tables.table(
        (title, "shape", "bytes", "bits a weight", "relative RMSE"),
        [
            (
                tables.short(layer["name"]),
                words.shape(layer["shape"]),
                f"{layer['bytes']:,}",
                f"{layer['bits_per_weight']:.2f}",
                f"{layer['relative_rmse']:.3f}",
            )
            for layer in layers
        ],
    )


def _evaluation(evaluation: dict[str, Any]) -> RenderableType:
    rows = [
        ("before", evaluation["before"]),
        (f"after, {evaluation['samples']} posterior draws", evaluation["after"]),
        ("after, posterior mean", evaluation["mean"]),
    ]
    return tables.metrics(f"on {evaluation['data']}", rows)


def _dense_bytes(report: dict[str, Any]) -> int:
    return round(report["ratio"] * report["artifact"]["bytes"])
