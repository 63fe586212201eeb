"""What fake quantization costs a training step and an evaluation: `python benchmarks/qat_step.py`; `--quick`: without ResNet50.

Float, tfqat's model as `qat_compile` compiles it, and TFMOT's `quantize_model` where it takes the network, step by step in turns in one
process; ratios are to the float step of the same turn: median (least - most of the middle half). The steps are those that `model.fit` and
`model.evaluate` run, on one batch in memory. Memory is the peak of processes of their own. Exit code 1 if a figure is out
of its limit.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import tf_keras
from figures import Figure, show
from tensorflow_model_optimization.quantization.keras import quantize_model as tfmot_quantize_model

import tfqat

ROOT = Path(__file__).resolve().parent.parent
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
MODELS = ("float", "tfqat", "tfqat, learned ranges", "TFMOT")
MEMORY_OPTION = "--memory-of"

Network = tuple[Callable[[], Any], int]
"""What builds the float model, and the batch size of the step."""


def _fashion_mnist() -> Any:
    return tfqat.load_model(ROOT / "examples" / "fashion_mnist" / "float.keras")


def _resnet50() -> Any:
    return tf_keras.applications.ResNet50(weights=None, input_shape=(96, 96, 3), classes=100, classifier_activation=None)


NETWORKS: Mapping[str, Network] = {"Fashion-MNIST": (_fashion_mnist, 64), "ResNet50 96 px": (_resnet50, 64)}
MEMORY_ROUNDS = 5  # the order in which TensorFlow runs what is ready differs from process to process, and with it the peak
STEP_LIMITS = {"Fashion-MNIST": 1.10, "ResNet50 96 px": 1.05}


def main() -> int:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without ResNet50")
    parser.add_argument("--rounds", type=int, default=60, help="turns of the small network (60); the large one gets a sixth")
    parser.add_argument("--xla", action="store_true", help="steps compiled by XLA, too: slow on a CPU")
    parser.add_argument(MEMORY_OPTION, nargs=2, dest="memory_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        return print_memory_of(*arguments.memory_of)
    return 0 if show(figures(quick=arguments.quick, rounds=arguments.rounds, xla=arguments.xla)) else 1


def figures(*, quick: bool, rounds: int, xla: bool) -> Iterator[Figure]:
    """Every figure."""
    for name in list(NETWORKS)[: 1 if quick else 2]:
        turns = rounds if name == "Fashion-MNIST" else max(5, rounds // 6)
        yield from _steps(name, turns, jit=False)
        yield from _memory(name)
        if xla:
            yield from _steps(name, max(5, turns // 6), jit=True)


def _steps(name: str, turns: int, *, jit: bool) -> Iterator[Figure]:
    models = {which: model for which in MODELS if (model := _compiled(name, which, jit=jit)) is not None}
    batch = _batch(name)
    train = {which: _train_step(model, batch) for which, model in models.items()}
    test = {which: _test_step(model, batch) for which, model in models.items()}
    suffix = ", XLA" if jit else ""
    for kind, steps, limits in (("training step", train, STEP_LIMITS[name]), ("evaluation", test, 1.15)):
        times = in_turns(steps, turns)
        tfmot = ratios(times, "TFMOT") if "TFMOT" in times else None
        for which in times:
            found = ratios(times, which)
            median = statistics.median(found)
            seconds = f"{statistics.median(times[which]) * 1e3:.1f} ms"
            judged = which == "tfqat" and not jit
            beaten = not judged or kind != "training step" or tfmot is None or median <= statistics.median(tfmot)
            limit = f"<= {limits} and <= TFMOT's" if judged and kind == "training step" else f"<= {limits}" if judged else ""
            yield Figure(
                name=f"{name}, {kind}{suffix}: {which} / float, {seconds}",
                value=f"{median:.3f} ({_quartiles(found)})",
                limit=limit,
                kept=not judged or (median <= limits and beaten),
            )


def _memory(name: str) -> Iterator[Figure]:
    peaks: dict[str, list[float]] = {which: [] for which in MODELS[:2]}
    for _ in range(MEMORY_ROUNDS):
        for which, found in peaks.items():
            command = [sys.executable, __file__, MEMORY_OPTION, name, which]
            found.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1e6)
    ratios = [one / other for one, other in zip(peaks["tfqat"], peaks["float"], strict=True)]
    grown = statistics.median(ratios)
    value = f"{grown:.2f} ({min(ratios):.2f} - {max(ratios):.2f}), {statistics.median(peaks['tfqat']):.2f} GB"
    yield Figure(name=f"{name}: peak memory of training, tfqat / float", value=value, limit="<= 1.25", kept=grown <= 1.25)


def print_memory_of(name: str, which: str) -> int:
    """Train three steps and print the peak memory of this process in KB, from the first step on."""
    model, batch = _compiled(name, which, jit=False), _batch(name)
    step = _train_step(model, batch)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: calibration has a limit of its own
    for _ in range(3):
        step()
    print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
    return 0


def _compiled(name: str, which: str, *, jit: bool) -> Any:
    """A model ready for `fit`; None where TFMOT does not take the network."""
    model = NETWORKS[name][0]()
    if which == "TFMOT":
        try:
            model = tfmot_quantize_model(model)
        except (ValueError, RuntimeError, AttributeError) as error:
            print(f"TFMOT's quantize_model does not take {name}: {str(error)[:120]}", file=sys.stderr)
            return None
    if which in ("float", "TFMOT"):
        model.compile(tf_keras.optimizers.SGD(1e-6, momentum=0.9), LOSS, metrics=["accuracy"], jit_compile=jit)
        return model
    images, _ = _batch(name)
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, [images], batches=1)
    learned = {"amax": {"weights": "learned", "activations": "learned"}} if "learned" in which else {}
    plan = tfqat.qat_plan({"epochs": 10, "batch_size": 64, "learning_rate": 1e-4, "steps_per_epoch": 10}, learned)
    return tfqat.qat_compile(qmodel, plan, LOSS, ["accuracy"], jit_compile=jit)


def _batch(name: str) -> tuple[tf.Tensor, tf.Tensor]:
    shape, size = NETWORKS[name][0]().input_shape[1:], NETWORKS[name][1]
    images = tf.random.stateless_normal((size, *shape), (0, 1))
    return images, tf.random.stateless_uniform((size,), (0, 2), 0, 10, tf.int64)


def _train_step(model: Any, batch: Any) -> Callable[[], Any]:
    """What `fit` calls for each batch."""
    step = model.make_train_function()
    iterator = iter(tf.data.Dataset.from_tensors(batch).cache().repeat())
    return lambda: float(step(iterator)["loss"])


def _test_step(model: Any, batch: Any) -> Callable[[], Any]:
    """What `evaluate` calls for each batch."""
    step = model.make_test_function()
    iterator = iter(tf.data.Dataset.from_tensors(batch).cache().repeat())
    return lambda: float(step(iterator)["loss"])


def in_turns(steps: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each step, one after the other in every turn; the first three turns are not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(turns + 3):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number >= 3:
                times[name].append(time.perf_counter() - started)
    return times


def ratios(times: Mapping[str, list[float]], which: str) -> list[float]:
    """The times of one over those of `float`, turn by turn."""
    return [one / other for one, other in zip(times[which], times["float"], strict=True)]


def _quartiles(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.3f} - {high:.3f}"


if __name__ == "__main__":
    sys.exit(main())
