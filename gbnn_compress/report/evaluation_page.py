"""An evaluation as a page: measures, reliability diagrams, out-of-distribution detection; or errors of outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gbnn_compress.files import write_atomically
from gbnn_compress.report import figures, words
from gbnn_compress.report.schema import Detected
from gbnn_compress.report.templated import filled
from gbnn_compress.types import Histogram, Reliability

FRACTIONS = ("accuracy", "coverage_at_5_percent_risk")
"""Measures that are shown as percentages."""


@dataclass(frozen=True)
class EvaluationPage:
    """What a page shows.

    Attributes:
        name: File name of the model.
        result: What `evaluate` returns.
        reliability: Reliability diagrams of the model `as it is`, and `scaled` where a temperature was fitted;
            empty for networks that are no classifiers.
        ood: Specification of the out-of-distribution data.
        spreads: Histograms of the detection scores by name; empty without such data.
        reference: Name of the checkpoint that the model was compared with.
    """

    name: str
    result: Mapping[str, Any]
    reliability: Mapping[str, Reliability] = field(default_factory=dict)
    ood: str | None = None
    spreads: Mapping[str, Histogram] = field(default_factory=dict)
    reference: str | None = None


def render(page: EvaluationPage) -> str:
    """The page as HTML; the same page gives the same text."""
    result = page.result
    if "accuracy" not in result:
        return _render_outputs(page)
    columns = {name: result if name == "as it is" else result[name] for name in page.reliability}
    return filled(
        "evaluation.html",
        page=page,
        result=result,
        columns=columns,
        measures=words.MEASURES,
        fractions=FRACTIONS,
        facts=dict(_facts(page)),
        reliabilities={
            name: (figures.reliability_figure(each), columns[name]["ece"]) for name, each in page.reliability.items()
        },
        histograms={
            name: figures.histogram_figure(spread, title=f"{name} (nats)") for name, spread in page.spreads.items()
        },
        detection=dict(detection(result)) if page.spreads else {},
    )


def _render_outputs(page: EvaluationPage) -> str:
    """The page of a network that is no classifier."""
    result = page.result
    rows = {f"{result['samples']} posterior draws": result, "posterior mean": result.get("mean", {})}
    return filled(
        "outputs.html",
        page=page,
        result=result,
        measures={key: words.OUTPUT_MEASURES[key] for key in ("relative_error", "cosine")},
        rows=rows if result["samples"] > 1 else {"as it is": result},
        errors=words.output_errors(result),
    )


def write(page: EvaluationPage, path: Path) -> None:
    """Render a page into a file, written as a whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    write_atomically(path, render(page).encode())


def detection(result: Mapping[str, Any]) -> Iterator[tuple[str, Detected]]:
    """AUROC and FPR95 by detection score; mutual information does not depend on the temperature.

    Args:
        result: What `evaluate` returns, with `ood`.
    """
    ood = result["ood"]
    yield "by entropy", ood
    yield "by max probability", ood["max_probability"]
    if "mutual_information" in ood:
        yield "by mutual information", ood["mutual_information"]
    if "scaled" in result:
        yield "by entropy, scaled", result["scaled"]["ood"]
        yield "by max probability, scaled", result["scaled"]["ood"]["max_probability"]


def _facts(page: EvaluationPage) -> Iterator[tuple[str, str]]:
    result = page.result
    if "members" in result:
        yield "networks", f"{result['members']}, whose probabilities are averaged"
    if "folded_temperature" in result:
        yield "temperature", f"{result['folded_temperature']:.3g}, stored in the file and applied to all measures"
    if "folded_temperatures" in result:
        found = ", ".join(f"{each:.3g}" for each in result["folded_temperatures"])
        yield "temperatures", f"{found}, one per member, stored in the file and applied to all measures"
    if "temperature" in result:
        yield "scaled", f"at the temperature {result['temperature']:.3g}, fitted on the validation data"
    if page.reference is not None:
        agreement = words.percent(result["agreement"])
        yield (
            f"against {page.reference}",
            f"the same top class for {agreement} of inputs, mean KL {result['logit_kl']:.4f} nats",
        )
    for text in words.changed(result):
        name, _, numbers = text.partition(": ")
        yield name, numbers
