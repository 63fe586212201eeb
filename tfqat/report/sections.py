"""What each section of the report says: a run's view turned into rows of text, with the judgement of each headline card."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tfqat.placement.plan import QPoint
from tfqat.report import formats
from tfqat.report.calibration_view import CalibratedPoint
from tfqat.report.view import STAGES, Engine, EngineLayer, RunView

STAGE_LABELS = {
    "float": "Float",
    "ptq": "PTQ",
    "control": "Float, trained on",
    "qat": "QAT",
    "onnx": "ONNX, literal",
    "onnx_deployed": "ONNX, deployed",
}
STAGE_NOTES = {
    "float": "the trained Keras model",
    "control": "the float model, trained on the same schedule as QAT",
    "ptq": "calibrated, not trained",
    "qat": "fine-tuned with fake quantization",
    "onnx": "the exported graph, executed as written",
    "onnx_deployed": "what the runtime's fused kernels return",
}
NAMES = {
    "float_onnx": "Float ONNX",
    "model_onnx": "INT8 ONNX",
    "engine": "Engine",
    "onnx_float": "ONNX Runtime, float",
    "onnx_int8": "ONNX Runtime, INT8",
    "tensorrt_rtx": "TensorRT for RTX",
    "tensorrt": "TensorRT",
    "onnxruntime": "ONNX Runtime",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """One headline figure; `tone` is good, bad, exported (the stage that was) or plain."""

    title: str
    value: str
    note: str = ""
    tone: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A size or a latency: its text, its ratio to the float model's, and its share of the largest row, which its bar shows."""

    name: str
    text: str
    ratio: float | None
    share: float


def words(name: str) -> str:
    """`top1_agreement` -> `top1 agreement`; a known name gets its proper spelling."""
    return NAMES.get(name, name.replace("_", " "))


def metric_names(view: RunView) -> list[str]:
    """The metrics that any stage has, the headline metric first and the losses, of which each output has one, last."""
    return _in_order(view.metrics.stages.values())


def search_metric_names(view: RunView) -> list[str]:
    """The metrics that calibrators were compared by, in the same order."""
    return _in_order(view.metrics.calibration_search.values())


def stage_cards(view: RunView) -> list[Card]:
    """One card per stage with the headline metric and its difference to float."""
    names = metric_names(view)
    if not names:
        return []
    metric, stages = names[0], view.metrics.stages
    reference = stages.get("float", {}).get(metric)
    unit = " points to float" if formats.is_fraction(metric) else " to float"
    cards = []
    for stage in STAGES:
        value = stages.get(stage, {}).get(metric)
        if value is None and stage == "control":  # few runs have one
            continue
        if value is None:
            note = "not run"
        elif stage == "float":
            note = metric.replace("_", " ")
        else:
            note = formats.metric_difference(metric, value, reference) + unit if reference is not None else ""
        tone = "exported" if stage == view.metrics.exported else "plain"
        cards.append(Card(title=STAGE_LABELS[stage], value=formats.metric_value(metric, value), note=note, tone=tone))
    return cards


def control_text(view: RunView) -> str:
    """What training longer gained by itself, and what the model that was trained with quantizers lacks to it; empty without a control."""
    names, stages = metric_names(view), view.metrics.stages
    if not names or any(names[0] not in stages.get(stage, {}) for stage in ("float", "control", "qat")):
        return ""
    metric = names[0]
    start, control, qat = (stages[stage][metric] for stage in ("float", "control", "qat"))
    unit = " points" if formats.is_fraction(metric) else ""

    def difference(value: float, reference: float) -> str:
        return formats.metric_difference(metric, value, reference) + unit

    return (
        f"Training longer by itself: {difference(control, start)} of {metric.replace('_', ' ')} (the float model on the same schedule). "
        f"QAT against that model: {difference(qat, control)}, which is what INT8 costs; against the float model as given: "
        f"{difference(qat, start)}."
    )


def verdict_cards(view: RunView) -> list[Card]:
    """What was exported, its size, whether the graph computes what was trained, and whether the engine runs it in INT8."""
    sizes, exported = view.metrics.size_bytes, view.metrics.exported
    ratio = _ratio(sizes.get("model_onnx"), sizes.get("float_onnx"))
    return [
        Card(title="Exported", value=exported.upper() if exported else "Nothing", note=STAGE_NOTES.get(exported or "", "")),
        Card(
            title="Size of float",
            value=f"{ratio:.3f}" if ratio is not None else formats.NOTHING,
            note=f"{formats.size(sizes.get('model_onnx'))} of {formats.size(sizes.get('float_onnx'))}",
        ),
        _parity_card(view),
        _engine_card(view),
    ]


def measures(values: Mapping[str, float], reference: str, text: str) -> list[Measure]:
    """Rows of sizes or latencies; `text` is size or milliseconds, `reference` the key of the float model's value."""
    form = formats.size if text == "size" else formats.milliseconds
    largest = max(values.values(), default=0) or 1
    return [
        Measure(name=words(key), text=form(value), ratio=_ratio(value, values.get(reference)), share=value / largest)
        for key, value in values.items()
    ]


def place(point: QPoint) -> str:
    """Where a QPoint sits: `kernel of stem`, or `stem_relu to b1_expand, b1_add (input 2)`."""
    if point.kind == "weight":
        return f"{point.weight} of {point.source}"
    output = f" (output {point.output + 1})" if point.output else ""
    consumers = ", ".join(edge.layer + (f" (input {edge.index + 1})" if edge.index else "") for edge in point.edges)
    return f"{point.source}{output} to {consumers}" if consumers else f"{point.source}{output}"


def breakable(name: str) -> Markup:
    """A name, escaped, that a narrow table cell may break after `/` and `:`."""
    return Markup("<wbr>").join(re.split(r"(?<=[/:])", name))


def amax_text(point: CalibratedPoint | None) -> str:
    """The range of a point: `3.142`, or `0.021 to 0.94` over the channels."""
    if point is None or not point.amax:
        return formats.NOTHING
    low, high = min(point.amax), max(point.amax)
    return formats.number(high, 3) if len(point.amax) == 1 else f"{formats.number(low, 3)} to {formats.number(high, 3)}"


def weight_rows(view: RunView) -> list[dict[str, object]]:
    """Weights by QPoint: the number of channels, the spread of their ranges, and how many are dead (amax 0)."""
    points = view.calibration.points if view.calibration else {}
    found = [points[point.id] for point in view.placement.weights if point.id in points and points[point.id].amax]
    return [
        {
            "id": point.id,
            "method": point.method,
            "channels": len(point.amax),
            "low": formats.number(min(point.amax), 3),
            "median": formats.number(statistics.median(point.amax), 3),
            "high": formats.number(max(point.amax), 3),
            "dead": sum(amax < 1e-12 for amax in point.amax),
        }
        for point in found
    ]


def engine_rows(engine: Engine) -> list[tuple[str, str, list[EngineLayer | None]]]:
    """Layers by target: (Keras layer, op, one layer per target or None). Equal pairs of layer and op are matched in order."""
    rows: dict[tuple[str, str, int], list[EngineLayer | None]] = {}
    for column, target in enumerate(engine.targets):
        seen: dict[tuple[str, str], int] = {}
        for layer in target.layers:
            pair = (layer.keras_layer, layer.op)
            seen[pair] = seen.get(pair, 0) + 1
            rows.setdefault((*pair, seen[pair]), [None] * len(engine.targets))[column] = layer
    return [(name, op, cells) for (name, op, _), cells in rows.items()]


def types(layer: EngineLayer) -> str:
    """`Int8 × Int8 → Int8`."""
    return " × ".join(layer.inputs) + (f" → {', '.join(layer.outputs)}" if layer.outputs else "")


def int8_counts(engine: Engine) -> list[tuple[str, int, int]]:
    """(target, layers in INT8, all layers) for each target."""
    return [(target.target, sum(layer.int8 for layer in target.layers), len(target.layers)) for target in engine.targets]


def _in_order(values: Iterable[Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(name for measured in values for name in measured)
    return sorted(names, key=lambda name: (name.endswith("loss"), name == "loss"))


def _parity_card(view: RunView) -> Card:
    parity = view.parity
    if parity is None:
        return Card(title="Parity", value="Not measured", note="no parity.json")
    local = parity.total.get("local")
    codes = f"{formats.percent_floor(local.equal)} of codes equal locally, " if local else ""
    broken = [check.rule for check in parity.structure if not check.passed]
    note = f"broken: {', '.join(broken)}" if broken else f"{codes}{formats.integer(parity.examples)} examples"
    return Card(title="Parity", value="Passed" if parity.passed else "Failed", note=note, tone="good" if parity.passed else "bad")


def _engine_card(view: RunView) -> Card:
    engine = view.engine
    if engine is None or engine.status != "built":
        return Card(title="Engine", value="Not built", note=engine.message if engine else "no engine.json")
    counts, unplanned = int8_counts(engine), unplanned_float(view)
    values = list(dict.fromkeys(f"{int8} of {total} INT8" for _, int8, total in counts))
    planned = "float against the plan: " + ", ".join(unplanned) if unplanned else "every other layer float as planned"
    note = f"{words(engine.backend)} {engine.version} for {', '.join(target for target, _, _ in counts)}"
    if any(int8 < total for _, int8, total in counts):
        note += f"; {planned}"
    bad = bool(unplanned) or not any(total for _, _, total in counts)
    return Card(title="Engine", value=", ".join(values) or "No layers", note=note, tone="bad" if bad else "good")


def unplanned_float(view: RunView) -> Sequence[str]:
    """The Keras layers that an engine runs in float although the placement quantizes them."""
    planned = {layer.layer for layer in view.placement.float_layers}
    layers = (layer for target in (view.engine.targets if view.engine else ()) for layer in target.layers)
    return list(dict.fromkeys(layer.keras_layer for layer in layers if not layer.int8 and layer.keras_layer not in planned))


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
