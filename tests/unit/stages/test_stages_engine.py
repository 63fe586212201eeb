"""The last stage: a failed build is a warning, and an error if the recipe is strict."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tfqat.errors import EngineError
from tfqat.recipe.schema import CompileConfig
from tfqat.stages import engine


def under_way(directory: Path, warnings: list[str], **settings: Any) -> Any:
    """A run at its last stage; no graph is at the path that it exported to."""
    recipe = SimpleNamespace(compile=CompileConfig(**settings), target="tensorrt")
    return SimpleNamespace(
        inputs=SimpleNamespace(recipe=recipe, placement=SimpleNamespace(weights=())),
        directory=directory,
        metrics={"size_bytes": {}},
        stage=lambda *names: contextlib.nullcontext(),
        warn=warnings.append,
        say=lambda text: None,
    )


def test_a_failed_build_is_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    report = engine.build(under_way(tmp_path, warnings), SimpleNamespace(path=tmp_path / "model.onnx"))  # type: ignore[arg-type]
    assert report.status == "not_run"
    assert warnings and warnings[0].startswith("the engine could not be built: ") and "is not a file" in warnings[0]
    assert json.loads((tmp_path / "engine.json").read_text())["status"] == "not_run"


def test_a_failed_build_ends_a_strict_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is not a file"):
        engine.build(under_way(tmp_path, [], strict=True), SimpleNamespace(path=tmp_path / "model.onnx"))  # type: ignore[arg-type]


def test_the_settings_reach_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(engine, "compile_engine", lambda *paths, **options: given.update(options) or engine._no_engine("none"))
    settings: dict[str, Any] = {"shapes": {"x": ((1, 2), (2, 2), (4, 2))}, "strict": True, "timeout_s": 30}
    engine.build(under_way(tmp_path, [], **settings), SimpleNamespace(path=tmp_path / "model.onnx"))  # type: ignore[arg-type]
    assert {name: given[name] for name in settings} == settings
