"""Triton model repositories: every config.pbtxt is parsed by the recorded ModelConfig, and says what the model takes and gives."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format

from tfqat.engines.serve import load_engine
from tfqat.engines.triton import export_triton
from tfqat.errors import EngineError, RunDirectoryError
from tfqat.form import Form

SCHEMA = Path(__file__).parent / "surfaces" / "triton_model_config.json"
HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '
IMAGES = "({type}[{batch}, 3, H, 8] image) => (float[{batch}, 3] y) {{ f = Cast<to=1>(image) y = ReduceMean<axes=[2, 3], keepdims=0>(f) }}"
SCALARS = """(float[N] x) => (float[N] y, int64[N, 2] z) <int64[1] one = {1}> {
    y = Relu(x) c = Cast<to=7>(x) u = Unsqueeze(c, one) z = Concat<axis=1>(u, u)
}"""
JOINED = "(float[N, 2] x) => (float[2] y) { y = ReduceMean<axes=[0], keepdims=0>(x) }"

UNBATCHED = {"max_batch_size": None, "dynamic_batching": None}


def images(batch: str = "N", type: str = "float") -> str:
    return IMAGES.format(batch=batch, type=type)


def model_config() -> Any:
    """The message class of the recorded schema."""
    schema = json.loads(SCHEMA.read_text())
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    made: dict[str, Any] = {}
    kinds = descriptor_pb2.FieldDescriptorProto

    def place(name: str, field: str) -> Any:
        outer, _, inner = name.rpartition(".")
        return (
            getattr(made[outer], {"message_type": "nested_type"}.get(field, field)).add(name=inner)
            if outer
            else getattr(file, field).add(name=inner)
        )

    for name in sorted(schema["messages"]):  # outer ones first
        made[name] = place(name, "message_type")
    for name, values in schema["enums"].items():
        for value, number in values.items():
            (made.get(name) or made.setdefault(name, place(name, "enum_type"))).value.add(name=value, number=number)
    for owner, fields in schema["messages"].items():
        for name, (number, text) in fields.items():
            kind = text.removeprefix("repeated ")
            field = made[owner].field.add(name=name, number=number, label=kinds.LABEL_REPEATED if kind != text else kinds.LABEL_OPTIONAL)
            if kind in made:
                field.type_name = f".inference.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parsed(text: str) -> dict[str, Any]:
    """The text as ModelConfig reads it; an unknown field or value is an error."""
    message = text_format.Parse(text, model_config()())
    return json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=False)


@pytest.fixture
def graph(tmp_path: Path) -> Callable[..., Path]:
    def make(text: str, form: Form = Form(), name: str = "net.onnx") -> Path:  # noqa: B008
        model = onnx.parser.parse_model(HEAD + text)
        onnx.helper.set_model_props(model, form.to_metadata())
        onnx.save(model, str(tmp_path / name))
        return tmp_path / name

    return make


def plan(path: Path, **changes: Any) -> Path:
    path.write_bytes(b"engine")
    metadata = {
        "backend": "tensorrt",
        "engine": {"sha256": hashlib.sha256(b"engine").hexdigest()},
        "profile": {"x": [[1, 4], [8, 4], [24, 4]]},
        "inputs": [{"name": "x", "dtype": "uint8", "shape": [None, 4]}],
        "outputs": [{"name": "y", "dtype": "float16", "shape": [None, 2]}],
    }
    path.with_name(path.name + ".json").write_text(json.dumps(metadata | changes))
    return path


def test_the_schema_refuses_what_it_does_not_know() -> None:
    assert parsed('name: "a" instance_group [ { kind: KIND_GPU } ]') == {"name": "a", "instance_group": [{"kind": "KIND_GPU"}]}
    for wrong in ('nome: "a"', "max_batch_size: 1.5", "instance_group { kind: KIND_TPU }", 'version_policy { latest: "1" }'):
        with pytest.raises(text_format.ParseError):
            parsed(wrong)


def test_a_graph_with_a_free_batch(graph: Callable[..., Path], tmp_path: Path) -> None:
    made = export_triton(graph(images()), tmp_path / "new" / "repository")
    folder = tmp_path / "new" / "repository" / "net"
    assert (made.name, made.version, made.path, made.max_batch_size, made.kept_config) == ("net", 1, folder / "1" / "model.onnx", 32, False)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    assert made.path.read_bytes() == (tmp_path / "net.onnx").read_bytes() and (folder / "config.pbtxt").read_text() == made.config
    assert parsed(made.config) == {
        "name": "net",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 32,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": ["3", "-1", "8"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["3"]}],
        "dynamic_batching": {},
        "instance_group": [{"count": 1}],  # KIND_AUTO is 0
        "version_policy": {"latest": {"num_versions": 1}},
    }
    assert "kind: KIND_AUTO" in made.config


@pytest.mark.parametrize(
    ("text", "form", "options", "expected"),
    [
        (images("4"), Form(), {}, UNBATCHED | {"input": [["4", "3", "-1", "8"]], "output": [["4", "3"]]}),
        (JOINED, Form(), {}, UNBATCHED | {"input": [["-1", "2"]], "output": [["2"]]}),
        (images(type="uint8"), Form(), {}, {"type": "TYPE_UINT8"}),
        (images(type="float16"), Form(), {}, {"type": "TYPE_FP16"}),
        (images(), Form(target="onnxruntime"), {}, {"instance_group": [{"count": 1, "kind": "KIND_CPU"}]}),
        (images(), Form(target="onnxruntime"), {"kind": "gpu"}, {"instance_group": [{"count": 1, "kind": "KIND_GPU"}]}),
        (
            images(),
            Form(),
            {"max_batch_size": 7, "instances": 2, "max_queue_delay_us": 500},
            {
                "max_batch_size": 7,
                "instance_group": [{"count": 2}],
                "dynamic_batching": {"max_queue_delay_microseconds": "500"},
            },
        ),
    ],
)  # fmt: skip
def test_other_graphs(graph: Callable[..., Path], tmp_path: Path, text: str, form: Form, options: dict[str, Any], expected: Any) -> None:
    config = parsed(export_triton(graph(text, form), tmp_path / "repository", **options).config)
    found = config | {key: [one["dims"] for one in config[key]] for key in ("input", "output")} | {"type": config["input"][0]["data_type"]}
    assert {key: found.get(key) for key in expected} == expected


def test_nothing_behind_the_batch_is_reshaped(graph: Callable[..., Path], tmp_path: Path) -> None:
    config = parsed(export_triton(graph(SCALARS), tmp_path).config)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["1"], "reshape": {}}]
    assert config["output"] == [
        {"name": "y", "data_type": "TYPE_FP32", "dims": ["1"], "reshape": {}},
        {"name": "z", "data_type": "TYPE_INT64", "dims": ["2"]},
    ]


def test_the_config_is_true_of_the_model_that_it_stands_beside(graph: Callable[..., Path], tmp_path: Path) -> None:
    """A request of the shapes in the config runs, and gives the shapes in it."""
    made = export_triton(graph(images(type="uint8")), tmp_path / "repository", max_batch_size=5)
    config = parsed(made.config)
    (given,), (taken,) = config["input"], config["output"]
    dims = [5 if size == "-1" else int(size) for size in given["dims"]]
    result = load_engine(made.path).predict({given["name"]: np.ones((5, *dims), np.uint8)})
    assert result.shape == (5, *map(int, taken["dims"])) and result.dtype == np.float32


def test_a_plan(tmp_path: Path) -> None:
    made = export_triton(plan(tmp_path / "net.sm86.engine"), tmp_path / "repository")
    assert made.path == tmp_path / "repository" / "net" / "1" / "model.plan" and made.path.read_bytes() == b"engine"
    assert parsed(made.config) == {
        "name": "net",
        "platform": "tensorrt_plan",
        "max_batch_size": 24,
        "input": [{"name": "x", "data_type": "TYPE_UINT8", "dims": ["4"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP16", "dims": ["2"]}],
        "dynamic_batching": {},
        "instance_group": [{"count": 1, "kind": "KIND_GPU"}],
        "version_policy": {"latest": {"num_versions": 1}},
    }


def test_data_beside_a_graph_comes_along(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.arange(64, dtype=np.float32).reshape(8, 8), "w")
    inputs, outputs = ([onnx.helper.make_tensor_value_info(name, 1, ["N", 8])] for name in "xy")
    body = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [weight])
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "net.onnx"), save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    made = export_triton(tmp_path / "net.onnx", tmp_path / "repository")
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["model.onnx", "net.onnx.data"]
    np.testing.assert_array_equal(load_engine(made.path).predict(np.eye(8)), np.arange(64).reshape(8, 8))


def test_the_next_version_and_what_was_tuned(graph: Callable[..., Path], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = export_triton(graph(images()), repository)
    config = repository / "net" / "config.pbtxt"
    tuned = config.read_text().replace("count: 1", "count: 3").replace("  {\n    name", "# tuned\n {  name")
    config.write_text(tuned)
    (repository / "net" / "7").mkdir()
    (repository / "net" / "notes").mkdir()
    before = first.path.read_bytes()
    made = export_triton(graph(images(), Form(layout="nchw")), repository)
    assert (made.version, made.kept_config, made.config, config.read_text()) == (8, True, tuned, tuned)
    assert first.path.read_bytes() == before != made.path.read_bytes()
    assert parsed(tuned)["instance_group"] == [{"count": 3}]


@pytest.mark.parametrize("text", [images("4"), images(type="uint8"), images().replace("y", "z"), images().replace("8", "9")])
def test_another_model_of_the_same_name_is_refused(graph: Callable[..., Path], tmp_path: Path, text: str) -> None:
    repository = tmp_path / "repository"
    export_triton(graph(images()), repository)
    with pytest.raises(
        EngineError, match=r"config\.pbtxt describes another model, and is not overwritten: it lacks '.*'\. Give another name"
    ):
        export_triton(graph(text), repository)
    assert sorted(path.name for path in (repository / "net").iterdir()) == ["1", "config.pbtxt"]
    assert export_triton(graph(text), repository, name="other").version == 1


def test_another_largest_batch_is_another_model(graph: Callable[..., Path], tmp_path: Path) -> None:
    """3 is where 32 begins."""
    export_triton(graph(images()), tmp_path / "repository", max_batch_size=32)
    with pytest.raises(EngineError, match=r"it lacks 'max_batch_size: 3'"):
        export_triton(graph(images()), tmp_path / "repository", max_batch_size=3)


def test_versions_of_writers_at_the_same_time(graph: Callable[..., Path], tmp_path: Path) -> None:
    path, versions = graph(images()), []
    threads = [threading.Thread(target=lambda: versions.append(export_triton(path, tmp_path / "r").version)) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(versions) == list(range(1, 9))
    assert sorted(path.name for path in (tmp_path / "r" / "net").iterdir()) == [*map(str, range(1, 9)), "config.pbtxt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../net"}, r"a model's name has letters, digits, .*; got '\.\./net'"),
        ({"name": ""}, r"a model's name has letters"),
        ({"max_batch_size": 0}, r"max_batch_size must be at least 1; got 0"),
        ({"instances": 0}, r"instances must be at least 1"),
        ({"max_queue_delay_us": -1}, r"max_queue_delay_us at least 0"),
    ],
)
def test_wrong_options(graph: Callable[..., Path], tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        export_triton(graph(images()), tmp_path / "repository", **options)
    assert not (tmp_path / "repository").exists()


def test_models_that_are_not_served(graph: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "nothing.onnx", {}, r"nothing\.onnx is not a file"),
        (tmp_path / "nothing.plan", {}, r"nothing\.plan is not a file"),
        (tmp_path / "net.keras", {}, r"net\.keras is neither an ONNX graph"),
        (graph(images("4")), {"max_batch_size": 4}, r"no free batch axis .*; got max_batch_size 4: export it without a fixed batch"),
        (plan(tmp_path / "a.plan"), {"max_batch_size": 25}, r"max_batch_size must be 1 to 24, the largest batch of the plan; got 25"),
        (plan(tmp_path / "b.plan", backend="tensorrt_rtx"), {}, r"built by TensorRT for RTX, whose engines Triton does not load"),
        (plan(tmp_path / "c.plan", inputs=[{"name": "x", "dtype": "complex64", "shape": [None]}]), {}, r"has a type that Triton lacks"),
    ]
    (tmp_path / "d.plan").write_bytes(b"engine")
    cases.append((tmp_path / "d.plan", {}, r"d\.plan\.json is missing or does not list the inputs and outputs: compile the engine again"))
    for path, options, message in cases:
        with pytest.raises(EngineError, match=message):
            export_triton(path, repository, **options)
        assert not repository.exists()


def test_a_failed_copy_leaves_nothing(graph: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    path, repository = graph(images()), tmp_path / "a" / "repository"
    with monkeypatch.context() as patched, pytest.raises(RunDirectoryError, match=r"repository/net: No space left on device"):
        patched.setattr("shutil.copyfile", full)
        export_triton(path, repository)
    assert not (tmp_path / "a").exists()
    with monkeypatch.context() as patched, pytest.raises(RunDirectoryError, match="Input/output error"):
        patched.setattr(Path, "rename", lambda source, target: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        export_triton(path, repository)
    assert not (tmp_path / "a").exists()
    export_triton(path, repository)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(RunDirectoryError, match="No space left"):
        export_triton(path, repository)
    assert sorted(path.name for path in (repository / "net").iterdir()) == ["1", "config.pbtxt"]
