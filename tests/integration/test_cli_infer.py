"""`tfqat infer`: tables, JSON, files, and what it says to wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

Image = pytest.importorskip("PIL.Image")

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '
# The score of a class is the mean of a colour.
MEAN = "({type}[N, 8, 8, 3] image) => (float[N, 3] y) {{ f = Cast<to=1>(image) y = ReduceMean<axes=[1, 2], keepdims=0>(f) }}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`floats.onnx`, `pixels.onnx`, three images of one colour each, and labels; it is the working directory."""
    for name, kind in (("floats", "float"), ("pixels", "uint8")):
        onnx.save(onnx.parser.parse_model(HEAD + MEAN.format(type=kind)), str(tmp_path / f"{name}.onnx"))
    (tmp_path / "images").mkdir()
    for name, colour in (("a_blue.png", (0, 51, 255)), ("b_red.jpg", (255, 0, 0)), ("c_green.jpeg", (0, 255, 0))):
        Image.new("RGB", (16, 12), colour).save(tmp_path / "images" / name, quality=100, subsampling=0)
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line.strip().startswith(("a_", "b_", "c_"))]


def test_a_table_of_classes(project: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("infer", "pixels.onnx", "--input", "images", "--top", 2, "--labels", "labels.txt")
    assert result.code == 0, result.err
    assert "images resized to 8 x 8 (height x width, bilinear), RGB, as uint8 pixels" in result.out
    assert rows(result.out)[0] == ["a_blue.png", "blue", "255", "green", "51"]
    assert [row[:2] for row in rows(result.out)] == [["a_blue.png", "blue"], ["b_red.jpg", "red"], ["c_green.jpeg", "green"]]


def test_json_and_normalization(project: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command("infer", "floats.onnx", "-i", "images", "--unit", "--top", 1, "--batch", 2, "--runtime", "cpu", "--json")
    found = json.loads(result.out)
    assert (found["runtime"], found["batch_size"], found["examples"], found["out"]) == ("cpu", 2, 3, None)
    assert found["results"][0] == {"source": "a_blue.png", "top": [{"class": 2, "label": None, "score": 1.0}]}
    result = tfqat_command("infer", "floats.onnx", "-i", "images/a_blue.png", "--mean", "1,1,5", "--std", "2", "--json")
    assert [one["score"] for one in json.loads(result.out)["results"][0]["top"]] == [125, 25, -0.5]


def test_outputs_as_a_file(project: Path, tfqat_command: Callable[..., Any]) -> None:
    images = np.random.default_rng(0).standard_normal((40, 8, 8, 3)).astype(np.float32)
    np.savez(project / "in.npz", image=images)
    result = tfqat_command("infer", "floats.onnx", "--input", "in.npz", "-o", "out.npz")
    assert (result.code, result.out.strip()) == (0, "out.npz: y [40, 3]")
    with np.load(project / "out.npz") as written:
        assert written.files == ["y"]
        np.testing.assert_allclose(written["y"], images.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["floats.onnx", "-i", "images"], "takes normalized numbers, not pixels: say how the training data were normalized"),
        (["pixels.onnx", "-i", "images", "--unit"], "takes pixels, and the graph normalizes them"),
        (["floats.onnx", "-i", "images", "--unit", "--mean", "1"], "--unit is pixel / 255; leave it out"),
        (["floats.onnx", "-i", "images", "--mean", "a"], "one number, or one for each channel"),
        (["floats.onnx", "-i", "images", "--std", "0"], "numbers above 0 are expected; got 0"),
        (["floats.onnx", "-i", "nothing"], "nothing is not there; expected a folder of images"),
        (["floats.onnx", "-i", "labels.txt", "--unit"], "labels.txt cannot be read as an image"),
        (["nothing.onnx", "-i", "images"], "nothing.onnx is not a file; expected an ONNX model"),
        (["labels.txt", "-i", "images"], "labels.txt is neither an ONNX graph (.onnx) nor a plan"),
        (["floats.onnx", "-i", "small.npy"], "input 'image' has the shape [2, 8, 8]; expected 'image' float32 [?, 8, 8, 3]"),
        (["pixels.onnx", "-i", "images", "--labels", "images"], "the labels images cannot be read"),
        (["pixels.onnx", "-i", "images", "--runtime", "gpu"], "unknown runtime 'gpu'; expected auto, cpu, cuda"),
        (["pixels.onnx", "-i", "images", "-o", "out.csv"], "the outputs are written as .npz; got out.csv"),
        (["pixels.onnx", "-i", "images", "-o", "no/out.npz"], "cannot write no/out.npz"),
        (["pixels.onnx", "-i", "images", "--top", "0"], "Invalid value for '--top'"),
        (["pixels.onnx"], "Missing option '--input'"),
    ],
)
def test_wrong_input(project: Path, tfqat_command: Callable[..., Any], arguments: list[str], message: str) -> None:
    np.save(project / "small.npy", np.zeros((2, 8, 8), np.float32))
    before = sorted(project.rglob("*"))
    result = tfqat_command("infer", *arguments)
    assert result.code == 2 and message in " ".join(result.err.split()) and "Traceback" not in result.err, result.err
    assert sorted(project.rglob("*")) == before


def test_it_runs_without_tensorflow(project: Path) -> None:
    code = (
        "import sys\nfrom tfqat_cli.main import main\nsys.argv = ['tfqat', 'infer', 'pixels.onnx', '-i', 'images']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "sys.exit(' '.join({'tensorflow', 'tf_keras', 'keras'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "a_blue.png" in done.stdout


@pytest.mark.parametrize("name", [None, "classifier"])
def test_a_graph_goes_into_a_triton_repository(project: Path, tfqat_command: Callable[..., Any], name: str | None) -> None:
    options = () if name is None else ("--name", name, "--max-batch", 16)
    for version in (1, 2):
        result = tfqat_command("export", "pixels.onnx", "--triton", "repository", *options)
        assert result.code == 0, result.err
        called, batch = name or "pixels", 32 if name is None else 16
        kept = "; its config.pbtxt was there and is left as it was" if version == 2 else ""
        path = f"repository/{called}/{version}/model.onnx"
        assert result.out.strip() == f"{path}: version {version} of {called}, batches of up to {batch}{kept}"
        assert (project / path).read_bytes() == (project / "pixels.onnx").read_bytes()
    assert f"max_batch_size: {batch}\n" in (project / "repository" / called / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["floats.onnx", "--triton", "repository", "--opset", "13"], "floats.onnx is served as it is: leave the options of the graph"),
        (["floats.onnx", "--triton", "repository", "-o", "a.onnx"], "floats.onnx is served as it is: leave the options of the graph"),
        (["floats.onnx", "--triton", "repository", "--layout", "nchw"], "floats.onnx is served as it is: leave the options of the graph"),
        (["floats.onnx", "--name", "a"], "--name and --max-batch are for --triton"),
        (["nothing.plan", "--triton", "repository"], "nothing.plan is not a file; expected an engine"),
        (["floats.onnx", "--triton", "labels.txt"], "cannot write labels.txt/floats"),
    ],
)
def test_what_does_not_go_into_one(project: Path, tfqat_command: Callable[..., Any], arguments: list[str], message: str) -> None:
    result = tfqat_command("export", *arguments)
    assert result.code == 2 and message in " ".join(result.err.split()) and "Traceback" not in result.err, result.err
    assert not (project / "repository").exists()
