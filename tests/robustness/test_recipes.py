"""Recipes that hypothesis makes: each is read, or refused with a message and exit code 2; what is read is planned too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

made = sys.modules["tfqat_robustness_recipes"]
contents = sys.modules["tfqat_robustness_commands"].contents
SEED = int(os.environ.get("TFQAT_ROBUSTNESS_SEED", "0"))
EXAMPLES, SAMPLE = 200, 8
KINDS: dict[str, Callable[[list[str]], st.SearchStrategy[bytes]]] = {
    "recipe from the schema": lambda _: made.from_schema(),
    "recipe with other values": made.other_values,
    "recipe with other text": made.other_text,
    "recipe with other bytes": made.other_bytes,
}
FEW_AND_MANY = [pytest.param(SAMPLE, id="sample"), pytest.param(EXAMPLES, id="all", marks=pytest.mark.robustness)]


def tried(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """`check` on `examples` values, the same ones every time."""
    quiet = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    seed(SEED)(quiet(given(strategy)(check)))()


@pytest.fixture
def planned(commands: Any, project: Path, count: Callable[[str, str], None]) -> Callable[..., None]:
    """`tfqat plan` on a recipe: planned, or refused with a message; nothing is written or changed."""

    def plan(kind: str, recipe: bytes, *options: str) -> None:
        (project / "fuzzed.yaml").write_bytes(recipe)
        before = contents(project)
        ended = commands.run("plan", "fuzzed.yaml", *options, cwd=project, limit_s=60)
        assert not ended.wrong, f"{ended.wrong}: {ended.told()}"
        assert ended.code in (0, 2), ended.told()
        assert contents(project) == before
        assert not (project / "canary").exists()
        if ended.code == 2:
            assert len(ended.err) < 100_000
        count(kind, "worked" if ended.code == 0 else "refused")

    return plan


@pytest.mark.parametrize("examples", FEW_AND_MANY)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_is_planned_or_refused(kind: str, examples: int, project: Path, planned: Callable[..., None]) -> None:
    texts = [*made.real(), *[(project / "tiny.yaml").read_text()] * 4]
    tried(examples, KINDS[kind](texts), lambda recipe: planned(kind, recipe))


@pytest.mark.parametrize("examples", FEW_AND_MANY)
def test_an_override_is_taken_or_refused(examples: int, project: Path, planned: Callable[..., None]) -> None:
    text = (project / "tiny.yaml").read_text()

    def check(overrides: list[str]) -> None:
        planned("override", text.encode(), *[part for one in overrides for part in ("--set", one)])

    tried(examples, made.overrides([text]), check)


PROCESSES = {
    "object": "version: !!python/object/apply:os.system ['touch canary']\n",
    "aliases": "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n"
    + "".join(f"{after}: &{after} [{', '.join([f'*{before}'] * 8)}]\n" for before, after in zip("bcdefghijk", "cdefghijkl", strict=True)),
    "itself": "a: &a [*a]\n",
    "depth": "[" * 2_000,
    "merge": "a: &a {b: 1}\nc: {<<: [*a, *a], <<: *a}\n",
    "zeros": "\x00" * 1000,
}


@pytest.mark.parametrize("text", PROCESSES.values(), ids=PROCESSES)
def test_a_process_of_its_own_refuses_it(text: str, project: Path, count: Callable[[str, str], None]) -> None:
    (project / "bad.yaml").write_text(text)
    command = [sys.executable, "-m", "tfqat_cli", "plan", "bad.yaml"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: bad.yaml") and "Traceback" not in done.stderr
    assert not (project / "canary").exists()
    count("recipe in a process of its own", "refused")


# What the recipes above have found, each as a case of its own: (--set, message).
FOUND = {
    "a number of 5,000 hexadecimal digits": (f"seed=0x{'F' * 5000}", r"seed: expected a number of at most 63 bits; got '0xF+\.\.\."),
    "a number that no float holds": (f"training.epochs=1{'0' * 400}", r"training\.epochs: expected a number of at most 63 bits"),
    "a number that Python does not read": (f"seed={'9' * 5000}", r"seed: '9+\.\.\. is no int"),
    "an index of 5,000 digits": (f"quantization.skip.{'9' * 5000}=x", r"quantization\.skip: expected a list; got"),
    "a NUL in the name of a file": ('model.source="a\\0b"', r"model\.source: 'a\\x00b' does not exist"),
    "a name that is too long": (f"model.source={'x' * 5000}", r"model\.source: 'x+' does not exist"),
    "a pattern that repeats without end": ("quantization.skip=['re:a{99999999999}']", r"re:a\{99999999999\}"),
    "a pattern that nests too deep": (
        f"quantization.skip=['re:{'(' * 3000}{')' * 3000}']",
        r"pattern 're:\(+' is not a regular expression",
    ),
}


@pytest.mark.parametrize(("override", "message"), FOUND.values(), ids=FOUND)
def test_what_was_found(override: str, message: str, project: Path, commands: Any) -> None:
    ended = commands.run("plan", "tiny.yaml", "--set", override, cwd=project)
    assert ended.code == 2 and not ended.wrong, ended.told()
    assert re.search(message, ended.err), ended.told()


@pytest.mark.parametrize("command", [["plan"], ["verify"], ["lint"], ["compile"], ["report"], ["bench"], ["export"], ["infer", "-i"]])
def test_the_name_of_a_file_that_is_too_long(command: list[str], project: Path, commands: Any) -> None:
    name = "x" * 300
    ended = commands.run(*command, name, *([name] if command[0] == "infer" else []), cwd=project)
    assert ended.code == 2 and not ended.wrong, ended.told()
