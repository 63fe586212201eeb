"""What can be checked of blocks that are not run: options of `tfqat`, names of `tfqat.`, keys of a recipe."""

from __future__ import annotations

import ast
import shlex
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

_BASE = """\
version: 1
model: {source: model.keras}
data: {train: "data.py:train", validation: "data.py:validation", calibration: "data.py:calibration"}
training: {epochs: 30, batch_size: 128, learning_rate: 0.1, loss: sparse_categorical_crossentropy, metrics: [accuracy]}
"""


def check_tfqat_commands(script: str) -> str | None:
    """What is wrong with the commands of tfqat in a script: an unknown command or option, or a value that an option does not take."""
    import typer
    from tfqat_cli.main import app
    from typer.main import get_command

    group = get_command(app)
    for words in _commands(script):
        try:
            context = group.make_context("tfqat", words[:1], resilient_parsing=True)  # type: ignore[attr-defined]
            command = group.get_command(context, words[0])  # type: ignore[attr-defined]
            if command is None:
                return f"tfqat has no command {words[0]!r}"
            command.make_context(words[0], words[1:], parent=context)
        except typer.Exit:
            continue
        except Exception as error:
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            return f"tfqat {' '.join(words)}: {message()}"
    return None


def _commands(script: str) -> Iterator[list[str]]:
    for line in script.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part.split("|")[0], comments=True)
            if words[:1] == ["tfqat"] and len(words) > 1:
                yield words[1:]


def check_names(source: str) -> str | None:
    """What of `tfqat.a.b` in Python code does not exist."""
    for node in ast.walk(ast.parse(source)):
        of_tfqat = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tfqat"
        if of_tfqat and not hasattr(import_module("tfqat"), node.attr):
            return f"tfqat has no {node.attr!r}"
    return None


def check_yaml(text: str) -> str | None:
    """What is wrong with a recipe, or with a part of one put into a small recipe."""
    from tfqat.errors import RecipeError
    from tfqat.recipe.load import load_recipe

    yaml = YAML(typ="safe")
    data = yaml.load(text)
    if not isinstance(data, dict):
        return "not a YAML mapping"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        if "version" in data:
            path.write_text(text)
        else:
            with path.open("w") as file:
                yaml.dump(_merged(yaml.load(_BASE), data), file)
        try:
            load_recipe(path)
        except RecipeError as error:
            return str(error)
    return None


def _merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}
