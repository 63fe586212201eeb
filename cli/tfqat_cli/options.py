"""The arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the recipe, such as quantization.activations.percentile=99.9; repeatable."),
]
Unsafe = Annotated[
    bool, typer.Option("--unsafe", help="Also load Lambda layers: their Python code comes from the model file and can do anything.")
]
