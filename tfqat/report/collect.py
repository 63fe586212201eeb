"""Which files of a run directory a report reads, and what it says about one that is missing or corrupt."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tfqat.errors import DataError, RunDirectoryError
from tfqat.placement.plan import Placement
from tfqat.report.calibration_view import Calibration
from tfqat.report.sensitivity_view import Sensitivity
from tfqat.report.view import Engine, Metrics, Parity, RunView

T = TypeVar("T")


def collect(run_directory: Path) -> RunView:
    """Reads a run directory.

    Raises:
        RunDirectoryError: `metrics.json` or `placement.json` is missing, or any file is corrupt. The message names the file.
    """
    directory = Path(run_directory)
    return RunView(
        name=directory.resolve().name,
        metrics=_required(directory / "metrics.json", Metrics.from_dict),
        placement=_required(directory / "placement.json", lambda data: Placement.from_dict(dict(data))),
        recipe=_text(directory / "recipe.yaml"),
        calibration=_optional(directory / "calibration.json", Calibration.from_dict),
        history=read_history(directory / "history.csv"),
        parity=_optional(directory / "parity.json", Parity.from_dict),
        engine=_optional(directory / "engine.json", Engine.from_dict),
        sensitivity=_optional(directory / "sensitivity.json", Sensitivity.from_dict),
    )


def read_history(path: Path) -> Mapping[str, tuple[float, ...]] | None:
    """The columns of a training history by name, an empty cell as NaN; None without the file or without a row.

    Raises:
        RunDirectoryError: a cell is not a number, or a row has more or fewer cells than the header.
    """
    text = _text(path)
    if text is None:
        return None
    header, *rows = list(csv.reader(text.splitlines())) or [[]]
    rows = [row for row in rows if row]
    if not header or not rows:
        return None
    try:
        columns = list(zip(*([float(cell) if cell.strip() else float("nan") for cell in row] for row in rows), strict=True))
        return dict(zip(header, columns, strict=True))
    except ValueError as error:
        raise RunDirectoryError(f"{path} is corrupt: expected rows of {len(header)} numbers under the header; {error}") from error


def _required(path: Path, parse: Callable[[Mapping[str, Any]], T]) -> T:
    result = _optional(path, parse)
    if result is None:
        raise RunDirectoryError(f"{path} is missing, so there is nothing to report: give the directory of a run that got past evaluation")
    return result


def _optional(path: Path, parse: Callable[[Mapping[str, Any]], T]) -> T | None:
    """What `parse` makes of the JSON object in `path`, or None if there is no such file."""
    text = _text(path)
    if text is None:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{path} is corrupt: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{path} is corrupt: expected a JSON object, got {type(data).__name__}")
    try:
        return parse(data)
    except KeyError as error:
        raise RunDirectoryError(f"{path} is corrupt: the key {error} is missing") from error
    except DataError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunDirectoryError(f"{path} is corrupt: {error}") from error


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
