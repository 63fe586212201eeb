"""`tfqat report RUN`: writes the HTML report of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Write report.html from the other files of a run directory."""
    from tfqat.report.html import write_report

    typer.echo(write_report(run_directory))
