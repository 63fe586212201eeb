"""The processes that work on one run together, and the devices of each, as the recipe's `distribution` block says.

The chief runs the whole run. The others hold what the recipe names, and wait: for each part of the work that all do together (calibration,
training) the chief sends a message, then every process calls the same function. So what one process alone decides, measures or writes
is the chief's, and the others need no folder in common with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.errors import RecipeError, TfqatError, TrainingError, WorkerError
from tfqat.recipe.distribution import DistributionConfig

_CHUNK = 1 << 26
"""Bytes of a message that are sent at once."""

_SLURM_PORT = 8888
"""The first port of a host under Slurm; its further processes take the next ones."""

_IS_ABOUT_PROCESSES = re.compile("collective|coordination", re.IGNORECASE)
"""What TensorFlow writes of a process that is gone; a data pipeline can raise the same classes."""

_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


@dataclass(frozen=True, kw_only=True)
class Message:
    """What the chief sends: what is to be done, its settings as a JSON object, and files by name."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """An uncompressed zip file."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("message.json", json.dumps({"kind": self.kind, "settings": self.settings}))
            for name, content in self.files.items():
                archive.writestr(f"files/{name}", content)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Message:
        """The inverse of `to_bytes`."""
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            head = json.loads(archive.read("message.json"))
            names = [name for name in archive.namelist() if name.startswith("files/")]
            return cls(**head, files={name.removeprefix("files/"): archive.read(name) for name in names})

    def unpack(self, folder: Path) -> None:
        """Write the files."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


class Workers:
    """The processes of a run, seen from one of them; without a strategy it is alone.

    Attributes:
        strategy: of tf.distribute; None: one device.
        index: of this process, from 0; the chief's is 0.
        count: of processes.
        synchronizes_batchnorm: as the recipe says.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy | None = None, *, index: int = 0, count: int = 1, synchronizes_batchnorm: bool = True
    ) -> None:
        self.strategy = strategy
        self.index, self.count = index, count
        self.synchronizes_batchnorm = synchronizes_batchnorm
        self._together = False

    @property
    def is_chief(self) -> bool:
        """Whether this process decides and writes."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """The devices of all processes."""
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    def scope(self) -> AbstractContextManager[Any]:
        """Within it variables and training are those of the strategy."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    @contextmanager
    def together(self, message: Message) -> Iterator[None]:
        """For the chief: have the others call what they call for this message; the block is the chief's own part of it.

        Raises:
            WorkerError: another process was lost.
        """
        self._together = True
        self._send(message)
        with self.meeting():
            yield
        self._together = False

    def receive(self) -> Message:
        """For the others: wait for the chief's next message.

        Raises:
            WorkerError: the chief failed, or was lost.
        """
        message = Message.from_bytes(self._broadcast(b""))
        if message.kind == "failed":
            raise WorkerError(f"the chief stopped: {message.settings['reason']}")
        return message

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Turns what TensorFlow raises in the block when another process is gone into a WorkerError.

        Raises:
            WorkerError: another process was lost.
        """
        try:
            yield
        except (TrainingError, *_LOST) as error:
            cause = error.__cause__ if isinstance(error, TrainingError) else error
            if self.count == 1 or not isinstance(cause, _LOST) or not _IS_ABOUT_PROCESSES.search(str(cause)):
                raise
            raise _lost(cause) from error

    @contextmanager
    def released(self) -> Iterator[None]:
        """For the chief: at the end of the block tell the others that it is over, or that it failed and why."""
        try:
            yield
        except BaseException as error:
            # Those that are in the middle of something together do not listen; they notice that this process is gone.
            if self.is_chief and not self._together and not isinstance(error, WorkerError):
                reason = str(error) if isinstance(error, TfqatError) else type(error).__name__
                with contextlib.suppress(Exception):  # whatever it is, the error at hand is the one to see
                    self._send(Message(kind="failed", settings={"reason": reason}))
            raise
        if self.is_chief:
            with contextlib.suppress(Exception):  # a process that is gone by now has done its part
                self._send(Message(kind="end"))

    def check_agreement(self, facts: Mapping[str, Any]) -> None:
        """Make sure that all processes have the same settings and data; every process calls this.

        Args:
            facts: what has to be the same, by the names that the message uses; JSON values.

        Raises:
            WorkerError: in every process, if one differs from the chief.
        """
        if self.count == 1:
            return
        own = chief = json.loads(json.dumps(facts))
        if self.is_chief:
            self._send(Message(kind="facts", settings=own))
        else:
            chief = self.receive().settings
        differing = [name for name in own if own[name] != chief.get(name)]
        with self.meeting():
            others = int(self._sum(np.asarray([bool(differing)], np.int64))[0])
        if others:
            found = f"this one has another {', '.join(differing)} than the chief" if differing else f"{others} differ from the chief"
            raise WorkerError(f"the processes of a run need the same recipe, --set values and data; {found}")

    def _send(self, message: Message) -> None:
        if self.count > 1:
            self._broadcast(message.to_bytes())

    def _broadcast(self, content: bytes) -> bytes:
        """The chief's bytes, in every process; the others give none."""
        with self.meeting():
            size = int(self._sum(np.asarray([len(content)], np.int64))[0])
            padded = np.frombuffer(content + b"\0" * (-size % 4), np.int32) if content else np.zeros(-(-size // 4), np.int32)
            parts = [self._sum(padded[start : start + _CHUNK // 4]) for start in range(0, len(padded), _CHUNK // 4)]
        return np.concatenate(parts).tobytes()[:size]

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes."""
        assert self.strategy is not None  # several processes have one
        given = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values if context.replica_id_in_sync_group % self._here == 0 else np.zeros_like(values))
        )
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, given, axis=None).numpy()

    @property
    def _here(self) -> int:
        """The devices of this process."""
        return self.replicas // self.count


def _lost(error: Exception) -> WorkerError:
    """What to raise for an error of TensorFlow that says that another process is gone."""
    reason = " ".join(str(getattr(error, "message", error)).split())[:300]
    return WorkerError(
        "another process of this run was lost; look at what it printed last, then start all of them again, the chief with --resume "
        f"(TensorFlow: {reason})"
    )


def join(config: DistributionConfig | None, *, key: str = "distribution.strategy") -> Workers:
    """Set up the devices and processes that a recipe wants. Has to come before anything that TensorFlow computes.

    Args:
        config: the recipe's block; None: this process works alone on one device.
        key: how messages name the block's `strategy`.

    Raises:
        RecipeError: `multi_worker`, and neither TF_CONFIG nor Slurm names the processes.
        WorkerError: what they say cannot be used, or the processes cannot be connected.
    """
    if config is None:
        return Workers()
    if config.strategy == "mirrored":
        return Workers(tf.distribute.MirroredStrategy(), synchronizes_batchnorm=config.synchronized_batchnorm)
    spec, task = _cluster(key)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(spec), task_type=task[0], task_id=task[1], rpc_layer="grpc"
    )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise WorkerError(
            f"{key}: multi_worker: process {task[0]} {task[1]} at {spec[task[0]][task[1]]} cannot be connected with the others: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    order = [(kind, index) for kind in ("chief", "worker") for index in range(len(spec.get(kind, [])))]
    return Workers(strategy, index=order.index(task), count=len(order), synchronizes_batchnorm=config.synchronized_batchnorm)


def processes_of_tf_config() -> int:
    """How many processes TF_CONFIG names, for a run whose recipe does not use it; 1 if it names none."""
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG", "{}"))["cluster"]
        return sum(len(cluster.get(kind, [])) for kind in ("chief", "worker"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 1


def _cluster(key: str) -> tuple[dict[str, list[str]], tuple[str, int]]:
    """The addresses of all processes by kind, and which one this is."""
    text = os.environ.get("TF_CONFIG")
    if text:
        return _from_tf_config(text)
    if "SLURM_PROCID" in os.environ:
        return _from_slurm()
    raise RecipeError(
        [
            f"{key}: multi_worker needs TF_CONFIG or Slurm's environment, and there is neither: start with srun, or set TF_CONFIG on each "
            'host, such as {"cluster": {"worker": ["host0:8888", "host1:8888"]}, "task": {"type": "worker", "index": 0}}; '
            "for all GPUs of one machine take mirrored"
        ]
    )


def _from_tf_config(text: str) -> tuple[dict[str, list[str]], tuple[str, int]]:
    expected = 'expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        spec = {kind: list(config["cluster"][kind]) for kind in ("chief", "worker") if kind in config["cluster"]}
        kind, index = config["task"]["type"], int(config["task"]["index"])
        if not 0 <= index < len(spec[kind]):
            raise KeyError(f"{kind} {index}")
    except (ValueError, KeyError, TypeError) as error:
        raise WorkerError(
            f"TF_CONFIG cannot be used: {type(error).__name__}: {error}; {expected}, of chief and worker tasks only"
        ) from error
    return spec, (kind, index)


def _from_slurm() -> tuple[dict[str, list[str]], tuple[str, int]]:
    """TensorFlow's own resolver sorts hosts as text (node10 before node9), and sets CUDA_VISIBLE_DEVICES whatever it was (2.21)."""
    from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import expand_hostlist, expand_tasks_per_node

    try:
        names = ("SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
        rank, nodes, tasks = (os.environ[name] for name in names)
        counts = zip(expand_hostlist(nodes), expand_tasks_per_node(tasks), strict=True)
        hosts = [(host, number) for host, count in counts for number in range(count)]
        host, local = hosts[int(rank)]
    except (KeyError, ValueError, IndexError) as error:
        raise WorkerError(
            f"Slurm's environment cannot be used: {type(error).__name__}: {error}; start the processes with srun, whose step sets "
            "SLURM_PROCID, SLURM_STEP_NODELIST and SLURM_STEP_TASKS_PER_NODE"
        ) from error
    here = os.environ.get("SLURMD_NODENAME", host)
    if here != host:
        raise WorkerError(f"Slurm runs task {rank} on {here}, expected {host}: start the processes with srun --distribution=block")
    _take_gpus(local, sum(one == host for one, _ in hosts))
    return {"worker": [f"{host}:{_SLURM_PORT + number}" for host, number in hosts]}, ("worker", int(rank))


def _take_gpus(local: int, processes: int) -> None:
    """The part of this host's GPUs that is the process's own, where Slurm has not given each process its own."""
    gpus = tf.config.list_physical_devices("GPU")
    share = len(gpus) // processes
    if processes > 1 and share:
        tf.config.set_visible_devices(gpus[local * share : (local + 1) * share], "GPU")
