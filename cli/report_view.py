"""The report as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbnn_compress_cli import tables

from gbnn_compress.report import statements, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from gbnn_compress.report.schema import EnsembleReport, EvaluationEntry, LayerEntry, Report

LAYERS_SHOWN = 5


def file_view(
    report: Report | EnsembleReport, *, name: str, arch: str | None = None, every_layer: bool = False
) -> Iterator[RenderableType]:
    """The report on a file of any number of networks.

    Args:
        report: The report.
        name: Subject of the headline.
        arch: The architecture that the user named.
        every_layer: Whether to show all layers, in an ensemble those of each member.
    """
    if "members" in report:
        return ensemble_view(report, name=name, every_layer=every_layer)
    return report_view(report, name=name, arch=arch, every_layer=every_layer)


def ensemble_view(report: EnsembleReport, *, name: str, every_layer: bool = False) -> Iterator[RenderableType]:
    """Headline, ratios, members, bytes, metrics.

    Args:
        report: The report; paths and timings are shown if it has them.
        name: Subject of the headline.
        every_layer: Whether to add the layers of each member.
    """
    yield tables.line(
        f"{name}   {statements.ensemble(report)}", "bold" if report.get("target_met", True) else "bold red"
    )
    yield from (tables.line(f"warning: {warning}", "yellow") for warning in report["warnings"])
    yield ""
    yield tables.facts(statements.ensemble_facts(report))
    yield ""
    yield tables.table(("member", *statements.MEMBER_TITLES), statements.member_rows(report))
    yield ""
    yield _sections(report)
    for number, member in enumerate(report["members"] if every_layer else []):
        yield ""
        yield _layer_table(f"layers of member {number}", member["layers"])
    yield from _ending(report)


def report_view(
    report: Report,
    *,
    name: str,
    arch: str | None = None,
    every_layer: bool = False,
) -> Iterator[RenderableType]:
    """Headline, ratios, damage, bytes, layers, metrics.

    Args:
        report: The report; paths and timings are shown if it has them.
        name: Subject of the headline.
        arch: The architecture that the user named.
        every_layer: Whether to show all layers in the file's order instead of the worst few.
    """
    met = report["target_met"]
    yield tables.line(_headline(report, name=name), "bold" if met else "bold red")
    yield ""
    style = tables.style_of_damage(report["damage"])
    first, *rest = statements.damage(report)
    yield tables.line(first, style or "green")
    yield from map(tables.line, rest)
    yield from (tables.line(f"warning: {warning}", style or "yellow") for warning in report["warnings"])
    yield ""
    yield tables.facts(statements.facts(report, arch=arch))
    yield ""
    yield _sections(report)
    yield ""
    yield from _layers(report["layers"], every_layer=every_layer)
    yield from _ending(report)


def _ending(report: Report | EnsembleReport) -> Iterator[RenderableType]:
    """The evaluation, and the file that was written."""
    evaluation = report.get("evaluation")
    if evaluation:
        yield ""
        yield _evaluation(evaluation)
    if "path" in report["artifact"] and "timings" in report:
        yield ""
        taken = words.seconds(report["timings"]["total"])
        yield tables.line(f"wrote {report['artifact']['path']} in {taken}", "bold")


def _headline(report: Report, *, name: str) -> str:
    sizes = f"{words.size(report['floating_bytes'])} -> {words.size(report['artifact']['bytes'])}"
    return f"{name}   {sizes}   {words.times(report['ratio'])} smaller ({statements.verdict(report)})"


def _sections(report: Report | EnsembleReport) -> RenderableType:
    total = report["artifact"]["bytes"]
    rows = [
        (name.replace("_", " "), f"{size:,}", words.percent(size / total), statements.SECTION_MEANINGS.get(name, ""))
        for name, size in [*report["sections"].items(), ("file", total)]
    ]
    styles = [*[""] * len(report["sections"]), "bold"]
    return tables.table(("where the bytes went", "bytes", "fraction", "holds"), rows, styles=styles, left=(0, 3))


def _layers(layers: Sequence[LayerEntry], *, every_layer: bool) -> Iterator[RenderableType]:
    if every_layer or len(layers) <= LAYERS_SHOWN:
        yield _layer_table("layers", layers)
        return
    yield _layer_table("layers that cost most", _most(layers, "bytes"))
    yield ""
    yield _layer_table("layers that lost most", _most(layers, "relative_rmse"))


def _most(layers: Sequence[LayerEntry], key: str) -> list[LayerEntry]:
    return sorted(layers, key=lambda layer: -layer[key])[:LAYERS_SHOWN]


def _layer_table(title: str, layers: Sequence[LayerEntry]) -> RenderableType:
    return tables.table(
        (title, "shape", "bytes", "bits per weight", "relative RMSE"),
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


def _evaluation(evaluation: EvaluationEntry) -> RenderableType:
    rows = [
        ("before", evaluation["before"]),
        (f"after, {evaluation['samples']} posterior draws", evaluation["after"]),
        ("after, posterior mean", evaluation["mean"]),
    ]
    if "accuracy" not in evaluation["before"]:
        return tables.output_measures(f"on {evaluation['data']}", rows)
    return tables.metrics(f"on {evaluation['data']}", rows)
