"""What a block may be given, so that a page about one step need not show the ones before: `<!-- given: NAME -->`."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_SETTINGS = ("ptq_only=true",)
_KEPT, _DAY = "tfqat-docs-given-", 86_400


def given_run(folder: Path, namespace: dict[str, Any]) -> None:
    """`runs/` with one finished run of the main recipe: CI's, if `TFQAT_MAIN_RUN` names it, else one for all pages of a test run."""
    if made := os.environ.get("TFQAT_MAIN_RUN"):
        shutil.copytree(made, folder / "runs" / Path(made).name)
        return
    kept = _kept_for_this_test_run() / "runs"
    with (kept.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _make(kept)
    shutil.copytree(kept, folder / "runs")


def given_fashion_mnist(folder: Path, namespace: dict[str, Any]) -> None:
    """`model` (tf_keras, trained), `train`, `validation`, `calibration` (batches) and `loss` of examples/fashion_mnist."""
    import tf_keras

    import tfqat
    from tfqat.recipe.references import load_reference

    example = _ROOT / "examples" / "fashion_mnist"
    for name, batches in (("train", 8), ("validation", 8), ("calibration", 16)):
        namespace[name] = load_reference(f"data.py:bundled_{name}", base=example)().take(batches)
    namespace["model"] = tfqat.load_model(example / "float.keras")
    namespace["loss"] = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _kept_for_this_test_run() -> Path:
    name = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    folder = Path(tempfile.gettempdir()) / f"{_KEPT}{name}"
    folder.mkdir(exist_ok=True)
    for old in folder.parent.glob(f"{_KEPT}*"):
        if time.time() - old.stat().st_mtime > _DAY:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _make(runs: Path) -> None:
    command = [sys.executable, "-m", "tfqat_cli", "run", "recipes/fashion_mnist.yaml", "--out", str(runs)]
    settings = [part for setting in _SETTINGS for part in ("--set", setting)]
    done = subprocess.run([*command, *settings], cwd=_ROOT, capture_output=True, text=True, timeout=500, check=False)
    if done.returncode:
        shutil.rmtree(runs, ignore_errors=True)
        raise RuntimeError(f"the run that pages are given failed:\n{done.stdout}\n{done.stderr}")


GIVEN: dict[str, Callable[[Path, dict[str, Any]], None]] = {"run": given_run, "fashion_mnist": given_fashion_mnist}
