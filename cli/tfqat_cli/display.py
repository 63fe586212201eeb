"""What the commands print: a progress bar per stage, the placement, the summary of a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tfqat.progress import Advance

if TYPE_CHECKING:
    from tfqat.analysis.result import Sensitivity
    from tfqat.calibration.result import Calibration
    from tfqat.engines.bench import Timing
    from tfqat.engines.report import EngineReport, KernelPrecision
    from tfqat.models.graph import ModelGraph
    from tfqat.placement.plan import Placement
    from tfqat.placement.tree import Branch
    from tfqat.proof.parity import ParityReport


class Stages:
    """Shows each stage as a bar that stays when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<38}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """One bar; without a total it is full when the stage ends."""
        with Progress(*self._columns, console=self._console) as bars:
            task = bars.add_task(title, total=total)
            yield lambda: bars.advance(task)
            bars.update(task, total=total or 1, completed=total or 1)

    def message(self, text: str) -> None:
        """One line between the bars."""
        style = "yellow" if text.startswith("warning") else None
        self._console.print(f"  {text}", style=style, markup=False, highlight=False, soft_wrap=True)


def placement_tree(graph: ModelGraph, placement: Placement) -> Tree:
    """Every layer below the nested models it belongs to: `●` in INT8, `○` float with the reason; and the quantizers at its inputs."""
    from tfqat.placement.tree import tree_of

    root = Tree(
        f"[bold]{placement.preset}[/bold]: {len(placement.weights)} weights and {len(placement.activations)} activations in INT8, "
        f"{len(placement.float_layers)} layers without Q/DQ of their own"
    )
    _grow(root, tree_of(graph, placement))
    return root


def _grow(tree: Tree, branch: Branch) -> None:
    from tfqat.placement.tree import Branch

    for entry in branch.entries:
        if isinstance(entry, Branch):
            _grow(tree.add(Text(f"{entry.name}/", style="bold")), entry)
            continue
        name, because = entry.name.rpartition("/")[2], f": {entry.reason}" if entry.reason else ""
        if entry.quantized:
            shown = tree.add(Text.assemble(("● ", "cyan"), (name, "bold"), f"  {entry.node.class_name}{because}"))
        else:
            shown = tree.add(Text(f"○ {name}  {entry.node.class_name}{because}", style="dim"))
        for point in entry.points:
            what = point.weight or f"reads {point.given_source}"
            called = f" as {point.id}" if point.id.endswith(":shortcut") else ""
            group = f", one scale with {point.scale_group}" if point.scale_group not in (None, point.id) else ""
            shown.add(Text(f"{what}{called}: {point.spec.describe()}, {point.calibrator.describe()}{group} ({point.reason})"))


def placement_line(placement: Placement, recipe: Path) -> str:
    """How much is quantized, and what shows the rest."""
    quantized = f"{len(placement.activations)} activations, {len(placement.weights)} weights in INT8"
    return f"Placement ({placement.preset}): {quantized}; with all reasons: tfqat plan {shlex.quote(str(recipe))}"


def sensitivity_table(found: Sensitivity) -> Table:
    """Every unit, the most sensitive one first, with what the search made of it."""
    measured = f"{found.metric}: float {found.float_value:.4g}, quantized {found.quantized_value:.4g}, on {found.examples} examples"
    table = Table(title=f"Sensitivity by {found.method}\n{measured}", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("layers", overflow="fold")
    table.add_column("kind", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column(f"{found.metric} alone", justify="right")
    if found.search:
        table.add_column("level", no_wrap=True)
    for unit in found.units:
        cells = [", ".join(unit.layers), unit.class_name, f"{unit.score:.3g}", "" if unit.value is None else f"{unit.value:.4g}"]
        if found.search:
            level = found.search.chosen.get(unit.name)
            cells.append("as planned" if level is None else level)
        table.add_row(*cells, style="yellow" if found.search and unit.name in found.search.chosen else None)
    return table


def ranges_table(calibration: Calibration, before: Calibration | None = None) -> Table:
    """The range of every activation, beside the one it had before."""
    title = f"Ranges from {calibration.examples} examples"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("point", overflow="fold")
    table.add_column("method", no_wrap=True)
    table.add_column("amax", justify="right")
    if before is not None:
        table.add_column("was", justify="right")
    for name, point in calibration.points.items():
        if point.candidates is None:
            continue
        cells = [name, point.method, f"{float(point.amax):.5g}"]
        table.add_row(*cells, *([f"{float(before.points[name].amax):.5g}"] if before is not None else []))
    return table


def say_that_the_chief_has_it(console: Console) -> None:
    """What a process of a distributed run prints at its end, if it is not the chief."""
    console.print("Done; the chief of these processes has the result.")


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """The metrics of each stage beside the float model's."""
    stages = [(name, label) for name, label in _STAGES if name in metrics]
    names = list(metrics["float"])
    table = Table(title="Summary")
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("to float", justify="right")
    for stage, label in stages:
        cells = [(f"{metrics[stage][name]:.4f}", f"{metrics[stage][name] - metrics['float'][name]:+.4f}") for name in names]
        exported = " (exported)" if metrics.get("exported") == stage else ""
        table.add_row(label + exported, *(text for cell in cells for text in cell))
    return table


_STAGES = (
    ("float", "float"),
    ("control", "float, trained on"),
    ("ptq", "PTQ"),
    ("qat", "QAT"),
    ("onnx", "ONNX, as written"),
    ("onnx_deployed", "ONNX Runtime, fused"),
)


def bench_table(timings: Sequence[Timing]) -> Table:
    """A row for each graph, runtime and batch size; ratios with their quartiles."""
    table = Table(title="Latency per batch, runs in turns")
    compared = any(timing.ratio is not None for timing in timings)
    numbers = ["batch", "median ms", "p95 ms", "examples/s", *(["to the reference"] if compared else [])]
    for column in ("graph", "runtime", *numbers):
        number = column in numbers
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="ellipsis" if number else "fold")
    for one in timings:
        ratio = f"{one.ratio:.3f} ({one.ratio_spread[0]:.3f} - {one.ratio_spread[1]:.3f})" if one.ratio and one.ratio_spread else ""
        cells = [one.model, one.runtime, str(one.batch), f"{one.median_ms:.3f}", f"{one.p95_ms:.3f}", f"{one.throughput:,.0f}"]
        table.add_row(*cells, *([ratio] if compared else []))
    return table


def classes_table(sources: Sequence[str], best: Sequence[Sequence[tuple[int, float]]], labels: Sequence[str] | None) -> Table:
    """The classes of each example that score highest, with the scores as the model gives them."""
    table = Table(title="Highest scores, as the model gives them", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("example", overflow="fold")
    for rank in range(max(map(len, best), default=0)):
        table.add_column(f"{rank + 1}", overflow="fold")
    for name, found in zip(sources, best, strict=True):
        cells = [Text.assemble(str(index) if labels is None else labels[index], (f" {score:.4g}", "dim")) for index, score in found]
        table.add_row(Text(name), *cells)
    return table


def parity_table(parity: ParityReport) -> Table:
    """The three comparisons of int8 codes, and those of the outputs."""
    table = Table(title=f"Parity with ONNX Runtime on {parity.examples} examples")
    for column in ("comparison", "equal codes", "largest difference"):
        table.add_column(column, justify="left" if column == "comparison" else "right")
    rows = (
        ("local: each segment fed the same codes", parity.local),
        ("end to end", parity.end_to_end),
        ("noise floor: float32 against float64", parity.noise_floor),
        ("noise floor: float32 against XLA", parity.compiled),
        ("noise floor: float32 with rounding noise", parity.perturbed),
    )
    for label, difference in rows:
        table.add_row(label, f"{difference.equal:.5%}", str(difference.max_difference))
    table.add_section()
    table.add_row("local outputs, of the largest one", "", f"{parity.local_output_difference:.2g}")
    table.add_row("outputs: same largest entry", f"{parity.outputs.top1_agreement:.2%}", f"{parity.outputs.max_abs_difference:.3g}")
    table.add_row("rules of the exported form", f"{sum(check.passed for check in parity.structure)} of {len(parity.structure)}", "")
    return table


def engine_table(report: EngineReport) -> Table:
    """Every convolution and matrix product with its precision, and the operations in the same kernel, a column per target."""
    table = Table(
        title=f"Engine: {report.backend} {report.version}",
        caption="+ in the same kernel; pointwise, reformat: kernels before and behind it",
    )
    table.add_column("layer", overflow="fold")
    table.add_column("operation")
    for target in report.targets:
        table.add_column(target.target, overflow="fold")
    table.add_column("MACs", justify="right")
    for number, layer in enumerate(report.targets[0].layers):
        cells = [_kernel(target.layers[number]) for target in report.targets]
        table.add_row(layer.keras_layer, layer.op, *cells, "" if layer.macs is None else f"{layer.macs:,}")
    return table


_Q_DQ = ("/Q", "/DQ", "_QuantizeLinear", "_DequantizeLinear")
"""How tfqat and ONNX Runtime end the names of Q/DQ nodes."""


def _kernel(layer: KernelPrecision) -> Text:
    """`Int8 x Int8 + stem_relu, 2 pointwise`; the Q/DQ that every int8 kernel takes in are not said."""
    types = " x ".join(layer.inputs) or "no kernel"
    shown = Text(types if layer.int8 else f"{types} (float product)", style="" if layer.int8 else "yellow")
    for name in layer.fused_with:
        if not name.endswith(_Q_DQ):
            shown.append(f" + {name}", style="dim")
    for kind, names in (("pointwise", layer.pointwise), ("reformat", layer.reformats)):
        if names:
            shown.append(f", {len(names)} {kind}", style="dim")
    return shown
