"""How numbers are written for people: one function per unit, an en dash for what was not measured."""

from __future__ import annotations

import math
from typing import TypeGuard

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
FRACTIONS = ("acc", "auc", "precision", "recall", "iou", "f1", "dice", "top")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_fraction(metric: str) -> bool:
    """Whether a metric of this name is a share of 1, which reads best as a percentage: accuracy, AUC, IoU and the like."""
    return any(part in metric.lower() for part in FRACTIONS)


def percent(value: float | None, decimals: int = 2) -> str:
    """0.91847 -> `91.85%`."""
    return f"{100 * value:.{decimals}f}%" if _known(value) else NOTHING


def percent_floor(value: float | None, decimals: int = 4) -> str:
    """0.99999996 -> `99.9999%`: rounded down, so that 100% is written only for all."""
    if not _known(value):
        return NOTHING
    # The rounding to 9 digits undoes the error of 100 * value, which would turn 0.9999 into 99.9899...
    steps = math.floor(round(100 * value * 10**decimals, 9 - decimals))
    return f"{steps / 10**decimals:.{decimals}f}%"


def number(value: float | None, digits: int = 4) -> str:
    """3.14159 -> `3.142`, 0.0000123 -> `1.23×10⁻⁵`."""
    if not _known(value):
        return NOTHING
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return (mantissa if not exponent else f"{mantissa}×10{superscript(int(exponent))}").replace("-", MINUS)


def superscript(exponent: int) -> str:
    """-5 -> `⁻⁵`."""
    return str(exponent).translate(_SUPERSCRIPTS)


def integer(value: float | None) -> str:
    """60000 -> `60,000`."""
    return f"{value:,.0f}".replace("-", MINUS) if _known(value) else NOTHING


def metric_value(metric: str, value: float | None) -> str:
    """A value of a metric: a percentage for a share, a plain number for anything else."""
    return percent(value) if is_fraction(metric) else number(value)


def metric_difference(metric: str, value: float | None, reference: float | None) -> str:
    """`value - reference` with its sign: percentage points for a share, a plain number for anything else."""
    if not (_known(value) and _known(reference)):
        return NOTHING
    difference = value - reference
    text = f"{100 * abs(difference):.2f}" if is_fraction(metric) else number(abs(difference))
    if float(text.partition("×")[0]) == 0:
        return f"±{text}"
    return f"{'+' if difference > 0 else MINUS}{text}"


def size(value: float | None) -> str:
    """412345 -> `412 kB`, with decimal prefixes."""
    if not _known(value):
        return NOTHING
    for unit, factor, decimals in (("GB", 1e9, 2), ("MB", 1e6, 2), ("kB", 1e3, 0)):
        if value >= factor:
            return f"{value / factor:.{decimals}f} {unit}"
    return f"{value:.0f} B"


def milliseconds(value: float | None) -> str:
    """0.31415 -> `0.314 ms`."""
    return f"{number(value, 3)} ms" if _known(value) else NOTHING


def seconds(value: float | None) -> str:
    """83.2 -> `1 min 23 s`."""
    if not _known(value):
        return NOTHING
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
