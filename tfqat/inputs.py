"""Everything that a recipe names, loaded and checked before anything is written: the model, its placement, the data, the schedule."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tfqat.analysis.meters import make_meter
from tfqat.datasets import Data, check_labelled, load_dataset, read_through
from tfqat.errors import DataError, ModelError, PlacementError, RecipeError
from tfqat.models.load import is_reference
from tfqat.placement.plan import Placement
from tfqat.placement.planner import plan
from tfqat.placement.replace import replace_blocks
from tfqat.quantize.load import load_model
from tfqat.recipe.load import recipe_lines
from tfqat.recipe.modifiers import QatPlan, qat_plan
from tfqat.recipe.references import load_reference, resolve_path
from tfqat.recipe.schema import Recipe
from tfqat.training.evaluate import check_fit, check_metrics, make_loss

Split = Literal["train", "validation", "calibration", "test"]
_FALLBACK: dict[Split, Split] = {"calibration": "train", "test": "validation"}  # the split that stands for one which is not given


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a recipe comes from: the file that messages cite, and the folder that its relative paths are also looked for from.

    `lines` says where each of its values stands (see `recipe_lines`). `unsafe` is for a model file whose Lambda layers the user trusts.
    """

    file: str
    folder: Path
    lines: Mapping[str, str] = field(default_factory=dict)
    unsafe: bool = False

    @classmethod
    def of(cls, path: Path, overrides: Sequence[str] = (), *, unsafe: bool = False) -> Origin:
        """The origin of a recipe file."""
        return cls(file=str(path), folder=path.parent, lines=recipe_lines(path, overrides), unsafe=unsafe)

    @contextlib.contextmanager
    def with_lines(self) -> Iterator[None]:
        """Puts the line before each key of the recipe that an error names: `recipes/x.yaml:12: quantization.skip[0]: ...`.

        Raises:
            PlacementError, ModelError, DataError: as raised within the block.
        """
        try:
            yield
        except (PlacementError, ModelError, DataError) as error:
            keys = sorted(self.lines, key=len, reverse=True)
            known = re.compile("|".join(rf"\b{re.escape(key)}(?![\w.\[])" for key in keys if "[" in key) or r"(?!)")
            raise type(error)(known.sub(lambda match: f"{self.lines[match[0]]}: {match[0]}", str(error))) from error

    @contextlib.contextmanager
    def citing(self, key: str) -> Iterator[None]:
        """Puts the recipe and its key before what is wrong with the value: `recipes/x.yaml: model.source: ...`.

        Raises:
            RecipeError, DataError: as raised within the block.
        """
        try:
            yield
        except RecipeError as error:
            raise RecipeError(f"{self.cite(key)}: {problem}" for problem in error.problems) from error
        except DataError as error:
            raise DataError(f"{self.cite(key)}: {error}") from error

    def cite(self, key: str) -> str:
        """A key of the recipe, after the name of its file."""
        return f"{self.file}: {key}" if self.file else key


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run works on. `test` is the object `validation` itself where the recipe gives no other.

    `float_model` is the model as it was loaded, `model` the one with blocks replaced; the same object where the recipe replaces none. The
    float one is what is measured as `float`, so that what a replacement costs is seen.
    """

    recipe: Recipe
    float_model: Any
    model: Any
    placement: Placement
    train: Data | None
    validation: Data
    calibration: Data
    test: Data
    loss: Any
    schedule: QatPlan | None
    sensitivity_metric: Any = None


def load_inputs(recipe: Recipe, origin: Origin, advance: Callable[[], None] = lambda: None) -> Inputs:
    """Load what a recipe names, read the data through once, and try the loss and the metrics on it.

    Args:
        recipe: the recipe.
        origin: where it comes from.
        advance: called for each batch that is read.

    Raises:
        TfqatError: something is missing, corrupt or does not fit.
    """
    loss = make_loss(recipe.training.loss)
    check_metrics(recipe.training.metrics)
    float_model = load_recipe_model(recipe, origin)
    model = replace_recipe_blocks(recipe, origin, float_model)
    placement = plan_recipe(recipe, origin, model)
    schedule = None if recipe.ptq_only else qat_plan(recipe.training, recipe.qat)
    metric = sensitivity_metric(recipe, origin)
    loaded: dict[str, Data] = {}  # by reference: what two keys name is loaded and read once

    def labelled(split: Split, **limits: Any) -> Data:
        key, reference = given(recipe, split)
        if reference not in loaded:
            data = load_data(recipe, split, origin, model)
            check_labelled(model, data.first, where=f"{data.name}: batch 0")
            check_fit(model, data.first, loss=loss, metrics=recipe.training.metrics, where=f"data.{key}")
            loaded[reference] = read_through(data, model, advance=advance, **limits)
        return loaded[reference]

    validation, test = labelled("validation"), labelled("test")
    if metric is not None:  # a wrong name is found now, and not after calibration
        make_meter(metric, model, loss=loss, metrics=recipe.training.metrics, batch=validation.first)
    train = None if schedule is None else labelled("train", **_limits(schedule))
    if schedule is not None and train is not None and schedule.steps_per_epoch is None:
        schedule = qat_plan(recipe.training, recipe.qat, examples=train.examples)
    return Inputs(
        recipe=recipe,
        float_model=float_model,
        model=model,
        placement=placement,
        train=train,
        validation=validation,
        calibration=loaded.get(given(recipe, "calibration")[1]) or load_data(recipe, "calibration", origin, model),
        test=test,
        loss=loss,
        schedule=schedule,
        sensitivity_metric=metric,
    )


def load_recipe_model(recipe: Recipe, origin: Origin) -> Any:
    """The model that a recipe names.

    Raises:
        RecipeError: there is no such file; says which key names it and where it was looked for.
        DataError: a custom object cannot be imported.
        ModelError: it is corrupt, or of a kind that tfqat cannot take.
    """
    source: str | Path = recipe.model.source
    if not is_reference(source):
        with origin.citing("model.source"):
            source = resolve_path(source, origin.folder)
    return load_model(source, custom_objects(recipe, origin), unsafe=origin.unsafe, base=origin.folder)


def replace_recipe_blocks(recipe: Recipe, origin: Origin, model: Any) -> Any:
    """The model with the blocks replaced that a recipe wants replaced; the model itself if it wants none.

    Raises:
        NoMatchError: a pattern that changes nothing; says on which line it stands.
        ModelError, DataError: a function that cannot be imported, or returns what does not fit.
    """
    if not recipe.replace:
        return model
    with origin.with_lines():
        return replace_blocks(model, recipe.replace, base=origin.folder)


def plan_recipe(recipe: Recipe, origin: Origin, model: Any) -> Placement:
    """The placement that a recipe asks for.

    Raises:
        PlacementError: a pattern without effect, or a choice that cannot be obeyed; says on which line it stands.
    """
    with origin.with_lines():
        return plan(model, recipe.placement_config)


def custom_objects(recipe: Recipe, origin: Origin) -> dict[str, Any]:
    """The classes of custom layers that a recipe names.

    Raises:
        DataError: one cannot be imported; names the recipe's key.
    """
    custom = {}
    for name, reference in recipe.model.custom_objects.items():
        with origin.citing(f"model.custom_objects.{name}"):
            custom[name] = load_reference(reference, base=origin.folder)
    return custom


def load_data(recipe: Recipe, split: Split, origin: Origin, model: Any) -> Data:
    """The data that a recipe gives for a split, checked on its first batch.

    Raises:
        DataError: the reference cannot be imported or called, or returns no data for this model; names the recipe's key.
    """
    key, reference = given(recipe, split)
    with origin.citing(f"data.{key}"):
        load = load_reference(reference, base=origin.folder)
    name = f"{origin.cite(f'data.{key}')}: {reference}"
    return load_dataset(load, name=name, batch_size=recipe.training.batch_size, model=model)


def sensitivity_metric(recipe: Recipe, origin: Origin) -> Any:
    """What `sensitivity.metric` names: the function if it is a reference, else the name.

    Raises:
        DataError: the function cannot be imported; names the recipe's key.
    """
    if recipe.sensitivity is None or not is_reference(recipe.sensitivity.metric):
        return recipe.sensitivity.metric if recipe.sensitivity else None
    with origin.citing("sensitivity.metric"):
        return load_reference(recipe.sensitivity.metric, base=origin.folder)


def given(recipe: Recipe, split: Split) -> tuple[str, str]:
    """The key and the reference of a split, or those of the one that stands for it where the recipe leaves it out."""
    key = split if getattr(recipe.data, split) else _FALLBACK[split]
    return key, getattr(recipe.data, key)


def _limits(schedule: QatPlan) -> dict[str, Any]:
    """How much of the training data is read: all of it to count it, or one epoch where its steps are given."""
    if schedule.steps_per_epoch is None:
        return {"remedy": "remove .repeat(), or set training.steps_per_epoch"}
    return {"examples": schedule.steps_per_epoch * schedule.batch_size}
