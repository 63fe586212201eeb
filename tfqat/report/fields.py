"""How an entry of a JSON object is read that may be missing or hold more than is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def numbers(data: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of `data` that are numbers; none without data."""
    return {name: value for name, value in (data or {}).items() if isinstance(value, int | float) and not isinstance(value, bool)}
