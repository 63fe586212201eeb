"""The range of each channel of a weight: the least squared error, against plain loops with the arithmetic of numerics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfqat import numerics
from tfqat.calibration.weights import MSE_RATIOS, mse_amax, weight_amax
from tfqat.spec import PerChannel, PerTensor, QuantSpec

RNG = np.random.default_rng(8)


def error(channel: np.ndarray, amax: np.float32, spec: QuantSpec) -> float:
    alone = QuantSpec(num_bits=spec.num_bits, narrow_range=spec.narrow_range)
    changed = numerics.fake_quantize(np.float32(channel), amax, alone).numpy()
    return float(np.sum((changed.astype(np.float64) - channel) ** 2))


SHAPES = {
    "dense": ((40, 6), PerChannel(axes=(1,))),
    "convolution": ((3, 3, 4, 5), PerChannel(axes=(3,))),
    "depthwise": ((3, 3, 4, 2), PerChannel(axes=(2, 3))),
    "transposed": ((3, 3, 5, 4), PerChannel(axes=(2,))),
    "per tensor": ((30, 7), PerTensor()),
}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_has_the_least_error_of_all_that_are_tried(name: str, bits: int) -> None:
    shape, granularity = SHAPES[name]
    spec = QuantSpec(num_bits=bits, granularity=granularity, narrow_range=bits != 4)
    weight = np.float32(RNG.standard_t(4, shape))
    found = mse_amax(weight, spec)
    assert found.dtype == np.float32 and found.shape == numerics.amax_shape(shape, spec)
    for index in np.ndindex(found.shape):
        where: list[Any] = [slice(None)] * len(shape)
        for axis, number in zip(spec.axes, index, strict=True):
            where[axis] = number
        channel = weight[tuple(where)].ravel()
        tried = [np.float32(np.abs(channel).max() * ratio) for ratio in MSE_RATIOS]
        assert found[index] in tried
        assert error(channel, found[index], spec) == pytest.approx(min(error(channel, amax, spec) for amax in tried), rel=1e-9)


def test_at_least_100_are_tried_between_0_3_and_1() -> None:
    assert len(MSE_RATIOS) >= 100 and MSE_RATIOS[0] == np.float32(0.3) and MSE_RATIOS[-1] == 1.0


def test_at_4_bits_it_clips_and_loses_less_than_max() -> None:
    spec = QuantSpec(num_bits=4, granularity=PerChannel(axes=(1,)), narrow_range=True)
    weight = np.float32(RNG.normal(0, 1, (500, 8)))
    mse, largest = weight_amax(weight, "mse", spec), weight_amax(weight, "max", spec)
    assert np.array_equal(largest, np.abs(weight).max(axis=0))
    for channel in range(8):
        assert mse[channel] < 0.95 * largest[channel]
        assert error(weight[:, channel], mse[channel], spec) < 0.9 * error(weight[:, channel], largest[channel], spec)


def test_a_channel_of_zeros_has_range_0_and_values_on_the_grid_keep_theirs() -> None:
    spec = QuantSpec(granularity=PerChannel(axes=(1,)), narrow_range=True)
    weight = np.float32(np.stack([np.zeros(255), np.arange(-127, 128) / 64], axis=1))
    assert mse_amax(weight, spec).tolist() == [0.0, 127 / 64]


def test_more_values_than_a_block() -> None:
    spec = QuantSpec(num_bits=4, granularity=PerChannel(axes=(1,)))
    weight = np.float32(RNG.normal(0, 1, (70_000, 3)))
    whole = mse_amax(weight, spec)
    assert whole.tolist() == [mse_amax(weight[:, [channel]], spec)[0] for channel in range(3)]
