"""What the configuration of a model file may name: tables of what is taken and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tfqat.errors import ModelError
from tfqat.models.trust import check_config, check_operation


def named(module: str | None, name: str, **keys: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": {}, "registered_name": None, **keys}


def function(module: str, name: str) -> dict[str, Any]:
    return named(module, "function", config=name, registered_name=name)


def operation(symbol: str) -> dict[str, Any]:
    return named("keras.layers", "TFOpLambda", config={"function": symbol})


def check(config: Any, *known: str) -> None:
    check_config(config, known.__contains__, "m.keras")


TAKEN = {
    "a layer": named("keras.layers", "Conv2D"),
    "a layer by its source": named("keras.src.layers.convolutional.conv2d", "Conv2D"),
    "a layer of tf_keras": named("tf_keras.src.layers.core.dense", "Dense"),
    "a model": named("keras", "Sequential"),
    "a model by its source": named("keras.src.engine.functional", "Functional"),
    "a model of Keras 3": named("keras.src.models.functional", "Functional"),
    "an initializer": named("keras.initializers", "GlorotUniform"),
    "a policy": named("keras", "DTypePolicy"),
    "an operation of Keras 3": named("keras.src.ops.numpy", "Add"),
    "an activation": function("builtins", "relu"),
    "an activation by its source": function("keras.src.activations.activations", "silu"),
    "no module": named(None, "Dense"),
    "a tensor": {"class_name": "__keras_tensor__", "config": {"shape": [None, 4]}},
    "arithmetic": operation("math.multiply"),
    "an operator": operation("__operators__.getitem"),
    "a function of TensorFlow's": operation("concat"),
    "the same of TensorFlow 1": operation("compat.v1.nn.relu"),
    "a vocabulary": named("keras.layers", "StringLookup", config={"vocabulary": ["a", "b"]}),
}


@pytest.mark.parametrize("config", TAKEN.values(), ids=TAKEN)
def test_what_is_taken(config: Any) -> None:
    check({"config": {"layers": [config]}})
    check(config)


REFUSED = {
    "a module": (named("os", "System"), r"names os\.System"),
    "a function": (function("os", "system"), r"names os\.system"),
    "a function of Python": (function("builtins", "exec"), r"names builtins\.exec"),
    "a class of Python": (named("builtins", "Exception"), r"names builtins\.Exception"),
    "a download": (function("keras.utils", "get_file"), r"names keras\.utils\.get_file"),
    "a download as a class": (named("keras.utils", "get_file"), r"names keras\.utils\.get_file"),
    "a function that loads models, as a class": (named("keras.models", "load_model"), r"names keras\.models\.load_model"),
    "a function that loads models": (function("keras.models", "load_model"), r"names keras\.models\.load_model"),
    "a module that begins as Keras": (named("keras_evil.layers", "Dense"), r"names keras_evil\.layers\.Dense"),
    "what a module of Keras imports": (named("keras.layers", "os.system"), r"names keras\.layers\.os\.system"),
    "a type": (named("evil", "__typespec__", spec_name="TensorSpec"), r"names evil\.TensorSpec"),
    "a name that is no text": ({**named("keras.layers", "Dense"), "module": ["os"]}, r"names \['os'\]\.Dense"),
    "files": (operation("io.read_file"), r"the operation tf\.io\.read_file"),
    "raw operations": (operation("raw_ops.WriteFile"), r"the operation tf\.raw_ops\.WriteFile"),
    "Python": (operation("py_function"), r"the operation tf\.py_function"),
    "files of TensorFlow 1": (operation("compat.v1.read_file"), r"the operation tf\.compat\.v1\.read_file"),
    "a node of a graph": (
        named("keras.layers", "TensorFlowOpLayer", config={"node_def": '{"name": "x", "op": "ReadFile"}'}),
        "the TensorFlow operation ReadFile",
    ),
    "Lambda": (named("keras.layers", "Lambda"), "holds a Lambda layer"),
    "byte code": ({"class_name": "__lambda__", "config": {"value": ""}}, "holds a Lambda layer"),
    "within a layer of Keras 3": (
        named(None, "tfqat>Keras3Layer", config={"layer": '{"class_name": "X", "module": "os", "config": {}}'}),
        r"names os\.X",
    ),
    "a vocabulary in a file": (
        named("keras.layers", "StringLookup", config={"vocabulary": "/etc/passwd"}),
        "whose vocabulary is another file",
    ),
}


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(config: Any, message: str) -> None:
    for around in (config, [config], {"config": {"layers": [{"config": {"wrapped": config}}]}}):
        with pytest.raises(ModelError, match=rf"^model file m\.keras .*{message}"):
            check(around)


def test_the_loss_of_the_model_is_not_looked_at() -> None:
    """Keras does not load it; that of a model within the model it does."""
    compiled = {**named("keras", "Sequential"), "compile_config": {"loss": function("train", "my_loss")}}
    check(compiled)
    with pytest.raises(ModelError, match=r"train\.my_loss"):
        check({"config": {"layers": [compiled]}})


def test_what_the_user_gave_is_taken() -> None:
    custom = named("mine", "MyLayer", registered_name="package>MyLayer")
    check(custom, "package>MyLayer")
    check(function("mine", "my_activation"), "my_activation")
    with pytest.raises(ModelError, match="give the classes of custom layers as custom_objects"):
        check(custom, "MyLayer")  # Keras looks it up by its registered name


def test_a_configuration_of_any_depth_is_read() -> None:
    config: Any = named("os", "System")
    for _ in range(50_000):
        config = [config]
    with pytest.raises(ModelError, match=r"os\.System"):
        check(config)
    while isinstance(config, list):  # Python frees nested lists by recursion
        config = config.pop()


@pytest.mark.parametrize("name", ["ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "TFRecordDatasetV2", "SaveDatasetV2", "PrintV2"])
def test_operations_that_touch_files(name: str) -> None:
    with pytest.raises(ModelError, match=f"the TensorFlow operation {name}, which can read or write files or run code"):
        check_operation(name, "m")


@pytest.mark.parametrize("name", ["Conv2D", "SaveV2", "RestoreV2", "ReadVariableOp", "StatefulPartitionedCall", "MergeV2Checkpoints"])
def test_operations_of_every_model(name: str) -> None:
    check_operation(name, "m")
