"""References: where files are looked for, how functions are imported, and what each failure says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfqat.errors import DataError, RecipeError
from tfqat.recipe.references import load_reference, resolve_path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `recipes/deep` and `work`, which is the working directory; modules imported from it are forgotten."""
    for folder in ("recipes/deep", "work"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_resolve_path_looks_in_the_working_directory_then_up_from_the_recipe(project: Path) -> None:
    base = project / "recipes" / "deep"
    for folder in (project, project / "recipes", base, project / "work"):
        (folder / "a.txt").write_text("")
        assert resolve_path("a.txt", base) == folder / "a.txt"  # each one is nearer than the one before
    assert resolve_path(project / "a.txt", base) == project / "a.txt"


def test_resolve_path_says_where_it_looked(project: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_path("b/no.keras", project / "recipes")
    assert str(caught.value) == (
        f"'b/no.keras' does not exist; looked in {project / 'work'}, {project / 'recipes'} and the folders above it"
    )
    with pytest.raises(RecipeError, match=r"^'/no\.keras' does not exist$"):
        resolve_path("/no.keras", project)


def test_file_reference_can_import_its_neighbours_and_sys_path_is_restored(project: Path) -> None:
    (project / "neighbour_a.py").write_text("VALUE = 41\n")
    (project / "data.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport neighbour_a\n\n"
        "@dataclass\nclass Row:\n    x: int\n\ndef train():\n    return Row(neighbour_a.VALUE + 1).x\n"
    )
    before = list(sys.path)
    assert load_reference("data.py:train", base=project / "recipes")() == 42
    assert sys.path == before


def test_file_is_imported_once_until_it_changes(project: Path) -> None:
    path = project / "once.py"
    path.write_text("import itertools\nNUMBERS = itertools.count()\ndef a(): return next(NUMBERS)\ndef b(): return next(NUMBERS)\n")
    assert [load_reference(f"once.py:{name}", base=project)() for name in "ab"] == [0, 1]
    path.write_text("def a(): return 'changed'\n")
    os.utime(path, (1, 1))  # a clock too coarse for a test cannot hide the change
    assert load_reference("once.py:a", base=project)() == "changed"


def test_module_reference(project: Path) -> None:
    import json

    assert load_reference("json:dumps", base=project) is json.dumps
    (project / "work" / "package_b").mkdir()
    (project / "work" / "package_b" / "data.py").write_text("def train(): return 7\n")
    before = list(sys.path)
    assert load_reference("package_b.data:train", base=project)() == 7
    assert sys.path == before


FILE = "def train(): pass\ndef validation(): pass\nimages = 3\n"
FAILURES = {
    "no colon": (None, "data.py", RecipeError, "'data.py': expected module:function or path/file.py:function"),
    "no function": (None, "data.py:", RecipeError, "'data.py:': expected module:function or path/file.py:function"),
    "an expression": (None, "data.py:f()", RecipeError, "'data.py:f()': expected module:function or path/file.py:function"),
    "missing file": (
        None,
        "data.py:train",
        DataError,
        "'data.py:train': 'data.py' does not exist; looked in {root}/work, {root} and the folders above it",
    ),
    "misspelt function": (FILE, "data.py:trian", DataError, "'data.py:trian': data.py has no function 'trian'; did you mean 'train'?"),
    "far from any": (FILE, "data.py:zzz", DataError, "'data.py:zzz': data.py has no function 'zzz'"),
    "not callable": (FILE, "data.py:images", DataError, "'data.py:images': images is of type int; expected a function"),
    "raises": ("1 / 0\n", "data.py:train", DataError, "'data.py:train': importing it raises ZeroDivisionError: division by zero"),
    "exits": ("import sys\nsys.exit(3)\n", "data.py:train", DataError, "'data.py:train': importing it raises SystemExit: 3"),
    "imports what is not there": (
        "import no_such_module_c\n",
        "data.py:train",
        DataError,
        "'data.py:train': importing it raises ModuleNotFoundError: No module named 'no_such_module_c'",
    ),
    "syntax": (
        "def train(:\n",
        "data.py:train",
        DataError,
        "'data.py:train': importing it raises SyntaxError: invalid syntax (data.py, line 1)",
    ),
    "missing module": (
        None,
        "no_such_module_c.data:train",
        DataError,
        "'no_such_module_c.data:train': no module named 'no_such_module_c', neither installed nor in {root}/work",
    ),
    "missing function of a module": (
        None,
        "json:lods",
        DataError,
        "'json:lods': json has no function 'lods'; did you mean 'loads'?",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(project: Path, name: str) -> None:
    text, reference, error, message = FAILURES[name]
    if text is not None:
        (project / "data.py").write_text(text)
    path, modules = list(sys.path), set(sys.modules)
    with pytest.raises(error) as caught:
        load_reference(reference, base=project)
    assert str(caught.value) == message.format(root=project)
    assert sys.path == path
    if text and "def train()" not in text:
        assert not [module for module in set(sys.modules) - modules if module.startswith("tfqat_reference_")]
