"""Rounding that lets errors cancel: the inputs it lines up, the grid it stays on, and GPTQ written out as the paper has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat import numerics
from tfqat.calibration.rounding import obstacle, round_compensated, rows_of, second_moments, weight_of
from tfqat.spec import PerChannel, QuantSpec

K = tf_keras.layers

# name -> (the layer, shape of its input, shape of its rows: groups, inputs, outputs of a group)
LAYERS: dict[str, tuple[Any, tuple[int, ...], tuple[int, int, int]]] = {
    "Dense": (lambda: K.Dense(4), (6, 5), (1, 5, 4)),
    "Dense on a sequence": (lambda: K.Dense(4), (6, 3, 5), (1, 5, 4)),
    "Conv1D": (lambda: K.Conv1D(4, 3, padding="same"), (2, 7, 5), (1, 15, 4)),
    "Conv1D, grouped, stride 2": (lambda: K.Conv1D(6, 3, strides=2, groups=2), (2, 8, 4), (2, 6, 3)),
    "Conv1D, dilation 2": (lambda: K.Conv1D(4, 3, dilation_rate=2, padding="same"), (2, 9, 2), (1, 6, 4)),
    "Conv2D, same": (lambda: K.Conv2D(4, 3, padding="same"), (2, 5, 6, 3), (1, 27, 4)),
    "Conv2D, valid": (lambda: K.Conv2D(4, 3), (2, 5, 6, 3), (1, 27, 4)),
    "Conv2D, 1x1": (lambda: K.Conv2D(4, 1), (2, 5, 6, 3), (1, 3, 4)),
    "Conv2D, 1x1, stride 2": (lambda: K.Conv2D(4, 1, strides=2), (2, 5, 6, 3), (1, 3, 4)),
    "Conv2D, 2x3, even window, same": (lambda: K.Conv2D(4, (2, 3), padding="same"), (2, 5, 6, 3), (1, 18, 4)),
    "Conv2D, stride 2, same, odd": (lambda: K.Conv2D(4, 3, strides=2, padding="same"), (2, 7, 5, 3), (1, 27, 4)),
    "Conv2D, stride 2, same, even": (lambda: K.Conv2D(4, 3, strides=2, padding="same"), (2, 8, 6, 3), (1, 27, 4)),
    "Conv2D, stride 2x3, valid": (lambda: K.Conv2D(4, 3, strides=(2, 3)), (2, 8, 10, 3), (1, 27, 4)),
    "Conv2D, dilation 2, same": (lambda: K.Conv2D(4, 3, dilation_rate=2, padding="same"), (2, 7, 8, 3), (1, 27, 4)),
    "Conv2D, dilation 1x2, valid": (lambda: K.Conv2D(4, 3, dilation_rate=(1, 2)), (2, 7, 8, 3), (1, 27, 4)),
    "Conv2D, grouped": (lambda: K.Conv2D(6, 3, groups=3, padding="same"), (2, 5, 6, 6), (3, 18, 2)),
    "DepthwiseConv1D": (lambda: K.DepthwiseConv1D(3, padding="same"), (2, 7, 4), (4, 3, 1)),
    "DepthwiseConv2D": (lambda: K.DepthwiseConv2D(3, padding="same"), (2, 5, 6, 4), (4, 9, 1)),
    "DepthwiseConv2D, multiplier 2": (lambda: K.DepthwiseConv2D(3, depth_multiplier=2), (2, 5, 6, 4), (4, 9, 2)),
    "DepthwiseConv2D, stride 2": (lambda: K.DepthwiseConv2D(5, strides=2, padding="same"), (2, 8, 8, 3), (3, 25, 1)),
    "DepthwiseConv2D, dilation 2": (lambda: K.DepthwiseConv2D(3, dilation_rate=2, padding="same"), (2, 7, 8, 3), (3, 9, 1)),
}


def built(name: str) -> tuple[Any, Any, tuple[int, ...], tuple[int, int, int]]:
    make, shape, rows = LAYERS[name]
    layer = make()
    layer.build((None, *shape[1:]))
    return layer, layer.depthwise_kernel if "Depthwise" in type(layer).__name__ else layer.kernel, shape, rows


@pytest.mark.parametrize("name", LAYERS)
def test_weight_of_is_the_inverse_of_rows_of(name: str) -> None:
    layer, kernel, _, shape = built(name)
    weight = np.arange(kernel.shape.num_elements(), dtype=np.float32).reshape(kernel.shape)
    rows = rows_of(weight, layer)
    assert rows.shape == shape
    assert np.array_equal(weight_of(rows, weight.shape), weight)


@pytest.mark.parametrize("name", LAYERS)
def test_second_moments_are_those_of_what_the_layer_itself_reads(name: str) -> None:
    layer, kernel, shape, (groups, inputs, outputs) = built(name)
    x = tf.constant(np.random.default_rng(1).integers(-3, 4, shape), tf.float32)  # integers: every sum is exact
    read = []  # with a kernel that is 1 in one row, and only there, the layer gives what that row is multiplied with
    for row in range(inputs):
        unit = np.zeros((groups, inputs, outputs), np.float32)
        unit[:, row, 0] = 1.0
        kernel.assign(weight_of(unit, tuple(kernel.shape)))
        read.append(layer(x).numpy().reshape(-1, groups, outputs)[:, :, 0])
    expected = np.einsum("ipg,jpg->gij", np.float64(read), np.float64(read))
    found = second_moments(x, layer)
    assert found.dtype == np.float64
    assert np.array_equal(found, expected)


OBSTACLES = {
    "Dense": (K.Dense(2), ""),
    "Conv1D": (K.Conv1D(2, 3), ""),
    "DepthwiseConv2D": (K.DepthwiseConv2D(3), ""),
    "causal": (K.Conv1D(2, 3, padding="causal"), "causal padding"),
    "channels first": (K.Conv2D(2, 3, data_format="channels_first"), "channels first"),
    "Conv3D": (K.Conv3D(2, 3), "Conv3D is not among the classes whose inputs tfqat can line up"),
}


@pytest.mark.parametrize(("layer", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_an_obstacle_is_named(layer: Any, reason: str) -> None:
    assert obstacle(layer) == reason


def correlated(inputs: int, *, groups: int = 1, noise: float = 0.3, seed: int = 0) -> np.ndarray:
    """(groups, positions, inputs): three factors and noise, of different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, 4 * inputs, 3)) @ rng.normal(size=(groups, 3, inputs)) + noise * rng.normal(
        size=(groups, 4 * inputs, inputs)
    )
    return np.asarray(x * rng.uniform(0.5, 2.0, (groups, 1, inputs)))


def case(
    inputs: int, outputs: int, bits: int, *, groups: int = 1, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray, QuantSpec]:
    """Rows, amax, moments, spec."""
    x = correlated(inputs, groups=groups, noise=noise)
    rows = np.float32(np.random.default_rng(7).normal(size=(groups, inputs, outputs)))
    return rows, np.abs(rows).max(axis=1), x.swapaxes(1, 2) @ x, QuantSpec(num_bits=bits, narrow_range=True)


def scale_of(amax: np.ndarray, spec: QuantSpec) -> np.ndarray:
    return np.asarray(numerics.scale_from_amax(amax, spec))


def on_grid(rows: np.ndarray, amax: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """fake_quantize of (groups, inputs, outputs) with amax of (groups, outputs), by the library's own arithmetic."""
    own = QuantSpec(num_bits=spec.num_bits, narrow_range=spec.narrow_range, granularity=PerChannel(axes=(0, 2)))
    return np.asarray(numerics.fake_quantize(rows, amax, own))


def cost(errors: np.ndarray, moments: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("gio,gij,gjo->go", np.float64(errors), moments, np.float64(errors)))


def damped(moments: np.ndarray, share: float = 0.01) -> np.ndarray:
    return moments + np.eye(moments.shape[1]) * share * np.mean(np.diag(moments))


def gptq(weights: np.ndarray, scale: np.ndarray, moments: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """One group as the paper states it: round a row, change the rows that are left, take the row out of the inverse of H."""
    order = np.argsort(-np.diag(moments), kind="stable")
    left, inverse = np.float64(weights)[order], np.linalg.inv(moments[np.ix_(order, order)])
    rounded = np.empty_like(left)
    for row in range(len(left)):
        rounded[row] = np.clip(np.rint(left[row] / scale), spec.lo, spec.hi) * scale
        column = inverse[:, row] / inverse[row, row]
        for later in range(row + 1, len(left)):
            left[later] -= column[later] * (left[row] - rounded[row])
        inverse = inverse - np.outer(column, inverse[row])
    return np.float32(rounded[np.argsort(order)])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_is_gptq_and_where_that_is_worse_the_nearest(bits: int) -> None:
    rows, amax, moments, spec = case(165, 24, bits)  # several blocks, the last one not full
    found = round_compensated(rows, scale_of(amax, spec), moments, spec)[0]
    nearest = on_grid(rows, amax, spec)[0]
    paper = gptq(rows[0], np.float64(scale_of(amax, spec)[0]), damped(moments[0]), spec)
    costs = [cost((rows[0] - values)[None], damped(moments[0])[None])[0] for values in (paper, nearest)]
    assert np.array_equal(found, np.where(costs[0] < costs[1], paper, nearest))
    assert np.mean(found != nearest) > 0.05


def test_rounds_to_the_nearest_where_clipping_makes_compensation_worse() -> None:
    rows, amax, moments, spec = case(8, 400, 2, noise=0.05)
    scale = scale_of(amax, spec)
    paper, nearest = gptq(rows[0], np.float64(scale[0]), damped(moments[0]), spec), on_grid(rows, amax, spec)[0]
    worse = cost((rows[0] - paper)[None], damped(moments[0])[None])[0] > cost((rows[0] - nearest)[None], damped(moments[0])[None])[0]
    assert 0 < np.sum(worse) < 400
    found = round_compensated(rows, scale, moments, spec)[0]
    assert np.array_equal(found[:, worse], nearest[:, worse])
    assert not np.array_equal(found, nearest)


def test_each_group_is_rounded_by_itself() -> None:
    rows, amax, moments, spec = case(9, 2, 4, groups=5)
    together = round_compensated(rows, scale_of(amax, spec), moments, spec)
    for group in range(5):
        one = slice(group, group + 1)
        assert np.array_equal(together[one], round_compensated(rows[one], scale_of(amax[one], spec), moments[one], spec))
    assert not np.array_equal(together, round_compensated(rows, scale_of(amax, spec), moments[::-1], spec))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_is_on_the_grid_and_never_costs_more_than_the_nearest(bits: int) -> None:
    rows, amax, moments, spec = case(40, 8, bits, groups=3)
    found = round_compensated(rows, scale_of(amax, spec), moments, spec, damping=0.0)
    assert found.dtype == np.float32 and found.shape == rows.shape
    nearest = on_grid(rows, amax, spec)
    assert np.array_equal(on_grid(found, amax, spec), found)
    costs = cost(rows - found, moments), cost(rows - nearest, moments)
    assert np.all(costs[0] <= costs[1] * (1 + 1e-6))
    assert np.sum(costs[0]) < 0.5 * np.sum(costs[1])


def test_one_scale_serves_all_outputs() -> None:
    rows, _, moments, spec = case(12, 3, 4, groups=2)
    scale = np.float32(0.25)
    alike = round_compensated(rows, np.full((2, 3), scale), moments, spec)
    assert np.array_equal(round_compensated(rows, scale, moments, spec), alike)


def test_is_the_nearest_where_inputs_do_not_go_along_with_each_other() -> None:
    rows, amax, moments, spec = case(200, 6, 4)
    apart = np.diag(np.diag(moments[0]))[None]
    assert np.array_equal(round_compensated(rows, scale_of(amax, spec), apart, spec), on_grid(rows, amax, spec))


def test_the_outputs_of_correlated_inputs_are_several_times_less_wrong() -> None:
    x = correlated(64, noise=0.02)[0]
    weight = np.float32(np.random.default_rng(3).normal(size=(64, 16)))
    spec, amax = QuantSpec(num_bits=4, narrow_range=True), np.abs(weight).max(axis=0)
    layer = K.Dense(16)
    layer.build((None, 64))
    moments = second_moments(tf.constant(x, tf.float32), layer)
    rounded = round_compensated(rows_of(weight, layer), scale_of(amax, spec)[None], moments, spec)
    fresh = correlated(64, noise=0.02)[0]
    errors = [
        np.sum((fresh @ (weight - values)) ** 2)
        for values in (weight_of(rounded, weight.shape), on_grid(weight[None], amax[None], spec)[0])
    ]
    assert errors[0] < errors[1] / 5


def test_dead_inputs_are_rounded_to_the_nearest_and_change_nothing_else() -> None:
    rows, amax, moments, spec = case(150, 4, 4)
    dead = np.arange(150) % 7 == 3
    moments[:, dead] = 0.0
    moments[:, :, dead] = 0.0
    scale, nearest = scale_of(amax, spec), on_grid(rows, amax, spec)
    found = round_compensated(rows, scale, moments, spec, damping=0.0)
    assert np.array_equal(found[:, dead], nearest[:, dead])
    without = round_compensated(rows[:, ~dead], scale, moments[:, ~dead][:, :, ~dead], spec, damping=0.0)
    assert np.array_equal(found[:, ~dead], without) and not np.array_equal(without, nearest[:, ~dead])
    assert np.array_equal(round_compensated(rows, scale, np.zeros_like(moments), spec), nearest)


def test_a_dead_channel_stays_zero_and_its_neighbours_are_as_without_it() -> None:
    rows, amax, moments, spec = case(40, 5, 4)
    alive = np.arange(5) != 2
    rows[:, :, ~alive], amax[:, ~alive] = 0.0, 0.0
    found = round_compensated(rows, scale_of(amax, spec), moments, spec)
    assert not found[:, :, 2].any()
    assert np.array_equal(found[:, :, alive], round_compensated(rows[:, :, alive], scale_of(amax[:, alive], spec), moments, spec))


def test_more_damping_changes_less() -> None:
    rows, amax, moments, spec = case(60, 8, 4)
    nearest = on_grid(rows, amax, spec)
    shares = [np.mean(round_compensated(rows, scale_of(amax, spec), moments, spec, damping=damping) != nearest) for damping in (0.01, 1e6)]
    assert shares[0] > 0.1
    assert shares[1] < 0.01
