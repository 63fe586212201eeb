"""Runs `tfqat` commands in one process, as the command line does, and says of each how it ended: started by `commands.py`.

A line of JSON in, `{"arguments": [...], "cwd": ..., "stdout": FILE, "stderr": FILE}`, and one out, `{"code": ..., "more_mb": ...}`.
The code is null where an exception other than SystemExit left `main`. What a command prints, also from C++, goes to the two files.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any


def serve(requests: Any, replies: Any) -> None:
    from tfqat_cli.main import main

    with suppress(ImportError):  # once, and not within the time limit of the first command
        import tfqat.pipeline  # noqa: F401
    _reply(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        _reply(replies, _run(main, request))


def _run(main: Any, request: dict[str, Any]) -> dict[str, Any]:
    os.chdir(request["cwd"])
    before, modules = list(sys.path), set(sys.modules)
    with Path(request["stdout"]).open("wb") as out, Path(request["stderr"]).open("wb") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    _forget_peak()
    resident = _memory("VmRSS")
    sys.argv = ["tfqat", *request["arguments"]]
    code = None
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if name == "data" or name.startswith("tfqat_reference_"):
            sys.modules.pop(name, None)
    return {"code": code, "more_mb": max(0, _memory("VmHWM") - resident) // 1024}


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now


def _memory(name: str) -> int:
    """A figure of /proc/self/status in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _reply(replies: Any, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    sys.path.insert(0, "")  # the working directory, as for `python -m tfqat_cli`
    with os.fdopen(os.dup(0), "r") as requests, os.fdopen(os.dup(1), "w") as replies:
        serve(requests, replies)
