"""Workers as processes of this machine, which are talked to through their standard input and output."""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from tfqat.analysis.executors_crew import Crew
from tfqat.analysis.executors_worker import Outcome, Task
from tfqat.errors import TfqatError

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tfqat.analysis.executors_worker import serve; serve()"
"""Nothing of the caller's main module is run again in a worker, as `multiprocessing` would, so that scripts need no guard."""


@contextlib.contextmanager
def local_crew(workers: int, payload: bytes, batches: Sequence[Any]) -> Iterator[Crew]:
    """A crew of `workers` processes. They end with the block, and with this process however that ends.

    Args:
        workers: how many.
        payload: a pickled `executors_payload.Payload`.
        batches: inputs as numpy.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(workers):
            log = stack.enter_context(tempfile.TemporaryFile())
            processes.append(stack.enter_context(contextlib.closing(_Process(number, payload, batches, log))))
        crew = Crew(processes)
        stack.callback(crew.close)
        yield crew


class _Process:
    """A worker process; `log` takes what it writes."""

    def __init__(self, number: int, payload: bytes, batches: Sequence[Any], log: IO[bytes]) -> None:
        self._number, self._payload, self._batches, self._log = number, payload, batches, log
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    def start(self) -> Outcome:
        """See `Remote`."""
        return self._call(self._payload, self._number)

    def run(self, batch: int, task: Task) -> Outcome:
        """See `Remote`."""
        return self._call(self._batches[batch], task)

    def kill(self) -> None:
        """See `Remote`."""
        self._process.kill()

    def close(self) -> None:
        """Kill it and free what it held."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a request that the dead process did not read is flushed here
                stream.close()  # type: ignore[union-attr]  # both are pipes

    def _call(self, *arguments: Any) -> Outcome:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None  # both are pipes
        try:
            pickle.dump(arguments, requests, protocol=5)
            requests.flush()
            outcome: Outcome = pickle.load(answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:  # the last one: it died within an answer
            raise TfqatError(self._death()) from error
        return outcome

    def _death(self) -> str:
        self._process.kill()  # where it only closed its output
        code = self._process.wait()
        reason = f"ended with exit code {code}" if code >= 0 else f"was killed by signal {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            reason += ", as the system does when memory runs out"
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        wrote = f"; it wrote: {lines[-1].strip()[:300]}" if lines and code != -signal.SIGKILL else ""
        return f"sensitivity: worker process {self._process.pid} {reason}{wrote}. Set sensitivity.workers to fewer, or to 1"
