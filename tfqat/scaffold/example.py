"""Copies an example out of the installed package, or out of the repository, as a project that stands by itself."""

from __future__ import annotations

from pathlib import Path

import tfqat
from tfqat.errors import ProjectError, nearest
from tfqat.recipe.json_schema import MODELINE, SCHEMA_FILE, schema_text
from tfqat.scaffold.project import RECIPE, Project
from tfqat.scaffold.writing import write_new

EXAMPLES = ("fashion_mnist",)

_PACKAGE = Path(tfqat.__file__).parent
_LEFT_OUT = ("__pycache__",)


def copy_example(name: str, folder: Path) -> Project:
    """Write the files of an example, its recipe as `recipe.yaml`, and the schema.

    Args:
        name: one of `EXAMPLES`.
        folder: made if it is not there.

    Raises:
        ProjectError: there is no such example, a file is there already, or one cannot be written; nothing is written then.
    """
    if name not in EXAMPLES:
        raise ProjectError(f"there is no example {name!r}{nearest(name, EXAMPLES)}; expected one of {', '.join(EXAMPLES)}")
    source, recipe = _places(name)
    # In the repository paths are relative to its root, in a project to the recipe.
    text = recipe.read_text(encoding="utf-8").replace(f"examples/{name}/", "")
    contents = {RECIPE: (MODELINE + text).encode(), SCHEMA_FILE: schema_text().encode()}
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if path.is_file() and not set(inside.parts).intersection(_LEFT_OUT):
            contents[inside.as_posix()] = path.read_bytes()
    return Project(folder=folder, written=write_new(folder, contents))


def _places(name: str) -> tuple[Path, Path]:
    """The example's folder and its recipe: within the package (see `force-include` in pyproject.toml), or in the repository around it."""
    for root in (_PACKAGE / "_bundled", _PACKAGE.parent):
        source, recipe = root / "examples" / name, root / "recipes" / f"{name}.yaml"
        if source.is_dir() and recipe.is_file():
            return source, recipe
    raise ProjectError(f"the example {name!r} is not part of this installation: install tfqat from its wheel, or from the repository")
