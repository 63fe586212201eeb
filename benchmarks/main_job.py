"""Runs the two Fashion-MNIST recipes as a user would and prints their figures beside the limits: `python benchmarks/main_job.py`.

Each run is a process of its own, whose wall time and peak memory are measured; accuracy, sizes, parity and engine precision are
read from its run directory. Exit code 1 if a figure is out of its limit.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import Figure, show

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run both recipes and print the table."""
    kept = True
    for recipe, four_bit in (("fashion_mnist", False), ("fashion_mnist_w4", True)):
        print(f"\n{recipe}")
        kept &= show(figures(recipe, four_bit=four_bit))
    return 0 if kept else 1


def figures(recipe: str, *, four_bit: bool) -> Iterator[Figure]:
    """Run a recipe in a process of its own and give its figures."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-m", "tfqat_cli", "run", f"recipes/{recipe}.yaml", "--out", folder]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        directory = next(Path(folder).iterdir())
        read = {name: json.loads((directory / f"{name}.json").read_text()) for name in ("metrics", "parity", "engine", "placement")}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    yield Figure(name="wall time, s", value=f"{seconds:.0f}", limit="<= 180", kept=seconds <= 180)
    yield Figure(name="peak memory of the largest process so far, GB", value=f"{peak:.2f}", limit="<= 3", kept=peak <= 3)
    yield from _accuracy(read["metrics"], four_bit=four_bit)
    yield from _parity(read["parity"])
    if not four_bit:
        yield from _engine(read["engine"], read["placement"])


def _accuracy(metrics: dict[str, Any], *, four_bit: bool) -> Iterator[Figure]:
    accuracy = {name: 100 * metrics[name]["accuracy"] for name in ("float", "ptq", "qat", "onnx", "onnx_deployed")}
    yield Figure(name="float accuracy, %", value=f"{accuracy['float']:.2f}", limit=">= 91.80", kept=accuracy["float"] >= 91.8)
    ptq, qat = accuracy["ptq"] - accuracy["float"], accuracy["qat"] - accuracy["float"]
    if four_bit:
        yield Figure(name="PTQ to float, points", value=f"{ptq:+.2f}", limit="loses more than 1.0", kept=ptq < -1.0)
        yield Figure(name="QAT to float, points", value=f"{qat:+.2f}", limit=">= -0.50", kept=qat >= -0.5)
    else:
        yield Figure(name="PTQ to float, points", value=f"{ptq:+.2f}", limit="within 0.30", kept=abs(ptq) <= 0.3)
        yield Figure(name="QAT to float, points", value=f"{qat:+.2f}", limit=">= -0.20", kept=qat >= -0.2)
    exported = accuracy["onnx"] - accuracy[metrics["exported"]]
    label = f"ONNX as written to Keras ({metrics['exported'].upper()}), points"
    yield Figure(name=label, value=f"{exported:+.2f}", limit="within 0.05", kept=abs(exported) <= 0.0501)
    yield Figure(name="ONNX Runtime fused kernels, %", value=f"{accuracy['onnx_deployed']:.2f}", limit="", kept=True)
    ratio = metrics["size_bytes"]["model_onnx"] / metrics["size_bytes"]["float_onnx"]
    yield Figure(name="model.onnx / float ONNX, bytes", value=f"{ratio:.4f}", limit="<= 0.30", kept=ratio <= 0.30)


def _parity(parity: dict[str, Any]) -> Iterator[Figure]:
    local, whole, floor, compiled, noisy = (parity[name] for name in ("local", "end_to_end", "noise_floor", "compiled", "perturbed"))
    text = "{:.5%}, {}".format
    kept = local["equal"] >= 0.9999 and local["max_difference"] <= 1
    yield Figure(
        name="local: equal codes, largest difference", value=text(local["equal"], local["max_difference"]), limit=">= 99.99%, 1", kept=kept
    )
    largest = max((floor, compiled, noisy), key=lambda one: 1 - one["equal"])
    for name, other in (("float64", floor), ("the largest noise floor", largest)):
        ratio = (1 - whole["equal"]) / (1 - other["equal"]) if other["equal"] < 1 else float("inf")
        kept = ratio <= 1.5 and whole["max_difference"] <= 1.5 * other["max_difference"]
        yield Figure(name=f"end to end: codes that differ, over those of {name}", value=f"{ratio:.2f}", limit="<= 1.5", kept=kept)
    for name, one in (
        ("end to end", whole),
        ("noise floor, float32 against float64", floor),
        ("noise floor, float32 against XLA", compiled),
        ("noise floor, float32 with rounding noise", noisy),
    ):
        value = text(one["equal"], one["max_difference"])
        yield Figure(name=f"{name}: equal codes, largest difference", value=value, limit="", kept=True)
    top1 = parity["outputs"]["top1_agreement"]
    yield Figure(name="top-1 equal", value=f"{top1:.2%}", limit=">= 99.80%", kept=top1 >= 0.998)
    rules = [check["passed"] for check in parity["structure"]]
    yield Figure(name="rules of the exported form", value=f"{sum(rules)} of {len(rules)}", limit="all", kept=all(rules))


def _engine(engine: dict[str, Any], placement: dict[str, Any]) -> Iterator[Figure]:
    wanted = {point["source"] for point in placement["points"] if point["kind"] == "weight"}
    for target in engine["targets"]:
        int8 = {layer["keras_layer"] for layer in target["layers"] if layer["int8"]}
        name = f"{engine['backend']} {target['target']}: layers that run Int8 x Int8"
        yield Figure(name=name, value=f"{len(int8 & wanted)} of {len(wanted)}", limit="all", kept=int8 >= wanted)
    if not engine["targets"]:
        yield Figure(name="engine", value=engine["status"], limit="SM86, SM89", kept=False)


if __name__ == "__main__":
    sys.exit(main())
