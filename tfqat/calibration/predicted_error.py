"""The error that rounding is predicted to leave behind a link when its channels are scaled by 2 ** -k, and the k that makes it small."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

EXPONENTS = np.arange(-1, 5)
"""Tried k of s = 2 ** -k: from half a channel's values to 16 times. More gains little, and leaves less room for values not seen here."""

SWEEPS = 3
"""How often every channel is tried again, because the scale of a weight depends on all channels."""

_KEPT = int(-EXPONENTS[0])  # where k = 0 is


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of one tensor: the largest |x| of each channel, and values at some positions, shape (positions, channels), float64."""

    amax: np.ndarray
    values: np.ndarray


@dataclass(kw_only=True)
class PredictedError:
    """The squared error that rounding is predicted to leave in the outputs of the products that read a link, as a function of k.

        E(k) = sum_c A_c(k_c)  +  sum over products  t sum_o g_o^2 d_o(k)^2 / 12  sum_c m_c 4^k_c

        A_c(k) = mean (x_c - Q(x_c; d 2^-k))^2  sum_o g_o^2 |W_co|^2       d = max |x| / hi, the step of the tensor; measured on values
        d_o(k) = max_c |W_co| 2^-k_c / hi                                  the step of output channel o of the weight
        m_c = mean x_c^2,  t positions of the kernel,  g_o the gain of the BatchNorm behind

    A depthwise product has one weight step for each channel, so the second term does not depend on k.
    """

    channels: int
    rounding: np.ndarray = field(default_factory=lambda: np.zeros(()))
    weights: list[_WeightError] = field(default_factory=list)

    def add_depthwise(self, rows: np.ndarray, gain: np.ndarray, seen: Seen, activation_hi: int) -> None:
        """A depthwise product: `rows` (channels, positions, multiplier), `gain` (channels, multiplier)."""
        self._add_rounding(((rows**2).sum(axis=1) * gain**2).sum(axis=1), seen, activation_hi)

    def add(self, rows: np.ndarray, gain: np.ndarray, seen: Seen, weight_hi: int, activation_hi: int) -> None:
        """Any other product: `rows` (channels, positions, outputs), `gain` (outputs,)."""
        self._add_rounding((rows**2).sum(axis=1) @ gain**2, seen, activation_hi)
        factor = gain**2 * rows.shape[1] / (12 * weight_hi**2)
        self.weights.append(_WeightError(amax=np.abs(rows).max(axis=1), moments=(seen.values**2).mean(axis=0), factor=factor))

    def descend(self) -> np.ndarray:
        """The k of least error that is found from k = 0, one channel after the other."""
        k = np.zeros(self.channels, int)
        least = 1e-9 * self.rounding[:, _KEPT].sum()
        for _ in range(SWEEPS):
            before = k.copy()
            for channel, row in enumerate(self.rounding):
                for tried in sorted({int(EXPONENTS[np.argmin(row)]), k[channel] - 1, k[channel] + 1}):
                    if EXPONENTS[0] <= tried <= EXPONENTS[-1] and self._change(channel, k[channel], tried) < -least:
                        k[channel] = tried
                        for weight in self.weights:
                            weight.move(channel, tried)
            if np.array_equal(k, before):
                break
        return k

    def _change(self, channel: int, now: int, tried: int) -> float:
        row = self.rounding[channel]
        return float(row[tried + _KEPT] - row[now + _KEPT]) + sum(weight.change(channel, tried) for weight in self.weights)

    def _add_rounding(self, power: np.ndarray, seen: Seen, hi: int) -> None:
        largest = seen.amax.max()
        errors = np.empty((self.channels, len(EXPONENTS)))
        for index, exponent in enumerate(EXPONENTS):
            step = max(largest, np.finfo(np.float32).tiny) * 2.0**-exponent / hi
            errors[:, index] = ((seen.values - np.round(seen.values / step) * step) ** 2).mean(axis=0) * power
            errors[seen.amax * 2.0**exponent > largest, index] = np.inf
        dead = seen.amax == 0  # nothing is known of their values
        errors[np.ix_(dead, np.arange(len(EXPONENTS)) != _KEPT)] = np.inf
        self.rounding = self.rounding + errors


@dataclass(kw_only=True)
class _WeightError:
    """The part of the error that rounding the weight of one product makes; it holds the k of all channels.

    `amax` |W_co| has shape (channels, outputs), `moments` (channels,), `factor` (outputs,).
    """

    amax: np.ndarray
    moments: np.ndarray
    factor: np.ndarray

    def __post_init__(self) -> None:
        self._now, self._power = self.amax.copy(), self.moments.copy()
        self._largest, self._second, self._who = _two_largest(self._now)
        self._total = self._power.sum()
        self.value = self._of(self._largest, self._total)

    def change(self, channel: int, exponent: int) -> float:
        """By how much the error grows if the channel gets this k."""
        largest, total = self._with(channel, exponent)
        return self._of(largest, total) - self.value

    def move(self, channel: int, exponent: int) -> None:
        """Give the channel this k."""
        _, self._total = self._with(channel, exponent)
        self._now[channel] = self.amax[channel] * 2.0**-exponent
        self._power[channel] = self.moments[channel] * 4.0**exponent
        touched = (self._who == channel) | (self._now[channel] > self._second)
        self._largest[touched], self._second[touched], self._who[touched] = _two_largest(self._now[:, touched])
        self.value = self._of(self._largest, self._total)

    def _with(self, channel: int, exponent: int) -> tuple[np.ndarray, float]:
        others = np.where(self._who == channel, self._second, self._largest)
        total = self._total - self._power[channel] + self.moments[channel] * 4.0**exponent
        return np.maximum(others, self.amax[channel] * 2.0**-exponent), float(total)

    def _of(self, largest: np.ndarray, total: float) -> float:
        return float(self.factor @ largest**2 * total)


def _two_largest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest value of each column, the second largest (0 if there is one row), and the row of the largest."""
    who = values.argmax(axis=0)
    columns = np.arange(values.shape[1])
    rest = values.copy()
    rest[who, columns] = 0.0
    return values[who, columns], rest.max(axis=0), who
