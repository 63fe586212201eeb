"""Python environments for the tools that cannot live beside tfqat's versions; made once, by pip, in `.benchmarks/` (ignored by Git)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

from benchmarks.scoreboard.peer import Cannot
from benchmarks.scoreboard.peers import Place

_ONE_AT_A_TIME = threading.Lock()
CACHE = Path(__file__).resolve().parents[2] / ".benchmarks"


def python_of(place: Place) -> Path:
    """The Python that runs the tool; makes its environment if it has one and that is not there yet.

    Raises:
        Cannot: it cannot be made; says why in one line.
    """
    if not place.requirements:
        return Path(sys.executable)
    with _ONE_AT_A_TIME:
        found = _made_or_why_not(place)
    if isinstance(found, Cannot):
        raise found
    return found


@cache
def _made_or_why_not(place: Place) -> Path | Cannot:
    """What fails once is not tried again in the same run."""
    try:
        return _made(place)
    except Cannot as reason:
        return reason


def _made(place: Place) -> Path:
    wanted = "\n".join((*place.requirements, "without dependencies:", *place.without_dependencies))
    folder = CACHE / f"{place.module}-{hashlib.sha256(wanted.encode()).hexdigest()[:10]}"
    python = folder / "bin" / "python"
    if not (folder / "made").is_file():
        print(f"making the environment of {place.title} in {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run([_interpreter(place), "-m", "venv", str(folder)], place)
        _run([str(python), "-m", "pip", "install", "--quiet", *place.requirements], place)
        if place.without_dependencies:
            _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *place.without_dependencies], place)
        (folder / "made").write_text(wanted, encoding="utf-8")
    return python


def _interpreter(place: Place) -> str:
    names = [f"python3.{sys.version_info.minor}", *place.pythons]
    found = next((path for name in names if name in place.pythons and (path := shutil.which(name))), None)
    if found is None:
        raise Cannot(f"does not install here: it needs {' or '.join(place.pythons)}")
    return found


def _run(command: list[str], place: Place) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise Cannot(f"does not install here: {' '.join(errors)[:300]}")
