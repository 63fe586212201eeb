"""Blocks as pytest items, by Sybil: each page has a folder and a namespace of its own, and its blocks run in their order."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from documentation_blocks import Block, PageError, blocks_of
from documentation_given import GIVEN
from documentation_outputs import difference
from documentation_parsed import check_names, check_tfqat_commands, check_yaml
from sybil import Document, Example, Region, Sybil

ROOT = Path(__file__).resolve().parents[2]
WRITE = os.environ.get("TFQAT_WRITE_DOCS") == "1"
PAGES = ("README.md", "docs/*.md", "docs/*/*.md", "examples/*/README.md")
TIMEOUT_S = 300
# What TensorFlow says on stderr whenever it starts.
_NOISE = ("WARNING: All log messages before absl", "I0000 00:00:", "W0000 00:00:", "E0000 00:00:")
_PLACE = "_place"  # where the namespace of a page keeps its folder and what is to be written


class Place:
    """The folder of one page while its blocks run, and the real outputs, to be written into the page."""

    def __init__(self) -> None:
        self.before = Path.cwd()
        self.folder = Path(tempfile.mkdtemp(prefix="tfqat-docs-")).resolve()
        for name in ("examples", "recipes", "benchmarks"):
            (self.folder / name).symlink_to(ROOT / name)
        self.page = Path()
        self.outputs: dict[int, tuple[Block, str]] = {}

    def environment(self) -> dict[str, str]:
        paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        settings = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": os.pathsep.join(paths)}
        return {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"} | settings


def parse(document: Document) -> Iterable[Region]:
    """A region for each block of a page."""
    starts = [0]
    for line in document.text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    try:
        blocks = blocks_of(document.text)
    except PageError as error:
        raise PageError(f"{document.path}: {error}") from error
    for block in blocks:
        yield Region(starts[block.first], starts[block.last], parsed=block, evaluator=evaluate)


def evaluate(example: Example) -> str | None:
    """Run a block; what is wrong with it or its output, if anything."""
    block: Block = example.parsed
    place: Place = example.namespace[_PLACE]
    place.page = Path(example.path)
    if "given" in block.directives:
        for name in block.directives["given"].split(","):
            GIVEN[name.strip()](place.folder, example.namespace)
    if block.title is not None:
        target = place.folder / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.content)
    if "not run" in block.directives:
        return _parsed(block)
    if block.title is not None and block.language != "yaml":
        return None
    real = _RUNNERS[block.language](block, example)
    if "picture" in block.directives:
        _picture(place, block.directives["picture"])
    if block.output is None or real is None:
        return None
    problem = difference(block.output.content, real)
    if WRITE and problem is not None:
        place.outputs[block.output.first] = (block.output, real)
        return None
    return problem


def _picture(place: Place, name: str) -> None:
    """The block has drawn it; the page's copy is not compared, as fonts differ from machine to machine."""
    made, kept = place.folder / Path(name).name, ROOT / "docs" / name
    if not made.stat().st_size:
        raise AssertionError(f"{made.name} is empty")
    if WRITE:
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(made, kept)
    elif not kept.is_file():
        raise AssertionError(f"docs/{name} is not there; run with TFQAT_WRITE_DOCS=1")


def _parsed(block: Block) -> str | None:
    if block.language == "bash":
        return check_tfqat_commands(block.content)
    return check_names(block.content) if block.language == "python" else None


def _bash(block: Block, example: Example) -> str:
    place: Place = example.namespace[_PLACE]
    wanted = int(block.directives.get("exit", "0"))
    done = subprocess.run(
        ["bash", "-e", "-c", block.content],
        cwd=place.folder, env=place.environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith(_NOISE))
    if done.returncode != wanted:
        raise AssertionError(f"exit code {done.returncode}, expected {wanted}\n{block.content}\n{done.stdout}\n{said}")
    return done.stdout + said if wanted else done.stdout


def _python(block: Block, example: Example) -> str:
    printed = io.StringIO()
    code = compile("\n" * (block.first + 1) + block.content, example.path, "exec")
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, example.namespace)
    except Exception as error:  # Sybil 10 cannot show an exception that was raised while another one was handled in the block itself
        raise AssertionError("".join(traceback.format_exception(error))) from None
    return printed.getvalue()


def _yaml(block: Block, example: Example) -> None:
    problem = check_yaml(block.content)
    if problem:
        raise AssertionError(problem)


def _json(block: Block, example: Example) -> None:
    json.loads(block.content)


_RUNNERS: dict[str, Any] = {"bash": _bash, "python": _python, "yaml": _yaml, "json": _json}


def forget_models() -> None:
    """Clear what both Kerases keep of the models made so far, and have them count names from the start."""
    if "tf_keras" in sys.modules:
        sys.modules["tf_keras"].backend.clear_session()
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()


def set_up(namespace: dict[str, Any]) -> None:
    """A new folder, and the page's code in it."""
    place = Place()
    namespace[_PLACE] = place
    namespace["__name__"] = "page"
    os.chdir(place.folder)
    forget_models()  # Keras counts its models' names from the start again, as in a process of its own
    sys.path.insert(0, str(place.folder))  # as in a Python that is started there


def tear_down(namespace: dict[str, Any]) -> None:
    """Back to where pytest was started; the folder goes."""
    place: Place = namespace[_PLACE]
    os.chdir(place.before)
    sys.path.remove(str(place.folder))
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__dict__", {}).get("__file__", "")).startswith(f"{place.folder}{os.sep}"):
            del sys.modules[name]  # another page may have a file of that name
    if place.outputs:
        write_outputs(place.page, place.outputs)
    namespace.clear()  # models and data of all pages at once would take gigabytes
    forget_models()
    gc.collect()
    shutil.rmtree(place.folder, ignore_errors=True)


def write_outputs(page: Path, outputs: dict[int, tuple[Block, str]]) -> None:
    """Put real outputs into a page, the last first, so that lines stay where they are."""
    lines = page.read_text().splitlines(keepends=True)
    for first in sorted(outputs, reverse=True):
        block, real = outputs[first]
        shown = "\n".join(line.rstrip() for line in real.splitlines()).strip("\n")
        lines[block.first + 1 : block.last - 1] = [line + "\n" for line in shown.splitlines()]
    page.write_text("".join(lines))


def pages(root: Path = ROOT) -> Sybil:
    """What collects the pages of a folder."""
    return Sybil(parsers=[parse], patterns=PAGES, path=str(root), setup=set_up, teardown=tear_down)
