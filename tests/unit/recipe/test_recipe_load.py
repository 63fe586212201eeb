"""Recipes in, problems out: each case is a recipe, the overrides, and the exact problems with their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfqat.errors import RecipeError
from tfqat.recipe.load import dump_recipe, load_recipe, quantization_config, recipe_hash
from tfqat.recipe.quantization import QuantizationConfig

MINIMAL = """\
version: 1
model: {source: float.keras}
data:
  train: "data.py:train"
  validation: "data.py:validation"
training:
  epochs: 30
  batch_size: 128
  learning_rate: 0.1
  loss: sparse_categorical_crossentropy
  metrics: [accuracy]
"""  # 11 lines: what a case appends starts at line 12


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "x.yaml") -> Path:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Path(name)

    return write


def problems(path: Path, overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems


BROKEN_BLOCKS = {
    "unknown key, near": (
        "quantization:\n  weights:\n    num_bit: 4\n",
        ["x.yaml:14: quantization.weights.num_bit: unknown key; did you mean 'num_bits'?"],
    ),
    "a calibrator to try": (
        "calibration: {search: [median]}\n",
        [
            "x.yaml:12: calibration.search.0: expected one of max, entropy, mse, best, or percentile(P) with P above 50 and at most 100; "
            "got 'median'"
        ],
    ),
    "unknown key, far": (
        "calibration: {zzz: 4}\n",
        ["x.yaml:12: calibration.zzz: unknown key; expected one of batches, search, rounding, bias_correction, equalization"],
    ),
    "unknown key, top level": ("quantisation: {}\n", ["x.yaml:12: quantisation: unknown key; did you mean 'quantization'?"]),
    "unknown key in a list's block": (
        "quantization:\n  overrides:\n    - match: a\n      weights: {num_bits: 8}\n    - match: b\n      weight: {num_bits: 8}\n",
        ["x.yaml:17: quantization.overrides.1.weight: unknown key; did you mean 'weights'?"],
    ),
    "text for a number": ("calibration: {batches: '16'}\n", ["x.yaml:12: calibration.batches: expected a whole number; got '16'"]),
    "float for a whole number": ("calibration:\n  batches: 16.0\n", ["x.yaml:13: calibration.batches: expected a whole number; got 16.0"]),
    "bool for a number": ("calibration: {batches: true}\n", ["x.yaml:12: calibration.batches: expected a whole number; got true"]),
    "YAML 1.1 bool": ("ptq_only: yes\n", ["x.yaml:12: ptq_only: expected true or false; got 'yes'"]),
    "number for text": ("quantization:\n  skip:\n  - a\n  - 3\n", ["x.yaml:15: quantization.skip.1: expected text; got 3"]),
    "text for a list": ("quantization: {skip: logits}\n", ["x.yaml:12: quantization.skip: expected a list; got 'logits'"]),
    "empty block": ("qat:\n", ["x.yaml:12: qat: expected a mapping; got null"]),
    "infinite number": ("qat: {lr_decay_factor: .inf}\n", ["x.yaml:12: qat.lr_decay_factor: expected a finite number; got Infinity"]),
    "date for text": ("export: {opset: 2020-01-01}\n", ["x.yaml:12: export.opset: expected a whole number; got '2020-01-01'"]),
    "misspelt choice": (
        "quantization: {preset: selectiv}\n",
        ["x.yaml:12: quantization.preset: expected 'naive', 'hybrid' or 'selective'; got 'selectiv'; did you mean 'selective'?"],
    ),
    "percentile 50 is out": (
        "quantization: {activations: {percentile: 50}}\n",
        ["x.yaml:12: quantization.activations.percentile: expected more than 50.0; got 50"],
    ),
    "opset 24": ("export: {opset: 24}\n", ["x.yaml:12: export.opset: expected at most 23; got 24"]),
    "opset 12": ("export: {opset: 12}\n", ["x.yaml:12: export.opset: expected at least 13; got 12"]),
    "1 bit": (
        "quantization: {weights: {num_bits: 1}}\n",
        ["x.yaml:12: quantization.weights.num_bits: expected at least 2; got 1"],
    ),
    "no calibration batch": ("calibration: {batches: 0}\n", ["x.yaml:12: calibration.batches: expected at least 1; got 0"]),
    "16-bit activations": (
        "quantization: {activations: {num_bits: 16}}\n",
        ["x.yaml:12: quantization.activations.num_bits: expected 8; got 16"],
    ),
    "override of nothing": (
        "quantization:\n  overrides:\n  - {match: a}\n",
        ['x.yaml:14: quantization.overrides.0: expected at least one key of weights or activations to replace; got {"match": "a"}'],
    ),
    "batch not ascending": (
        "compile: {batch: [8, 1, 32]}\n",
        ["x.yaml:12: compile.batch: expected three ascending whole numbers from 1, [min, opt, max]; got [8, 1, 32]"],
    ),
    "batch of two": (
        "compile: {batch: [1, 32]}\n",
        ["x.yaml:12: compile.batch: expected three ascending whole numbers from 1, [min, opt, max]; got [1, 32]"],
    ),
    "shape of two": (
        "compile: {shapes: {image: [[1, 8], [4, 8]]}}\n",
        [
            "x.yaml:12: compile.shapes.image: expected three shapes of one rank, [min, opt, max], each a list of whole numbers from 1; "
            "got [[1, 8], [4, 8]]"
        ],
    ),
    "shape out of order": (
        "compile: {shapes: {image: [[1, 8], [4, 4], [8, 8]]}}\n",
        ["x.yaml:12: compile.shapes.image: expected three shapes that ascend on every axis, [min, opt, max]; got [[1, 8], [4, 4], [8, 8]]"],
    ),
    "no time for an engine": (
        "compile: {timeout_s: 0}\n",
        ["x.yaml:12: compile.timeout_s: expected more than 0.0; got 0"],
    ),
    "compute capability": (
        "compile: {compute_capabilities: [SM86, '8.9']}\n",
        ["x.yaml:12: compile.compute_capabilities.1: expected text that matches ^SM\\d{2,3}$; got '8.9'"],
    ),
    "placement for one target, graph for the other": (
        "quantization: {target: tensorrt}\nexport: {target: onnxruntime}\n",
        ["x.yaml:13: export.target: quantization.target is tensorrt: leave out one of the two; got onnxruntime"],
    ),
    "4 bits and an engine": (
        "quantization:\n  weights:\n    num_bits: 4\n",
        [
            "x.yaml:14: quantization.weights.num_bits: TensorRT has no convolution below 8 bits; "
            "set compile.enabled: false, or 8 bits; got 4"
        ],
    ),
    "4 bits in an override and an engine": (
        "quantization:\n  overrides:\n  - match: a\n    weights:\n      num_bits: 4\n",
        [
            "x.yaml:16: quantization.overrides.0.weights.num_bits: TensorRT has no convolution below 8 bits; "
            "set compile.enabled: false, or 8 bits; got 4"
        ],
    ),
    "all at once, in the order of the lines": (
        "seed: -1\nquantization: {weights: {num_bits: 4}}\ncalibration: {batch: 3}\nptq_only: 1\n",
        [
            "x.yaml:12: seed: expected at least 0; got -1",
            "x.yaml:13: quantization.weights.num_bits: TensorRT has no convolution below 8 bits; "
            "set compile.enabled: false, or 8 bits; got 4",
            "x.yaml:14: calibration.batch: unknown key; did you mean 'batches'?",
            "x.yaml:15: ptq_only: expected true or false; got 1",
        ],
    ),
    "duplicate key, with another problem": (
        "seed: 1\nseed: 2\nptq_only: 1\n",
        ["x.yaml:13: seed: duplicate key; the first is at x.yaml:12", "x.yaml:14: ptq_only: expected true or false; got 1"],
    ),
    "duplicate block, with problems in the first": (
        "calibration: {batch: 1}\ncalibration: {batches: 1}\n",
        [
            "x.yaml:12: calibration.batch: unknown key; did you mean 'batches'?",
            "x.yaml:13: calibration: duplicate key; the first is at x.yaml:12",
        ],
    ),
    "merge key": (
        "calibration: {<<: {batches: 3}}\n",
        ["x.yaml:12: calibration.<<: unknown key; expected one of batches, search, rounding, bias_correction, equalization"],
    ),
    "python tag": (
        "seed: !!python/object/apply:os.system [touch x]\n",
        ["x.yaml:12: seed: the tag !!python/object/apply:os.system is refused: a recipe holds plain values only"],
    ),
    "private tag": ("seed: !env SEED\n", ["x.yaml:12: seed: the tag !env is refused: a recipe holds plain values only"]),
    "tag that does not fit": ("seed: !!int x\n", ["x.yaml:12: seed: 'x' is no int"]),
    "key that is a list": ("? [a]\n: 1\n", ["x.yaml:12: a key must be text, not a list or a mapping"]),
    "alias of itself": ("qat: &a {optimizer: *a}\n", ["x.yaml:1: not a recipe: more than 10000 values, or nested too deeply"]),
}


@pytest.mark.parametrize("name", BROKEN_BLOCKS)
def test_problems_of_a_block(write, name: str) -> None:
    appended, expected = BROKEN_BLOCKS[name]
    assert list(problems(write(MINIMAL + appended))) == expected


BROKEN_FILES = {
    "empty": ("", ["x.yaml:1: expected a mapping with the keys of a recipe; got an empty file"]),
    "a list": ("- 1\n", ["x.yaml:1: expected a mapping with the keys of a recipe; got [1]"]),
    "not YAML": ("version: 1\nmodel: [a\ndata: 2\n", ["x.yaml:3: not YAML: expected ',' or ']', but got ':'"]),
    "tab": ("a:\n  b: 1\n\tc: 2\n", ["x.yaml:3: not YAML: found character '\\t' that cannot start any token"]),
    "two documents": ("a: 1\n---\nb: 2\n", ["x.yaml:2: not YAML: but found another document"]),
    "pattern without quotes": (
        "quantization:\n  skip: [*_conv]\n",
        ["x.yaml:2: not YAML: found undefined alias '_conv'; a pattern that starts with * needs quotes"],
    ),
    "control character": ("a: \x01\n", ["x.yaml:1: not YAML: unacceptable character #x0001: special characters are not allowed"]),
    "not UTF-8": (b"a: \xff\n", ["x.yaml: cannot read the recipe: it is not UTF-8 text"]),
    "aliases of aliases": (
        "a0: &a0 [0,0,0,0,0,0,0,0,0,0]\n" + "".join(f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(9)),
        ["x.yaml:1: not a recipe: more than 10000 values, or nested too deeply"],
    ),
    "nested too deeply": ("a: " + "[" * 2000, ["x.yaml:1: not a recipe: more than 10000 values, or nested too deeply"]),
    "keys missing, at the line of their block": (
        "version: 1\ntraining:\n  epochs: 3\n  batch_size: 8\n  learning_rate: 0\nmodel:\n  sauce: a\n",
        [
            "x.yaml:1: data: missing; expected: Functions that return the data.",
            "x.yaml:2: training.loss: missing; expected: Loss, a Keras name or {name: ..., keyword arguments of its class}.",
            "x.yaml:2: training.metrics: missing; expected: Keras metrics; the first one chooses the best checkpoint.",
            "x.yaml:5: training.learning_rate: expected more than 0.0; got 0",
            "x.yaml:6: model.source: missing; expected: The trained Keras model: a .keras or .h5 file, a SavedModel folder, "
            "or module:function or path/file.py:function.",
            "x.yaml:7: model.sauce: unknown key; did you mean 'source'?",
        ],
    ),
    "version is a bool": (MINIMAL.replace("version: 1", "version: true"), ["x.yaml:1: version: expected 1; got true"]),
    "version 2": (MINIMAL.replace("version: 1", "version: 2"), ["x.yaml:1: version: expected 1; got 2"]),
    "reference without function": (
        MINIMAL.replace("data.py:train", "data.py"),
        ["x.yaml:4: data.train: expected module:function or path/file.py:function; got 'data.py'"],
    ),
    "no metric": (MINIMAL.replace("[accuracy]", "[]"), ["x.yaml:11: training.metrics: expected a list of at least 1; got []"]),
    "loss without a name": (
        MINIMAL.replace("loss: sparse_categorical_crossentropy", "loss: {from_logits: true}"),
        ["x.yaml:10: training.loss.name: missing; expected: A loss function or class of Keras, e.g. SparseCategoricalCrossentropy."],
    ),
    "loss is a number": (
        MINIMAL.replace("loss: sparse_categorical_crossentropy", "loss: 3"),
        ["x.yaml:10: training.loss: expected a mapping; got 3"],
    ),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_problems_of_a_file(write, name: str) -> None:
    text, expected = BROKEN_FILES[name]
    assert list(problems(write(text))) == expected


def test_missing_file_and_folder(write, tmp_path: Path) -> None:
    assert problems(Path("no.yaml")) == ("no.yaml: cannot read the recipe: No such file or directory",)
    assert problems(tmp_path) == (f"{tmp_path}: cannot read the recipe: Is a directory",)


def test_the_path_is_shown_as_given_and_the_message_holds_every_problem(write) -> None:
    Path("recipes").mkdir()
    path = write(MINIMAL + "seed: a\nptq_only: 3\n", "recipes/y.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        "recipes/y.yaml:12: seed: expected a whole number; got 'a'\nrecipes/y.yaml:13: ptq_only: expected true or false; got 3"
    )


OVERRIDES = {
    "number": ("quantization.activations.percentile=99.9", lambda r: r.quantization.activations.percentile, 99.9),
    "exponent": ("training.learning_rate=1e-3", lambda r: r.training.learning_rate, 0.001),
    "bool": ("compile.enabled=false", lambda r: r.compile.enabled, False),
    "text with colon": ("data.train=other.py:load", lambda r: r.data.train, "other.py:load"),
    "text with equals": ("model.source=a=b.keras", lambda r: r.model.source, "a=b.keras"),
    "flow list": ("quantization.skip=[a, 're:b.*']", lambda r: r.quantization.skip, ("a", "re:b.*")),
    "flow mapping": ("training.loss={name: X, from_logits: true}", lambda r: r.training.loss.arguments, {"from_logits": True}),
    "new list": ("quantization.skip.0='*_conv'", lambda r: r.quantization.skip, ("*_conv",)),
    "element": ("training.metrics.0=top_k", lambda r: r.training.metrics, ("top_k",)),
    "element after the last": ("training.metrics.1=top_k", lambda r: r.training.metrics, ("accuracy", "top_k")),
    "spaces around": (" seed = 3 ", lambda r: r.seed, 3),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_override(write, name: str) -> None:
    text, read, expected = OVERRIDES[name]
    path = write(MINIMAL)
    assert read(load_recipe(path)) != expected
    assert read(load_recipe(path, [text])) == expected


def test_the_later_override_wins_and_a_null_block_is_filled(write) -> None:
    recipe = load_recipe(write(MINIMAL + "calibration:\nseed: x\n"), ["seed=1", "calibration.batches=4", "seed=2"])
    assert (recipe.seed, recipe.calibration.batches) == (2, 4)


BROKEN_OVERRIDES = {
    "no equals": (["seed"], ["--set seed: expected key.path=value, such as quantization.activations.percentile=99.9"]),
    "no key": (["=3"], ["--set =3: expected key.path=value, such as quantization.activations.percentile=99.9"]),
    "empty part": (["a..b=3"], ["--set a..b=3: expected key.path=value, such as quantization.activations.percentile=99.9"]),
    "not YAML": (["seed=[1"], ["--set seed=[1: seed: not YAML: expected ',' or ']', but got '<stream end>'"]),
    "pattern without quotes": (
        ["quantization.skip=[*_conv]"],
        [
            "--set quantization.skip=[*_conv]: quantization.skip: not YAML: found undefined alias '_conv'; "
            "a pattern that starts with * needs quotes"
        ],
    ),
    "tag": (["seed=!env X"], ["--set seed=!env X: seed: the tag !env is refused: a recipe holds plain values only"]),
    "wrong type": (["training.epochs='3'"], ["--set training.epochs='3': training.epochs: expected a whole number; got '3'"]),
    "unknown block": (
        ["quantisation.weights.num_bits=4"],
        ["--set quantisation.weights.num_bits=4: quantisation: unknown key; did you mean 'quantization'?"],
    ),
    "unknown key below": (["qat={emma: true}"], ["--set qat={emma: true}: qat.emma: unknown key; did you mean 'ema'?"]),
    "index past the end": (
        ["training.metrics.2=x"],
        ["--set training.metrics.2=x: training.metrics is [\"accuracy\"], which has no place for '2'"],
    ),
    "key of a list": (
        ["training.metrics.first=x"],
        ["--set training.metrics.first=x: training.metrics is [\"accuracy\"], which has no place for 'first'"],
    ),
    "key of a scalar": (
        ["training.epochs.x=1"],
        ["--set training.epochs.x=1: training.epochs is 30, which has no place for 'x'"],
    ),
    "4 bits": (
        ["quantization.weights.num_bits=4"],
        [
            "--set quantization.weights.num_bits=4: quantization.weights.num_bits: TensorRT has no convolution below 8 bits; "
            "set compile.enabled: false, or 8 bits; got 4"
        ],
    ),
    "the file's problems come first": (
        ["seed=x", "training.epochs=0"],
        [
            "x.yaml:12: ptq_only: expected true or false; got 3",
            "--set training.epochs=0: training.epochs: expected at least 1; got 0",
            "--set seed=x: seed: expected a whole number; got 'x'",
        ],
    ),
}


@pytest.mark.parametrize("name", BROKEN_OVERRIDES)
def test_problems_of_overrides(write, name: str) -> None:
    overrides, expected = BROKEN_OVERRIDES[name]
    path = write(MINIMAL + ("ptq_only: 3\n" if name.startswith("the file") else ""))
    assert list(problems(path, tuple(overrides))) == expected


FULL = (
    MINIMAL.replace("loss: sparse_categorical_crossentropy", "loss: {name: SparseCategoricalCrossentropy, from_logits: true}")
    + """\
quantization:
  preset: hybrid
  weights: {num_bits: 4}
  skip: ["*_conv", "re:^a.*$", "yes", "1"]
  overrides:
  - {match: "stem_*", activations: {calibrator: entropy}}
  - {match: Dense, weights: {num_bits: 8}}
qat: {lr_decay_factor: 1.0e-05, optimizer: {nesterov: true}}
compile: {enabled: false, batch: [1, 1, 64]}
"""
)


@pytest.mark.parametrize("text", [MINIMAL, FULL], ids=["minimal", "full"])
def test_dump_loads_back_to_an_equal_recipe(write, text: str) -> None:
    recipe = load_recipe(write(text))
    again = load_recipe(write(dump_recipe(recipe), "again.yaml"))
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)
    assert [override.weights and override.weights.model_fields_set for override in again.quantization.overrides] == [
        override.weights and override.weights.model_fields_set for override in recipe.quantization.overrides
    ]


def test_dump_spells_out_the_defaults(write) -> None:
    lines = dump_recipe(load_recipe(write(MINIMAL))).splitlines()
    assert lines[:6] == ["version: 1", "model:", "  source: float.keras", "  custom_objects: {}", "data:", "  train: data.py:train"]
    assert "    percentile: 99.99" in lines
    assert "  calibration: null" in lines
    assert "  loss: sparse_categorical_crossentropy" in lines


def test_hash_depends_on_values_only(write) -> None:
    recipe = load_recipe(write(MINIMAL))
    same = load_recipe(write("# a comment\n" + MINIMAL + "seed: 0\n", "other.yaml"))
    assert recipe_hash(recipe) == recipe_hash(same)
    assert len(recipe_hash(recipe)) == 12 and int(recipe_hash(recipe), 16) >= 0
    assert recipe_hash(load_recipe(write(MINIMAL), ["seed=1"])) != recipe_hash(recipe)


def test_quantization_config_takes_a_preset_a_mapping_or_itself() -> None:
    assert quantization_config("naive").preset == "naive"
    assert quantization_config({"weights": {"num_bits": 4}}).weights.num_bits == 4
    config = QuantizationConfig(skip=("a",))
    assert quantization_config(config) is config


QUANTIZATION_PROBLEMS = {
    "preset": ("naiv", ["quantization.preset: expected 'naive', 'hybrid' or 'selective'; got 'naiv'; did you mean 'naive'?"]),
    "two keys": (
        {"skips": [], "weights": {"num_bits": 9}},
        ["quantization.weights.num_bits: expected at most 8; got 9", "quantization.skips: unknown key; did you mean 'skip'?"],
    ),
    "number": (3, ["quantization: expected a mapping; got 3"]),
}


@pytest.mark.parametrize("name", QUANTIZATION_PROBLEMS)
def test_quantization_config_reports_every_problem(name: str) -> None:
    value, expected = QUANTIZATION_PROBLEMS[name]
    with pytest.raises(RecipeError) as caught:
        quantization_config(value)
    assert list(caught.value.problems) == expected
