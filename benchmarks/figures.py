"""A figure beside its limit, as the benchmarks print it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured value, its limit in words, and whether it is kept."""

    name: str
    value: str
    limit: str
    kept: bool


def show(figures: Iterable[Figure]) -> bool:
    """Print each figure as soon as it is there; whether all are within their limits."""
    kept = True
    for figure in figures:
        print(f"{'ok ' if figure.kept else 'OUT'} {figure.name:<92} {figure.value:>34}   {figure.limit}", flush=True)
        kept &= figure.kept
    return kept
