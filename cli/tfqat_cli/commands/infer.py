"""`tfqat infer model.onnx --input images/`: what an exported graph or an engine predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tfqat.form import Pixels


def infer(
    model: Annotated[Path, typer.Argument(help="An ONNX graph, or a plan of TensorRT.")],
    source: Annotated[Path, typer.Option("--input", "-i", help="A folder of images, an image, an .npz (arrays by input) or an .npy file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the outputs: an .npz file with an array for each.")] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="Print so many classes of each example. Default: 5, none with -o.")
    ] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="The names of the classes: a text file with a line for each.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="The most examples of one run; default: the model's, or 32.")] = None,
    runtime: Annotated[str, typer.Option("--runtime", help="auto, cpu, cuda, tensorrt or tensorrt_rtx.")] = "auto",
    mean: Annotated[
        str | None, typer.Option("--mean", help="Images, for a model of floats: (pixel - mean) / std; one or one per channel.")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="Likewise.")] = None,
    unit: Annotated[bool, typer.Option("--unit", help="Images, for a model of floats: pixel / 255.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict for images or arrays, and print the classes that score highest, or write all outputs."""
    from rich.console import Console

    from tfqat.engines.infer import class_scores, read_labels, top_classes
    from tfqat.engines.infer import infer as predict
    from tfqat.engines.serve import load_engine
    from tfqat_cli import display

    if out is not None and out.suffix != ".npz":
        raise typer.BadParameter(f"the outputs are written as .npz; got {out}", param_hint="--out")
    normalization = _normalization(mean, std, unit)
    with load_engine(model, runtime=runtime, batch_size=batch) as engine:
        found = predict(engine, source, normalization)
    shown = top or (5 if out is None else 0)
    best = top_classes(found.outputs, shown) if shown else []
    names = read_labels(labels, class_scores(found.outputs).shape[1]) if labels is not None else None
    if out is not None:
        _write(out, found.outputs)
    if as_json:
        results = [
            {"source": name, "top": [{"class": index, "label": names and names[index], "score": score} for index, score in one]}
            for name, one in zip(found.sources, best, strict=False)
        ]
        told = {"runtime": engine.runtime, "batch_size": engine.batch_size, "examples": len(found.sources), "notes": list(found.notes)}
        typer.echo(json.dumps({**told, "out": out and str(out), "results": results}, indent=1))
        return
    console = Console()
    for note in found.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if best:
        console.print(display.classes_table(found.sources, best, names))
    if out is not None:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in found.outputs.items())
        console.print(f"{out}: {shapes}", markup=False, highlight=False, soft_wrap=True)


def _normalization(mean: str | None, std: str | None, unit: bool) -> Pixels | None:
    from tfqat.engines.images import UNIT
    from tfqat.form import Pixels

    if unit and (mean is not None or std is not None):
        raise typer.BadParameter("--unit is pixel / 255; leave it out, or --mean and --std")
    if mean is None and std is None:
        return UNIT if unit else None
    made = Pixels(mean=_numbers("--mean", mean or "0"), std=_numbers("--std", std or "1"))
    if not all(value > 0 for value in made.std):
        raise typer.BadParameter(f"numbers above 0 are expected; got {std}", param_hint="--std")
    return made


def _numbers(option: str, text: str) -> tuple[float, ...]:
    import math

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise typer.BadParameter(
            f"one number, or one for each channel such as 123.7,116.3,103.5, is expected; got {text!r}", param_hint=option
        )
    return values


def _write(path: Path, outputs: Any) -> None:
    import numpy as np

    from tfqat import files

    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **outputs)
