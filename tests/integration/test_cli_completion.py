"""Shell completion: it is installed, and completes the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from tfqat_cli.main import main; main()"


def tfqat(*arguments: str, home: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        env=os.environ | {"HOME": str(home), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("shell", "profile", "script"),
    [
        ("bash", ".bashrc", ".bash_completions/tfqat.sh"),
        ("zsh", ".zshrc", ".zfunc/_tfqat"),
        ("fish", None, ".config/fish/completions/tfqat.fish"),
    ],
)
def test_it_is_installed(shell: str, profile: str | None, script: str, tmp_path: Path) -> None:
    said = tfqat("--install-completion", shell, home=tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert f"{shell} completion installed in" in said
    assert "_TFQAT_COMPLETE" in (tmp_path / script).read_text()
    assert profile is None or (tmp_path / profile).read_text()


TYPED = {
    "a command": ("tfqat in", "1", ["infer", "init"]),
    "another": ("tfqat sche", "1", ["schema"]),
    "an option": ("tfqat init --ex", "2", ["--example"]),
}


@pytest.mark.parametrize(("typed", "word", "offered"), TYPED.values(), ids=TYPED)
def test_what_it_offers(typed: str, word: str, offered: list[str], tmp_path: Path) -> None:
    shown = tfqat(home=tmp_path, _TFQAT_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=word).split()
    assert sorted(shown) == offered
