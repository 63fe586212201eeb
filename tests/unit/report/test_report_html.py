"""The page: its content for a full and for a minimal run directory, and how it is written."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tfqat.calibration.histogram import SHIFT
from tfqat.errors import RunDirectoryError
from tfqat.placement.plan import Edge, FloatLayer, Placement, QPoint
from tfqat.report.html import write_report
from tfqat.spec import Calibrator, PerChannel, QuantSpec

EVIL = "<script>alert(1)</script>"
PERCENTILE = Calibrator(method="percentile", percentile=99.99)
KERNEL = QuantSpec(granularity=PerChannel(axes=(3,)), narrow_range=True)
PLACEMENT = Placement(
    preset="selective",
    points=(
        QPoint(
            id="stem_relu",
            kind="activation",
            source="stem_relu",
            spec=QuantSpec(),
            calibrator=PERCENTILE,
            reason="output of a convolution",
            edges=(Edge(layer="block"), Edge(layer="add", index=1)),
        ),
        QPoint(
            id="block/kernel",
            kind="weight",
            source="block",
            spec=KERNEL,
            calibrator=Calibrator(),
            reason="weight of a convolution",
            weight="kernel",
        ),
        QPoint(id=EVIL, kind="activation", source=EVIL, spec=QuantSpec(), calibrator=Calibrator(), reason=EVIL),
    ),
    float_layers=(FloatLayer(layer="logits", class_name="Dense", reason="skipped by the recipe"),),
)
METRICS = {
    "float": {"loss": 0.2391, "accuracy": 0.9193},
    "ptq": {"loss": 0.2431, "accuracy": 0.9178},
    "qat": {"loss": 0.2388, "accuracy": 0.9195},
    "onnx": {"loss": 0.2388, "accuracy": 0.9195},
    "onnx_deployed": {"loss": 0.2392, "accuracy": 0.9189},
    "exported": "qat",
    "size_bytes": {"float_onnx": 309123, "model_onnx": 88012},
    "latency_ms": {"onnx_float": 0.412, "onnx_int8": 0.288},
    "parameters": 74562,
    "examples": 10000,
    "warnings": ["the CPU has no VNNI"],
    "versions": {"tensorflow": "2.18.0"},
    "seconds": {"calibrate": 9.3, "train": 83.1},
}


def bins_of(values: list[float]) -> list[int]:
    return (np.asarray(values, np.float32).view(np.int32) >> SHIFT).tolist()


def calibration() -> dict[str, object]:
    candidates = {"max": 6.0, "percentile 99.9": 5.5, "percentile 99.99": 5.0, "entropy": 3.0, "mse": 4.0}
    histogram = {"mantissa_bits": 9, "max": 6.0, "bins": bins_of([0.5, 2.0, 4.0, 6.0]), "counts": [50, 40, 9, 1]}
    entry = {"amax": 5.0, "method": "percentile 99.99", "candidates": candidates, "histogram": histogram}
    weight = {"amax": [0.25, 0.0, 0.5], "method": "max", "candidates": None, "histogram": None}
    evil = {**entry, "amax": 6.0, "method": "max"}
    return {"batches": 16, "examples": 2048, "points": {"stem_relu": entry, "block/kernel": weight, EVIL: evil}}


def parity() -> dict[str, object]:
    point = {"id": "stem_relu", "local_equal": 0.999998, "local_max_difference": 1, "end_to_end_equal": 0.9996}
    return {
        "examples": 1000,
        "local": {"equal": 0.999998, "max_difference": 1},
        "end_to_end": {"equal": 0.9996, "max_difference": 4},
        "noise_floor": {"equal": 0.99963, "max_difference": 3},
        "outputs": {"top1_agreement": 0.999},
        "points": [{**point, "end_to_end_max_difference": 4}],
        "structure": [{"rule": "zero points are 0", "passed": True, "detail": "27 checked"}],
        "passed": True,
        "limits": {"local_equal": 0.9999},
    }


def engine() -> dict[str, object]:
    conv = {"keras_layer": "block", "op": "Conv", "inputs": ["Int8", "Int8"], "outputs": ["Int8"], "int8": True, "kernel": "imma"}
    dense = {"keras_layer": "logits", "op": "MatMul", "inputs": ["Float", "Float"], "outputs": ["Float"], "int8": False}
    targets = [{"target": name, "seconds": 2.1, "size_bytes": 412345, "layers": [conv, dense]} for name in ("SM86", "SM89")]
    return {"backend": "tensorrt_rtx", "version": "1.7.1", "status": "built", "message": "", "targets": targets}


def sensitivity(count: int = 2, **changes: object) -> dict[str, object]:
    fields = {"class_name": "Conv2D", "num_bits": 8, "macs": 100, "latency_ms": None}
    rows = [{"name": f"u{n}", "layers": [f"u{n}", f"add{n}"], "score": 0.01 / (n + 1), "value": 0.91, **fields} for n in range(count)]
    steps = [{"raised": 0, "levels": {}, "value": 0.91}, {"raised": 1, "levels": {"u0": "float"}, "value": 0.922}]
    search = {"goal": {"max_drop": 0.005}, "limit": 0.9214, "steps": steps, "chosen": {"u0": "float"}, "value": 0.922, "met": True}
    measured = {"method": "leave_one_in", "metric": "accuracy", "higher_is_better": True, "examples": 10000, "float": 0.9264}
    measured |= {"quantized": 0.91, "seconds": 12.3, "evaluations": 23}
    return {**measured, "units": rows, "search": search, "recipe": "quantization:\n  skip: [u0]\n", **changes}


def write_run(directory: Path, **files: object) -> Path:
    for name, content in {"metrics": METRICS, "placement": PLACEMENT.to_dict(), **files}.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


@pytest.fixture
def full_run(tmp_path):
    write_run(tmp_path, calibration=calibration(), parity=parity(), engine=engine(), sensitivity=sensitivity())
    (tmp_path / "recipe.yaml").write_text("version: 1\n# <i>https://example.org</i>\n")
    header = "epoch,learning_rate,loss,accuracy,val_loss,val_accuracy\n"
    (tmp_path / "history.csv").write_text(header + "1,0.001,0.22,0.921,0.241,0.918\n2,0.0001,0.21,0.924,0.239,0.9195\n")
    return tmp_path


def section(page: str, name: str) -> str:
    return re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)[1]


def cells(page: str, name: str) -> list[list[str]]:
    """The texts of a section's table rows."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", section(page, name), re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]


def cards(page: str) -> dict[str, tuple[str, str]]:
    pattern = r'<div class="title">(.*?)</div><div class="value">(.*?)</div>(?:<div class="note">(.*?)</div>)?'
    return {title: (value, note) for title, value, note in re.findall(pattern, page)}


class Tags(HTMLParser):
    """The tags that are open, and everything that a page loads or links to."""

    void = frozenset({"meta", "wbr", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "srcset", "action")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_headline_cards(full_run):
    assert cards(write_report(full_run).read_text()) == {
        "Float": ("91.93%", "accuracy"),
        "PTQ": ("91.78%", "−0.15 points to float"),
        "QAT": ("91.95%", "+0.02 points to float"),
        "ONNX, literal": ("91.95%", "+0.02 points to float"),
        "ONNX, deployed": ("91.89%", "−0.04 points to float"),
        "Exported": ("QAT", "fine-tuned with fake quantization"),
        "Size of float": ("0.285", "88 kB of 309 kB"),
        "Parity": ("Passed", "99.9998% of codes equal locally, 1,000 examples"),
        "Engine": ("1 of 2 INT8", "TensorRT for RTX 1.7.1 for SM86, SM89; every other layer float as planned"),
    }


def test_accuracy_table_puts_the_loss_last(full_run):
    rows = cells(write_report(full_run).read_text(), "accuracy")
    assert rows[2] == ["PTQ", "91.78%", "−0.15", "0.2431", "+0.004"]


def test_the_losses_of_two_outputs_are_no_headline(full_run):
    values = {"loss": 0.7, "a_loss": 0.3, "b_loss": 0.4, "a_accuracy": 0.75, "b_accuracy": 0.5}
    page = write_report(write_run(full_run, metrics={"float": values})).read_text()
    assert cards(page)["Float"] == ("75.00%", "a accuracy")
    assert cells(page, "accuracy")[1][1::2] == ["75.00%", "50.00%", "0.3", "0.4", "0.7"]


def test_sizes_and_latency(full_run):
    rows = cells(write_report(full_run).read_text(), "cost")
    assert ["INT8 ONNX", "88 kB", "0.285", ""] in rows
    assert ["ONNX Runtime, INT8", "0.288 ms", "0.699", ""] in rows


def test_placement_names_where_each_point_sits_and_why(full_run):
    rows = cells(write_report(full_run).read_text(), "placement")
    where = "stem_relu to block, add (input 2)"
    assert rows[1] == ["stem_relu", where, "int8 per tensor", "percentile 99.99", "5", "output of a convolution"]
    assert rows[2] == ["block/kernel", "kernel of block", "int8 per channel", "max", "0 to 0.5", "weight of a convolution"]
    assert rows[-1] == ["logits", "Dense", "skipped by the recipe"]


def test_every_histogram_has_a_line_for_each_calibrator_of_which_one_is_chosen(full_run):
    figures = section(write_report(full_run).read_text(), "ranges").split('<figure class="range">')[1:]
    assert len(figures) == 2
    assert [figure.count('<line class="amax ') for figure in figures] == [5, 5]
    assert [re.findall(r'class="amax (\w+) chosen"', figure) for figure in figures] == [["percentile"], ["max"]]


def test_histogram_caption_says_what_is_clipped(full_run):
    page = section(write_report(full_run).read_text(), "ranges")
    assert "percentile 99.99, amax 5, clips 1.0000%" in page
    assert "max, amax 6, clips nothing" in page


def test_calibrators_that_were_tried_are_a_table(full_run):
    tried = {"percentile 99.9": {"loss": 0.25, "accuracy": 0.91}, EVIL: {"accuracy": 0.92}}
    page = write_report(write_run(full_run, metrics={**METRICS, "calibration_search": tried, "calibrator": EVIL})).read_text()
    escaped = EVIL.replace("<", "&lt;").replace(">", "&gt;")
    assert cells(page, "ranges")[1:3] == [["percentile 99.9", "91.00%", "0.25"], [escaped, "92.00%", "–"]]
    assert f'<tr class="shipped"><td>{escaped}</td>' in section(page, "ranges")
    assert f"tried for the whole model; {escaped} was chosen." in section(page, "ranges")
    assert EVIL not in page


def test_no_table_without_a_search_for_the_calibrator(full_run):
    assert "tried for the whole model" not in write_report(full_run).read_text()


def test_sensitivity_says_how_it_was_measured_and_what_the_search_chose(full_run):
    page = section(write_report(full_run).read_text(), "sensitivity")
    paragraphs = [re.sub(r"<[^>]+>", "", text) for text in re.findall(r"<p>(.*?)</p>", page)]
    assert paragraphs == [
        "Method leave_one_in (one layer at a time is quantized, all others stay float). Metric accuracy on 10,000 examples: "
        "float 92.64%, quantized 91.00%. 23 evaluations in 12.3 s.",
        "Goal: at most 0.50 points below float, which is 92.14%. 1 of 2 layers is left at higher precision: accuracy 92.20%. Met",
    ]
    assert re.findall(r'<svg class="(\w+)"', page) == ["sensitivity", "search"]
    assert '<pre class="snippet">quantization:\n  skip: [u0]\n</pre>' in page


def test_sensitivity_table(full_run):
    page = write_report(full_run).read_text()
    assert cells(page, "sensitivity") == [
        [],
        ["u0 float", "u0, add0", "Conv2D", "50.00%", "1", "91.00%"],
        ["u1", "u1, add1", "Conv2D", "50.00%", "0.5", "91.00%"],
    ]
    assert "<details open>" in section(page, "sensitivity")


def test_sensitivity_table_has_latencies_where_they_were_measured(full_run):
    measured = sensitivity()
    measured["units"][0]["latency_ms"] = {"float": 0.1, "int8": 0.05}
    page = write_report(write_run(full_run, sensitivity=measured)).read_text()
    assert [row[4] for row in cells(page, "sensitivity")[1:]] == ["0.1 → 0.05", "–"]
    assert '<th class="n">Float → INT8, ms</th>' in section(page, "sensitivity")


def test_sensitivity_of_200_units_is_folded_and_complete(full_run):
    page = write_report(write_run(full_run, sensitivity=sensitivity(200))).read_text()
    found = section(page, "sensitivity")
    assert found.count('<rect class="unit') == 40
    assert "160 less sensitive layers are left out; the table has them all." in found
    assert "<details><summary>200 layers," in found
    assert len(cells(page, "sensitivity")) == 201
    assert len(found) < 80_000


def test_sensitivity_without_a_search_has_bars_alone(full_run):
    page = section(write_report(write_run(full_run, sensitivity=sensitivity(search=None, recipe=""))).read_text(), "sensitivity")
    assert re.findall(r'<svg class="(\w+)"', page) == ["sensitivity"]
    assert "Goal" not in page
    assert "<pre" not in page


def test_goal_that_was_not_met_is_marked(full_run):
    failed = sensitivity(search={**sensitivity()["search"], "met": False})
    page = section(write_report(write_run(full_run, sensitivity=failed)).read_text(), "sensitivity")
    assert '<span class="badge bad">Not met</span>' in page


def test_texts_of_sensitivity_are_escaped(full_run):
    search = {**sensitivity()["search"], "chosen": {EVIL: EVIL}, "goal": {EVIL: 1.0}}
    search["steps"] = [{"raised": 0, "levels": {EVIL: EVIL}, "value": 0.9}]
    row = {**sensitivity()["units"][0], "name": EVIL, "layers": [EVIL], "class_name": EVIL}
    evil = sensitivity(method=EVIL, metric=EVIL, units=[row], search=search, recipe=EVIL)
    page = write_report(write_run(full_run, sensitivity=evil)).read_text()
    assert EVIL not in page
    assert parsed(page).open == []
    assert "script" not in parsed(page).names


def test_weights_table_counts_dead_channels(full_run):
    assert ["block/kernel", "max", "3", "0", "0.25", "0.5", "1"] in cells(write_report(full_run).read_text(), "ranges")


def test_training_curves_have_float_and_ptq_levels(full_run):
    page = section(write_report(full_run).read_text(), "training")
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["learning rate", "loss", "accuracy"]
    assert (page.count('<line class="level float"'), page.count('<line class="level ptq"')) == (2, 2)


def test_parity_table_rounds_down_and_shows_what_was_not_measured(full_run):
    page = write_report(full_run).read_text()
    assert cells(page, "parity")[-1] == ["stem_relu", "99.9998%", "1", "99.9600%", "4", "–", "–"]
    assert "Limits: local equal 0.9999." in section(page, "parity")
    assert "zero points are 0" in section(page, "parity")


@pytest.mark.parametrize(("measured", "rows"), [(2.5e-6, [["local difference, of the largest output", "2.5×10⁻⁶"]]), (None, [])])
def test_outputs_from_the_same_codes(measured, rows, full_run):
    page = write_report(write_run(full_run, parity={**parity(), "local_output_difference": measured})).read_text()
    assert [row for row in cells(page, "parity") if row[:1] == ["local difference, of the largest output"]] == rows


def test_failed_parity_is_marked(full_run):
    broken = {**parity(), "passed": False, "structure": [{"rule": "no TensorFlow op left", "passed": False, "detail": "Sign"}]}
    page = write_report(write_run(full_run, parity=broken)).read_text()
    assert cards(page)["Parity"] == ("Failed", "broken: no TensorFlow op left")
    assert '<span class="mark bad" aria-label="failed">✗</span>no TensorFlow op left' in page


def test_engine_table_puts_targets_side_by_side(full_run):
    rows = cells(write_report(full_run).read_text(), "engine")
    assert ["SM86", "1 of 2", "–", "–", "–", "2.1 s", "412 kB"] in rows
    assert ["block", "Conv", "Int8 × Int8 → Int8imma", "Int8 × Int8 → Int8imma"] in rows
    assert ["logits", "MatMul", "Float × Float → Float", "Float × Float → Float"] in rows


def test_engine_table_has_kernels_fusions_and_commands(full_run):
    built = engine()
    layer = {**built["targets"][0]["layers"][0], "fused_with": ["block_relu", "pool/Q"]}
    built["targets"] = [{**built["targets"][0], "kernels": 11, "reformats": 2, "int8_macs": 0.98765, "layers": [layer]}]
    page = write_report(write_run(full_run, engine={**built, "commands": ["trtexec --onnx=a <b>"]})).read_text()
    rows = cells(page, "engine")
    assert ["SM86", "1 of 1", "98.76%", "11", "2", "2.1 s", "412 kB"] in rows
    assert ["block", "Conv", "Int8 × Int8 → Int8imma, with block_relu, pool/Q"] in rows
    assert "<pre>trtexec --onnx=a &lt;b&gt;</pre>" in section(page, "engine")


def test_parity_names_the_first_divergence_and_shows_the_fused_kernels(full_run):
    divergence = {"point": "add", "layers": ["project", "add"], "cause": "bias of 'project'"}
    fused = {"equal": 0.99971, "max_difference": 1, "codes": 100}
    page = write_report(write_run(full_run, parity={**parity(), "first_divergence": divergence, "fused": fused})).read_text()
    assert "The first point that diverges: add, made by project, add: bias of &#39;project&#39;." in section(page, "parity")
    assert ["ONNX Runtime's fused kernels against the literal graph", "99.9710%", "1"] in cells(page, "parity")
    page = write_report(write_run(full_run, parity={**parity(), "fused": {**fused, "codes": 0}})).read_text()
    assert "fused kernels" not in section(page, "parity") and "diverges" not in section(page, "parity")


def test_layer_that_is_float_against_the_plan_is_named(full_run):
    built = engine()
    built["targets"][1]["layers"][0] = {**built["targets"][1]["layers"][0], "int8": False}
    page = write_report(write_run(full_run, engine=built)).read_text()
    assert cards(page)["Engine"] == ("1 of 2 INT8, 0 of 2 INT8", "TensorRT for RTX 1.7.1 for SM86, SM89; float against the plan: block")
    assert '<span class="badge bad">' in section(page, "engine")


def test_engine_that_was_not_built_says_why(full_run):
    message = "TensorRT has no 4-bit convolution"
    page = write_report(write_run(full_run, engine={"status": "not_run", "message": message})).read_text()
    assert f"No engine was built: {message}" in section(page, "engine")
    assert cards(page)["Engine"] == ("Not built", message)


def test_timings_have_a_total(full_run):
    assert ["Total", "1 min 32 s"] in cells(write_report(full_run).read_text(), "run")


def test_page_is_well_formed_loads_nothing_and_escapes_every_text(full_run):
    page = write_report(full_run).read_text()
    tags = parsed(page)
    assert tags.open == []
    assert "script" not in tags.names
    assert all(link.startswith("#") for link in tags.links)
    assert "url(" not in page
    assert "@import" not in page
    assert EVIL not in page
    assert "&lt;i&gt;https://example.org&lt;/i&gt;" in section(page, "recipe")
    assert all(f'id="{link[1:]}"' in page for link in tags.links)


@pytest.fixture
def minimal_run(tmp_path):
    return write_run(tmp_path, metrics={"float": {"accuracy": 0.9193}, "ptq": {"accuracy": 0.9178}, "exported": "ptq"})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cost", "No sizes were recorded."),
        ("cost", "No latency was measured."),
        ("training", "No history.csv: the model was calibrated but not fine-tuned."),
        ("ranges", "No calibration.json: the run stopped before calibration."),
        ("sensitivity", "No sensitivity.json: sensitivity was not analysed."),
        ("parity", "No parity.json: the exported graph was not verified."),
        ("engine", "No engine.json: no engine was built."),
        ("run", "No versions were recorded."),
        ("recipe", "No recipe.yaml in the run directory."),
        ("accuracy", "this run was not fine-tuned"),
    ],
)
def test_section_without_its_file_says_so(minimal_run, name, sentence):
    page = write_report(minimal_run).read_text()
    assert sentence in section(page, name)
    assert parsed(page).open == []


def test_cards_of_a_minimal_run(minimal_run):
    page = write_report(minimal_run).read_text()
    found = cards(page)
    assert found["QAT"] == ("–", "not run")
    assert found["Exported"] == ("PTQ", "calibrated, not trained")
    assert found["Size of float"] == ("–", "– of –")
    assert found["Parity"] == ("Not measured", "no parity.json")
    assert "No warnings." in page


def test_run_without_metrics_still_gives_a_page(tmp_path):
    assert "No stage was evaluated." in write_report(write_run(tmp_path, metrics={})).read_text()


def test_report_is_replaced_and_leaves_no_temporary_file(minimal_run):
    path = minimal_run / "report.html"
    path.write_text("old")
    before = {entry.name for entry in minimal_run.iterdir()}
    assert write_report(minimal_run) == path
    assert path.read_text().startswith("<!doctype html>")
    assert {entry.name for entry in minimal_run.iterdir()} == before


def test_failed_write_keeps_the_old_report_and_names_the_file(minimal_run, monkeypatch):
    path = minimal_run / "report.html"
    path.write_text("old")

    def refuse(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunDirectoryError, match=r"cannot write .*report\.html: no space left"):
        write_report(minimal_run)
    assert path.read_text() == "old"
    assert {entry.name for entry in minimal_run.iterdir()} == {"metrics.json", "placement.json", "report.html"}


def test_missing_metrics_writes_nothing(minimal_run):
    (minimal_run / "metrics.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"metrics\.json is missing"):
        write_report(minimal_run)
    assert not (minimal_run / "report.html").exists()


def test_page_with_25_large_histograms_stays_under_two_megabytes(full_run):
    entry = calibration()["points"]["stem_relu"]
    bins = list(range(bins_of([6.0])[0] - 8191, bins_of([6.0])[0] + 1))
    entry["histogram"] = {"mantissa_bits": 9, "max": 6.0, "bins": bins, "counts": [10**6 - 100 * index for index in range(8192)]}
    points = tuple(
        QPoint(id=f"p{n}", kind="activation", source=f"p{n}", spec=QuantSpec(), calibrator=PERCENTILE, reason="r") for n in range(25)
    )
    many = Placement(preset="naive", points=points, float_layers=()).to_dict()
    ranges = {"batches": 1, "examples": 1, "points": {point.id: entry for point in points}}
    path = write_report(write_run(full_run, placement=many, calibration=ranges))
    assert path.read_text().count('<figure class="range">') == 25
    assert path.stat().st_size < 500_000
