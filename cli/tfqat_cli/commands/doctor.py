"""`tfqat doctor`: what is installed and what can be used here."""

from __future__ import annotations


def doctor() -> None:
    """Print the versions of everything that results depend on, and the backends that are usable here."""
    from rich.console import Console
    from rich.table import Table

    from tfqat import __version__
    from tfqat.engines.compile import usable_backends
    from tfqat.engines.onnxruntime import cpu_has_vnni
    from tfqat.run_directory import versions

    table = Table(title=f"tfqat {__version__}")
    table.add_column("part")
    table.add_column("version or state")
    for name, version in versions().items():
        table.add_row(name, version)
    table.add_section()
    for name, state in usable_backends().items():
        table.add_row(f"backend {name}", state)
    vnni = cpu_has_vnni()
    text = {
        True: "yes: fused int8 kernels are exact",
        False: "no: fused int8 kernels saturate 16-bit sums; judge accuracy by the literal run",
    }
    table.add_row("CPU has VNNI", "not known" if vnni is None else text[vnni])
    Console().print(table)
