"""Workers as actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfqat.analysis.executors_crew import Crew
from tfqat.analysis.executors_worker import Outcome, Task, Worker
from tfqat.errors import RecipeError, TfqatError


@contextlib.contextmanager
def ray_crew(workers: int, payload: bytes, batches: Sequence[Any], *, gpus: bool) -> Iterator[Crew]:
    """A crew of `workers` actors, which end with the block.

    They run in the cluster that this process is connected to, else in the one that `ray.init` finds (RAY_ADDRESS, or one that runs on
    this machine), else in a new one that ends with the block.

    Args:
        workers: how many.
        payload: a pickled `executors_payload.Payload`.
        batches: inputs as numpy.
        gpus: each worker needs one, or a part of one where there are fewer.

    Raises:
        RecipeError: Ray is not installed.
        TfqatError: no cluster can be reached, or it has no GPU where one is needed.
    """
    ray = _ray()
    with _connected(ray), contextlib.ExitStack() as stack:
        options = {"num_cpus": _share(ray, "CPU", workers), "num_gpus": _share(ray, "GPU", workers) if gpus else 0}
        shared = ray.put(payload), [ray.put(batch) for batch in batches]
        kind = ray.remote(max_restarts=0, scheduling_strategy="SPREAD", **options)(Worker)
        crew = Crew([_Actor(ray, kind.remote(quiet=True), number, *shared) for number in range(workers)])
        stack.callback(crew.close)
        yield crew


class _Actor:
    """One actor; `payload` and `batches` are in Ray's object store, once for each machine."""

    def __init__(self, ray: Any, actor: Any, number: int, payload: Any, batches: Sequence[Any]) -> None:
        self._ray, self._actor, self._number, self._payload, self._batches = ray, actor, number, payload, batches

    def start(self) -> Outcome:
        """See `Remote`."""
        return self._get(self._actor.start.remote(self._payload, self._number))

    def run(self, batch: int, task: Task) -> Outcome:
        """See `Remote`."""
        value, error = self._get(self._actor.run.remote(self._batches[batch], task))
        # Copied, because what a meter keeps would stay in the object store.
        return [(change, [np.copy(output) for output in outputs]) for change, outputs in value or ()], error

    def kill(self) -> None:
        """See `Remote`."""
        self._ray.kill(self._actor)

    def _get(self, reference: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise TfqatError(
                f"sensitivity: a worker of the Ray cluster ended: {_first_line(error)}. Its machine needs tfqat and memory for the model; "
                "set sensitivity.workers to fewer, or sensitivity.executor to local"
            ) from error
        return outcome


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise RecipeError(
            [f"sensitivity.executor: ray needs the package ray ({error}): pip install 'tfqat[ray]', or set it to local"]
        ) from error


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TfqatError(f"sensitivity.executor: ray cannot connect to a cluster (RAY_ADDRESS): {_first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()  # of a cluster that was there before it only takes leave


def _share(ray: Any, resource: str, workers: int) -> float:
    """How much of a resource a worker asks for: 1, or a part where the cluster has fewer than workers, so that all find a place."""
    total = float(ray.cluster_resources().get(resource, 0))
    if total == 0 and resource == "GPU":
        raise TfqatError("sensitivity.executor: the Ray cluster has no GPU, this process has one, and the results would differ")
    share = min(1.0, total / workers)
    return int(share * 1e4) / 1e4  # Ray's own precision


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
