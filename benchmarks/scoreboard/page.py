"""The generated part of `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from benchmarks.scoreboard import contests
from benchmarks.scoreboard.peers import PEERS
from benchmarks.scoreboard.results import Sections
from benchmarks.scoreboard.tables import Table


def markdown(sections: Sections, comparisons: Mapping[str, ModuleType]) -> str:
    """Where tfqat loses, then each comparison with where it was measured; those that were not measured are named."""
    there = {name: module for name, module in comparisons.items() if name in sections}
    found = [one for name, module in there.items() for one in module.contests(sections[name]["figures"])]
    parts = ["## Where tfqat loses", contests.markdown(found)]
    for name, module in comparisons.items():
        parts += [f"## {module.TITLE}", module.ABOUT]
        if name not in sections:
            parts.append(f"Not measured yet: `python -m benchmarks {name}`.")
            continue
        parts.append(_measured(sections[name]))
        parts += [table.markdown() for table in module.tables(sections[name]["figures"])]
    return "\n\n".join([*parts, "## Settings", _tools(sections)])


def _measured(section: dict[str, Any]) -> str:
    machine = section["machine"]
    vnni = "with VNNI" if machine["vnni"] else "without VNNI"
    settings = "".join(f"; {key}: {value}" for key, value in section["settings"].items())
    return (
        f"Measured {section['measured']} in {section['seconds'] / 60:.0f} minutes on {machine['cpu']}, {machine['cores']} cores, {vnni}, "
        f"load at the end {machine['load']}; Python {machine['python']}, revision {machine['revision']}{settings}."
    )


def _tools(sections: Sections) -> str:
    tools: dict[str, dict[str, dict[str, str]]] = {}
    for section in sections.values():
        tools |= section["tools"]
    rows = [[title, ", ".join(f"{name} {one}" for name, one in found["versions"].items() if one)] for title, found in tools.items()]
    rows += [[title, "not run"] for title in PEERS if title not in tools]
    asked = [[f"{title}, {name}", text] for title, found in tools.items() for name, text in found["variants"].items()]
    settings = Table(title="What each was asked for", header=["", "settings; else its defaults"], rows=asked)
    return "\n\n".join(table.markdown() for table in (Table(title="Versions", header=["", "packages"], rows=rows), settings))
