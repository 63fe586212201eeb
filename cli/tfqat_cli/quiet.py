"""Keeps TensorFlow's start-up notes from the terminal. 2.21 prints them whatever `TF_CPP_MIN_LOG_LEVEL` says:

WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795890749.865510   15996 port.cc:153] oneDNN custom operations are on. ...
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from tfqat.files import stderr_to

# A process of its own, so that what TensorFlow says when it ends this one (such as on a CPU without AVX) is still printed.
_PASS_ON = """
import sys
for line in sys.stdin.buffer:
    if not line.startswith((b"WARNING: All log messages before absl::InitializeLog()", b"I0000 00:00:")):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


def keep_tensorflow_quiet() -> None:
    """Have the first import of TensorFlow in this process print no notes; its warnings, its errors and what else is printed remain."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _quiet(spec.loader)
        return spec


def _quiet(loader: Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        with _without_notes():
            execute(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """The descriptor of stderr leads through a filter, as the notes come from C++."""
    try:
        os.fstat(2)
    except OSError:  # stderr is closed
        yield
        return
    filtering = subprocess.Popen([sys.executable, "-I", "-S", "-c", _PASS_ON], stdin=subprocess.PIPE)
    assert filtering.stdin is not None
    try:
        with filtering.stdin as pipe, stderr_to(pipe.fileno()):
            yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on if a process that was started meanwhile has its pipe
            filtering.wait(timeout=2)
