"""The reference pages of the site, made of the code when the site is built: public names, commands, keys of a recipe.

A hook of MkDocs: `on_files` adds them to the pages, `on_config` puts all decision records into the navigation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "cli")]

API_GROUPS = {
    "From a recipe": "run RunResult load_recipe",
    "Models and placement": "load_model plan Placement QPoint QuantSpec PerTensor PerChannel Calibrator Weight quantize_model strip",
    "Calibration and sensitivity": "calibrate Calibration correct equalize sensitivity Sensitivity",
    "Fine-tuning": "qat_plan qat_compile qat_callbacks",
    "Export and proof": "export_onnx ExportReport Form Pixels export_saved_model verify ParityReport",
    "Engines and serving": "compile_engine EngineReport load_engine Engine export_triton",
    "Parts for TFMOT": "TensorRTScheme WeightedQuantizeConfig InputQuantizeConfig TensorQuantizer ActivationQuantizer QuantizeWrapper",
}

# What a page's code is given in the tests, as its readers see it.
GIVEN = {
    "fashion_mnist": "`model` is the trained network of `examples/fashion_mnist`, `loss` its loss; `train`, `validation` and "
    "`calibration` are some batches of its data.",
    "run": "`runs/` holds a run of `recipes/fashion_mnist.yaml`, as the quickstart makes one.",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Say what a block is given, where the page has a comment for the tests."""

    def told(found: re.Match[str]) -> str:
        return "".join(f'!!! note ""\n    {GIVEN[name.strip()]}\n\n' for name in found[1].split(","))

    return re.sub(r"<!-- given: ([\w, ]+) -->\n", told, markdown)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """All decision records, by number."""
    records = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    for section in config.nav or ():
        for entry in section.get("Inside", ()) if isinstance(section, dict) else ():
            if isinstance(entry, dict) and "Decisions" in entry:
                entry["Decisions"] = [f"adr/{name}" for name in records]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The generated pages, beside those that are written."""
    for name, text in (("api", api_page()), ("cli", cli_page()), ("recipe", recipe_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def api_page() -> str:
    """Every public name, from its docstring."""
    import tfqat

    grouped = [name for names in API_GROUPS.values() for name in names.split()]
    if sorted(grouped) != sorted(tfqat._PUBLIC):
        raise ValueError(f"API_GROUPS and the public names differ: {sorted(set(grouped) ^ set(tfqat._PUBLIC))}")
    parts = ["# Python\n\nEvery public name. All are taken from `tfqat` itself: `tfqat.load_model`, and imported at their first use.\n"]
    for title, names in API_GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names.split():
            options = f"    options:\n      heading: tfqat.{name}\n      toc_label: {name}\n"
            parts.append(f"::: {tfqat._PUBLIC[name]}.{name}\n{options}")
    parts.append("## Errors\n\n::: tfqat.errors\n    options:\n      heading: tfqat.errors\n")
    return "\n".join(parts)


def cli_page() -> str:
    """Every command with its arguments and options, as Typer writes them down."""
    command = [sys.executable, "-m", "typer", "tfqat_cli.main", "utils", "docs", "--name", "tfqat"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True).stdout


def recipe_page() -> str:
    """Every key of a recipe, from the JSON Schema that `tfqat schema` prints."""
    from tfqat.recipe.json_schema import schema_text

    schema = json.loads(schema_text())
    parts = ["# The recipe\n\nEvery key, from the schema that `tfqat schema` prints; `tfqat init` writes it beside a recipe for editors.\n"]
    definitions = schema["$defs"]
    parts += ["## The blocks\n", *_table(schema), ""]
    for name, path in _paths(schema, definitions).items():
        definition = definitions[name]
        parts += [f"## {path} {{ #{name.lower()} }}\n", definition.get("description", ""), "", *_table(definition), ""]
    return "\n".join(parts)


def _paths(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, str]:
    """Where each definition is used first, in the order of the recipe: `WeightsConfig` -> `quantization.weights`."""
    found: dict[str, str] = {}

    def visit(definition: dict[str, Any], path: str) -> None:
        for key, value in definition.get("properties", {}).items():
            for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(value)):
                if name not in found:
                    found[name] = f"{path}{key}"
                    visit(definitions[name], f"{path}{key}.")

    visit(schema, "")
    return found


def _table(definition: dict[str, Any]) -> Iterator[str]:
    yield "| key | takes | default | is |"
    yield "|---|---|---|---|"
    required = definition.get("required", ())
    for key, value in definition.get("properties", {}).items():
        default = "required" if key in required else _default(value)
        yield f"| `{key}` | {_takes(value)} | {_cell(default)} | {_cell(value.get('description', ''))} |"


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    return "" if "default" not in value or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _takes(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[-1]
        return f"[block](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in value:
            return " or ".join(dict.fromkeys(_takes(option) for option in value[several]))
    if "enum" in value:
        return ", ".join(f"`{option}`" for option in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "anything")
    if kind == "array" and isinstance(value.get("items"), dict):
        return f"list of {_takes(value['items'])}"
    return str(kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
