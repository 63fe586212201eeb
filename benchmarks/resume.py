"""Kills a run at random moments and resumes it: `python benchmarks/resume.py [RECIPE] [--kills 10]`.

An uninterrupted run first, whose length says when to kill: each of the others gets SIGKILL at a random moment, and again at another one
after it was resumed, then ends. Their final models must be equal, bit for bit, and their metrics too. Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from figures import Figure, show

import tfqat

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run, kill, resume and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="recipes/fashion_mnist.yaml")
    parser.add_argument("--kills", type=int, default=10, help="runs that are killed (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="as for tfqat run")
    arguments = parser.parse_args()
    return 0 if show(figures(arguments.recipe, arguments.kills, arguments.seed, arguments.overrides)) else 1


def figures(recipe: str, kills: int, seed: int, overrides: list[str]) -> Iterator[Figure]:
    """A line for each run that is killed."""
    moments = random.Random(seed)
    settings = [part for value in ("deterministic=true", *overrides) for part in ("--set", value)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        reference = _run(recipe, Path(folder) / "reference", settings)
        length = time.perf_counter() - started
        expected = _result(reference)
        yield Figure(name="uninterrupted run", value=f"{length:.0f} s", limit="", kept=True)
        for number in range(kills):
            out = Path(folder) / str(number)
            killed = []
            for _ in range(2):
                killed.append(_killed_in(recipe, out, settings, after=moments.uniform(0.05, 0.95) * length))
            ended = _run(recipe, out, settings)
            differences = _differences(expected, _result(ended))
            yield Figure(
                name=f"run {number + 1}, killed in: {', '.join(killed)}",
                value="the same model" if not differences else f"differs: {differences[0]}",
                limit="",
                kept=not differences,
            )


def _command(recipe: str, out: Path, settings: list[str]) -> list[str]:
    """`tfqat run`, going on where there is a run that can."""
    command = [sys.executable, "-m", "tfqat_cli", "run", recipe, "--out", str(out), *settings]
    known = sorted(out.glob("*/manifest.json")) if out.exists() else []
    return [*command, "--resume", str(known[-1].parent)] if known else command


def _run(recipe: str, out: Path, settings: list[str]) -> Path:
    known = sorted(out.glob("*/manifest.json")) if out.exists() else []
    if not known or json.loads(known[-1].read_text())["status"] != "complete":
        subprocess.run(_command(recipe, out, settings), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return next(path for path in out.iterdir() if (path / "manifest.json").exists())


def _killed_in(recipe: str, out: Path, settings: list[str], *, after: float) -> str:
    """The stage in which a run was killed; `complete` if it was faster."""
    known = sorted(out.glob("*/manifest.json")) if out.exists() else []
    if known and json.loads(known[-1].read_text())["status"] == "complete":
        return "complete"
    process = subprocess.Popen(_command(recipe, out, settings), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    known = sorted(out.glob("*/manifest.json")) if out.exists() else []
    if not known:
        return "start"
    manifest = json.loads(known[-1].read_text())
    return "complete" if manifest["status"] == "complete" else str(manifest["stage"])


def _result(directory: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    metrics = json.loads((directory / "metrics.json").read_text())
    compared = {name: metrics.get(name) for name in ("float", "ptq", "qat", "onnx", "exported", "size_bytes")}
    compared["size_bytes"] = compared["size_bytes"]["model_onnx"]
    return tfqat.load_model(directory / "qat.keras").get_weights(), compared


def _differences(expected: Any, found: Any) -> list[str]:
    weights = [number for number, (one, other) in enumerate(zip(expected[0], found[0], strict=True)) if not np.array_equal(one, other)]
    metrics = [name for name, value in expected[1].items() if found[1][name] != value]
    return [*([f"{len(weights)} weights"] if weights else []), *metrics]


if __name__ == "__main__":
    sys.exit(main())
