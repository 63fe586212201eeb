"""Files that try to run code, to have another file read, or to take all memory: refused, and nothing of it happens."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

hostile = sys.modules["tfqat_robustness_hostile"]
run_module = sys.modules["tfqat_robustness_commands"]


@pytest.fixture
def trap(tmp_path: Path) -> Any:
    return hostile.Trap(tmp_path / "trap")


@pytest.fixture
def caught(commands: Any, project: Path, trap: Any, tmp_path: Path, count: Callable[[str, str], None]) -> Iterator[Callable[..., str]]:
    """`tfqat <arguments>` on a hostile file: exit code 2, no code run, nothing read outside or written; gives the message."""

    def run(*arguments: object, kind: str) -> str:
        before = run_module.contents(tmp_path)
        ended = commands.run(*arguments, cwd=project)
        assert not ended.wrong, f"{ended.wrong}: {ended.told()}"
        assert ended.code == 2, ended.told()
        assert run_module.contents(tmp_path) == before
        assert trap.words not in ended.out + ended.err and "31415" not in ended.out + ended.err, ended.told()
        count(kind, "refused")
        return ended.err

    yield run
    assert not trap.canary.exists(), "code of the file was run"


# --- model files: what their config names ---


@pytest.fixture(scope="session")
def other_formats(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as .h5 and SavedModel, and a Keras 3 model as .keras and .h5."""
    import keras
    import tf_keras

    folder = tmp_path_factory.mktemp("formats")
    model = tf_keras.models.load_model(tiny_project / "float.keras", compile=False)
    warnings.simplefilter("ignore")  # that these formats are old; pytest puts the filters back
    model.save(folder / "float.h5")
    model.save(folder / "saved_model", save_format="tf")
    image = keras.Input((12, 12, 1), name="image")
    x = keras.layers.ReLU(6.0, name="relu")(keras.layers.Conv2D(8, 3, name="stem")(image))
    three = keras.Model(image, keras.layers.Dense(4, name="logits")(keras.layers.GlobalAveragePooling2D(name="pool")(x)))
    three.save(folder / "three.keras")
    three.save(folder / "three.h5")
    return folder


def tensor(name: str) -> dict[str, Any]:
    """A symbolic tensor as .keras files write it."""
    config = {"shape": [None, 12, 12, 1], "dtype": "float32", "keras_history": [name, 0, 0]}
    return {"class_name": "__keras_tensor__", "config": config}


def function(module: str, name: str) -> dict[str, Any]:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


CONFIGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "os.system as a layer": (lambda trap: hostile.as_layer("os", "system", trap.command), "os.system"),
    "posix.system as a layer": (lambda trap: hostile.as_layer("posix", "system", trap.command), "posix.system"),
    "subprocess as a layer": (lambda trap: hostile.as_layer("subprocess", "check_output", ["touch", str(trap.canary)]), "subprocess"),
    "exec as a layer": (
        lambda trap: hostile.as_layer("builtins", "exec", f"__import__('os').system({trap.command!r})"),
        "builtins.exec",
    ),
    "a module that lies beside the file": (lambda _: hostile.of_model(module="evil"), "evil.Functional"),
    "an operation that prints into a file": (
        lambda trap: hostile.added(
            "TFOpLambda", "keras.layers", {"function": "print"}, "x", kwargs={"output_stream": trap.canary.as_uri()}
        ),
        "tf.print",
    ),
    "Keras's own download as a layer": (
        lambda trap: hostile.as_layer("keras.utils", "get_file", str(trap.canary), trap.secret.as_uri()),
        "keras.utils.get_file",
    ),
    "tf_keras's own download as a layer": (
        lambda trap: hostile.as_layer("tf_keras.utils", "get_file", str(trap.canary), trap.secret.as_uri()),
        "tf_keras.utils.get_file",
    ),
    "a download by the module of its source": (
        lambda trap: hostile.as_layer("tf_keras.src.utils.data_utils", "get_file", str(trap.canary), trap.secret.as_uri()),
        "get_file",
    ),
    "a function as an activation": (lambda _: hostile.setting("Dense", "activation", function("os", "system")), "os.system"),
    "a function as an initializer": (lambda _: hostile.setting("Conv2D", "kernel_initializer", function("os", "abort")), "os.abort"),
    "a class of another module": (lambda _: hostile.named("Dense", module="this", class_name="Dense"), "this.Dense"),
    "a class of a module with a path": (lambda _: hostile.named("Dense", module="os.path", class_name="join"), "os.path.join"),
    "a Lambda layer": (lambda trap: hostile.lambda_layer(trap, "__lambda__"), "Lambda"),
    "a Lambda layer of an older format": (lambda trap: hostile.lambda_layer(trap, "lambda"), "Lambda"),
    "byte code as an activation": (
        lambda trap: hostile.setting(
            "Dense", "activation", {"class_name": "__lambda__", "config": {"value": [hostile.lambda_code(trap.command), None, None]}}
        ),
        "Lambda",
    ),
    "an operation that writes": (
        lambda trap: hostile.added("TFOpLambda", "keras.layers", {"function": "io.write_file"}, str(trap.canary), "x"),
        "io.write_file",
    ),
    "an operation that reads": (
        lambda trap: hostile.added("TFOpLambda", "keras.layers", {"function": "io.read_file"}, str(trap.text)),
        "io.read_file",
    ),
    "a raw operation that writes": (
        lambda trap: hostile.added(
            "TFOpLambda", "keras.layers", {"function": "raw_ops.WriteFile"}, kwargs={"filename": str(trap.canary), "contents": "x"}
        ),
        "raw_ops.WriteFile",
    ),
    "an operation of TensorFlow 1 that writes": (
        lambda trap: hostile.added("TFOpLambda", "keras.layers", {"function": "compat.v1.write_file"}, str(trap.canary), "x"),
        "compat.v1.write_file",
    ),
    "a library as an operation": (
        lambda trap: hostile.added("TFOpLambda", "keras.layers", {"function": "load_library"}, str(trap.secret)),
        "load_library",
    ),
    "a method of a class": (
        lambda trap: hostile.added(
            "ClassMethod", "keras.layers", {"cls_symbol": "io.gfile.GFile", "method_name": "__init__"}, str(trap.canary), "w"
        ),
        "io.gfile.GFile",
    ),
    "a vocabulary in a file": (
        lambda trap: hostile.added("StringLookup", "keras.layers", {"vocabulary": str(trap.text)}),
        "vocabulary",
    ),
    "a SavedModel as a layer": (
        lambda trap: hostile.added("TFSMLayer", "keras.layers", {"filepath": str(trap.folder), "call_endpoint": "serve"}),
        "TFSMLayer",
    ),
}


@pytest.mark.parametrize("made", CONFIGS.values(), ids=CONFIGS)
def test_a_keras_file_whose_config_names_code(
    made: tuple[Callable[[Any], Any], str], trap: Any, project: Path, caught: Callable[..., str]
) -> None:
    edit, words = made
    (project / "evil.py").write_text(f"open({str(trap.canary)!r}, 'w')\n")
    hostile.edited(project / "float.keras", project / "evil.keras", edit(trap))
    error = caught("plan", "evil.keras", kind="malicious .keras")
    assert words in error and "evil.keras" in error


@pytest.mark.parametrize("made", CONFIGS.values(), ids=CONFIGS)
def test_a_keras_3_file_whose_config_names_code(
    made: tuple[Callable[[Any], Any], str], trap: Any, project: Path, other_formats: Path, caught: Callable[..., str]
) -> None:
    hostile.edited(other_formats / "three.keras", project / "evil.keras", made[0](trap))
    assert "evil.keras" in caught("plan", "evil.keras", kind="malicious .keras of Keras 3")


@pytest.mark.parametrize("made", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["float.h5", "three.h5"])
def test_an_h5_file_whose_config_names_code(
    name: str, made: tuple[Callable[[Any], Any], str], trap: Any, project: Path, other_formats: Path, caught: Callable[..., str]
) -> None:
    hostile.edited_h5(other_formats / name, project / "evil.h5", made[0](trap))
    assert "evil.h5" in caught("plan", "evil.h5", kind="malicious .h5")


@pytest.mark.parametrize("command", ["plan", "init", "export", "run", "lint"])
def test_every_command_that_loads_a_model(command: str, trap: Any, project: Path, caught: Callable[..., str]) -> None:
    hostile.edited(project / "float.keras", project / "evil.keras", hostile.as_layer("os", "system", trap.command))
    recipe = ("tiny.yaml", "--set", "model.source=evil.keras")
    arguments = {"run": recipe, "lint": recipe, "init": ("evil.keras", "--out", "new")}.get(command, ("evil.keras",))
    assert "os.system" in caught(command, *arguments, kind="malicious .keras")
