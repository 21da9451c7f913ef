"""The report as one self-contained HTML page: no scripts, no requests, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gbnn_compress.files import write_atomically
from gbnn_compress.mixture.plane import plane_of, reach
from gbnn_compress.report import figures, sizes, statements, words
from gbnn_compress.report.schema import EnsembleReport, Report, Summary
from gbnn_compress.report.templated import filled
from gbnn_compress.types import Artifact, Ensemble, Mixture, Plane, Reliability

LAYERS_SHOWN = 30
"""With more layers than this, the page shows the worst ones first and all of them on demand."""

WORST_LAYERS = 5

FAR = 1e100
"""Position of outliers in the plane of a file, which does not hold their deviation."""

LAYER_MEASURES = {"bits_per_weight": "bits per weight", "relative_rmse": "relative RMSE"}

MEASURES = {key: words.MEASURES[key] for key in Summary.__annotations__}


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        name: A file name, the subject of the page.
        report: The report on the file.
        plane: The weights and the components.
        arch: The architecture that the user named.
        before: The mixture before merging, in the coordinates of the plane; None where it is unknown.
        curve: Predicted sizes and damage along the merge path, by octaves of lambda from the chosen cut; may be empty.
        reliability: Reliability diagrams by the keys of the report's evaluation; may be empty.
    """

    name: str
    report: Report
    plane: Plane
    arch: str | None = None
    before: Mixture | None = None
    curve: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    reliability: Mapping[str, Reliability] = field(default_factory=dict)


def file_page(artifact: Artifact, *, name: str) -> Page:
    """The page of a file alone: each weight is drawn at its component, and outliers are not drawn."""
    bank = artifact.bank
    x, y = np.append(bank.means, FAR), np.append(bank.log_sigmas, 0.0)
    maps = [index_map.ids for index_map in artifact.maps]
    plane = plane_of(((ids, x[ids], y[ids]) for ids in maps), size=len(bank.means), x_limit=reach(bank.means, maps))
    return Page(name=name, report=sizes.report(artifact), plane=plane)


@dataclass(frozen=True)
class EnsemblePage:
    """What the page of an ensemble shows.

    Attributes:
        name: A file name, the subject of the page.
        report: The report on the file.
    """

    name: str
    report: EnsembleReport


def page_of(ensemble: Ensemble, *, name: str) -> Page | EnsemblePage:
    """The page of a file of any number of networks."""
    if len(ensemble.members) == 1:
        return file_page(ensemble.members[0], name=name)
    return EnsemblePage(name, sizes.ensemble_report(ensemble))


def render(page: Page | EnsemblePage) -> str:
    """The page as HTML; the same page gives the same text."""
    if isinstance(page, EnsemblePage):
        return _render_ensemble(page)
    report = page.report
    layers: Sequence[Mapping[str, Any]] = report["layers"]
    evaluation: Mapping[str, Any] = report["evaluation"] or {}
    return filled(
        "page.html",
        page=page,
        report=report,
        verdict=statements.verdict(report),
        facts=list(statements.facts(report, arch=page.arch)),
        meanings=statements.SECTION_MEANINGS,
        measures=MEASURES,
        output_measures=_output_measures(evaluation),
        changed=list(words.changed(report["damage"])),
        output_errors=words.output_errors(report["damage"]),
        planes=_planes(page),
        has_spread=_has_spread(page.plane),
        stems=None if _has_spread(page.plane) else figures.stem_figure(page.plane),
        curve=figures.curve_figure(page.curve, report["damage"]) if page.curve else None,
        reliabilities={
            name: (figures.reliability_figure(each), evaluation[name]["ece"]) for name, each in page.reliability.items()
        },
        depths=[figures.depth_figure(layers, key, title=title) for key, title in LAYER_MEASURES.items()],
        largest={key: max(layer[key] for layer in layers) or 1.0 for key in LAYER_MEASURES},
        worst=_worst(layers) if len(layers) > LAYERS_SHOWN else [],
    )


def _render_ensemble(page: EnsemblePage) -> str:
    report = page.report
    members = report["members"]
    return filled(
        "ensemble.html",
        page=page,
        report=report,
        headline=statements.ensemble(report),
        facts=list(statements.ensemble_facts(report)),
        titles=("member", *statements.MEMBER_TITLES),
        rows=statements.member_rows(report),
        meanings=statements.SECTION_MEANINGS,
        evaluation=report.get("evaluation"),
        measures=MEASURES,
        output_measures=_output_measures(report.get("evaluation") or {}),
        depths=[
            [figures.depth_figure(each["layers"], key, title=title) for key, title in LAYER_MEASURES.items()]
            for each in members
        ],
        largest={key: max(layer[key] for each in members for layer in _layers(each)) or 1.0 for key in LAYER_MEASURES},
    )


def _layers(report: Report) -> Sequence[Mapping[str, Any]]:
    return report["layers"]


def write(page: Page | EnsemblePage, path: Path) -> None:
    """Render a page into a file, written as a whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    write_atomically(path, render(page).encode())


def _output_measures(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the measures of outputs that an evaluation has; empty for classifiers."""
    if not evaluation or "accuracy" in evaluation["before"]:
        return {}
    found = [evaluation[name] for name in ("before", "after", "mean")]
    return {key: title for key, title in words.OUTPUT_MEASURES.items() if any(key in each for each in found)}


def _planes(page: Page) -> list[tuple[str, dict[str, Any]]]:
    """Captions and figures of the components, before merging if that is known, and after."""
    known = [("before merging", page.before)] if page.before is not None else []
    dots = not _has_spread(page.plane)
    banks = [*known, ("after merging" if known else "in the file", page.plane.components)]
    return [
        (
            f"{when}: {words.counted(len(components.weights), 'component')}",
            figures.plane_figure(page.plane, components, dots=dots),
        )
        for when, components in banks
    ]


def _has_spread(plane: Plane) -> bool:
    """Whether the members of a component have positions of their own. A file alone has none."""
    return bool(plane.components.covariances.any())


def _worst(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    return [
        (title, sorted(layers, key=lambda layer: -layer[key])[:WORST_LAYERS])
        for title, key in (("layers that cost most", "bytes"), ("layers that lost most", "relative_rmse"))
    ]
