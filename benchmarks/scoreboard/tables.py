"""Markdown from figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
NONE = "–"
_LONG_NAME = re.compile(r"[\w/;:.]{50,}")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a title, and notes below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        """Title, table and notes. A column is aligned to the right but for the first."""
        lines = [f"**{self.title}**", "", _row(self.header), _row(["---", *["---:"] * (len(self.header) - 1)])]
        lines += [_row(row) for row in self.rows]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def placed(document: str, generated: str) -> str:
    """The document with the text between the markers replaced.

    Raises:
        ValueError: it does not have both markers, in their order.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{generated.strip()}\n\n{END}{after}"


def spread(one: dict[str, Any] | None, form: str = "{:.2f}") -> str:
    """`median (low - high)`."""
    if not one:
        return NONE
    middle, low, high = (form.format(one[key]) for key in ("median", "low", "high"))
    return middle if len(one["values"]) == 1 else f"{middle} ({low} - {high})"


def difference(one: dict[str, float] | None) -> str:
    """`+0.12 ± 0.05`: points and their standard error."""
    return NONE if one is None else f"{one['points']:+.2f} ± {one['standard_error']:.2f}"


def percent(value: float | None) -> str:
    """Two digits."""
    return NONE if value is None else f"{100 * value:.2f}"


def label(row: dict[str, Any]) -> str:
    """Tool and variant."""
    return f"{row['peer']}, {row['variant']}" if row.get("variant") else row["peer"]


def short(reason: str, length: int = 200) -> str:
    """A reason that fits into a table; names of nodes, which can be long, by their ends."""
    reason = " ".join(_LONG_NAME.sub(lambda found: f"…{found[0][-20:]}", reason).split())
    return reason if len(reason) <= length else f"{reason[: length - 1]}…"
