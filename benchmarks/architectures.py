"""Takes every architecture of the zoo from a float model to an engine, one table row each: `python benchmarks/architectures.py`.

Each architecture and Keras package is a process of its own: load, plan, quantize, calibrate, export, verify, lint, build. Weights
and images are random, which is enough to prove placement, export and engine. Exit code 1 if anything is out of its limit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "architectures"))
import zoo  # noqa: E402

BATCH, CALIBRATION_BATCHES, TARGET = 8, 2, "SM86"
TIMEOUT_S = 1200
# What planning and quantizing may take for these, in seconds on 2 cores.
PLAN_S, QUANTIZE_S = {"ResNet50": 2.0}, {"ResNet50": 20.0}
# Every network has a product of fewer than 16 channels, such as that of its colours: what would be faster in FP16 is no fault.
ADVICE = "advice"
# Where an operation had to be rewritten, the canonical model may differ from its source by this share of its largest output.
LOAD_DIFFERENCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a placement does to a model: points, and the inputs that Adds and Multiplies read quantized."""

    weights: int
    activations: int
    adds: int
    adds_on_one: int
    adds_on_input_0: int
    multiplies: int
    multiplies_on_all: int

    @classmethod
    def of(cls, model: Any, placement: Any) -> Counts:
        """The counts of a canonical model and its placement."""
        from tfqat.models import graph

        quantized = {(edge.layer, edge.index) for point in placement.activations for edge in point.edges}
        inputs = {
            kind: [
                (len(node.inputs), [index for index in range(len(node.inputs)) if (node.name, index) in quantized])
                for node in graph.read(model).nodes
                if node.class_name == kind
            ]
            for kind in ("Add", "Multiply")
        }
        return cls(
            weights=len(placement.weights),
            activations=len(placement.activations),
            adds=len(inputs["Add"]),
            adds_on_one=sum(len(found) == 1 for _, found in inputs["Add"]),
            adds_on_input_0=sum(found == [0] for _, found in inputs["Add"]),
            multiplies=len(inputs["Multiply"]),
            multiplies_on_all=sum(len(found) == count for count, found in inputs["Multiply"]),
        )


@dataclass(kw_only=True)
class Row:
    """What one run found; it grows stage by stage, and `reasons` says what is out of its limit."""

    name: str
    package: str
    seconds: dict[str, float] = field(default_factory=dict)
    load_difference: float | None = None
    counts: Counts | None = None
    local: tuple[float, int] | None = None
    end_to_end: tuple[float, int] | None = None
    floors: tuple[tuple[float, int], tuple[float, int]] | None = None
    top1: float | None = None
    findings: list[str] | None = None
    advice: int = 0
    int8: tuple[int, int] | None = None
    float_products: list[str] | None = None
    reasons: list[str] = field(default_factory=list)
    traceback: str | None = None

    @property
    def ratio(self) -> float | None:
        """The codes that differ end to end, over those of the larger noise floor."""
        if self.end_to_end is None or self.floors is None:
            return None
        different, floor = 1 - self.end_to_end[0], max(1 - equal for equal, _ in self.floors)
        return different / floor if floor else (math.inf if different else 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Takes the time of a stage; its error ends the run, with the stage's name in the reasons."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.reasons.append(f"{name}: {type(error).__name__}: {_first_lines(error)}")
            self.traceback = traceback.format_exc()
            raise
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 2)


def run(name: str, package: str, folder: Path, *, engine: bool = True) -> Row:
    """The whole road of one architecture, in this process; an error ends it early and stands in the row's reasons."""
    row = Row(name=name, package=package)
    try:
        _run(row, folder, engine=engine)
    except Exception as error:
        if not row.reasons:
            row.reasons.append(f"{type(error).__name__}: {_first_lines(error)}")
            row.traceback = traceback.format_exc()
    return row


def _run(row: Row, folder: Path, *, engine: bool) -> None:
    import tfqat

    pixels, examples = zoo.ARCHITECTURES[row.name].pixels, zoo.ARCHITECTURES[row.name].examples
    source = zoo.build(row.name, importlib.import_module(row.package))
    batches = [zoo.batch(source, BATCH, seed, pixels=pixels) for seed in range(1, 1 + CALIBRATION_BATCHES)]
    held_out = [zoo.batch(source, BATCH, seed, pixels=pixels) for seed in range(100, 100 + examples // BATCH)]
    with row.stage("load"):
        model = tfqat.load_model(source)
    row.load_difference = _difference(source, model, held_out[0])
    if row.load_difference > LOAD_DIFFERENCE:
        row.reasons.append(f"load: outputs are {row.load_difference:.1e} of the largest one off, expected at most {LOAD_DIFFERENCE:.0e}")
    with row.stage("plan"):
        placement = tfqat.plan(model)
    row.counts = Counts.of(model, placement)
    with row.stage("quantize"):
        qmodel = tfqat.quantize_model(model, placement)
    with row.stage("calibrate"):
        tfqat.calibrate(qmodel, batches, batches=len(batches))
    path = folder / f"{row.name}_{row.package}.onnx"
    with row.stage("export"):
        tfqat.export_onnx(qmodel, path)
    with row.stage("verify"):
        _take_parity(row, tfqat.verify(qmodel, path, held_out, examples=examples))
    _take_findings(row, path)
    if engine:
        with row.stage("engine"):
            report = tfqat.compile_engine(path, folder / "model.plan", "tensorrt_rtx", compute_capabilities=(TARGET,))
            _take_engine(row, report, placement)
    for stage, limits in (("plan", PLAN_S), ("quantize", QUANTIZE_S)):
        if row.seconds[stage] > limits.get(row.name, math.inf):
            row.reasons.append(f"{stage}: {row.seconds[stage]:.1f} s, expected at most {limits[row.name]:.0f} s")


def _difference(source: Any, model: Any, inputs: Any) -> float:
    """The largest difference of the two models' outputs, as a share of the largest output."""
    pairs = zip(_outputs(source, inputs), _outputs(model, inputs), strict=True)
    return max(float(np.abs(one - other).max() / (np.abs(one).max() or 1.0)) for one, other in pairs)


def _outputs(model: Any, inputs: Any) -> list[np.ndarray]:
    outputs = model(inputs, training=False)
    return [np.asarray(value, np.float64) for value in (outputs if isinstance(outputs, list | tuple) else [outputs])]


def _take_parity(row: Row, report: Any) -> None:
    def figures(difference: Any) -> tuple[float, int]:
        return difference.equal, difference.max_difference

    row.local, row.end_to_end = figures(report.local), figures(report.end_to_end)
    row.floors = (figures(report.noise_floor), figures(report.compiled))
    row.top1 = report.outputs.top1_agreement
    row.reasons += [f"verify: {failure}" for failure in report.failures]


def _take_findings(row: Row, path: Path) -> None:
    with row.stage("lint"):
        from tfqat.placement.lint import lint_onnx

        found = lint_onnx(path)
    row.advice = sum(finding.severity == ADVICE for finding in found)
    row.findings = [f"{finding.layer}: {finding.rule}: {finding.message}" for finding in found if finding.severity != ADVICE]
    if row.findings:
        row.reasons.append(f"lint: {len(row.findings)} findings: {'; '.join(row.findings[:3])}")


def _take_engine(row: Row, report: Any, placement: Any) -> None:
    layers = report.targets[0].layers
    row.int8 = (sum(layer.int8 for layer in layers), len(layers))
    row.float_products = [layer for _, layer in report.float_layers([point.source for point in placement.weights])]
    if row.float_products:
        row.reasons.append(f"engine: {len(row.float_products)} not Int8 x Int8: {', '.join(row.float_products[:5])}")


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


# --- the table -----------------------------------------------------------------------------------------------------------------------

HEAD = (
    f"{'architecture':<24} {'points':>9} {'Add 1/0/all':>12} {'Mul':>7} {'plan s':>7} {'quant s':>7} "
    f"{'local equal':>12} {'max':>4} {'e2e/floor':>9} {'lint':>6} {'int8':>9} {'total s':>8}"
)


def line(row: Row) -> str:
    """One row of the table; a dash where the run did not come so far."""

    def show(value: Any, text: str) -> str:
        return "-" if value is None else text.format(value)

    counts = row.counts
    cells = (
        f"{row.name + ' ' + row.package:<24}",
        f"{f'{counts.weights}+{counts.activations}' if counts else '-':>9}",
        f"{f'{counts.adds_on_one}/{counts.adds_on_input_0}/{counts.adds}' if counts else '-':>12}",
        f"{f'{counts.multiplies_on_all}/{counts.multiplies}' if counts else '-':>7}",
        f"{show(row.seconds.get('plan'), '{:.2f}'):>7}",
        f"{show(row.seconds.get('quantize'), '{:.1f}'):>7}",
        f"{show(row.local and row.local[0], '{:.4%}'):>12}",
        f"{show(row.local and row.local[1], '{}'):>4}",
        f"{show(row.ratio, '{:.2f}'):>9}",
        f"{'-' if row.findings is None else f'{len(row.findings)}+{row.advice}':>6}",
        f"{f'{row.int8[0]}/{row.int8[1]}' if row.int8 else '-':>9}",
        f"{sum(row.seconds.values()):>8.0f}",
    )
    return " ".join((*cells, "FAIL" if row.reasons else "PASS"))


def run_in_process(name: str, package: str, *, engine: bool = True) -> Row:
    """`run` in a process of its own, so that its memory is given back and a crash is its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "row.json")
        command = [sys.executable, __file__, "--worker", folder, "--only", name, "--package", package, "--json", str(result)]
        try:
            done = subprocess.run([*command, *([] if engine else ["--no-engine"])], cwd=ROOT, capture_output=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return Row(name=name, package=package, reasons=[f"no result after {TIMEOUT_S} s"])
        if not result.is_file():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return Row(name=name, package=package, reasons=[f"the process ended with {done.returncode}: {' '.join(last)}"])
        return _read(json.loads(result.read_text()))


def _read(data: dict[str, Any]) -> Row:
    counts = data["counts"]
    return Row(**{**data, "counts": Counts(**counts) if counts else None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print the table."""
    options = _parser().parse_args(arguments)
    if options.worker:
        row = run(options.only[0], options.package, Path(options.worker), engine=not options.no_engine)
        Path(options.json).write_text(json.dumps(asdict(row)))
        return 0
    packages = ("keras", "tf_keras") if options.package == "both" else (options.package,)
    rows = []
    print(HEAD)
    for name in options.only:
        for package in packages:
            row = run_in_process(name, package, engine=not options.no_engine)
            rows.append(row)
            print("\n".join([line(row), *(f"    {reason}" for reason in row.reasons)]), flush=True)
            if options.json:
                Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1))
    failed = [f"{row.name} ({row.package})" for row in rows if row.reasons]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} pass" + (f"; fail: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(zoo.ARCHITECTURES), default=list(zoo.ARCHITECTURES))
    parser.add_argument("--package", choices=("keras", "tf_keras", "both"), default="both")
    parser.add_argument("--json", metavar="FILE", help="write the rows here, after each one")
    parser.add_argument("--no-engine", action="store_true", help="skip the build with TensorRT for RTX")
    parser.add_argument("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
