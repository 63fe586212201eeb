"""The file of all raw figures: one entry for each comparison, with when, where and on what it was measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

Sections = dict[str, dict[str, Any]]


def read(path: Path) -> Sections:
    """The sections of a file; none if there is no file."""
    return json.loads(path.read_text(encoding="utf-8"))["sections"] if path.is_file() else {}


def merged(sections: Sections, name: str, figures: Any, *, seconds: float, settings: dict[str, Any], tools: Any) -> Sections:
    """The sections with one of them measured anew."""
    measured = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    entry = {"measured": measured, "seconds": round(seconds), "machine": machine(), "settings": settings, "tools": tools}
    return {**sections, name: {**entry, "figures": figures}}


def partly_again(earlier: dict[str, Any], entry: dict[str, Any], what: str) -> dict[str, Any]:
    """A section of which a part was measured again: time and machine are those of the whole, and the settings say what is newer."""
    newer = f"{what} ({entry['measured']}, revision {entry['machine']['revision']})"
    settings = {**earlier["settings"], "measured again": newer}
    return {**earlier, "settings": settings, "tools": {**earlier["tools"], **entry["tools"]}, "figures": entry["figures"]}


def write(path: Path, sections: Sections) -> None:
    """Write the whole file or nothing."""
    text = json.dumps({"sections": _rounded(sections)}, indent=1, ensure_ascii=False)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def machine() -> dict[str, Any]:
    """CPU, cores, whether it has VNNI, and what else it is doing."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = dict(line.split("\t:", 1) if "\t:" in line else line.partition(":")[::2] for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "vnni": any(flag in flags for flag in ("avx512_vnni", "avx_vnni")),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "revision": _revision(),
    }


def _revision() -> str:
    """The commit, with a + if files differ from it other than those that this writes."""
    root = Path(__file__).resolve().parents[2]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=root).stdout.strip()
    own = (":!docs/benchmarks.md", ":!benchmarks/results.json")
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *own], capture_output=True, cwd=root).returncode
    return f"{commit or 'unknown'}{'+' if changed else ''}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
