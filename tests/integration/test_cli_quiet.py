"""The commands keep TensorFlow's start-up notes from the terminal, and nothing else that is printed meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STARTED = "from tfqat_cli.quiet import keep_tensorflow_quiet; keep_tensorflow_quiet(); import tensorflow; print(tensorflow.__name__)"
PRINTS = r"""
import os, sys
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\nI0000 00:00:1 port.cc] a note\n")
os.write(2, b"W0000 00:00:1 a warning\n")
print("from Python", file=sys.stderr)
"""


def started(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_the_real_one_prints_nothing(tmp_path: Path) -> None:
    done = started(STARTED, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tensorflow\n", "")


@pytest.mark.parametrize(
    ("ends", "code", "last"),
    {
        "well": ("", 0, "from Python\n"),
        "with an error": ("raise ImportError('no library')", 1, "ImportError: no library\n"),
        "with the process": ("os.write(2, b'F0000 no AVX\\n'); os.abort()", -6, "F0000 no AVX\n"),
    }.values(),
    ids=["well", "with an error", "with the process"],
)
def test_only_notes_are_lost(ends: str, code: int, last: str, tmp_path: Path) -> None:
    """A package of that name in the working directory, which is imported in TensorFlow's place."""
    (tmp_path / "tensorflow.py").write_text(PRINTS + ends)
    done = started(STARTED, tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith("W0000 00:00:1 a warning\nfrom Python\n") and done.stderr.endswith(last)
    assert "a note" not in done.stderr and "InitializeLog" not in done.stderr


def test_a_closed_stderr(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, STARTED], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "tensorflow\n")
