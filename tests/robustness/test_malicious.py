"""Files that try to run code, to have another file read, or to take all memory: refused, and nothing of it happens."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

hostile = sys.modules["tfqat_robustness_hostile"]
run_module = sys.modules["tfqat_robustness_commands"]


def few(table: Mapping[str, Any], *sample: str) -> list[Any]:
    """The cases of a table, those of the sample for every run of the tests."""
    return [pytest.param(one, id=name, marks=() if name in sample else pytest.mark.robustness) for name, one in table.items()]


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


FEW_CONFIGS = (
    "a module that lies beside the file",
    "an operation that prints into a file",
    "os.system as a layer",
    "a Lambda layer of an older format",
    "a function as an activation",
)


@pytest.mark.parametrize("made", CONFIGS.values(), ids=CONFIGS)
def test_a_keras_file_whose_config_names_code(
    made: tuple[Callable[[Any], Any], str], trap: Any, project: Path, caught: Callable[..., str]
) -> None:
    edit, words = made
    (project / "evil.py").write_text(f"open({str(trap.canary)!r}, 'w')\n")
    hostile.edited(project / "float.keras", project / "evil.keras", edit(trap))
    error = caught("plan", "evil.keras", kind="malicious .keras")
    assert words in error and "evil.keras" in error


@pytest.mark.parametrize("made", few(CONFIGS, *FEW_CONFIGS[:2]))
def test_a_keras_3_file_whose_config_names_code(
    made: tuple[Callable[[Any], Any], str], trap: Any, project: Path, other_formats: Path, caught: Callable[..., str]
) -> None:
    hostile.edited(other_formats / "three.keras", project / "evil.keras", made[0](trap))
    assert "evil.keras" in caught("plan", "evil.keras", kind="malicious .keras of Keras 3")


@pytest.mark.parametrize("made", few(CONFIGS, FEW_CONFIGS[1]))
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


# --- model files: where their weights lie, and how large they are ---


def of_archive(make: Callable[..., Path], *arguments: Any) -> Callable[..., Path]:
    return lambda project, trap: make(
        project / "float.keras", project / "evil.keras", *[one(trap) if callable(one) else one for one in arguments]
    )


def of_weights(change: Callable[..., Any]) -> Callable[..., Path]:
    return lambda project, trap: hostile.with_weights(project / "float.keras", project / "evil.keras", change(trap))


ARCHIVES: dict[str, tuple[Callable[..., Path], str]] = {
    "a member above the folder": (of_archive(hostile.traversal, "../../evil"), "unpacked outside"),
    "a member by a path of Windows": (of_archive(hostile.traversal, "..\\..\\evil"), "unpacked outside"),
    "a member of the root": (of_archive(hostile.traversal, lambda trap: str(trap.canary)), "unpacked outside"),
    "a member twice": (lambda project, _: hostile.twice(project / "float.keras", project / "evil.keras"), "two members"),
    "weights that are a link": (of_archive(hostile.symlink, lambda trap: trap.secret), "is a link"),
    "encrypted": (of_archive(hostile.encrypted), "encrypted"),
    "a config of 256 MB": (of_archive(hostile.zip_bomb, "config.json"), "20 times"),
    "weights of 256 MB": (of_archive(hostile.zip_bomb, hostile.WEIGHTS), "20 times"),
    "another member of 256 MB": (of_archive(hostile.zip_bomb, "assets/more"), "20 times"),
    "4 GB that are declared": (of_archive(hostile.lying_zip), "20 times"),
    "weights in another file": (of_weights(hostile.h5_external_storage), "another file"),
    "weights that link to another file": (of_weights(hostile.h5_external_link), "another file"),
    "weights that are a view of another file": (of_weights(hostile.h5_virtual), "another file"),
    "64 GB that are stored nowhere": (of_weights(lambda _: hostile.h5_bomb), "20 times"),
    "nested 100,000 deep": (lambda project, _: hostile.deep(project / "float.keras", project / "evil.keras"), "no JSON"),
}


@pytest.mark.parametrize("made", ARCHIVES.values(), ids=ARCHIVES)
def test_a_keras_archive(made: tuple[Callable[..., Path], str], trap: Any, project: Path, caught: Callable[..., str]) -> None:
    make, words = made
    make(project, trap)
    error = caught("plan", "evil.keras", kind="malicious .keras")
    assert words in error and "evil.keras" in error


def test_what_keras_3_reads_of_an_archive(trap: Any, project: Path, other_formats: Path, caught: Callable[..., str]) -> None:
    hostile.with_weights(other_formats / "three.keras", project / "evil.keras", hostile.h5_external_storage(trap))
    assert "another file" in caught("plan", "evil.keras", kind="malicious .keras of Keras 3")


H5 = {
    "weights in another file": (hostile.h5_external_storage, "another file"),
    "weights that link to another file": (hostile.h5_external_link, "another file"),
    "weights that are a view of another file": (hostile.h5_virtual, "another file"),
    "64 GB that are stored nowhere": (lambda _: hostile.h5_bomb, "20 times"),
}


@pytest.mark.parametrize("made", H5.values(), ids=H5)
@pytest.mark.parametrize("name", few({name: name for name in ("float.h5", "three.h5")}, "float.h5"))
def test_an_h5_file(name: str, made: tuple[Any, str], trap: Any, project: Path, other_formats: Path, caught: Callable[..., str]) -> None:
    make, words = made
    shutil.copy(other_formats / name, project / "evil.h5")
    with h5py.File(project / "evil.h5", "r+") as file:
        make(trap)(file)
    assert words in caught("plan", "evil.h5", kind="malicious .h5")


# --- SavedModels ---

SAVED_MODELS: dict[str, tuple[Callable[[Path, Any], None], str]] = {
    "an operation that writes when it is loaded": (lambda folder, trap: hostile.saved_model_that_writes(folder, trap), "WriteFile"),
    "an operation that reads": (lambda folder, _: hostile.saved_operation(folder, "ReadFile"), "ReadFile"),
    "an operation that runs Python": (lambda folder, _: hostile.saved_operation(folder, "PyFunc"), "PyFunc"),
    "a Lambda layer": (lambda folder, trap: hostile.saved_metadata(folder, hostile.lambda_layer(trap, "lambda")), "Lambda"),
    "another module": (
        lambda folder, _: hostile.saved_metadata(folder, hostile.setting("Dense", "kernel_initializer", function("os", "abort"))),
        "os.abort",
    ),
    "variables that are a link": (
        lambda folder, trap: hostile.linked(folder / "variables" / "variables.data-00000-of-00001", trap),
        "another file",
    ),
}


@pytest.mark.parametrize("made", SAVED_MODELS.values(), ids=SAVED_MODELS)
def test_a_saved_model(
    made: tuple[Callable[..., None], str], trap: Any, project: Path, other_formats: Path, caught: Callable[..., str]
) -> None:
    make, words = made
    shutil.copytree(other_formats / "saved_model", project / "evil")
    make(project / "evil", trap)
    trap.canary.unlink(missing_ok=True)
    assert words in caught("plan", "evil", kind="malicious SavedModel")


# --- graphs ---

LOCATIONS = {
    "above the folder": lambda trap: "../trap/secret.bin",
    "above the folder and back": lambda trap: "sub/../../trap/secret.bin",
    "absolute": lambda trap: str(trap.secret),
    "a link": lambda trap: "link.bin",
    "a hard way up": lambda trap: "./.././trap/secret.bin",
}
GRAPH_COMMANDS: dict[str, tuple[str, ...]] = {
    "lint": ("lint", "evil.onnx"),
    "compile": ("compile", "evil.onnx", "-o", "evil.plan", "--target", "SM86"),
    "compile --json": ("compile", "evil.onnx", "-o", "evil.plan", "--target", "SM86", "--json"),
    "bench": ("bench", "evil.onnx", "--rounds", "2", "--batch", "1"),
    "infer": ("infer", "evil.onnx", "-i", "image.npy", "--json"),
    "verify": ("verify", "good.onnx", "--against", "evil.onnx"),
    "verify, the other way round": ("verify", "evil.onnx", "--against", "good.onnx"),
    "export --triton": ("export", "evil.onnx", "--triton", "repository"),
}


@pytest.mark.parametrize("command", GRAPH_COMMANDS.values(), ids=GRAPH_COMMANDS)
@pytest.mark.parametrize("location", few(LOCATIONS, "above the folder"))
def test_a_graph_with_weights_outside_its_folder(
    location: Callable[[Any], str], command: tuple[str, ...], trap: Any, project: Path, tiny_onnx: Path, caught: Callable[..., str]
) -> None:
    hostile.external_data(tiny_onnx, project / "evil.onnx", location(trap))
    shutil.copy(tiny_onnx, project / "good.onnx")
    (project / "link.bin").symlink_to(trap.secret)
    np.save(project / "image.npy", np.zeros((1, 12, 12, 1), np.float32))
    assert "evil.onnx" in caught(*command, kind="malicious .onnx")


def test_a_graph_with_weights_in_its_folder_is_taken(commands: Any, project: Path, tiny_onnx: Path, trap: Any) -> None:
    """So that what is refused above is where they lie."""
    hostile.external_data(tiny_onnx, project / "evil.onnx", "beside.bin")
    shutil.copy(trap.secret, project / "beside.bin")
    np.save(project / "image.npy", np.zeros((1, 12, 12, 1), np.float32))
    for command in ("infer", "bench"):
        ended = commands.run(*GRAPH_COMMANDS[command], cwd=project)
        assert ended.code == 0, ended.told()


# --- data ---

ARRAYS: dict[str, Callable[[Path, Any], Path]] = {
    "a pickled object in .npy": lambda project, trap: hostile.pickled(project / "evil.npy", trap),
    "a pickled object in .npz": lambda project, trap: hostile.pickled(project / "evil.npz", trap),
    "a pickle called .npy": lambda project, trap: hostile.bare_pickle(project / "evil.npy", trap),
    "a pickle called .npz": lambda project, trap: hostile.bare_pickle(project / "evil.npz", trap),
    "4 TB that are declared": lambda project, trap: hostile.npy_bomb(project / "evil.npy"),
    "320 MB of zeros": lambda project, trap: hostile.npz_bomb(project / "evil.npz"),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_arrays_for_infer(make: Callable[[Path, Any], Path], trap: Any, project: Path, tiny_onnx: Path, caught: Callable[..., str]) -> None:
    path = make(project, trap)
    error = caught("infer", tiny_onnx, "-i", path.name, kind="malicious array or image")
    assert path.name in error and ("would become" in error) == (make is ARRAYS["320 MB of zeros"])


@pytest.mark.parametrize("make", [ARRAYS["a pickled object in .npz"], ARRAYS["320 MB of zeros"]], ids=["pickled", "zeros"])
def test_arrays_for_verify(
    make: Callable[[Path, Any], Path], trap: Any, project: Path, tiny_onnx: Path, caught: Callable[..., str]
) -> None:
    path = make(project, trap)
    error = caught("verify", tiny_onnx, "--against", tiny_onnx, "--data", path.name, kind="malicious array or image")
    assert path.name in error


def test_a_picture_of_200_million_pixels(project: Path, tiny_onnx: Path, caught: Callable[..., str]) -> None:
    hostile.png_bomb(project / "evil.png")
    assert "evil.png" in caught("infer", tiny_onnx, "-i", "evil.png", "--unit", kind="malicious array or image")


def test_labels_of_64_megabytes(project: Path, tiny_onnx: Path, caught: Callable[..., str]) -> None:
    np.save(project / "image.npy", np.zeros((1, 12, 12, 1), np.float32))
    with (project / "labels.txt").open("wb") as file:
        file.truncate(64 << 20)
    error = caught("infer", tiny_onnx, "-i", "image.npy", "--labels", "labels.txt", kind="malicious array or image")
    assert "labels.txt is no file of labels: it has more than" in error


# --- recipes and run directories ---


@pytest.mark.parametrize("command", ["plan", "run", "lint", "calibrate", "sensitivity"])
def test_a_recipe_that_never_ends(command: str, project: Path, caught: Callable[..., str]) -> None:
    (project / "evil.yaml").symlink_to("/dev/zero")
    assert "evil.yaml" in caught(command, "evil.yaml", kind="malicious recipe")


@pytest.mark.parametrize(
    "key", few({key: key for key in ("data.train", "data.validation", "model.source", "sensitivity.metric")}, "data.train")
)
@pytest.mark.parametrize("reference", ["../../../../../../etc/passwd:f", "/etc/passwd:root", "../secret.py:words", "os.path:nothing"])
def test_a_reference_that_leads_to_no_function(key: str, reference: str, project: Path, caught: Callable[..., str]) -> None:
    (project.parent / "secret.py").write_text("hunter2-is-the-password\n")
    caught("run", "tiny.yaml", "--set", f"{key}={reference}", kind="malicious recipe")


@pytest.mark.robustness
@pytest.mark.parametrize("command", ["verify", "calibrate", "export", "report"])
def test_a_run_that_points_elsewhere(
    command: str, trap: Any, project: Path, finished_run: Path, tmp_path: Path, caught: Callable[..., str]
) -> None:
    """Its metrics and manifest name files outside: what is read is in the run directory, or is not read."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    hostile.pointed_elsewhere(run, trap)
    caught(*RUN_COMMANDS[command](run), kind="malicious run directory")


RUN_COMMANDS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "verify": lambda run: ("verify", run),
    "calibrate": lambda run: ("calibrate", "--from", run, "--method", "max", "--out", "new"),
    "export": lambda run: ("export", run, "-o", "new.onnx"),
    "report": lambda run: ("report", run),
}
