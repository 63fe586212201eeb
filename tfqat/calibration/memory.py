"""How many examples of a batch are computed at once, so that their tensors fit into memory.

On a GPU, TensorFlow raises `ResourceExhaustedError` and goes on. On a CPU it does so only with TF_ENABLE_ONEDNN_OPTS=0: oneDNN's allocator
dies of a segmentation fault where memory is limited (2.21), and where it is not, the system kills the process. So there it is estimated
beforehand what a batch takes, and compared with what is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfqat.models import graph as model_graph

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

OUT_OF_MEMORY = (tf.errors.ResourceExhaustedError, MemoryError)
"""What TensorFlow and Python raise where memory is short."""

LEAST = 2
"""Examples at once: TensorFlow's CPU kernels compute one alone in another order of sums (2.21), and the ranges would differ."""

_BYTES = 4
_COPIES = 3  # of the tensor that is counted: its magnitudes, their bins, and the counts
_CGROUP = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def fitting(each: int, examples: int) -> int:
    """How many of a batch's examples of `each` bytes fit into memory at once: all, or half of them, or a quarter ...; at least LEAST.

    All of them on a GPU, whose memory TensorFlow knows better.
    """
    if tf.config.list_logical_devices("GPU"):
        return examples
    free = free_bytes()
    while free is not None and examples > LEAST and each * examples > free:
        examples = halved(examples)
    return examples


def halved(examples: int) -> int:
    """Half of so many, rounded up, but not below LEAST."""
    return max(LEAST, -(-examples // 2))


def bytes_per_example(model: Any) -> int:
    """What the outputs of all layers take for one example, and the copies of the largest; axes without fixed size count as 1.

    An upper bound, as TensorFlow frees a tensor when all that read it have run.
    """
    sizes = [math.prod(size or 1 for size in tensor.shape[1:]) for tensor in model_graph.tensors(model).values()]
    return _BYTES * (sum(sizes) + _COPIES * max(sizes, default=0))


def free_bytes() -> int | None:
    """The memory that this process can still get: of the machine, of its container, of its address space; None where no one says."""
    found = [*_of_machine(), *_of_containers(), *_of_limits()]
    return max(0, min(found)) if found else None


def _of_machine() -> Iterator[int]:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    except OSError:
        return


def _of_containers() -> Iterator[int]:
    for limit, used in _CGROUP:
        try:
            yield int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # not there, or `max`
            continue


def _of_limits() -> Iterator[int]:
    if resource is None:
        return
    limits = {"VmSize": resource.getrlimit(resource.RLIMIT_AS)[0], "VmData": resource.getrlimit(resource.RLIMIT_DATA)[0]}
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return
    used = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if name in limits}
    yield from (limit - used[name] for name, limit in limits.items() if limit != resource.RLIM_INFINITY and name in used)
