"""How pages become tests: which blocks there are, when an output counts as the real one, and that a wrong page is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from documentation_blocks import PageError, blocks_of
from documentation_outputs import difference
from documentation_parsed import check_names, check_tfqat_commands, check_yaml

ROOT = Path(__file__).resolve().parents[2]

PAGE = """\
# Title

<!-- exit: 2 -->
```bash
tfqat plan
```

```text
error: it
```

- in a list:

  ```python title="data.py"
  x = 1
  ```

```text
a drawing
```

```yaml
skip: [a]
```
"""

WRONG_PAGE = """\
```python
print(1)
```

```text
1
```

```python
print(1)
```

```text
2
```

```bash
false
```

```yaml
no_key: 1
```
"""


def test_blocks_with_their_outputs_titles_and_comments() -> None:
    bash, python, yaml = blocks_of(PAGE)
    assert (bash.language, bash.directives, bash.output and bash.output.content) == ("bash", {"exit": "2"}, "error: it\n")
    assert (python.title, python.content, python.output) == ("data.py", "x = 1\n", None)
    assert (yaml.content, yaml.first, yaml.last) == ("skip: [a]\n", 21, 24)


@pytest.mark.parametrize(
    ("page", "words"), [("para\n\n    tfqat run\n", "line 3: an indented code block"), ("```sh\nls\n```\n", "a block of language 'sh'")]
)
def test_pages_that_cannot_be_tested(page: str, words: str) -> None:
    with pytest.raises(PageError, match=words):
        blocks_of(page)


@pytest.mark.parametrize(
    ("shown", "real", "agrees"),
    [
        ("a\nb", "a\nb\n", True),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...", "a\nb", True),
        ("...\nb", "a\nb", True),
        ("...\nb", "a\nc", False),
        ("accuracy 0.931", "accuracy 0.925", True),
        ("accuracy 0.931", "accuracy 0.871", False),
        ("12 layers", "13 layers", False),
        ("12 layers in 3.2 s", "12 layers in 14 s", True),
        ("✓ Start ━━━ 1/1 0:00:14", "✓ Start ━━━━━━ 1/1 0:01:02", True),
        ("runs/x-20260101T000000Z", "runs/x-20261128T101500Z-1", True),
        ("1,000,000 of ... codes", "1,000,000 of 3 codes", True),
        ("│ a   │", "│ a │", True),
        ("(x) [1]", "(y) [1]", False),
        ("SNR 1.2e-3", "SNR 1.2e-3", True),
    ],
)
def test_when_an_output_agrees(shown: str, real: str, agrees: bool) -> None:
    assert (difference(shown, real) is None) == agrees


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("tfqat compile model.onnx --target SM86 && ls", None),
        ("tfqat verify RUN \\\n  --examples 10", None),
        ("tfqat verify RUN --example 10", "No such option"),
        ("tfqat verfy RUN", "tfqat has no command 'verfy'"),
        ("tfqat compile", "Missing argument"),
    ],
)
def test_commands_that_are_only_parsed(script: str, problem: str | None) -> None:
    found = check_tfqat_commands(script)
    assert found is None if problem is None else problem in (found or "")


def test_names_and_recipes_that_are_only_parsed() -> None:
    assert check_names("tfqat.plan(model)") is None and check_names("tfqat.plann(model)") == "tfqat has no 'plann'"
    assert check_yaml("quantization: {skip: [a]}") is None
    assert "did you mean 'skip'" in (check_yaml("quantization: {skp: [a]}") or "")


def test_a_wrong_page_fails(tmp_path: Path) -> None:
    """The plugin itself, on a page with one right and three wrong blocks."""
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(WRONG_PAGE)
    plugin = (ROOT / "conftest.py").read_text().replace("Path(__file__).parent", f"Path({str(ROOT)!r})")
    (tmp_path / "conftest.py").write_text(plugin.replace("pages()", f"pages(Path({str(tmp_path)!r}))"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path), str(page)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert "3 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "unknown key" in done.stdout and "the page shows a line that the output does not have" in done.stdout


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    api, cli, recipe = ((tmp_path / "reference" / f"{name}.html").read_text() for name in ("api", "cli", "recipe"))
    assert "tfqat.export_onnx" in api and "--strict" in cli and "small_products" in recipe
    assert "https://fonts" not in (tmp_path / "index.html").read_text()
