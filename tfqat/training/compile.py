"""Compiles a calibrated model for quantization-aware training: quantizers, optimizer, and the steps that `model.fit` runs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import tf_keras

from tfqat.errors import TrainingError
from tfqat.models import graph as model_graph
from tfqat.placement.rules.classes import activation_name
from tfqat.quantize import state
from tfqat.quantize.quantizers import Learning, quantizers
from tfqat.recipe.modifiers import QatPlan
from tfqat.training.distill import Distillation
from tfqat.training.precision import MixedPrecision, scaled

_STEPS = ("train_step", "test_step", "predict_step")


def qat_compile(qmodel: Any, plan: QatPlan, loss: Any, metrics: Any = (), *, teacher: Any = None, **options: Any) -> Any:
    """Compile a calibrated quantized model for fine-tuning by `fit`.

    From then on `fit`, `evaluate` and `predict` run with all quantizers on, without looking at their `enabled` state: that makes their
    steps faster. `qmodel.compile` takes that back; calling the model itself has never changed. What the plan wants at certain steps, the
    learning rate and a frozen BatchNorm among it, is done by `tfqat.qat_callbacks`.

    Args:
        qmodel: a calibrated quantized model; it is compiled in place. A `train_step` of its class is kept.
        plan: from `tfqat.qat_plan`.
        loss: a Keras loss, or what `compile` takes for several outputs.
        metrics: Keras metrics, or what `compile` takes for several outputs.
        teacher: the float model, for a plan with `distill`.
        options: what else `compile` takes: `loss_weights`, `weighted_metrics`, `jit_compile`, `steps_per_execution`, `run_eagerly`.

    Returns:
        `qmodel`.

    Raises:
        NotCalibratedError: a quantizer has no range, so that training would not see its rounding.
        TrainingError: the plan averages weights and does not know the steps per epoch; it distills and there is no teacher, the teacher has
            other outputs or lacks a layer, or the model has a `train_step` of its own.
    """
    for text in plan.warnings:
        warnings.warn(text, stacklevel=2)
    return compile_quantized(qmodel, plan, loss, metrics, teacher=teacher, **options)


def compile_quantized(qmodel: Any, plan: QatPlan, loss: Any, metrics: Any = (), *, teacher: Any = None, **options: Any) -> Any:
    """`qat_compile` without the plan's warnings."""
    state.ranges(qmodel)
    _restore_steps(qmodel)
    own_step = type(qmodel).train_step is not tf_keras.Model.train_step
    distillation = _distillation(qmodel, plan, loss, teacher, own_step=own_step)
    set_learning(qmodel, plan)
    _compile(qmodel, plan, loss, metrics, **options)
    if distillation is not None:
        object.__setattr__(qmodel, "train_step", functools.partial(distillation.train_step, qmodel))
        qmodel.distribute_reduction_method = "first"  # what the step reports is of all replicas; Keras would add it up
    _set_precision(qmodel, plan)
    for name in _STEPS:
        object.__setattr__(qmodel, name, _with_quantizers_on(getattr(qmodel, name)))
    object.__setattr__(qmodel, "compile", functools.partial(_compile_plainly, qmodel))
    return qmodel


def compile_float(model: Any, plan: QatPlan, loss: Any, metrics: Any = (), **options: Any) -> Any:
    """Compile a float model, the control, with the optimizer and in the precision of a plan."""
    vars(model).pop("train_step", None)
    _compile(model, plan, loss, metrics, **options)
    _set_precision(model, plan)
    return model


def _compile(model: Any, plan: QatPlan, loss: Any, metrics: Any = (), **options: Any) -> None:
    chosen = metrics if isinstance(metrics, Mapping) else list(metrics)
    optimizer = make_optimizer(plan)
    ranges = [handle.amax for handle in _handles(model).values()]
    if plan.weight_decay and ranges:
        optimizer.exclude_from_weight_decay(var_list=ranges)
    model.compile(optimizer=scaled(optimizer, plan.precision), loss=loss, metrics=chosen, **options)


def _set_precision(model: Any, plan: QatPlan) -> None:
    if plan.precision != "float32":
        object.__setattr__(model, "train_step", MixedPrecision(model, plan.precision).step(model.train_step))


def set_learning(qmodel: Any, plan: QatPlan) -> None:
    """Have the quantizers learn as a plan says, and Keras train the ranges that are trained.

    Points that share a scale keep the calibrated one: trained one by one they would no longer be equal.
    """
    relus = _behind_relu(qmodel)
    for handle in state.handles(qmodel).values():
        amax = plan.weights_amax if handle.weight is not None else plan.activations_amax
        if handle.point.scale_group is not None or amax == "frozen":
            learning = Learning(gradient=plan.gradient)
        elif amax == "dynamic":
            learning = Learning(amax="dynamic", gradient=plan.gradient)
        else:
            learning = Learning(amax="pact" if amax == "pact" and handle.point.id in relus else "lsq")
        state.set_learning(handle, learning)


def end_learning(qmodel: Any) -> None:
    """Have all quantizers keep their ranges as they are."""
    for handle in state.handles(qmodel).values():
        state.set_learning(handle, Learning())


def make_optimizer(plan: QatPlan) -> Any:
    """The optimizer of a plan, at its peak learning rate.

    Raises:
        TrainingError: the plan averages weights and does not know the steps per epoch.
    """
    settings: dict[str, Any] = {
        "learning_rate": plan.learning_rate,
        "weight_decay": plan.weight_decay or None,
        "global_clipnorm": plan.clip_norm,
    }
    if plan.ema:
        if plan.steps_per_epoch is None:
            raise TrainingError("qat.ema needs the steps per epoch: call plan.with_steps(steps_per_epoch) before qat_compile")
        # Keras puts the averages in place of the weights after the last step of each epoch, so that they are what is validated and kept.
        settings |= {"use_ema": True, "ema_overwrite_frequency": plan.steps_per_epoch}
    if plan.optimizer.name == "adamw":  # Keras's AdamW takes 0, but not None
        return tf_keras.optimizers.AdamW(**settings | {"weight_decay": plan.weight_decay})
    if plan.optimizer.name == "sgd":
        return tf_keras.optimizers.SGD(momentum=plan.optimizer.momentum, nesterov=plan.optimizer.nesterov, **settings)
    if plan.optimizer.name == "rmsprop":
        return tf_keras.optimizers.RMSprop(momentum=plan.optimizer.momentum, **settings)
    return tf_keras.optimizers.Adam(**settings)


def _behind_relu(qmodel: Any) -> set[str]:
    """The activation points whose tensor a ReLU makes."""
    layers = {layer.name: getattr(layer, "layer", layer) for layer in qmodel.layers}
    graph = model_graph.read(qmodel)

    def makes_relu(node: model_graph.Node) -> bool:
        layer = layers[node.layer]
        unwrapped = replace(node, class_name=type(layer).__name__, config=layer.get_config())
        return activation_name(unwrapped) in ("relu", "relu6")

    points = [handle.point for handle in state.handles(qmodel).values() if handle.weight is None]
    return {point.id for point in points if makes_relu(graph.node(point.source))}


def _handles(model: Any) -> Mapping[str, state.Handle]:
    return state.handles(model) if state.is_quantized(model) else {}


def _distillation(qmodel: Any, plan: QatPlan, loss: Any, teacher: Any, *, own_step: bool) -> Distillation | None:
    if plan.distill is None:
        return None
    if teacher is None:
        raise TrainingError("qat.distill needs the float model to learn from: qat_compile(..., teacher=model)")
    if own_step:
        raise TrainingError(
            f"qat.distill replaces the training step, and {type(qmodel).__name__} has one of its own: remove distill, or distill there"
        )
    return Distillation(qmodel, teacher, plan.distill, loss)


def _with_quantizers_on(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def run(*arguments: Any, **keywords: Any) -> Any:
        with quantizers(on=True):
            return step(*arguments, **keywords)

    return run


def _restore_steps(qmodel: Any) -> None:
    """Take back what an earlier `qat_compile` put before the methods of the model's class."""
    if "train_step" in vars(qmodel):
        qmodel.distribute_reduction_method = None
    for name in (*_STEPS, "compile"):
        vars(qmodel).pop(name, None)


def _compile_plainly(qmodel: Any, *arguments: Any, **options: Any) -> None:
    """Keras's `compile`, with the steps of the model's class, and ranges that are not trained."""
    _restore_steps(qmodel)
    end_learning(qmodel)
    qmodel.compile(*arguments, **options)
