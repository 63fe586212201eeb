"""`tfqat doctor`: what is installed, what can be used here, and how to get the rest; exit code 1 if something needed is missing."""

from __future__ import annotations

from pathlib import Path

import typer

_STYLES = {"ok": "green", "note": "yellow", "missing": "bold red"}


def doctor() -> None:
    """Print the versions of everything that results depend on, what is usable here, and how to get what is missing."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tfqat import __version__
    from tfqat.doctor import examine

    checks = examine(Path.cwd())
    table = Table(title=f"tfqat {__version__}")
    for column in ("part", "version or state", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        # As Text: `pip install tfqat[ray]` is no markup.
        table.add_row(Text(check.part), Text(check.state, style=_STYLES[check.level]), Text(check.advice))
    console = Console()
    console.print(table)
    missing = [check.part for check in checks if check.level == "missing"]
    if missing:
        console.print(f"not usable before this is put right: {', '.join(missing)}", style="bold red")
        raise typer.Exit(1)
    console.print("ready: nothing that tfqat needs is missing")
