"""The settings of TensorFlow that its numbers depend on, taken from one process to another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfqat import __version__
from tfqat.errors import TfqatError

_NUMERIC = ("TF_", "ONEDNN_", "DNNL_", "XLA_", "NVIDIA_TF32_OVERRIDE")
"""How the environment variables begin that change what TensorFlow computes, or how it uses memory."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What TensorFlow's results depend on beside the model: the same threads give the same order of sums.

    Attributes:
        versions: of the packages that compute.
        environment: variables.
        threads: within an operation and between operations.
        deterministic: whether operations have to be.
        tensor_float_32: whether products of float32 may use it.
        jit: what XLA compiles.
        options: of the graph optimizer.
        gpus: the numbers of those that TensorFlow uses; empty for none.
    """

    versions: Mapping[str, str]
    environment: Mapping[str, str]
    threads: tuple[int, int]
    deterministic: bool
    tensor_float_32: bool
    jit: str
    options: Mapping[str, Any]
    gpus: tuple[int, ...]

    @classmethod
    def here(cls) -> Settings:
        """Those of this process."""
        import tensorflow as tf
        from tensorflow.python.framework.config import is_op_determinism_enabled  # has no public name (TensorFlow 2.21)

        threading, physical = tf.config.threading, tf.config.list_physical_devices("GPU")
        visible = {device.name for device in tf.config.get_visible_devices("GPU")}
        return cls(
            versions=_versions(),
            environment={key: value for key, value in os.environ.items() if key.startswith(_NUMERIC)} | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            threads=(
                threading.get_intra_op_parallelism_threads() or _cores("TF_NUM_INTRAOP_THREADS"),
                threading.get_inter_op_parallelism_threads() or _cores("TF_NUM_INTEROP_THREADS"),
            ),
            deterministic=is_op_determinism_enabled(),
            tensor_float_32=tf.config.experimental.tensor_float_32_execution_enabled(),
            jit=tf.config.optimizer.get_jit(),
            options=tf.config.optimizer.get_experimental_options(),
            gpus=tuple(number for number, device in enumerate(physical) if device.name in visible),
        )

    def apply(self, number: int) -> None:
        """Make them those of this process, which has not used TensorFlow yet. Worker `number` takes one GPU, by turns.

        Raises:
            TfqatError: other versions are installed here, or there is no GPU where one is needed.
        """
        os.environ.update(self.environment)
        import tensorflow as tf

        if _versions() != self.versions:
            raise TfqatError(
                f"a worker of sensitivity.executor has {_listed(_versions())}, this process has {_listed(self.versions)}, and the results "
                "may differ: install the same versions"
            )
        tf.config.threading.set_intra_op_parallelism_threads(self.threads[0])
        tf.config.threading.set_inter_op_parallelism_threads(self.threads[1])
        tf.config.experimental.enable_tensor_float_32_execution(self.tensor_float_32)
        tf.config.optimizer.set_experimental_options(dict(self.options))
        if self.jit:
            tf.config.optimizer.set_jit(self.jit)
        if self.deterministic:
            tf.config.experimental.enable_op_determinism()
            tf.random.set_seed(0)  # without one, new layers may not draw first weights then; they are overwritten
        present = tf.config.list_physical_devices("GPU")
        if self.gpus and not present:
            raise TfqatError("a worker of sensitivity.executor has no GPU, this process has, and the results would differ")
        own = self.gpus[number % len(self.gpus)] % len(present) if self.gpus else 0
        tf.config.set_visible_devices([present[own]] if self.gpus else [], "GPU")
        for gpu in tf.config.get_visible_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # other workers, and the process that started them, need some too


def _versions() -> dict[str, str]:
    import tensorflow as tf
    import tf_keras

    return {"tfqat": __version__, "tensorflow": tf.__version__, "tf_keras": tf_keras.__version__}


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _cores(variable: str) -> int:
    """What TensorFlow takes where no number of threads is set: the variable, else the cores that this process may use."""
    given = os.environ.get(variable, "")
    if given.isdigit() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
