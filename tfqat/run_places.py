"""Where the relative paths of a finished run's recipe are looked for."""

from __future__ import annotations

from pathlib import Path

from tfqat.inputs import Origin
from tfqat.run_directory import MANIFEST, read_json


def places(directory: Path, *, unsafe: bool = False) -> list[tuple[Path, Origin]]:
    """Where the run was made, if that is still there, and where we are now: the working directory and the recipe's folder."""
    manifest, file = read_json(directory, MANIFEST), str(directory / "recipe.yaml")
    recorded = Path(manifest.get("working_directory", "")), Path(manifest.get("recipe_folder", ""))
    places = [recorded] if all(folder.is_absolute() and folder.is_dir() for folder in recorded) else []
    return [(working, Origin(file=file, folder=folder, unsafe=unsafe)) for working, folder in [*places, (Path.cwd(), directory)]]
