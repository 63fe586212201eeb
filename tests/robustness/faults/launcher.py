"""Runs commands of tfqat in forks of a process that has imported TensorFlow already: reads JSON lists of arguments, prints process ids.

A line of standard input is `{"arguments": [...], "folder": ..., "log": ...}`; the answer is `started PID`, and when the command has ended
`ended PID CODE`, with the negative number of the signal that killed it.
"""

from __future__ import annotations

import json
import os
import sys
import threading


def main() -> None:
    """Fork for each line; TensorFlow has started no thread before that."""
    import tfqat_cli.main

    from tfqat import pipeline  # noqa: F401
    from tfqat.engines import onnxruntime  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(wanted, tfqat_cli.main.main)
        print(f"started {child}", flush=True)
        threading.Thread(target=_report, args=(child,), daemon=True).start()


def _report(child: int) -> None:
    _, status = os.waitpid(child, 0)
    print(f"ended {child} {os.waitstatus_to_exitcode(status)}", flush=True)


def _become(wanted: dict[str, object], command: object) -> None:
    os.chdir(str(wanted["folder"]))
    log = os.open(str(wanted["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.argv = ["tfqat", *wanted["arguments"]]  # type: ignore[misc]
    code = 1
    try:
        command()  # type: ignore[operator]
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
