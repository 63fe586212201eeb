"""What `tfqat verify` prints beside the table of parity: how far codes differ, and two graphs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from tfqat.proof.comparison import GraphComparison
    from tfqat.proof.differences import CodeDifference
    from tfqat.proof.parity import ParityReport

_RANGES = ((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 255))


def histogram_table(parity: ParityReport) -> Table:
    """How many codes of all points differ by how much; ranges without any are left out."""
    table = Table(title="Difference of codes, all points", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("difference", "local", "end to end"):
        table.add_column(column, justify="right")
    for low, high in _RANGES:
        counts = [_between(difference, low, high) for difference in (parity.local, parity.end_to_end)]
        if any(counts):
            table.add_row(f"{low}" if low == high else f"{low} to {high}", *(f"{count:,}" for count in counts))
    return table


def comparison_table(found: GraphComparison) -> Table:
    """What two graphs hold and compute."""
    table = Table(
        title=f"{found.first} against {found.second}\non {found.examples} examples of {found.data}", box=SIMPLE_HEAD, padding=(0, 1)
    )
    table.add_column("compared")
    table.add_column("found", overflow="fold")
    rows = {
        "points in both": str(len(found.points)),
        "points and weights only in the first": ", ".join(found.only_in_first) or "none",
        "points and weights only in the second": ", ".join(found.only_in_second) or "none",
        "activation scales that differ": ", ".join(f"{name} ({a:.6g}, {b:.6g})" for name, (a, b) in found.scales.items()) or "none",
        "weights that differ": ", ".join(f"{name} ({how})" for name, how in found.weights.items()) or "none",
        "other constants that differ": ", ".join(found.constants) or "none",
        "equal codes": f"{found.codes.equal:.5%}, largest difference {found.codes.max_difference} ({found.limit:.2%} is asked for)",
        "outputs": f"largest difference {found.outputs.max_abs_difference:.3g}, cosine {found.outputs.cosine:.6f}, "
        f"same largest entry {found.outputs.top1_agreement:.2%}",
    }
    if found.first_difference is not None:
        rows["first difference"] = f"{found.first_difference.point}: {found.first_difference.cause}"
    for row in rows.items():
        table.add_row(*row)
    return table


def _between(difference: CodeDifference, low: int, high: int) -> int:
    return sum(count for distance, count in difference.histogram.items() if low <= distance <= high)
