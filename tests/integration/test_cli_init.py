"""`tfqat init`: a project that can be planned at once and run with data, from three kinds of model, an example, a foreign recipe."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tfqat_cli.commands import init as command

from tfqat.recipe.json_schema import MODELINE
from tfqat.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]


def classifier(path: Path) -> None:
    import tf_keras
    from tf_keras import layers

    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(16, 3, activation="relu", name="conv")(image))
    tf_keras.Model(image, layers.Dense(4, activation="softmax", name="kind")(x), name="classifier").save(path)


def two_and_two(path: Path) -> None:
    import tf_keras
    from tf_keras import layers

    image, numbers = tf_keras.Input((8, 8, 3), name="image"), tf_keras.Input((5,), name="numbers")
    x = layers.Concatenate()([layers.Flatten()(layers.Conv2D(16, 3, name="conv")(image)), layers.Dense(16, name="fc")(numbers)])
    outputs = [layers.Dense(3, activation="softmax", name="kind")(x), layers.Dense(4, name="box")(x)]
    tf_keras.Model([image, numbers], outputs, name="two").save(path)


def of_keras3(path: Path) -> None:
    import keras

    keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(1, activation="sigmoid", name="yes"),
        ],
        name="three",
    ).save(path)


# file, what saves it, the loss that is guessed, the inputs and outputs of data.py
MODELS: dict[str, tuple[str, Callable[[Path], None], str, list[str]]] = {
    "classifier": ("my models/float.keras", classifier, "SparseCategoricalCrossentropy", ["image", "kind"]),
    "two inputs, two outputs, SavedModel": ("saved", two_and_two, "mean_squared_error", ["image", "numbers", "kind", "box"]),
    "Keras 3": ("three.keras", of_keras3, "BinaryCrossentropy", ["image", "yes"]),
}


@pytest.mark.parametrize(("file", "save", "loss", "names"), MODELS.values(), ids=MODELS)
def test_init_plan_run(
    file: str,
    save: Callable[[Path], None],
    loss: str,
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tfqat_command: Callable[..., Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    save(tmp_path / file)
    made = tfqat_command("init", file, "-o", "project")
    assert made.code == 0, made.err
    assert "written to project: recipe.yaml, recipe.schema.json, data.py" in made.out
    assert "cd project" in made.out and "tfqat plan recipe.yaml" in made.out and loss in made.out

    project = tmp_path / "project"
    recipe = load_recipe(project / "recipe.yaml")
    assert (recipe.model.source, recipe.training.loss.name) == (f"../{file}", loss)
    assert (project / "recipe.yaml").read_text().startswith(MODELINE)
    assert (project / "recipe.schema.json").read_text() == tfqat_command("schema").out
    assert all(f"'{name}': (" in (project / "data.py").read_text() for name in names)

    monkeypatch.chdir(project)
    planned = tfqat_command("plan", "recipe.yaml")
    assert planned.code == 0, planned.err
    assert "conv" in planned.out and "QAT schedule" in planned.out

    stopped = tfqat_command("run", "recipe.yaml")
    assert stopped.code == 2
    assert "validation() of data.py is still a stub: have it return your data" in stopped.err
    assert not (project / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "save", "loss", "names"),
    [pytest.param(*case, id=name, marks=[pytest.mark.sweep] if number else []) for number, (name, case) in enumerate(MODELS.items())],
)
@pytest.mark.parametrize("qat", [False, pytest.param(True, marks=pytest.mark.sweep)], ids=["ptq_only", "qat"])
def test_init_run(
    file: str,
    save: Callable[[Path], None],
    loss: str,
    names: list[str],
    qat: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tfqat_command: Callable[..., Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    save(tmp_path / file)
    assert tfqat_command("init", file, "-o", "project").code == 0
    project = tmp_path / "project"
    monkeypatch.chdir(project)
    text = (project / "data.py").read_text()
    (project / "data.py").write_text(re.sub(r"return _to_do\(.*\)", "return random_numbers()", text))
    ran = tfqat_command("run", "recipe.yaml", f"--set=ptq_only={str(not qat).lower()}", "--set=compile.enabled=false")
    assert ran.code == 0, ran.err
    assert "RANDOM NUMBERS in the place of data" in ran.err
    (directory,) = (project / "runs").iterdir()
    assert json.loads((directory / "parity.json").read_text())["passed"]
    assert (directory / "qat.keras").exists() == qat


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "float.keras"
    classifier(path)
    return path


@pytest.mark.parametrize("there", ["recipe.yaml", "recipe.schema.json", "data.py"])
def test_nothing_is_overwritten(there: str, model: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    (tmp_path / there).write_text("mine")
    result = tfqat_command("init", model, "-o", tmp_path)
    assert result.code == 2
    assert f"{tmp_path} has {there} already, and nothing is overwritten" in result.err
    assert [path.name for path in tmp_path.iterdir()] == [there] and (tmp_path / there).read_text() == "mine"


def test_the_folder_is_this_one_if_none_is_given(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tfqat_command: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "float.keras")
    result = tfqat_command("init", "float.keras")
    assert result.code == 0 and "cd " not in result.out
    assert load_recipe("recipe.yaml").model.source == "float.keras"


WRONG: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "give the model's file, or --example fashion_mnist, or --from"),
    "no such file": (["none.keras"], "model file none.keras does not exist"),
    "a function": (["nets.py:build"], "is a function, and init takes a model's file"),
    "an example and a model": (["m.keras", "--example", "fashion_mnist"], "--example comes with its own model and recipe"),
    "no such example": (["--example", "fashion_mnits"], "there is no example 'fashion_mnits'; did you mean 'fashion_mnist'?"),
    "no such recipe": (["--from", "none.yaml"], "none.yaml: cannot read the SuperGradients recipe: No such file or directory"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tfqat_command: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tfqat_command("init", *arguments)
    assert result.code == 2
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.err).split())
    assert list(tmp_path.iterdir()) == []


def test_example(tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    folder = tmp_path / "fashion"
    result = tfqat_command("init", "--example", "fashion_mnist", "-o", folder)
    assert result.code == 0 and "tfqat run recipe.yaml" in result.out
    source = ROOT / "examples" / "fashion_mnist"
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    written = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(written) == expected | {"recipe.yaml", "recipe.schema.json"}
    assert all(written[name].read_bytes() == (source / name).read_bytes() for name in expected)
    recipe, original = load_recipe(folder / "recipe.yaml"), load_recipe(ROOT / "recipes" / "fashion_mnist.yaml")
    assert recipe.model.source == "float.keras" and recipe.data.train == "data.py:bundled_train"
    assert recipe.model_copy(update={"model": original.model, "data": original.data}) == original
    assert "examples/" not in (folder / "recipe.yaml").read_text()
    assert tfqat_command("init", "--example", "fashion_mnist", "-o", folder).code == 2


FOREIGN = """\
defaults: [cifar10_resnet, _self_]
architecture: resnet18
quantization_params:
  ptq_only: true
  selective_quantizer_params: {calibrator_w: max, calibrator_i: histogram, per_channel: false, skip_modules: [conv, pool.x]}
  calib_params: {histogram_calib_method: entropy, num_calib_batches: 3, verbose: false}
pre_launch_callbacks_list:
  - QATRecipeModificationCallback: {max_epochs_divisor: 5, disable_augmentations: true}
"""


@pytest.mark.parametrize("with_model", [True, False], ids=["with a model", "alone"])
def test_from_super_gradients(with_model: bool, model: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    (tmp_path / "sg.yaml").write_text(FOREIGN)
    folder = tmp_path / "project"
    result = tfqat_command("init", *([model] if with_model else []), "--from", tmp_path / "sg.yaml", "-o", folder)
    assert result.code == 0, result.err
    recipe, text = load_recipe(folder / "recipe.yaml"), (folder / "recipe.yaml").read_text()
    assert recipe.ptq_only and recipe.calibration.batches == 3 and recipe.qat.max_epochs_divisor == 5
    assert (recipe.quantization.weights.granularity, recipe.quantization.activations.calibrator) == ("per_tensor", "entropy")
    for key in ("defaults", "architecture", "quantization_params.calib_params.verbose", "disable_augmentations"):
        assert key in result.out and key in text
    if with_model:
        assert recipe.quantization.skip == ("conv",)
        assert "Not skipped, since no layer of the model has these names: pool.x" in text and "skip_modules: pool.x" in result.out
        assert tfqat_command("plan", folder / "recipe.yaml").code == 0
    else:
        assert recipe.quantization.skip == ("conv", "pool.x")
        assert "names of PyTorch modules" in text and "tfqat init MODEL --from FILE" in result.out
        assert sorted(path.name for path in folder.iterdir()) == ["recipe.schema.json", "recipe.yaml"]


def test_not_yaml(tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    (tmp_path / "sg.yaml").write_text("a: [")
    result = tfqat_command("init", "--from", tmp_path / "sg.yaml", "-o", tmp_path / "project")
    assert result.code == 2 and "sg.yaml:1: not YAML" in result.err
    assert not (tmp_path / "project").exists()


def test_the_options_that_need_no_model_start_no_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "sg.yaml").write_text(FOREIGN)
    code = (
        f"import sys; from pathlib import Path; sys.path[:0] = {[str(ROOT), str(ROOT / 'cli')]!r}\n"
        "from tfqat_cli.commands.init import init\n"
        f"init(None, Path({str(tmp_path / 'p')!r}), None, Path({str(tmp_path / 'sg.yaml')!r}))\n"
        f"init(None, Path({str(tmp_path / 'q')!r}), 'fashion_mnist', None)\n"
        "print('imported:', sorted({'tensorflow', 'tf_keras'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"
    assert command.init.__doc__ and "Nothing is overwritten" in command.init.__doc__
