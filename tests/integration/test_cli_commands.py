"""The commands as a user calls them: what they print, what they write, and how they end."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console
from tfqat_cli.display import Stages, parity_table

from tfqat.engines import tensorrt_rtx

ROOT = Path(__file__).resolve().parents[2]
needs_rtx = pytest.mark.skipif(not tensorrt_rtx.is_available()[0], reason="needs TensorRT for RTX")


def squeezed(text: str) -> str:
    return " ".join(text.split())


# --- help, version ---


def test_help_lists_the_commands_and_imports_no_tensorflow() -> None:
    """--help has to answer in half a second: this looks at what is imported, which unlike time does not depend on the machine."""
    code = (
        "import sys, runpy; sys.argv = ['tfqat', '--help']\n"
        "from tfqat_cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'tensorflow', 'tf_keras', 'keras', 'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'tf2onnx', 'pydantic'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"
    for command in ("run", "init", "plan", "lint", "verify", "compile", "report", "doctor", "schema"):
        assert re.search(rf"^\W*{command} ", done.stdout, re.MULTILINE), command


@pytest.mark.parametrize("command", ["run", "init", "plan", "lint", "verify", "compile", "report", "doctor", "schema"])
def test_every_command_has_help(command: str, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"Usage: tfqat {command}" in squeezed(result.out)


def test_version(tfqat_command: Callable[..., Any]) -> None:
    import tfqat

    assert tfqat_command("--version") == (0, f"tfqat {tfqat.__version__}\n", "")


# --- run ---


def test_run_prints_stages_tables_and_where_the_report_is(tiny_project: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command(
        "run", tiny_project / "tiny.yaml", "--out", tmp_path / "runs", "--set", "ptq_only=true", "--set", "compile.enabled=false"
    )
    (directory,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((directory / "metrics.json").read_text())
    assert result.code == 0
    text = squeezed(result.out)
    for stage in ("Load model and data", "Evaluate float", "Calibrate 4 batches", "Evaluate PTQ", "Export ONNX", "Write report"):
        assert stage in text
    assert "Placement (selective): 6 activations, 5 weights in INT8; with all reasons: tfqat plan" in text
    assert f"{metrics['float']['accuracy']:.4f}" in text and "PTQ (exported)" in text
    assert "Parity: proven" in text
    assert "Engine: the recipe switches the engine stage off" in text
    assert f"Report: {directory / 'report.html'}" in text
    sizes = metrics["size_bytes"]
    assert f"Exported: PTQ, {sizes['model_onnx']:,} bytes, {sizes['model_onnx'] / sizes['float_onnx']:.3f} of the float graph" in text
    assert json.loads((directory / "manifest.json").read_text())["status"] == "complete"


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proof fails: the outputs lie too far apart."""
    from tfqat.stages import graph

    prove = graph.verify
    monkeypatch.setattr(graph, "verify", lambda *a, **k: dataclasses.replace(prove(*a, **k), local_output_difference=0.5))


def test_a_run_that_is_not_proven_is_kept_and_ends_with_1(
    unproven: None, tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tfqat_command: Callable[..., Any]
) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    settings = ("--set", "ptq_only=true", "--set", "compile.enabled=false")
    result = tfqat_command("run", tiny_project / "tiny.yaml", "--out", tmp_path / "runs", *settings)
    assert result.code == 1
    assert re.search(r"\x1b\[1;31mParity:    NOT proven: local: from the same codes the outputs are 5\.00e-01", result.out)
    assert "proven\n" not in result.out
    (directory,) = (tmp_path / "runs").iterdir()
    assert json.loads((directory / "manifest.json").read_text())["status"] == "complete"
    assert json.loads((directory / "parity.json").read_text())["passed"] is False
    assert "NOT" not in result.err and (directory / "report.html").exists()


def test_a_long_message_is_one_line() -> None:
    """The terminal wraps it where it is narrow; a file or a pipe gets it whole."""
    stream = io.StringIO()
    Stages(Console(file=stream, width=40)).message("warning: " + "x " * 60)
    assert stream.getvalue().count("\n") == 1


# --- plan ---


def test_plan_prints_placement_and_schedule_and_writes_nothing(tiny_project: Path, tfqat_command: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_project.iterdir()}
    result = tfqat_command("plan", tiny_project / "tiny.yaml", "--set", "training.learning_rate=0.2", "--set", "qat.lr_decay_factor=0.05")
    assert result.code == 0
    rows = [squeezed(line).strip("│├└─┃ ").replace("│", "").replace("┃", "") for line in result.out.splitlines()]
    table = "\n".join(" ".join(row.split()) for row in rows)
    assert "selective: 5 weights and 6 activations in INT8" in table
    assert "● stem Conv2D\nkernel: int8 per channel, max (weight of Conv2D)\nreads image: int8 per tensor, percentile 99.99" in table
    assert "○ stem_bn BatchNormalization: folded into the scales of stem" in table
    counted = ("steps_per_epoch counted from the data", "total_steps counted from the data", "warmup_steps counted from the data")
    said = ("epochs 1", "batch_size 32", "learning_rate 0.01", "weight_decay 0", "optimizer name sgd, momentum 0.9, nesterov False")
    for row in (*counted, *said, "clip_norm none", "freeze_batchnorm none", "distill none"):
        assert row in table
    assert {path: path.stat().st_mtime_ns for path in tiny_project.iterdir()} == before


def test_plan_with_ptq_only_has_no_schedule(tiny_project: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("plan", tiny_project / "tiny.yaml", "--set", "ptq_only=true")
    assert result.code == 0
    assert "ptq_only: no fine-tuning" in result.out and "QAT schedule" not in result.out


@pytest.mark.parametrize("recipe", ["fashion_mnist.yaml", "fashion_mnist_w4.yaml", "unet.yaml", "vit.yaml"])
def test_plan_of_shipped_recipes(recipe: str, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("plan", ROOT / "recipes" / recipe)
    assert result.code == 0
    assert "● " in result.out and "kernel: int" in result.out and "QAT schedule" in result.out


# --- verify ---


def test_verify_proves_a_run(tiny_run: Any, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("verify", tiny_run.directory, "--examples", 250)
    assert result.code == 0
    text = squeezed(result.out)
    assert "Parity with ONNX Runtime on 250 examples" in text
    for line in ("local: each segment fed the same codes", "end to end", "noise floor: float32 against float64", "15 of 15"):
        assert line in text
    assert text.count("✓") == 15 and "✗" not in text and "failed" not in text
    assert "Difference of codes, all points" in text
    assert re.search(r"accuracy: Keras (\d\.\d{4}), graph \1, as deployed \d\.\d{4}", text)


def test_verify_as_json(tiny_run: Any, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("verify", tiny_run.directory, "--examples", 50, "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert (report["passed"], report["examples"], report["failures"]) == (True, 50, [])
    assert set(report) >= {"local", "end_to_end", "noise_floor", "outputs", "points", "structure"}
    assert report["first_divergence"] is None
    metrics = report["metrics"]
    assert (metrics["examples"], metrics["first"], metrics["max_drop"], metrics["difference"]) == (50, "accuracy", 0.04, 0.0)
    assert set(metrics["keras"]) == set(metrics["graph"]) == set(metrics["deployed"]) == {"loss", "accuracy"}


@pytest.fixture
def run_elsewhere(tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A project whose recipe lies in a folder of its own, and a run of it whose directory lies nowhere near: (project, run)."""
    import tfqat
    from tfqat.recipe.references import load_reference

    project = shutil.copytree(tiny_project, tmp_path / "project", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (project / "recipes").mkdir()
    (project / "tiny.yaml").rename(project / "recipes" / "tiny.yaml")
    (project / "data.py").rename(project / "recipes" / "beside_the_recipe.py")
    (project / "from_here.py").write_text("import numpy as np\n\ndef saved():\n    return tuple(np.load('saved.npz').values())\n")
    monkeypatch.chdir(project)
    references = {split: "beside_the_recipe.py:" + split for split in ("train", "validation", "calibration")}
    images, labels = load_reference("beside_the_recipe.py:arrays", base=project / "recipes")(100, 5)
    np.savez("saved.npz", images=images, labels=labels)
    settings = [f"data.{split}={reference}" for split, reference in references.items()]
    settings += ["data.test=from_here.py:saved", "ptq_only=true", "compile.enabled=false"]
    result = tfqat.run("recipes/tiny.yaml", overrides=settings, out=tmp_path / "elsewhere" / "runs")
    return project, result.directory.resolve()


def test_verify_finds_what_the_run_found(run_elsewhere: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tfqat_command: Any) -> None:
    """The data reference, and the file that its code opens by a relative path, are relative to where the run was started."""
    project, directory = run_elsewhere
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["working_directory"], manifest["recipe_folder"]) == (str(project), str(project / "recipes"))
    monkeypatch.chdir(directory.parent)
    result = tfqat_command("verify", directory.name, "--examples", 50)
    assert (result.code, result.err) == (0, "")
    assert Path.cwd() == directory.parent


def test_verify_looks_around_here_where_the_run_s_folders_are_gone(
    run_elsewhere: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tfqat_command: Callable[..., Any]
) -> None:
    project, directory = run_elsewhere
    moved = project.rename(project.parent / "moved")
    monkeypatch.chdir(directory)
    result = tfqat_command("verify", ".", "--examples", 50)
    assert result.code == 2
    assert f"{directory}/recipe.yaml: data.test: 'from_here.py:saved': 'from_here.py' does not exist; looked in {directory}" in result.err
    monkeypatch.chdir(moved)
    assert tfqat_command("verify", directory, "--examples", 50).code == 0


def test_the_parity_table_shows_the_outputs_from_the_same_codes(tiny_run: Any) -> None:
    stream = io.StringIO()
    Console(file=stream, width=120).print(parity_table(dataclasses.replace(tiny_run.parity, local_output_difference=0.03125)))
    assert re.search(r"local outputs, of the largest one .* 0\.031 ", stream.getvalue())


@pytest.fixture
def tampered(tiny_run: Any, tmp_path: Path) -> Path:
    """The run's graph with one bias of its second layer changed."""
    model = onnx.load(tiny_run.directory / "model.onnx")
    (tensor,) = (one for one in model.graph.initializer if one.name == "depthwise/bias")
    bias = numpy_helper.to_array(tensor).copy()
    bias[4] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    onnx.save(model, str(tmp_path / "tampered.onnx"))
    return tmp_path / "tampered.onnx"


def test_verify_of_a_changed_graph_ends_with_1(tiny_run: Any, tampered: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("verify", tiny_run.directory, "--onnx", tampered, "--examples", 100)
    assert result.code == 1
    assert re.search(r"failed: local: .* worst at 'depthwise_relu'", result.out)


def test_verify_of_a_changed_graph_as_json(tiny_run: Any, tampered: Path) -> None:
    """In a process of its own: the exit code is the command's, not only this test's."""
    command = [sys.executable, "-m", "tfqat_cli", "verify", str(tiny_run.directory), "--onnx", str(tampered), "--examples", "100", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] is False
    assert "depthwise_relu" in report["failures"][0]
    assert (report["first_divergence"]["point"], report["first_divergence"]["kind"]) == ("depthwise_relu", "bias")
    assert "depthwise" in report["first_divergence"]["layers"] and report["worst_layer"]["point"] == "depthwise_relu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tmp}/none",), r"error: .*/none has no metrics\.json: is it the directory of a run that came that far\?"),
        (("{run}", "--onnx", "{tmp}/no.onnx"), r"error: ONNX file .*/no\.onnx does not exist"),
        (("{run}", "--onnx", "{run}/report.html"), r"error: .*/report\.html is not an ONNX model"),
        (("{run}", "--examples", "0"), r"Invalid value for '--examples'"),
    ],
    ids=["no run", "missing graph", "no graph", "no examples"],
)
def test_verify_of_nothing_ends_with_2(
    arguments: tuple[str, ...], message: str, tiny_run: Any, tmp_path: Path, tfqat_command: Callable[..., Any]
) -> None:
    result = tfqat_command("verify", *(one.format(run=tiny_run.directory, tmp=tmp_path) for one in arguments))
    assert result.code == 2
    assert re.search(message, squeezed(result.err))


# --- compile ---


@needs_rtx
def test_compile_prints_the_precision_of_every_layer(tiny_onnx: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("compile", tiny_onnx, "--out", tmp_path / "net.plan", "--target", "SM86")
    assert result.code == 0
    text = squeezed(result.out)
    for layer in ("stem", "depthwise", "project", "head", "logits"):
        assert re.search(rf"{layer} \W?\s?(Conv|MatMul) \W?\s?Int8 x Int8, [12] pointwise", text), layer
    said = (
        r"SM86: 5 of 5 convolutions and matrix products run Int8 x Int8 \(100\.0% of multiply-accumulates\), 1\d kernels, 0 reformats, \d"
    )
    assert re.search(said, text)
    assert "tensorrt_rtx --onnx=" in text and "--computeCapabilities=86" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.sm86.plan", "net.sm86.plan.json"]


@needs_rtx
def test_compile_says_first_what_the_linter_finds(tiny_onnx: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    proto = onnx.load(tiny_onnx)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(3, np.int8), "three"))
    for node in proto.graph.node:
        if node.name in ("pool/Q", "pool/DQ"):
            node.input[2] = "three"
    onnx.save(proto, str(tmp_path / "broken.onnx"))
    result = tfqat_command("compile", tmp_path / "broken.onnx", "--target", "SM86")
    assert result.code == 2
    assert "lint: pool/Q (zero-point): " in result.err and result.err.index("lint: ") < result.err.index("error: ")
    assert [file.name for file in tmp_path.iterdir()] == ["broken.onnx"]


def test_compile_as_json(tiny_onnx: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("compile", tiny_onnx, "-o", tmp_path / "net.plan", "--target", "SM89", "--batch", 1, 2, 4, "--strict", "--json")
    assert result.code == 0
    report = json.loads(result.out)
    (target,) = report["targets"]
    assert (report["status"], target["target"], Path(target["engine_path"]).name) == ("built", "SM89", "net.sm89.plan")
    assert [layer["int8"] for layer in target["layers"]] == [True] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tmp}/no.onnx",), "no.onnx is not a file; expected an ONNX model"),
        (("{tmp}/text.onnx",), "text.onnx is not "),
        (("{onnx}", "--backend", "tensorrtx"), "unknown backend 'tensorrtx'; expected one of auto, tensorrt, tensorrt_rtx; did you mean"),
        (("{onnx}", "--batch", "8", "1", "32"), "batch must be three whole numbers, 1 <= smallest <= optimal <= largest"),
        (
            ("{onnx}", "--shape", "image=1x28"),
            "a shape has the form NAME=MIN:OPT:MAX, for example image=1x32x32x3:8x64x64x3:32x128x128x3; got",
        ),
        (("{onnx}", "--shape", "picture=1:2:3"), "a shape is given for 'picture', but the inputs of the graph are"),
        (("{onnx}", "--shape", "i=1:2:3", "--shape", "i=1:2:3"), "--shape is given twice for 'i'"),
        (("{onnx}", "--timeout", "0"), "timeout_s must be a number of seconds above 0; got 0.0"),
        (("{onnx}", "--timing-cache", "{tmp}/no/t.cache"), "give a file in a folder that exists"),
    ],
    ids=[
        *("missing", "no graph", "unknown backend", "batch out of order"),
        *("shape of another form", "shape of no input", "two shapes", "no time", "no folder for timings"),
    ],
)
def test_compile_of_nothing_ends_with_2_and_writes_nothing(
    arguments: tuple[str, ...], message: str, tiny_onnx: Path, tmp_path: Path, tfqat_command: Callable[..., Any]
) -> None:
    (tmp_path / "text.onnx").write_text("not a graph")
    result = tfqat_command(
        "compile", *(one.format(onnx=tiny_onnx, tmp=tmp_path) for one in arguments), "--out", tmp_path / "out" / "n.plan"
    )
    assert result.code == 2
    assert message in squeezed(result.err)
    assert not (tmp_path / "out").exists()


# --- doctor, schema, report ---


def test_doctor(tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("doctor")
    assert result.code == 0
    for name in ("python", "tensorflow", "tf2onnx", "onnxruntime", "backend tensorrt", "backend tensorrt_rtx", "CPU has VNNI"):
        assert name in result.out
    assert np.__version__ in result.out


def test_schema_describes_the_shipped_recipes(tfqat_command: Callable[..., Any]) -> None:
    from ruamel.yaml import YAML

    result = tfqat_command("schema")
    assert result.code == 0
    schema = json.loads(result.out)
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    assert set(schema["required"]) == {"version", "model", "data", "training"}
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        recipe = YAML(typ="safe").load(path.read_text())
        assert misfits(recipe, schema, schema) == []
    assert misfits({**recipe, "seeed": 1}, schema, schema) == ["$.seeed: unknown"]
    assert misfits({**recipe, "seed": "1"}, schema, schema) == ["$.seed: not of type integer"]
    broken = {**recipe, "export": {"opset": 24}}
    assert misfits(broken, schema, schema) == ["$.export.opset: above 23"]


TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def misfits(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> list[str]:
    """Where a value does not fit a JSON Schema: the keywords that pydantic writes, or an error for another one."""
    known = {"$ref", "$defs", "title", "description", "default", "type", "properties", "required", "additionalProperties", "items", "anyOf"}
    known |= {"enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "minItems", "maxItems", "pattern"}
    known |= {"prefixItems"}
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        return misfits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "anyOf" in schema:
        options = [misfits(value, option, root, at) for option in schema["anyOf"]]
        return [] if [] in options else [f"{at}: fits none of {len(options)}", *options[0]]
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{at}: not of type {kind}"]
    found = [f"{at}: not one of {schema['enum']}"] if value not in schema.get("enum", [value]) else []
    found += [f"{at}: not {schema['const']}"] if value != schema.get("const", value) else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        found += [f"{at}: below {schema['minimum']}"] if value < schema.get("minimum", value) else []
        found += [f"{at}: above {schema['maximum']}"] if value > schema.get("maximum", value) else []
        found += [f"{at}: not above"] if value <= schema.get("exclusiveMinimum", float("-inf")) else []
        found += [f"{at}: not below"] if value >= schema.get("exclusiveMaximum", float("inf")) else []
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{at}: not {schema['pattern']}")
    if isinstance(value, list):
        found += [problem for index, item in enumerate(value) for problem in misfits(item, schema.get("items", {}), root, f"{at}[{index}]")]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [f"{at}.{key}: missing" for key in schema.get("required", ()) if key not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{at}.{key}: unknown" for key in value if key not in properties]
        found += [problem for key in value if key in properties for problem in misfits(value[key], properties[key], root, f"{at}.{key}")]
    return found


def test_report_writes_the_page_again(tiny_run: Any, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    copy = shutil.copytree(tiny_run.directory, tmp_path / "run")
    page = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    result = tfqat_command("report", copy)
    assert (result.code, result.out) == (0, f"{copy / 'report.html'}\n")
    assert len((copy / "report.html").read_text()) == pytest.approx(len(page), rel=0.05)


def test_report_of_no_run_ends_with_2(tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("report", tmp_path)
    assert result.code == 2
    assert "metrics.json" in result.err
    assert list(tmp_path.iterdir()) == []


# --- usage ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--nope", "x.yaml"), "No such option: --nope"),
        (("run",), "Missing argument"),
        (("runn", "x.yaml"), "No such command 'runn'"),
        (("compile", "x.onnx", "--batch", "1"), "--batch"),
    ],
    ids=["unknown option", "missing argument", "unknown command", "too few values"],
)
def test_wrong_usage_ends_with_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tfqat_command: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tfqat_command(*arguments)
    assert result.code == 2
    assert message in squeezed(result.err)
    assert list(tmp_path.iterdir()) == []
