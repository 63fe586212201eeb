"""Finds the layers that lose accuracy, and goes on with the placement that leaves them at higher precision."""

from __future__ import annotations

from typing import Any

from tfqat import files
from tfqat.analysis.raised import places
from tfqat.analysis.result import Sensitivity
from tfqat.analysis.sensitivity import sensitivity
from tfqat.errors import PlacementError
from tfqat.placement.planner import plan
from tfqat.recipe.quantization import Override
from tfqat.stages.under_way import Run


def analyse(run: Run, qmodel: Any) -> Sensitivity:
    """Rank the layers and search, as the recipe says; `sensitivity.json` has the result."""
    settings = run.inputs.recipe.sensitivity
    assert settings is not None  # the caller looked
    with run.stage("sensitivity", "Measure the sensitivity of each layer") as advance:
        found = sensitivity(
            qmodel,
            run.inputs.validation,
            like=run.inputs.model,
            placement=run.inputs.placement,
            metric=run.inputs.sensitivity_metric,
            loss=run.inputs.loss,
            metrics=run.inputs.recipe.training.metrics,
            method=settings.method,
            max_drop=settings.max_drop,
            budget=settings.budget.model_dump(exclude_none=True) if settings.budget else None,
            batches=settings.batches,
            executor=settings.executor,
            workers=settings.workers,
            advance=advance,
        )
    files.write_json(run.directory / "sensitivity.json", found.to_dict())
    run.say(_summary(found))
    _compare_lines(run, found)
    return found


def _compare_lines(run: Run, found: Sensitivity) -> None:
    """Warn if the recipe with the lines added gives another placement than the one that was measured and goes on."""
    if not found.lines or found.placement is None:
        return
    config = run.inputs.recipe.placement_config
    overrides = tuple(Override.model_validate(override) for override in found.lines.get("overrides", ()))
    update = {"skip": (*config.skip, *found.lines.get("skip", ())), "overrides": (*config.overrides, *overrides)}
    try:
        planned = plan(run.inputs.model, config.model_copy(update=update))
    except PlacementError as error:
        run.warn(f"sensitivity: the recipe does not take these lines as they are: {error}")
        return
    if places(planned) != places(found.placement):
        run.warn("sensitivity: with these lines the rules place some quantizers beside the raised layers differently than was measured")


def _summary(found: Sensitivity) -> str:
    search = found.search
    if search is None:
        return f"most sensitive: {', '.join(unit.name for unit in found.units[:3])}"
    if not search.chosen:
        return f"every layer stays as planned: {found.metric} {search.value:.4f}, float {found.float_value:.4f}"
    raised = ", ".join(f"{name} ({'float' if level == 'float' else '8 bits'})" for name, level in search.chosen.items())
    verdict = "" if search.met else "; the limit is not met even so"
    return f"at higher precision: {raised}: {found.metric} {found.quantized_value:.4f} -> {search.value:.4f}{verdict}"
