"""The page: which pictures and rows fill the template, and how the file is written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tfqat import files
from tfqat.report import figures, formats, sections, sensitivity_figures, sensitivity_text
from tfqat.report.collect import collect
from tfqat.report.histogram_figure import histogram
from tfqat.report.view import STAGES, RunView
from tfqat.spec import METHODS

FILE_NAME = "report.html"


def write_report(run_directory: Path) -> Path:
    """Writes `report.html` into a run directory from the files that are there; an earlier report is replaced.

    Returns:
        The path of the page. It opens offline: styles and pictures are inside it, and it holds no script.

    Raises:
        RunDirectoryError: `metrics.json` or `placement.json` is missing, a file is corrupt, or the page cannot be written.
    """
    path = Path(run_directory) / FILE_NAME
    files.write_text(path, render(collect(run_directory)))
    return path


def render(view: RunView) -> str:
    """The page of a run, as HTML text. Every name and text that a run holds is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        view=view,
        formats=formats,
        sections=sections,
        stages=[stage for stage in STAGES if stage in view.metrics.stages],
        methods=METHODS,
        unplanned=sections.unplanned_float(view),
        dots=_dots(view),
        histograms=_histograms(view),
        curves=_curves(view),
        sensitivity_text=sensitivity_text,
        sensitivity_figures=sensitivity_figures,
    )


def _dots(view: RunView) -> Markup:
    """The headline metric of every stage that ran; empty with fewer than two."""
    names, stages = sections.metric_names(view), view.metrics.stages
    values = {sections.STAGE_LABELS[key]: values[names[0]] for key, values in stages.items() if names[0] in values}
    if len(values) < 2 or "float" not in stages:
        return Markup("")
    return figures.stage_dots(names[0], values, sections.STAGE_LABELS.get(view.metrics.exported or ""))


def _histograms(view: RunView) -> list[dict[str, Any]]:
    """One picture for each activation with a histogram, in the placement's order."""
    points = view.calibration.points if view.calibration else {}
    drawn = [points[point.id] for point in view.placement.activations if point.id in points]
    return [
        {
            "id": point.id,
            "method": point.method,
            "amax": sections.amax_text(point),
            "clipped": point.clipped,
            "svg": histogram(point),
        }
        for point in drawn
        if point.histogram is not None and point.histogram.total > 0
    ]


def _curves(view: RunView) -> list[Markup]:
    """Panels for the learning rate, the loss and each metric of the history; float and PTQ as levels."""
    history = view.history or {}
    if "epoch" not in history:
        return []
    pairs = [name for name in history if name not in ("epoch", "learning_rate") and not name.startswith("val_")]
    panels: list[tuple[str, dict[str, Sequence[float]], Mapping[str, float]]] = []
    if "learning_rate" in history:
        panels.append(("learning rate", {"rate": history["learning_rate"]}, {}))
    for name in pairs:
        series: dict[str, Sequence[float]] = {"train": history[name]}
        if f"val_{name}" in history:
            series["validation"] = history[f"val_{name}"]
        panels.append((name, series, _levels(view, name)))
    return [
        Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(
            name.replace("_", " "), figures.curves(name, series, history["epoch"], levels)
        )
        for name, series, levels in panels
    ]


def _levels(view: RunView, metric: str) -> Mapping[str, float]:
    stages = view.metrics.stages
    labels = {"Float": "float", "PTQ": "ptq"}
    return {label: stages[stage][metric] for label, stage in labels.items() if metric in stages.get(stage, {})}
