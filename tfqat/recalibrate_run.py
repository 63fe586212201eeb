"""Ranges by another method for a run that exists, from the histograms that it keeps: no data are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfqat import files
from tfqat.calibration.calibrate import apply, recalibrate
from tfqat.calibration.result import Calibration
from tfqat.errors import RecipeError
from tfqat.inputs import Origin, load_recipe_model, replace_recipe_blocks
from tfqat.placement.plan import Placement
from tfqat.quantize.apply import quantize_model
from tfqat.recipe.load import dump_recipe, load_recipe, recipe_hash
from tfqat.run_directory import RunDirectory, read_result
from tfqat.run_places import loaded_at_place
from tfqat.spec import Calibrator


def recalibrate_run(run_directory: Path, method: str, *, out: Path, unsafe: bool = False) -> tuple[Calibration, Calibration, Path]:
    """Make a run directory with the model of another run, calibrated by another method.

    Args:
        run_directory: of a run that came as far as its calibration; it is not changed.
        method: such as `entropy` or `percentile(99.9)`, for all activations.
        out: the folder that gets the new directory, which holds recipe.yaml, placement.json, calibration.json and quantized.keras.
        unsafe: also load Lambda layers, whose Python code comes from the model file and can do anything.

    Returns:
        The calibration as it was and as it is, and the new directory. Rounding and biases are not corrected: that takes data.

    Raises:
        RecipeError: no such method.
        RunDirectoryError: the directory holds no calibration, or one without histograms.
    """
    try:
        calibrator = Calibrator.parse(method)
    except ValueError as error:
        raise RecipeError([f"--method: {error}"]) from error
    if calibrator.method == "best":
        raise RecipeError(["--method: best compares the outputs of layers, which takes data: give the recipe calibrator: best"])
    directory = run_directory.resolve()
    before = read_result(directory, "calibration.json", Calibration.from_dict)
    placement = read_result(directory, "placement.json", Placement.from_dict)
    after = recalibrate(before, placement.points, calibrator)
    settings = {"calibrator": calibrator.method, "percentile": calibrator.percentile}
    recipe = load_recipe(directory / "recipe.yaml", [f"quantization.activations.{key}={value}" for key, value in settings.items()])

    def load(origin: Origin) -> tuple[Any, Origin]:
        return replace_recipe_blocks(recipe, origin, load_recipe_model(recipe, origin)), origin

    with loaded_at_place(directory, load, unsafe=unsafe) as (model, origin):
        pass
    qmodel = quantize_model(model, placement)
    apply(qmodel, after)
    name = f"{directory.name.rpartition('-')[0] or directory.name}-{calibrator.method}"
    made = RunDirectory.create(out, name, recipe_hash=recipe_hash(recipe), seed=recipe.seed, recipe_folder=origin.folder)
    files.write_text(made / "recipe.yaml", dump_recipe(recipe))
    files.write_json(made / "placement.json", placement.to_dict())
    files.write_json(made / "calibration.json", after.to_dict())
    with files.replacing(made / "quantized.keras") as temporary:
        qmodel.save(temporary)
    made.mark("complete", stage="calibrate")
    return before, after, made.path
