"""How two sets of codes differ: rarely, at the border, beyond a bound, in some channels by a factor or a constant, or everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tfqat.proof.limits import FLOAT32

Kind = Literal["ties", "rounding", "clipping", "activation", "border", "scale", "bias", "channels", "everywhere"]

# A pattern may miss so many of the codes that differ: a few ties lie elsewhere.
_EXPLAINED = 0.99
# So many codes, over so many different values, before their parity says how halves are rounded.
_ENOUGH, _VALUES = 8, 4
# Two codes that should differ by a constant lie within one step of it, each being rounded by itself.
_ROUNDED_TWICE = 1.05
# In steps, squared: a line that fits better than a constant by less than that explains nothing.
_NEGLIGIBLE = 0.01


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """What kind of difference it is, and what is seen, in words that follow 'the codes differ'."""

    kind: Kind
    text: str


def pattern_of(wanted: np.ndarray, found: np.ndarray, *, unit: float = 1.0) -> Pattern:
    """Tell how `found` differs from `wanted`; both (examples, ..., channels).

    Args:
        wanted: the reference: int8 codes, or real numbers as multiples of the smallest difference that counts.
        found: what is held against it, of the same shape.
        unit: what one step is worth, to say how far a bias is off.
    """
    apart = found.astype(np.int16) - wanted if wanted.dtype == np.int8 else found - wanted
    differs = np.abs(apart) >= 1
    if not differs.any():
        return Pattern(kind="ties", text="nowhere by a whole step")
    looks: tuple[Callable[..., Pattern | None], ...] = (_ties, _rounding, _bounds, _border, _channels)
    for look in looks:
        pattern = look(wanted, found, apart, differs, unit)
        if pattern is not None:
            return pattern
    return Pattern(
        kind="everywhere", text=f"in {differs.mean():.1%} of all places and in every channel, by up to {np.abs(apart).max():.4g}"
    )


def _ties(wanted: np.ndarray, found: np.ndarray, apart: np.ndarray, differs: np.ndarray, unit: float) -> Pattern | None:
    if wanted.dtype != np.int8 or np.abs(apart).max(initial=0) > 1 or differs.mean() > 1 - FLOAT32.point_equal:
        return None
    return Pattern(kind="ties", text=f"rarely ({differs.mean():.4%}) and by one step")


def _rounding(wanted: np.ndarray, found: np.ndarray, apart: np.ndarray, differs: np.ndarray, unit: float) -> Pattern | None:
    """Halves are rounded to even, so another way to round them moves even codes only."""
    if wanted.dtype != np.int8 or np.abs(apart).max(initial=0) > 1:
        return None
    even, step = wanted[differs], apart[differs]
    if len(even) < _ENOUGH or len(np.unique(even)) < _VALUES or (even % 2 == 0).mean() < _EXPLAINED:
        return None
    ways = {"up": step == 1, "down": step == -1, "away from zero": (step == np.sign(even)) | (even == 0)}
    way = next((way for way, agrees in ways.items() if agrees.mean() >= _EXPLAINED), None)
    return Pattern(kind="rounding", text=f"by one step, only where the right code is even: halves are rounded {way}") if way else None


def _bounds(wanted: np.ndarray, found: np.ndarray, apart: np.ndarray, differs: np.ndarray, unit: float) -> Pattern | None:
    """One side stays within bounds that the other side passes."""
    for tight, free in ((found, wanted), (wanted, found)):
        bounds = {"above": tight.max(), "below": tight.min()}
        passes = {"above": free > bounds["above"], "below": free < bounds["below"]}
        beyond = {end: (tight == bounds[end]) & passes[end] for end in bounds}
        if (beyond["above"] | beyond["below"])[differs].mean() < _EXPLAINED:
            continue
        ends = " and ".join(f"{bounds[end]:.4g} {end}" for end, where in beyond.items() if where.any())
        passed = f"{free.max():.4g}" if beyond["above"].any() else f"{free.min():.4g}"
        if tight is found:
            return Pattern(kind="clipping", text=f"only where they are clipped: the graph ends at {ends}, the model goes to {passed}")
        saturated = wanted.dtype == np.int8 and not beyond["below"].any() and bounds["above"] == np.iinfo(np.int8).max
        kind: Kind = "clipping" if saturated else "activation"
        return Pattern(kind=kind, text=f"only where the model clips: it ends at {ends}, the graph goes to {passed}")
    return None


def _border(wanted: np.ndarray, found: np.ndarray, apart: np.ndarray, differs: np.ndarray, unit: float) -> Pattern | None:
    sizes = wanted.shape[1:-1]
    if not sizes or min(sizes) < 4:
        return None
    counts = differs.sum(axis=(0, -1))
    axes = np.meshgrid(*(np.minimum(np.arange(size), np.arange(size)[::-1]) for size in sizes), indexing="ij")
    depth = int(np.min(axes, axis=0)[counts > 0.05 * counts.max()].max())  # from the edge; a rare tie inside does not count
    if depth >= max(1, min(sizes) // 4):
        return None
    return Pattern(kind="border", text=f"only at the border of the image, up to {depth + 1} deep")


def _channels(wanted: np.ndarray, found: np.ndarray, apart: np.ndarray, differs: np.ndarray, unit: float) -> Pattern | None:
    channels = wanted.shape[-1]
    shares = differs.reshape(-1, channels).mean(axis=0)
    hit = np.flatnonzero(shares > 1 - FLOAT32.point_equal)
    if not len(hit):
        return None
    inside = (wanted > wanted.min()) & (wanted < wanted.max()) & (found > found.min()) & (found < found.max())
    fits = [_Fit.of(wanted[..., one][inside[..., one]], found[..., one][inside[..., one]]) for one in hit]
    listed = ", ".join(map(str, hit[:5])) + (" ..." if len(hit) > 5 else "")
    where = "in every channel" if len(hit) == channels else f"in {len(hit)} of {channels} channels ({listed})"
    if all(fit.kind == "bias" for fit in fits):
        return Pattern(kind="bias", text=f"{where}, by a constant: bias off by {_span([fit.offset * unit for fit in fits])}")
    if all(fit.kind is not None for fit in fits):
        return Pattern(kind="scale", text=f"{where}, by a factor: scale off by factor {_span([fit.factor for fit in fits])}")
    return Pattern(kind="channels", text=f"{where}, by no constant and no factor") if len(hit) < channels else None


def _span(values: list[float]) -> str:
    """One number, or the smallest and the largest where they are further apart than rounding makes them."""
    low, high = min(values), max(values)
    if high - low > 0.05 * max(abs(low), abs(high)):
        return f"{low:.3g} to {high:.3g}"
    mean = sum(values) / len(values)
    return f"{mean:.4g}" if abs(mean - 1) < 0.01 else f"{mean:.3g}"


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """found = factor * wanted + offset; `kind` says whether that is so, and whether the factor is needed."""

    kind: Literal["bias", "scale"] | None = None
    factor: float = 1.0
    offset: float = 0.0

    @classmethod
    def of(cls, wanted: np.ndarray, found: np.ndarray) -> _Fit:
        """The constant or, where that leaves more than it must, the line that fits best."""
        x, y = wanted.astype(np.float64), found.astype(np.float64)
        if len(x) < _ENOUGH or np.array_equal(x, y):
            return cls()
        offset = float((y - x).mean())
        apart = y - x - offset
        variance = x.var()
        factor = float(((x - x.mean()) * (y - y.mean())).mean() / variance) if variance else 1.0
        line = y - factor * x - (y.mean() - factor * x.mean())
        if _within(apart, _ROUNDED_TWICE) and (apart**2).mean() <= 1.25 * (line**2).mean() + _NEGLIGIBLE and abs(offset) > 0.02:
            return cls(kind="bias", offset=offset)
        if _within(line, _ROUNDED_TWICE + 0.5 * abs(factor - 1)):
            return cls(kind="scale", factor=factor, offset=offset)
        return cls()


def _within(values: np.ndarray, limit: float) -> bool:
    return bool((np.abs(values) <= limit).mean() >= _EXPLAINED)
