"""The arithmetic, by exact codes: ties, limits, division, widths, axes, dead channels, gradients; against numpy and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from tfqat import numerics
from tfqat.spec import PerChannel, PerTensor, QuantSpec

INT8 = QuantSpec()
WEIGHT = QuantSpec(narrow_range=True)

# With scale 1 a value is its own quotient.
CODES_AT_SCALE_ONE = {
    "zero": (0.0, 0, 0),
    "negative zero": (-0.0, 0, 0),
    "tie down to even": (0.5, 0, 0),
    "tie up to even": (1.5, 2, 2),
    "tie down to even, again": (2.5, 2, 2),
    "negative tie to zero": (-0.5, 0, 0),
    "negative tie to even": (-1.5, -2, -2),
    "negative tie to even, again": (-2.5, -2, -2),
    "just over a tie": (np.nextafter(np.float32(0.5), np.float32(1)), 1, 1),
    "just under a tie": (np.nextafter(np.float32(1.5), np.float32(1)), 1, 1),
    "tie below the top": (126.5, 126, 126),
    "top": (127.0, 127, 127),
    "tie over the top": (127.5, 127, 127),
    "far over the top": (1e30, 127, 127),
    "infinity": (np.inf, 127, 127),
    "bottom of narrow": (-127.0, -127, -127),
    "tie at the bottom of narrow": (-127.5, -128, -127),
    "bottom": (-128.0, -128, -127),
    "tie at the bottom": (-128.5, -128, -127),
    "far under the bottom": (-1e30, -128, -127),
}


@pytest.mark.parametrize(("value", "code", "narrow"), CODES_AT_SCALE_ONE.values(), ids=CODES_AT_SCALE_ONE)
def test_codes_at_scale_one(value: float, code: int, narrow: int) -> None:
    x = np.array([value], np.float32)
    assert numerics.quantize(x, 1.0, INT8).numpy().tolist() == [code]
    assert numerics.quantize(x, 1.0, WEIGHT).numpy().tolist() == [narrow]
    assert numerics.quantize(x, 1.0, INT8).dtype == tf.int8


@pytest.mark.parametrize("narrow", [False, True], ids=["full", "narrow"])
@pytest.mark.parametrize(("num_bits", "hi"), [(2, 1), (3, 3), (4, 7), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_widths(num_bits: int, hi: int, narrow: bool) -> None:
    spec = QuantSpec(num_bits=num_bits, narrow_range=narrow)
    scale = numerics.scale_from_amax(2.0, spec)
    assert scale.numpy() == np.float32(2.0) / np.float32(hi)
    codes = numerics.quantize(np.array([-100, -2, 0, 2, 100], np.float32), scale, spec).numpy()
    assert codes.tolist() == [-hi if narrow else -hi - 1, -hi, 0, hi, hi]


SCALES = {
    "int8": (INT8, 127.0, 1.0),
    "int4": (QuantSpec(num_bits=4), 3.5, 0.5),
    "int2": (QuantSpec(num_bits=2), 0.25, 0.25),
    "dead": (INT8, 0.0, np.float32(1e-12) / np.float32(127)),
    "below the smallest": (INT8, 1e-20, np.float32(1e-12) / np.float32(127)),
}


@pytest.mark.parametrize(("spec", "amax", "scale"), SCALES.values(), ids=SCALES)
def test_scale_from_amax(spec: QuantSpec, amax: float, scale: float) -> None:
    result = numerics.scale_from_amax(amax, spec)
    assert result.dtype == tf.float32
    assert result.numpy() == np.float32(scale)
    assert result.numpy() > 0


def ties_and_random_values(count: int, scale: np.float32, seed: int) -> np.ndarray:
    """Half random, half as near to a tie as float32 has them: the tie, and its two neighbours."""
    rng = np.random.default_rng(seed)
    random = rng.normal(0, 60, count // 2).astype(np.float32) * scale
    ties = ((rng.integers(-140, 140, count // 2) + np.float32(0.5)) * scale).astype(np.float32)
    nudges = rng.integers(-1, 2, count // 2)
    near = np.where(nudges == 0, ties, np.nextafter(ties, np.where(nudges > 0, np.inf, -np.inf).astype(np.float32)))
    return np.concatenate([random, near.astype(np.float32)])


def onnx_codes(x: np.ndarray, scale: np.ndarray, axis: int = 1) -> np.ndarray:
    """The codes of ONNX's QuantizeLinear with int8 zero point 0, executed literally by ONNX Runtime."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], axis=axis)],
        "quantize",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_tensor_value_info("codes", onnx.TensorProto.INT8, x.shape)],
        [onnx.numpy_helper.from_array(scale, "scale"), onnx.numpy_helper.from_array(np.zeros(scale.shape, np.int8), "zero")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("amax", [1.0, 6.0, 0.7310586, 123.456], ids=str)
def test_a_million_values_as_numpy_and_onnx(amax: float) -> None:
    scale = numerics.scale_from_amax(amax, INT8).numpy()
    x = ties_and_random_values(1_000_000, scale, seed=int(amax * 1000))
    codes = numerics.quantize(x, scale, INT8).numpy()
    assert np.array_equal(codes, np.clip(np.rint(x / scale), -128, 127).astype(np.int8))
    assert np.array_equal(codes, onnx_codes(x, scale))
    multiplied = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127).astype(np.int8)
    assert np.sum(codes != multiplied) > 1000, "these values do not tell division from multiplication by the inverse"


def test_a_graph_divides_as_eager_execution_does() -> None:
    amax = tf.Variable(0.7310586)
    x = ties_and_random_values(100_000, numerics.scale_from_amax(amax, INT8).numpy(), seed=1)
    traced = tf.function(lambda x: numerics.fake_quantize(x, amax, INT8))
    assert np.array_equal(traced(x).numpy(), numerics.fake_quantize(x, amax, INT8).numpy())


def test_per_channel_codes_as_onnx() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (3, 3, 8, 5)).astype(np.float32)
    spec = QuantSpec(granularity=PerChannel(axes=(3,)))
    scale = numerics.scale_from_amax(numerics.weight_amax(x, spec), spec).numpy()
    assert np.array_equal(numerics.quantize(x, scale, spec).numpy(), onnx_codes(x, scale, axis=3))


AXES = {"convolution": ((3, 3, 2, 4), (3,), (4,)), "depthwise": ((3, 3, 4, 2), (2, 3), (4, 2)), "dense": ((6, 5), (1,), (5,))}


@pytest.mark.parametrize(("shape", "axes", "amax_shape"), AXES.values(), ids=AXES)
def test_per_channel_axes(shape: tuple[int, ...], axes: tuple[int, ...], amax_shape: tuple[int, ...]) -> None:
    """Each channel is 1 .. its amax, so its largest value has code 127 and its scale is its own."""
    spec = QuantSpec(granularity=PerChannel(axes=axes), narrow_range=True)
    rng = np.random.default_rng(0)
    weight = rng.uniform(-1, 1, shape).astype(np.float32)
    reduced = tuple(axis for axis in range(len(shape)) if axis not in axes)
    largest = np.arange(1, np.prod(amax_shape) + 1, dtype=np.float32).reshape(amax_shape)
    weight *= np.expand_dims(largest, reduced) / np.max(np.abs(weight), axis=reduced, keepdims=True)

    amax = numerics.weight_amax(weight, spec)
    scale = numerics.scale_from_amax(amax, spec)
    codes = numerics.quantize(weight, scale, spec)
    broadcast = np.expand_dims(scale.numpy(), reduced)

    assert numerics.amax_shape(shape, spec) == amax_shape
    assert np.array_equal(amax.numpy(), np.max(np.abs(weight), axis=reduced))
    np.testing.assert_allclose(amax.numpy(), largest, rtol=1e-6)
    assert np.array_equal(codes.numpy(), np.clip(np.rint(weight / broadcast), -127, 127).astype(np.int8))
    assert np.array_equal(np.max(np.abs(codes.numpy()), axis=reduced), np.full(amax_shape, 127))
    assert np.array_equal(numerics.dequantize(codes, scale, spec).numpy(), codes.numpy().astype(np.float32) * broadcast)
    assert np.array_equal(numerics.fake_quantize(weight, amax, spec).numpy(), numerics.dequantize(codes, scale, spec).numpy())


def test_per_tensor_amax_is_the_largest_magnitude_of_all() -> None:
    spec = QuantSpec(granularity=PerTensor(), narrow_range=True)
    amax = numerics.weight_amax(np.array([[1, -9], [4, 2]], np.float32), spec)
    assert (amax.shape, amax.dtype, amax.numpy()) == ((), tf.float32, 9.0)
    assert numerics.amax_shape((3, 3, 2, 4), spec) == ()


def test_dead_channel_has_codes_zero_and_leaves_the_others_alone() -> None:
    spec = QuantSpec(granularity=PerChannel(axes=(1,)), narrow_range=True)
    weight = np.array([[0, 127, 0], [0, -63.5, 2]], np.float32)
    amax = numerics.weight_amax(weight, spec)
    scale = numerics.scale_from_amax(amax, spec)
    assert amax.numpy().tolist() == [0, 127, 2]
    assert np.all(scale.numpy() > 0)
    assert numerics.quantize(weight, scale, spec).numpy().tolist() == [[0, 127, 0], [0, -64, 127]]
    assert numerics.fake_quantize(weight, amax, spec).numpy()[:, 0].tolist() == [0, 0]


def test_dequantize_multiplies_codes_by_scale_in_float32() -> None:
    codes = np.array([-128, -1, 0, 127], np.int8)
    values = numerics.dequantize(codes, np.float32(0.1), INT8)
    assert values.dtype == tf.float32
    assert np.array_equal(values.numpy(), codes.astype(np.float32) * np.float32(0.1))


@pytest.mark.parametrize("spec", [INT8, WEIGHT, QuantSpec(num_bits=4, narrow_range=True)], ids=["int8", "narrow", "int4"])
def test_fake_quantize_is_dequantized_codes_and_changes_nothing_the_second_time(spec: QuantSpec) -> None:
    scale = numerics.scale_from_amax(0.9, spec)
    x = ties_and_random_values(10_000, scale.numpy(), seed=2)
    once = numerics.fake_quantize(x, 0.9, spec)
    assert np.array_equal(once.numpy(), numerics.dequantize(numerics.quantize(x, scale, spec), scale, spec).numpy())
    assert np.array_equal(numerics.fake_quantize(once, 0.9, spec).numpy(), once.numpy())


# x at scale 1 -> whether the gradient passes: full range, narrow range.
GRADIENT_MASK = {
    "zero": (0.0, 1, 1),
    "inside": (100.25, 1, 1),
    "top": (127.0, 1, 1),
    "rounds to the top": (127.49, 1, 1),
    "tie that rounds over the top": (127.5, 0, 0),
    "over the top": (300.0, 0, 0),
    "bottom of narrow": (-127.0, 1, 1),
    "rounds to the bottom of narrow": (-127.49, 1, 1),
    "tie that rounds under the bottom of narrow": (-127.5, 1, 0),
    "bottom": (-128.0, 1, 0),
    "tie that rounds to the bottom": (-128.5, 1, 0),
    "under the bottom": (-128.51, 0, 0),
    "far under": (-1e9, 0, 0),
}


@pytest.mark.parametrize(("spec", "column"), [(INT8, 1), (WEIGHT, 2)], ids=["full", "narrow"])
def test_gradient_passes_where_the_code_is_not_clipped(spec: QuantSpec, column: int) -> None:
    x = tf.constant([case[0] for case in GRADIENT_MASK.values()], tf.float32)
    amax = tf.constant(127.0)
    upstream = tf.range(1, len(GRADIENT_MASK) + 1, dtype=tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([x, amax])
        y = numerics.fake_quantize(x, amax, spec) * upstream
    dx, damax = tape.gradient(y, [x, amax])
    passed = dict(zip(GRADIENT_MASK, (dx / upstream).numpy().tolist(), strict=True))
    assert passed == {name: case[column] for name, case in GRADIENT_MASK.items()}
    assert damax is None


def test_gradient_mask_per_channel() -> None:
    spec = QuantSpec(granularity=PerChannel(axes=(1,)), narrow_range=True)
    x = tf.constant([[1.0, 1.0, 1.0], [-1.2, -1.2, -1.2]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(numerics.fake_quantize(x, tf.constant([0.5, 1.0, 2.0]), spec))
    assert tape.gradient(y, x).numpy().tolist() == [[0, 1, 1], [0, 0, 1]]


def test_float64_is_computed_in_float64_with_the_float32_scale() -> None:
    scale = np.float32(1) / np.float32(127)
    x = np.array([0.1, -0.3, 2.0, np.float64(scale) * 1.5], np.float64)
    with tf.GradientTape() as tape:
        watched = tf.constant(x)
        tape.watch(watched)
        y = numerics.fake_quantize(watched, 1.0, INT8)
    expected = np.clip(np.rint(x / np.float64(scale)), -128, 127) * np.float64(scale)
    assert y.dtype == tf.float64
    assert np.array_equal(y.numpy(), expected)
    assert not np.array_equal(y.numpy(), y.numpy().astype(np.float32).astype(np.float64))
    gradient = tape.gradient(y, watched)
    assert (gradient.dtype, gradient.numpy().tolist()) == (tf.float64, [1, 1, 0, 1])


def test_fake_quantize_compiles_under_xla_and_keeps_shape() -> None:
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    compiled = tf.function(lambda x, amax: numerics.fake_quantize(x, amax, INT8), jit_compile=True)
    result = compiled(x, tf.constant(1.0))
    assert result.shape == (2, 3, 4)
    np.testing.assert_allclose(result.numpy(), numerics.fake_quantize(x, 1.0, INT8).numpy(), rtol=0, atol=1e-7)


RELU_CAPS = [None, 6.0]


@pytest.mark.parametrize("cap", RELU_CAPS)
@pytest.mark.parametrize("amax", [0.3, 5.9999995, 6.0, 7.5, 100.0])
def test_fake_quantize_relu_is_fake_quantize_of_the_relu(cap: float | None, amax: float) -> None:
    scale = np.float32(amax) / np.float32(127)
    ties = (np.arange(-140, 140, dtype=np.float32) + np.float32(0.5)) * scale
    z = np.concatenate(
        [np.random.default_rng(3).normal(0, 4, 100_000), ties, np.nextafter(ties, np.float32(9e9)), [0.0, -0.0, 6.0, 5.9999995]]
    )
    z = tf.constant(z, tf.float32)

    def relu(z: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(z) if cap is None else tf.nn.relu6(z)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        found = numerics.fake_quantize_relu(z, amax, INT8, cap=cap)
        expected = numerics.fake_quantize(relu(z), amax, INT8)
        passed = numerics.fake_quantize_relu(z, amax, INT8, cap=cap, gradient="pass_through")
        plain = relu(z)
    assert np.array_equal(found, expected)
    assert np.array_equal(passed, expected)
    inner = np.abs(z.numpy() - min(127.5 * scale, cap or np.inf)) > 1e-5 * amax  # on the limit itself, rounding of the limit decides
    assert np.array_equal(tape.gradient(found, z).numpy()[inner], tape.gradient(expected, z).numpy()[inner])
    assert np.array_equal(tape.gradient(passed, z), tape.gradient(plain, z))


def surrogate(x: np.ndarray, scale: np.ndarray, offsets: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """x_hat with the rounding offsets held fixed, in float64: what LSQ differentiates."""
    return (np.clip(x / scale, spec.lo, spec.hi) + offsets) * scale


LEARNED = {
    "activation": (INT8, (64, 5, 7)),
    "two bits activation": (QuantSpec(num_bits=2), (64, 9)),
    "weight per tensor": (QuantSpec(num_bits=4, narrow_range=True), (40, 6)),
    "weight per channel": (QuantSpec(num_bits=4, granularity=PerChannel(axes=(1,)), narrow_range=True), (40, 6)),
    "depthwise weight": (QuantSpec(granularity=PerChannel(axes=(2, 3)), narrow_range=True), (3, 3, 4, 2)),
}


@pytest.mark.parametrize("case", LEARNED)
def test_lsq_gradient_is_the_derivative_of_the_surrogate(case: str) -> None:
    spec, shape = LEARNED[case]
    rng = np.random.default_rng(0)
    x, upstream = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    amax = tf.constant(rng.uniform(0.5, 1.5, numerics.amax_shape(shape, spec)), tf.float32)  # some values are clipped
    with tf.GradientTape() as tape:
        tape.watch(amax)
        y = numerics.learned_fake_quantize(x, amax, spec, has_batch="activation" in case)
    found = tape.gradient(y, amax, output_gradients=tf.constant(upstream)).numpy()
    assert np.array_equal(y, numerics.fake_quantize(x, amax, spec))
    broadcast = [size if axis in spec.axes else 1 for axis, size in enumerate(shape)]
    scale = np.asarray(amax, np.float64).reshape(broadcast) / spec.hi
    exact = np.float64(x)
    clipped = np.clip(exact / scale, spec.lo, spec.hi)
    offsets = np.rint(clipped) - clipped
    shared = tuple(axis for axis in range(len(shape)) if axis not in spec.axes)
    step = 1e-6 * scale
    slope = (surrogate(exact, scale + step, offsets, spec) - surrogate(exact, scale - step, offsets, spec)) / (2 * step)
    moved = np.sum(upstream * slope, axis=shared)
    count = np.prod([shape[axis] for axis in (shared[1:] if "activation" in case else shared)])
    assert found == pytest.approx(moved / spec.hi / np.sqrt(count * spec.hi), rel=2e-3, abs=1e-5)


def test_lsq_and_pact_pass_the_clipped_gradient_on() -> None:
    x = tf.constant([[-3.0, -0.2, 0.4, 2.0]])
    for rule in ("lsq", "pact"):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = numerics.learned_fake_quantize(x, tf.constant(1.0), INT8, rule=rule)
        assert tape.gradient(y, x).numpy().tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_pact_gradient_is_the_derivative_of_the_clipping() -> None:
    x = np.float32([[0.2, 0.7], [1.4, 3.0]])
    upstream = np.float32([[1.0, 2.0], [4.0, 8.0]])
    amax = tf.constant(1.1)
    with tf.GradientTape() as tape:
        tape.watch(amax)
        y = numerics.learned_fake_quantize(x, amax, INT8, rule="pact")
    found = float(tape.gradient(y, amax, output_gradients=tf.constant(upstream)))
    step = 1e-4
    difference = np.sum(upstream * (np.minimum(x, 1.1 + step) - np.minimum(x, 1.1 - step))) / (2 * step)
    assert found == pytest.approx(difference, rel=1e-3) == 12.0


def test_a_learned_range_that_fell_to_zero_can_grow_again() -> None:
    x, amax = tf.constant([[1.0, -2.0]]), tf.constant(0.0)
    with tf.GradientTape() as tape:
        tape.watch(amax)
        error = tf.reduce_sum((numerics.learned_fake_quantize(x, amax, INT8) - x) ** 2)
    assert float(tape.gradient(error, amax)) < 0


@pytest.mark.parametrize("function", ["relu", "lsq"])
def test_the_other_forms_compile_under_xla(function: str) -> None:
    x = tf.constant(np.random.default_rng(0).normal(size=(16, 8)), tf.float32)

    def compute(x: tf.Tensor) -> tf.Tensor:
        if function == "relu":
            return numerics.fake_quantize_relu(x, tf.constant(1.0), INT8, cap=6.0)
        return numerics.learned_fake_quantize(x, tf.constant(1.0), INT8)

    np.testing.assert_allclose(tf.function(compute, jit_compile=True)(x), compute(x), rtol=0, atol=1e-7)


def test_pass_through_gradient_ignores_the_clipping() -> None:
    x = tf.constant([-300.0, 0.3, 300.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = numerics.fake_quantize(x, tf.constant(127.0), INT8, gradient="pass_through")
    assert tape.gradient(y, x).numpy().tolist() == [1.0, 1.0, 1.0]
