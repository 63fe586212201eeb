"""The canonical form: flattening, shared layers, names, inputs and outputs, what is copied, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

from tfqat.errors import ModelError
from tfqat.models.canonical import Canonical, canonicalize, is_canonical

RNG = np.random.default_rng(0)


def functional(inputs: Any, outputs: Any, name: str = "net") -> Any:
    return tf_keras.Model(inputs, outputs, name=name)


def randomized(model: Any) -> Any:
    model.set_weights([RNG.uniform(0.2, 1.2, weight.shape).astype(weight.dtype) for weight in model.get_weights()])
    return model


def values_for(model: Any) -> Any:
    return tf.nest.map_structure(
        lambda tensor: RNG.normal(size=[size or 4 for size in tensor.shape]).astype(tensor.dtype.as_numpy_dtype), model._nested_inputs
    )


def state_of(model: Any) -> Any:
    """Whatever of a model a careless copy would change."""
    flat = list(model._flatten_layers())
    return (
        [layer.name for layer in flat],
        [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in flat],
        [(id(weight), weight.name, weight.numpy().tobytes()) for weight in model.weights],
    )


def check(model: Any, *, training: bool = False) -> Canonical:
    """The canonical form, after checks of everything that holds for every model."""
    before, values = state_of(model), values_for(model)
    result = canonicalize(model)
    assert state_of(model) == before
    assert not {id(weight) for weight in model.weights} & {id(weight) for weight in result.model.weights}
    tf.nest.assert_same_structure(model._nested_outputs, result.model._nested_outputs)
    tf.nest.map_structure(np.testing.assert_array_equal, model(values, training=training), result.model(values, training=training))
    assert type(result.model).__name__ == "Functional" and result.model.name == model.name
    assert is_canonical(result.model)
    again = canonicalize(result.model)
    assert again.model.get_config() == result.model.get_config()
    assert [layer.name for layer in again.model.layers] == [layer.name for layer in result.model.layers]
    for name, sources in result.origins.items():
        for weight, source in zip(result.model.get_layer(name).weights, sources, strict=True):
            assert np.array_equal(weight.numpy().ravel(), source.numpy().ravel())
    assert set(result.origins) == {layer.name for layer in result.model.layers if layer.weights}
    return result


def names_of(result: Canonical) -> list[str]:
    return [layer.name for layer in result.model.layers]


def encoder(name: str = "encoder") -> Any:
    x = layers.Input((4,), name="features")
    y = layers.Dense(4, name="first")(x)
    return functional(x, layers.BatchNormalization(name="bn")(y), name)


def flat() -> Any:
    x = layers.Input((6, 6, 2), name="image")
    y = layers.Conv2D(2, 3, padding="same", name="conv")(x)
    y = layers.Add(name="sum")([x, layers.BatchNormalization(name="bn")(y)])
    return functional(x, layers.Dense(3, name="fc")(layers.Flatten(name="flat")(y)))


def test_a_flat_model_is_copied_as_it_is() -> None:
    model = randomized(flat())
    result = check(model)
    assert is_canonical(model)
    assert result.model.get_config() == model.get_config()
    assert result.origins["conv"] == (model.get_layer("conv").kernel, model.get_layer("conv").bias)


def sequential() -> Any:
    return tf_keras.Sequential([layers.Input((4,), name="x"), layers.Dense(3, name="a"), encoder_of(3)], name="net")


def encoder_of(size: int) -> Any:
    return tf_keras.Sequential([layers.Input((size,)), layers.Dense(2, name="b")], name="inner")


def deep() -> Any:
    x = layers.Input((4,), name="x")
    inner = tf_keras.Sequential([layers.Input((4,)), encoder(), layers.ReLU(name="act")], name="middle")
    return functional(x, inner(layers.Dense(4, name="stem")(x)))


def unbuilt_sequential_inside() -> Any:
    x = layers.Input((4,), name="x")
    return functional(x, tf_keras.Sequential([layers.Dense(3, name="a"), layers.ReLU(name="b")], name="head")(x))


def siamese() -> Any:
    x, y = layers.Input((4,), name="x"), layers.Input((4,), name="y")
    shared = encoder()
    return functional([x, y], layers.Subtract(name="minus")([shared(x), shared(y)]))


def shared_layer_in_a_row() -> Any:
    x = layers.Input((4,), name="x")
    dense = layers.Dense(4, activation="relu", name="dense")
    return functional(x, dense(dense(dense(x))))


def shared_by_two_models() -> Any:
    x = layers.Input((4,), name="x")
    inner = encoder()
    outer = tf_keras.Sequential([layers.Input((4,)), inner, layers.ReLU(name="act")], name="outer")
    return functional(x, layers.Add(name="sum")([outer(x), inner(x)]))


def dictionaries() -> Any:
    a, b = layers.Input((4,), name="a"), layers.Input((4,), name="b")
    inner = functional({"q": b, "p": a}, {"sum": layers.Add(name="s")([a, b]), "minus": layers.Subtract(name="m")([a, b])}, "inner")
    x, y = layers.Input((4,), name="x"), layers.Input((4,), name="y")
    made = inner({"p": x, "q": y})
    return functional({"x": x, "y": y}, {"one": layers.ReLU(name="r")(made["minus"]), "two": [made["sum"], x]})


def several_inner_inputs() -> Any:
    a, b = layers.Input((4,), name="a"), layers.Input((4,), name="b")
    inner = functional([a, b], layers.Subtract(name="m")([a, b]), "inner")
    x, y = layers.Input((4,), name="x"), layers.Input((4,), name="y")
    return functional([x, y], layers.ReLU(name="r")(inner({"b": x, "a": y})))


def operations() -> Any:
    x = layers.Input((4,), name="x")
    inner = layers.Input((4,), name="features")
    block = functional(inner, tf.nn.relu(tf.square(inner)) + inner, "block")
    y = tf.nn.relu(block(x))
    return functional(x, layers.Dense(2, name="fc")(layers.Add(name="add")([y, x])))


def two_calls_of_operations() -> Any:
    inner = layers.Input((4,), name="features")
    block = functional(inner, tf.nn.relu(inner * 2.0), "block")
    x = layers.Input((4,), name="x")
    return functional(x, layers.ReLU(name="end")(block(block(x))))


def inner_input_of_another_type() -> Any:
    image = layers.Input((4, 1), name="image")
    inner = functional(image, layers.Rescaling(2.0, name="double")(image), "inner")
    x = layers.Input((4,), dtype="int32", name="x")
    return functional(x, layers.ReLU(name="end")(inner(x)))


def intermediate_tensors() -> Any:
    base = flat()
    features = functional(base.input, [base.get_layer("conv").output, base.get_layer("sum").output], "features")
    x = layers.Input((6, 6, 2), name="x")
    return functional(x, [layers.ReLU(name=f"end{index}")(output) for index, output in enumerate(features(x))])


def from_the_middle() -> Any:
    base = flat()
    return functional(base.get_layer("sum").output, base.output)


def arguments_by_name() -> Any:
    class Mix(layers.Layer):
        def call(self, z: Any, scale: float, b: Any = None, a: Any = None) -> Any:
            return scale * z + 2.0 * b - a

    x, y, z = (layers.Input((4,), name=name) for name in "xyz")
    return functional([x, y, z], Mix(name="mix")(x, 3.0, b=y, a=z))


def normalization() -> Any:
    layer = layers.Normalization(name="norm")
    layer.adapt(RNG.normal(3, 2, (50, 4)).astype(np.float32))
    x = layers.Input((4,), name="x")
    return functional(x, layer(x))


def wrapped() -> Any:
    class Own(layers.Layer):
        def call(self, x: Any) -> Any:
            return x + 1.0

    x = layers.Input((3, 4), name="x")
    y = layers.TimeDistributed(Own(name="own"), name="each")(x)
    return functional(x, layers.Bidirectional(layers.LSTM(2, return_sequences=True), name="both")(y))


def lambdas() -> Any:
    factor, shift = 3.0, 1.0
    x = layers.Input((4,), name="x")
    y = layers.Lambda(lambda value: value * factor, name="closure")(x)
    y = layers.Lambda(lambda value, shift: value + shift, arguments={"shift": shift}, name="arguments")(y)
    return functional(x, y)


def variable_in_an_operation() -> Any:
    x = layers.Input((4,), name="x")
    return functional(x, tf.pow(x, tf.constant(2.0)) + tf.Variable([1.0, 2.0, 3.0, 4.0]))


def input_as_output() -> Any:
    x = layers.Input((4,), name="x")
    return functional(x, [x, layers.ReLU(name="r")(x)])


def unused_input() -> Any:
    x, y = layers.Input((4,), name="x"), layers.Input((4,), name="y")
    return functional([x, y], layers.ReLU(name="r")(y))


MODELS: dict[str, tuple[Callable[[], Any], list[str] | None]] = {
    "Sequential": (sequential, ["x", "a", "inner/b"]),
    "two models deep": (deep, ["x", "stem", "middle/encoder/first", "middle/encoder/bn", "middle/act"]),
    "a Sequential without an input shape inside": (unbuilt_sequential_inside, ["x", "head/a", "head/b"]),
    "a model called twice": (siamese, ["x", "y", "encoder/first", "encoder/bn", "minus"]),
    "a layer called three times": (shared_layer_in_a_row, ["x", "dense"]),
    "a model that another one shares": (shared_by_two_models, ["x", "outer/encoder/first", "outer/encoder/bn", "outer/act", "sum"]),
    "dictionaries": (dictionaries, ["x", "y", "inner/m", "r", "inner/s"]),
    "inner inputs by name": (several_inner_inputs, ["y", "x", "inner/m", "r"]),
    "operations": (operations, ["x", "block/tf.math.square", "block/relu", "block/add", "relu_1", "add", "fc"]),
    "a model of operations called twice": (two_calls_of_operations, ["x", "block/multiply", "block/relu", "end"]),
    "an inner input of another type": (inner_input_of_another_type, ["x", "inner/tf.expand_dims", "inner/tf.cast", "inner/double", "end"]),
    "tensors from the middle of a model": (intermediate_tensors, ["x", "features/conv", "features/bn", "features/sum", "end0", "end1"]),
    "a model from the middle of another": (from_the_middle, None),
    "arguments by name": (arguments_by_name, ["x", "y", "z", "mix"]),
    "Normalization": (normalization, ["x", "norm"]),
    "wrappers": (wrapped, ["x", "each", "both"]),
    "Lambda": (lambdas, ["x", "closure", "arguments"]),
    "a variable in an operation": (variable_in_an_operation, ["x", "tf.math.pow", "tf.__operators__.add"]),
    "an input that is an output": (input_as_output, ["x", "r"]),
    "an unused input": (unused_input, ["y", "x", "r"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_the_canonical_form_is_flat_and_computes_the_same(case: str) -> None:
    build, expected = MODELS[case]
    tf_keras.backend.clear_session()
    model = build()
    result = check(model if case == "Normalization" else randomized(model))
    assert sorted(names_of(result)) == sorted(expected or [layer.name for layer in model.layers])


def test_a_model_called_twice_is_one_set_of_layers() -> None:
    model = randomized(siamese())
    result = check(model)
    assert not is_canonical(model)
    assert [len(result.model.get_layer(f"encoder/{name}")._inbound_nodes) for name in ("first", "bn")] == [2, 2]
    assert result.model.count_params() == model.count_params()
    assert result.origins["encoder/first"] == tuple(model.get_layer("encoder").get_layer("first").weights)


def test_inputs_and_outputs_keep_their_order_and_structure() -> None:
    result = check(dictionaries())
    assert {name: tensor.name for name, tensor in result.model._nested_inputs.items()} == {"x": "x", "y": "y"}
    several = check(several_inner_inputs())
    assert several.model.input_names == ["x", "y"]
    assert check(unused_input()).model.input_names == ["x", "y"]


def test_names_of_outputs_are_kept() -> None:
    x = layers.Input((4,), name="x")
    model = functional(x, [tf.nn.softmax(x), layers.Dense(2, name="fc")(x), encoder()(x)])
    result = check(model)
    operation = model.output_names[0]
    assert operation.startswith("tf.nn.softmax")
    assert result.model.output_names == [operation, "fc", "encoder/bn"]
    assert type(result.model.get_layer(operation)).__name__ == "Softmax"


def test_a_new_name_is_a_free_one() -> None:
    tf_keras.backend.clear_session()
    x = layers.Input((4,), name="x")
    y = layers.ReLU(name="relu")(tf.nn.relu(layers.Dense(4, name="relu_1")(x)))
    assert sorted(names_of(check(functional(x, y)))) == ["relu", "relu_1", "relu_2", "x"]


def test_a_path_that_a_layer_already_has_is_not_given_twice() -> None:
    x = layers.Input((4,), name="x")
    model = randomized(functional(x, layers.Dense(4, name="encoder/first")(encoder()(x))))
    assert sorted(names_of(check(model))) == ["encoder/bn", "encoder/first", "encoder/first_1", "x"]


def test_a_model_called_for_inference_stays_in_inference() -> None:
    """The idiom of transfer learning, `base(x, training=False)`: its batch statistics stay as they are while the rest is trained."""
    x = layers.Input((4,), name="x")
    base = encoder()
    model = randomized(functional(x, layers.BatchNormalization(name="own")(base(x, training=False))))
    result = check(model, training=True)
    values = values_for(model)
    inner, own = (result.model.get_layer(name).moving_mean for name in ("encoder/bn", "own"))
    before = inner.numpy(), own.numpy()
    result.model(values, training=True)
    assert np.array_equal(inner.numpy(), before[0]) and not np.array_equal(own.numpy(), before[1])


def test_frozen_layers_stay_frozen() -> None:
    model = randomized(siamese())
    model.get_layer("encoder").trainable = False
    assert check(model).model.trainable_weights == []


def test_initializers_are_kept_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x = layers.Input((4,), name="x")
    model = functional(x, layers.Dense(4, kernel_initializer="orthogonal", name="fc")(x))
    monkeypatch.setattr(tf_keras.initializers.Orthogonal, "__call__", lambda *_, **__: pytest.fail("a random matrix was made"))
    made = canonicalize(model).model.get_layer("fc")
    assert type(made.kernel_initializer) is tf_keras.initializers.Orthogonal
    assert np.array_equal(made.kernel, model.get_layer("fc").kernel)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_a_canonical_model_can_be_saved(tmp_path: Path) -> None:
    model = randomized(operations())
    result = check(model)
    values = values_for(model)
    for name in ("model.keras", "model.h5", "saved"):
        tf_keras.models.save_model(result.model, tmp_path / name)
        loaded = tf_keras.models.load_model(tmp_path / name)
        assert np.array_equal(loaded(values), model(values))
        assert is_canonical(loaded)


class Subclassed(tf_keras.Model):
    def call(self, x: Any) -> Any:
        return x


class Forgetful(layers.Layer):
    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def call(self, x: Any) -> Any:
        return x

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def one_layer(layer: Any, **keywords: Any) -> Any:
    x = layers.Input((4,), name="x")
    return functional(x, layer(x, **keywords))


REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "no model": (lambda: layers.Dense(3), ["expected a tf_keras.Model, got tf_keras", "Dense"]),
    "subclassed": (lambda: Subclassed(name="own"), ["model 'own' (Subclassed) is a subclassed model", "functional API"]),
    "unbuilt": (lambda: tf_keras.Sequential([layers.Dense(3)], name="seq"), ["model 'seq' (Sequential)", "tf_keras.Input(shape)"]),
    "subclassed inside": (lambda: one_layer(Subclassed(name="own")), ["layer 'own' (Subclassed) is a subclassed model"]),
    "masked model": (
        lambda: one_layer(encoder(), mask=tf.ones((1, 4), tf.bool)),
        ["nested model 'encoder' is called with mask", "give a mask to the layers that use it"],
    ),
    "no configuration": (lambda: one_layer(Forgetful(3, name="own")), ["layer 'own' (Forgetful)", "get_config"]),
    "quantized by TFMOT": (
        lambda: tfmot.quantization.keras.quantize_model(one_layer(layers.Dense(3, name="fc"))),
        ["layer 'quantize_layer' (QuantizeLayer) is one of TFMOT, expected a float model", "before TFMOT's quantize_model"],
    ),
    "pruned by TFMOT": (
        lambda: tfmot.sparsity.keras.prune_low_magnitude(one_layer(layers.Dense(3, name="fc"))),
        ["layer 'prune_low_magnitude_fc' (PruneLowMagnitude) is one of TFMOT", "strip_pruning"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(case: str) -> None:
    build, expected = REFUSED[case]
    model = build()
    with pytest.raises(ModelError) as caught:
        canonicalize(model)
    for part in expected:
        assert part in str(caught.value)
    assert case in ("no configuration", "quantized by TFMOT", "pruned by TFMOT") or not is_canonical(model)
